"""The command line itself: what is refused, the help, and files that are no modules."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dl.cli import main
from dl.wasm.encode import unsigned
from tests.support.command_line import HELLO, MEM_INFO, DlRun, library, needed, subsection
from tests.support.paths import FIXTURES

# a wrong command line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["insepct", HELLO], "did you mean 'inspect'?"),
        (["--timeout", "1", "--no-interrupts", HELLO], "--timeout needs"),
        (["--timeout", "nan", HELLO], "--timeout must be a number of seconds"),
        (["--timeout=-inf", HELLO], "--timeout"),
        (["--bogus", HELLO], "no such option"),
        (["--stack-size", "9x", HELLO], "'9x' is not a size"),
        (["--stack-size", "0", HELLO], "'0' is not between 1 and 4294967296 bytes"),
        (["--memory-max", "5G", HELLO], "'5G' is not between"),
        (["--memory-min", "2M", "--memory-max", "1M", HELLO], "--memory-min is more than --memory-max"),
        (["--memory-min", "2M", str(FIXTURES / "static/unshared/main.wasm")], "defines its own memory"),
        (["--env", "=x", HELLO], "'=x' has no name"),
        (["--env", "DLRUN_IS_NOT_SET", HELLO], "'DLRUN_IS_NOT_SET' is not set here"),
        (["--dir", "/data::/nowhere/at/all", HELLO], "'/nowhere/at/all' is not a directory"),
        (["--dir", "::", HELLO], "is not GUEST::HOST"),
        (["--side-memory", "elsewhere", HELLO], "'elsewhere' is not one of"),
        (["-L"], "requires an argument"),
        (["--trace"], "missing argument"),
        (["inspect"], "missing argument 'FILE...'"),
        (["deps", HELLO, HELLO], "unexpected extra argument"),
        (["deps", "--bogus", HELLO], "no such option"),
        ([HELLO, "\udcff"], "is not UTF-8"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_code_2(
    words: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A wrong command line prints one line that says what is wrong and where to read more, and returns 2."""
    code = main(words)
    captured = capfd.readouterr()

    assert (code, captured.out) == (2, "")
    assert captured.err.startswith("dlrun: error: ")
    assert message in captured.err
    assert "--help'" in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    "words", [["--help"], ["-h"], ["run", "--help"], ["inspect", "--help"], ["deps", "-h"]]
)
def test_help_explains_and_returns_0(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """`--help` prints the usage on standard output."""
    code = main(words)
    captured = capfd.readouterr()

    assert (code, captured.err) == (0, "")
    assert captured.out.startswith("Usage: dlrun")


def test_help_has_the_options_of_running_and_examples(capfd: pytest.CaptureFixture[str]) -> None:
    """`dlrun --help` names the options for running, the commands, examples and the exit codes."""
    main(["--help"])
    text = capfd.readouterr().out

    for word in ("--library-path", "--dir", "--env", "--trace", "inspect", "deps", "Examples:", "127"):
        assert word in text


def test_version_names_the_distribution(dlrun: DlRun) -> None:
    """`--version` prints one line."""
    done = dlrun("--version")

    assert done.returncode == 0
    assert done.stdout.startswith("dlrun ")
    assert done.stdout.count("\n") == 1


# bad input

COMMANDS: list[list[str]] = [[], ["inspect"], ["inspect", "--json"], ["deps"]]


def garbage(directory: Path) -> dict[str, Path]:
    """Write files that are no modules, and return them by what they are."""
    good = Path(HELLO).read_bytes()
    contents = {
        "empty": b"",
        "one byte": b"\0",
        "text": b"#!/bin/sh\necho hello\n",
        "ELF": b"\x7fELF\2\1\1" + bytes(64),
        "magic only": good[:4],
        "header of another version": b"\0asm\x02\0\0\0",
        "component": b"\0asm\x0d\0\1\0",
        "half": good[: len(good) // 2],
        "dylink cut": good[:24],
        "last byte missing": good[:-1],
        "lying section": good[:8] + b"\0\xff\xff\xff\xff\x0f" + good[14:],
        "memory of 4 GiB": library(
            subsection(1, unsigned(0xFFFFFFFF) + unsigned(99) + unsigned(0) + unsigned(0))
        ),
        "random": bytes(range(256)) * 16,
    }
    files = {}
    for number, (what, content) in enumerate(contents.items()):
        files[what] = directory / f"bad{number}.wasm"
        files[what].write_bytes(content)
    files["directory"] = directory
    files["missing"] = directory / "missing.wasm"
    files["below a file"] = files["text"] / "x.wasm"
    loop = directory / "loop.wasm"
    loop.symlink_to(loop)
    files["circular link"] = loop
    files["too long"] = directory / ("x" * 5000)
    files["control characters"] = directory / "bad\x1b[31m\nname.wasm"
    files["control characters"].write_bytes(b"\x1b[2J")
    files["NUL"] = Path("a\0b.wasm")
    files["not UTF-8"] = directory / "\udcff.wasm"
    return files


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: " ".join(words) or "run")
def test_bad_files_are_one_line_and_never_a_traceback(
    command: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever the file is, the command names it in one line on standard error and returns 127 (2 for an unusable name)."""
    for what, path in garbage(tmp_path).items():
        code = main([*command, str(path)])
        captured = capfd.readouterr()

        assert code == (2 if what == "not UTF-8" and not command else 127), what
        assert captured.out == "", what
        assert captured.err.startswith("dlrun: error: "), what
        assert captured.err.count("\n") == 1, what
        assert "Traceback" not in captured.err, what
        assert "\x1b" not in captured.err, what


def test_every_truncation_of_a_library_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A library cut at any byte is refused by `inspect`, or still is a module; never a traceback."""
    whole = library(MEM_INFO, needed("libother.so"))
    cut = tmp_path / "cut.so"
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        code = main(["inspect", str(cut)])
        captured = capfd.readouterr()

        assert code in (0, 127)
        assert (captured.err == "") == (code == 0)
        assert "Traceback" not in captured.err


def test_dlrun_traceback_shows_where_an_error_was_raised(dlrun: DlRun) -> None:
    """DLRUN_TRACEBACK=1 adds Python's traceback to the message."""
    done = dlrun("missing.wasm", environment={"DLRUN_TRACEBACK": "1"})

    assert done.returncode == 127
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1] == "dlrun: error: missing.wasm: no such file or directory"


def test_no_words_show_the_help(capfd: pytest.CaptureFixture[str]) -> None:
    """A bare `dlrun` is a question, and gets the help for an answer."""
    assert main([]) == 0
    captured = capfd.readouterr()
    assert captured.out.startswith("Usage: dlrun")
    assert captured.err == ""


def test_version_names_engine_and_python(dlrun: DlRun) -> None:
    """What a report of a fault needs first is on one line."""
    assert re.fullmatch(
        r"dlrun \S+ \(wasmtime 5\d\.\S+, CPython 3\.\d+\.\d+\S*\)\n", dlrun("--version").stdout
    )


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_can_complete(dlrun: DlRun, shell: str) -> None:
    """The script for a shell is printed; asked by it, dlrun gives commands, options and files."""
    script = dlrun("", environment={"_DLRUN_COMPLETE": f"{shell}_source"})
    assert script.returncode == 0
    assert "_DLRUN_COMPLETE" in script.stdout
    asked = {"_DLRUN_COMPLETE": "bash_complete", "COMP_WORDS": "dlrun ins", "COMP_CWORD": "1"}
    assert dlrun("", environment=asked).stdout.splitlines() == ["file,ins", "plain,inspect"]
    asked = {"_DLRUN_COMPLETE": "bash_complete", "COMP_WORDS": "dlrun deps --js", "COMP_CWORD": "2"}
    assert dlrun("", environment=asked).stdout.splitlines() == ["plain,--json"]


def test_a_directory_of_libraries_that_is_not_there_is_reported_once(dlrun: DlRun, tmp_path: Path) -> None:
    """A misspelt `-L` is said in one line, however often it is asked for, and stops nothing."""
    for name in ("one.so", "two.so"):
        (tmp_path / name).write_bytes(library(MEM_INFO))
    done = dlrun("patch", "-L", "nosuch:.", "-L", "nosuch", "--rename", "seven=eight", "one.so", "two.so")
    assert done.returncode == 0
    assert done.stderr == "dlrun: warning: nosuch, where libraries are looked for, is not a directory\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["new", "pluginhost", "x"], "'pluginhost' is no template; did you mean 'plugin-host'?"),
        (["new", "zzz", "x"], "'zzz' is no template; there is plugin-host"),
        (["new"], "missing argument 'TEMPLATE'"),
        (["isnpect", "x"], "'isnpect' is neither a file nor a command; did you mean 'inspect'?"),
        (["cache", "inof"], "did you mean 'info'?"),
    ],
)
def test_misspelt_words_are_told(dlrun_here: DlRun, words: list[str], said: str) -> None:
    """A command or a template that there is not is named in one line, with the nearest that there is."""
    done = dlrun_here(*words)

    assert done.returncode == 2
    assert said in done.stderr.replace("Did", "did")
    assert len(done.stderr.splitlines()) == 1


