"""`dlrun` as a process: it ends without taking the interpreter apart, and what others want done at the end is done."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command_line import seen_after_hello
from tests.support.paths import ROOT


def end(body: str, *, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run a process that ends as `dlrun` does, with a function of some lines as its command line."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    code = (
        "import atexit, gc, os, sys, threading, time\nfrom dl.cli.whole_process import run_process, release_collector\n"
        f"def main():\n{lines}\ntry:\n    run_process(main)\n"
        "finally:\n    print('as usual', flush=True)"
    )
    return subprocess.run(
        [sys.executable, *flags, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        input="",
    )


def test_the_exit_code_is_that_of_the_command_line() -> None:
    """And what is still buffered is written."""
    done = end("sys.stdout.write('out')\nsys.stderr.write('err')\nreturn 42")

    assert (done.returncode, done.stdout, done.stderr) == (42, "out", "err")


def test_functions_for_the_end_run_after_threads_have_ended() -> None:
    """As at the end of any process: threads that are no daemons first, then `atexit`; a daemon holds up nothing."""
    done = end(
        "atexit.register(print, 'at exit')\n"
        "threading.Thread(target=lambda: (time.sleep(0.1), print('thread'))).start()\n"
        "threading.Thread(target=time.sleep, args=(50,), daemon=True).start()\n"
        "return 0"
    )

    assert (done.returncode, done.stdout.split("\n")) == (0, ["thread", "at exit", ""])


def test_output_that_cannot_be_written_is_told() -> None:
    """Python's own end says so; the process does not end as if all was well."""
    if not Path("/dev/full").exists():
        pytest.skip("there is no device that is always full")
    done = end("sys.stdout = open('/dev/full', 'w')\nsys.stdout.write('lost')\nreturn 0")

    assert done.returncode != 0
    assert "No space left" in done.stderr


@pytest.mark.parametrize("watched", ["sys.setprofile(lambda *_: None)", "sys.settrace(lambda *_: None)"])
def test_who_looks_at_the_process_sees_its_end(watched: str) -> None:
    """A profiler or a debugger gets control back: the process ends as usual."""
    done = end(f"{watched}\nreturn 3")

    assert (done.returncode, done.stdout) == (3, "as usual\n")


def test_cycles_are_looked_for_once_the_program_is_linked() -> None:
    """Not before, when none can be found; and what linking made is not looked at again."""
    done = end(
        "print(gc.isenabled(), gc.get_freeze_count())\nrelease_collector()\n"
        "print(gc.isenabled(), gc.get_freeze_count() > 1000)\nreturn 0"
    )

    assert done.stdout.splitlines() == ["False 0", "True True"]


def test_the_collector_is_left_alone_in_other_processes() -> None:
    """Running a command line in a process that goes on changes nothing of its collector."""
    assert seen_after_hello("gc, sys", "gc.isenabled(), gc.get_freeze_count()") == "True 0"
