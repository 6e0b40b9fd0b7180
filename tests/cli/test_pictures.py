"""`dlrun graph` and `dlrun map`: pictures of what is linked, and of where it lies."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from dl.cli import main
from tests.support.command_line import HELLO, TRAPS, DlRun
from tests.support.fifos import opened_by_reader, read_from
from tests.support.modules import imports, library, pie, returns
from tests.support.paths import FIXTURES, ROOT

DIAMOND = str(FIXTURES / "diamond/shared/main.wasm")
NO_GRAPHVIZ = shutil.which("dot") is None


def until(condition: Callable[[], object]) -> None:
    """Wait until something holds."""
    for _ in range(6000):
        if condition():
            return
        threading.Event().wait(0.01)
    pytest.fail("it does not come to hold")


def told(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Run a command; return its exit code and what it printed."""
    code = main(words)
    return code, capfd.readouterr().out


class TestGraph:
    def test_bindings_and_needs(self, capfd: pytest.CaptureFixture[str]) -> None:
        """Each module is a node, each pair that is bound an arrow with the symbols."""
        code, text = told(capfd, "graph", DIAMOND)
        assert code == 0
        assert text.startswith("digraph libraries {")
        assert len(re.findall(r'label="(?:main\.wasm|liba\.so|libb\.so|libc_state\.so)"', text)) == 4
        assert re.search(r'liba\.so" -> ".*libc_state\.so" \[label="advance\\nstate"', text)

    def test_needs_without_bindings_and_what_is_undefined(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """A need that serves nobody is dashed, an undefined function has an arrow to nowhere, and names are quoted."""
        odd = 'f"]; x [\\'
        (tmp_path / "app.wasm").write_bytes(pie(imports("gone"), needed=["a.so"]))
        (tmp_path / "a.so").write_bytes(library(returns("f", 1), imports("gone")))
        (tmp_path / f"{odd.replace('/', '')}.so").write_bytes(library(returns("g", 1)))
        text = told(capfd, "graph", str(tmp_path / "app.wasm"))[1]
        assert re.search(r'app\.wasm" -> ".*a\.so" \[style=dashed', text)
        assert re.search(r'app\.wasm" -> "undefined functions" \[label="gone"', text)
        text = told(capfd, "graph", str(tmp_path / f"{odd}.so"))[1]
        assert r"f\"]; x [\\.so" in text

    @pytest.mark.skipif(NO_GRAPHVIZ, reason="needs the program `dot` of Graphviz")
    def test_a_picture_is_drawn(self, tmp_path: Path) -> None:
        """A file that ends in .svg is an SVG with the modules' names."""
        assert main(["graph", DIAMOND, "-o", str(tmp_path / "picture.svg")]) == 0
        picture = (tmp_path / "picture.svg").read_text()
        assert "<svg" in picture
        assert "libc_state.so" in picture

    def test_without_graphviz(self, dlrun: DlRun) -> None:
        """An SVG without the program that draws it is refused with what to do; text needs nothing."""
        done = dlrun("graph", "--format", "svg", DIAMOND, environment={"PATH": ""})
        assert done.returncode == 2
        assert "Graphviz" in done.stderr
        assert dlrun("graph", DIAMOND, environment={"PATH": ""}).returncode == 0


class TestMap:
    def test_a_program_as_it_is_linked(self, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        """Text, JSON and a page name the program's data and its libraries'."""
        code, text = told(capfd, "map", HELLO)
        assert code == 0
        assert [line for line in text.splitlines() if "data" in line and "libgreet.so" in line]
        report = json.loads(told(capfd, "map", "--json", HELLO)[1])
        assert {"data", "stack", "heap"} <= {region["kind"] for region in report["memory"]}
        assert report["table"][0] == {"start": 0, "end": 16, "kind": "reserved", "owner": "the linker"}
        assert main(["map", "-o", str(tmp_path / "map.html"), HELLO]) == 0
        assert "libgreet.so" in (tmp_path / "map.html").read_text()

    def test_a_program_after_its_run(self, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        """`--run` runs the program with its arguments and returns its exit code; arguments without it are refused."""
        page = str(tmp_path / "map.html")
        code, text = told(capfd, "map", "--run", "-o", page, HELLO, "one")
        assert code == main([HELLO, "one"])
        assert text == capfd.readouterr().out
        assert main(["map", HELLO, "one"]) == 2

    def test_json_of_a_run_is_not_mixed_with_its_output(self, tmp_path: Path, dlrun: DlRun) -> None:
        """With `--run --json` standard output is JSON and the program's output is on standard error; `-o` writes a file."""
        done = dlrun("map", "--run", "--json", HELLO, "one")
        printed = dlrun(HELLO, "one")
        assert json.loads(done.stdout)["memory"]
        assert (done.returncode, done.stderr) == (printed.returncode, printed.stdout)
        done = dlrun("map", "--run", "--json", "-o", "map.json", HELLO, "one")
        assert (done.returncode, done.stdout) == (printed.returncode, printed.stdout)
        assert json.loads((tmp_path / "map.json").read_text())["memory"]

    def test_after_a_trap(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        """With `--run` the map of a program that traps is written, and the exit code is that of the trap."""
        page = tmp_path / "map.html"
        assert main(["map", "--run", "-o", str(page), TRAPS, "library"]) == 134
        assert "guest trapped" in capfd.readouterr().err
        assert "libtrap.so" in page.read_text()

    def test_a_program_while_it_runs(self, tmp_path: Path) -> None:
        """`--map` writes the page when the program is linked, at each SIGUSR1 while it computes, and at its end."""
        (tmp_path / "loop.wasm").write_bytes(pie('(func (export "_start") (loop (br 0)))'))
        page = tmp_path / "map.html"
        words = ["--map", str(page), "--interrupts", str(tmp_path / "loop.wasm")]
        # A process that a test runner starts in the background may ignore SIGINT.
        script = (
            "import signal, sys\n"
            "from dl.cli import main\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            f"sys.exit(main({words!r}))"
        )
        process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL, cwd=ROOT)
        try:
            for _ in range(4):
                until(lambda: page.exists() or process.poll() is not None)
                assert process.poll() is None
                assert "loop.wasm" in page.read_text()
                page.unlink()
                process.send_signal(signal.SIGUSR1)
            until(page.exists)
            page.unlink()
            process.send_signal(signal.SIGINT)
            process.wait(60)
            assert process.returncode == 130
            assert "loop.wasm" in page.read_text()
            assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".map")] == []
        finally:
            process.kill()
            process.wait(60)

    def test_a_library_by_itself(self, capfd: pytest.CaptureFixture[str]) -> None:
        """A library is linked into an empty program."""
        code, text = told(capfd, "map", str(FIXTURES / "plugins/shared/libadd.so"))
        assert code == 0
        assert "libadd.so" in text


def test_a_file_that_cannot_be_written_is_named(dlrun: DlRun) -> None:
    """One line says which file, and why."""
    done = dlrun("--map", "/nowhere/x.html", HELLO)
    assert done.stderr == "dlrun: error: cannot write or read /nowhere/x.html: No such file or directory\n"
    done = dlrun("graph", "-o", "/nowhere/x.dot", HELLO)

    assert done.returncode == 74
    assert done.stderr == "dlrun: error: cannot write or read /nowhere/x.dot: No such file or directory\n"


def test_a_suffix_of_something_else_is_refused(dlrun_here: DlRun, tmp_path: Path) -> None:
    """A picture in a format that is not drawn is a usage error that says which there are; `--format` writes into any name."""
    done = dlrun_here("graph", HELLO, "-o", "picture.png")
    assert done.returncode == 2
    assert ".dot, .gv, .svg" in done.stderr
    assert not (tmp_path / "picture.png").exists()
    assert dlrun_here("graph", HELLO, "--format", "dot", "-o", "picture.png").returncode == 0
    assert dlrun_here("graph", HELLO, "-o", "picture.gv").returncode == 0
    assert dlrun_here("graph", HELLO, "-o", "picture").returncode == 0


def test_a_pipe_gets_each_page_of_the_map(dlrun: DlRun, tmp_path: Path) -> None:
    """`--map` writes into a pipe that is there, and leaves it there; a symbolic link to a file stays one."""
    with read_from(tmp_path / "pipe") as came:
        assert dlrun("--map", "pipe", HELLO).returncode == 0
    assert came[0].count(b"</html>") == 2
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "link").symlink_to("page.html")
    assert dlrun("--map", "link", HELLO).returncode == 0
    assert (tmp_path / "link").is_symlink()
    assert b"libgreet.so" in (tmp_path / "page.html").read_bytes()