def test_a_bare_group_of_commands_shows_its_help(dlrun_here: DlRun) -> None:
    """`dlrun cache` without a command of it shows which there are, and is a wrong command line."""
    done = dlrun_here("cache")

    assert done.returncode == 2
    assert "verify " in done.stderr
    assert "\\n" not in done.stderr


def test_variables_that_are_not_utf_8_stay_behind(dlrun: DlRun) -> None:
    """`--inherit-env` passes on what programs can take, and names what they cannot; `--env` in its place is no news."""
    odd = {"ODD": os.fsdecode(b"a\xffb"), "EVEN": "1"}
    done = dlrun("--inherit-env", HELLO, environment=odd)
    assert (done.returncode, done.stdout) == (dlrun(HELLO).returncode, dlrun(HELLO).stdout)
    assert done.stderr.startswith("dlrun: warning: ")
    assert done.stderr.rstrip().endswith("--inherit-env: ODD")
    assert dlrun("--inherit-env", "--env", "ODD=plain", HELLO, environment=odd).stderr == ""


def test_standard_input_that_is_closed_is_an_empty_file() -> None:
    """`-` without a standard input is told like a file that is empty, and no error of dlrun's own."""
    done = subprocess.run(
        f"{sys.executable} -m dl inspect - <&-",
        shell=True,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stdout) == (127, "")
    assert done.stderr == "dlrun: error: -: malformed at byte 0x0: the file is empty\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--timeout", "x", "app.wasm"], "'x' is not a valid number"),
        (["stress", "--threads", "1.5"], "'1.5' is not a valid whole number"),
        (["map", "app.wasm", "-o", "page.html"], "no such option '-o'"),
    ],
)
def test_wrong_numbers_and_options_are_called_what_they_are(
    dlrun: DlRun, words: list[str], said: str
) -> None:
    """What is no number, and an option that a command lacks, are refused in plain words."""
    done = dlrun(*words)

    assert done.returncode == 2
    assert said in done.stderr