def test_a_signal_before_the_command_line_is_imported(tmp_path: Path) -> None:
    """SIGUSR1 ends no process that is to write a map while the files of the command line are imported."""
    code = (
        "import os, signal, sys\n"
        "class Sender:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'dl.cli.app': os.kill(os.getpid(), signal.SIGUSR1)\n"
        "sys.meta_path.insert(0, Sender())\n"
        "from dl.cli import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--map", "page.html", str(HELLO)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert b"</html>" in (tmp_path / "page.html").read_bytes()


@pytest.mark.parametrize("before", [["--map", "page.html"], ["-L", "."]])
def test_a_signal_before_the_program_runs(tmp_path: Path, before: list[str]) -> None:
    """SIGUSR1 ends no process that is to write a map, also before its program is read; it does one that has no such option."""
    os.mkfifo(tmp_path / "app")
    after = [] if before[0] == "--map" else ["--map", "mine"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dl", *before, "app", *after],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        pipes: list[int] = []
        until(lambda: pipes.extend(opened_by_reader(tmp_path / "app")) or pipes or process.poll() is not None)
        process.send_signal(signal.SIGUSR1)
        with os.fdopen(pipes[0], "wb") as file:
            file.write(pie('(func (export "_start"))'))
        assert process.wait(60) == (-signal.SIGUSR1 if after else 0)
    finally:
        process.kill()
        process.wait(60)


@pytest.mark.parametrize(
    "words",
    [
        ["--timeline", "full", HELLO],
        ["--profile", "guest,full", HELLO],
        ["--map", "full", HELLO],
        ["graph", "-o", "full", HELLO],
        ["map", "-o", "full", HELLO],
    ],
)
def test_a_full_device_is_named(dlrun_here: DlRun, tmp_path: Path, words: list[str]) -> None:
    """What cannot be written at the end is said with the file's name, and the exit code is 74."""
    (tmp_path / "full").symlink_to("/dev/full")
    done = dlrun_here(*words)
    assert done.returncode == 74
    assert done.stderr == "dlrun: error: cannot write or read full: No space left on device\n"
