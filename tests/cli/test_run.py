"""Running a program: which words mean what, what is printed where, and the exit codes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dl.cli import main
from dl.limits import limit_options
from dl.wasm.encode import ModuleBuilder, i32_const, unsigned
from dl.wasm.types import FuncType
from tests.support.command_line import GREET, HELLO, MEMORY, TRAPS, UNDEFINED, WASI, DlRun
from tests.support.modules import imports, library, pie, returns
from tests.support.paths import ROOT


def looping() -> bytes:
    """Return a program that computes for ever."""
    build = ModuleBuilder()
    build.import_("env", "memory", MEMORY)
    build.export("_start", "func", build.function(FuncType((), ()), b"\x03\x40\x0c\x00\x0b"))
    return build.build()


def test_preload_and_bind_now(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A preloaded library's function wins over that of a needed one; --bind-now refuses what is missing."""
    main_wasm, first = tmp_path / "main.wasm", tmp_path / "libfirst.so"
    leaves = (
        '(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))',
        '(func (export "_start") (call $exit (call $f)))',
    )
    main_wasm.write_bytes(pie(imports("f"), *leaves, needed=["libsecond.so"]))
    first.write_bytes(library(returns("f", 1)))
    (tmp_path / "libsecond.so").write_bytes(library(returns("f", 2)))
    lacking = tmp_path / "lacking.wasm"
    lacking.write_bytes(pie(imports("nowhere"), '(func (export "_start"))'))

    codes = [
        main([*words])
        for words in (
            [str(main_wasm)],
            ["--preload", str(first), str(main_wasm)],
            ["--preload", "libfirst.so", "--bind-now", str(main_wasm)],
            [str(lacking)],
        )
    ]
    assert codes == [2, 1, 1, 0]
    assert main(["--bind-now", str(lacking)]) not in (0, 1, 2)
    assert "nowhere" in capfd.readouterr().err


def test_arguments_after_the_program_belong_to_it(capfd: pytest.CaptureFixture[str]) -> None:
    """Words after the program, options and `--` among them, reach the program as they are."""
    code = main([WASI, "args", "--trace", "--", "-L", "--help"])

    assert code == 0
    assert capfd.readouterr().out.splitlines()[-4:] == ["[--trace]", "[--]", "[-L]", "[--help]"]


def test_run_is_the_default_and_has_a_name(capfd: pytest.CaptureFixture[str]) -> None:
    """`dlrun run APP` is `dlrun APP`."""
    codes = [main([HELLO, "x"]), main(["run", HELLO, "x"])]
    out = capfd.readouterr().out

    half = len(out) // 2
    assert codes == [0, 0]
    assert out[:half] == out[half:]
    assert "hello <x>" in out


@pytest.mark.parametrize(("given", "returned"), [(0, 0), (7, 7), (255, 255)])
def test_exit_code_of_the_program_passes_through(given: int, returned: int, dlrun: DlRun) -> None:
    """The process ends with the program's exit code."""
    assert dlrun(WASI, "exit", str(given)).returncode == returned


def test_exit_code_of_the_program_is_cut_to_eight_bits(tmp_path: Path) -> None:
    """An exit code of more than eight bits is taken modulo 256, as by every shell."""
    build = ModuleBuilder()
    leave = build.import_("wasi_snapshot_preview1", "proc_exit", FuncType(("i32",), ()))
    build.import_("env", "memory", MEMORY)
    build.export(
        "_start", "func", build.function(FuncType((), ()), i32_const(0x1234) + b"\x10" + unsigned(leave))
    )
    app = tmp_path / "app.wasm"
    app.write_bytes(build.build())

    assert main([str(app)]) == 0x34


def test_a_program_named_like_a_command_is_reached_by_its_path(dlrun: DlRun, tmp_path: Path) -> None:
    """`./inspect` is a program, `inspect` the command."""
    shutil.copy(WASI, tmp_path / "inspect")

    assert dlrun("./inspect", "exit", "5").returncode == 5
    assert dlrun("inspect", "inspect").stdout.startswith("inspect\n  kind")


def test_libraries_are_found_beside_the_program_and_in_the_library_path(dlrun: DlRun, tmp_path: Path) -> None:
    """A program's own directory is searched, after `-L` and DLRUN_LIBRARY_PATH, and a missing library says where it was not."""
    app = tmp_path / "app" / "main.wasm"
    first, second = tmp_path / "one", tmp_path / "two"
    for directory in (app.parent, first, second):
        directory.mkdir()
    shutil.copy(HELLO, app)

    missing = dlrun("-L", f"{first}:{second}", str(app))
    assert missing.returncode == 127
    assert missing.stderr.startswith(
        f"dlrun: error: cannot link libgreet.so: not found ({first}/libgreet.so: no such file; "
    )
    assert f"{app.parent}/libgreet.wasm: no such file" in missing.stderr
    assert missing.stderr.count("\n") == 1

    shutil.copy(GREET, second)
    by_option = dlrun("-L", str(first), "-L", str(second), str(app))
    by_variable = dlrun(str(app), environment={"DLRUN_LIBRARY_PATH": f"{first}:{second}"})
    shutil.move(second / "libgreet.so", app.parent)
    beside = dlrun(str(app))

    assert [by_option.returncode, by_variable.returncode, beside.returncode] == [0, 0, 0]


def test_directories_and_variables_are_what_the_options_say(dlrun: DlRun, tmp_path: Path) -> None:
    """The program sees the directories and variables it is given, and no others."""
    (tmp_path / "note.txt").write_text("written here\n")

    renamed = dlrun("--dir", f"/data::{tmp_path}", WASI, "cat", "/data/note.txt")
    as_it_is = dlrun("--dir", ".", WASI, "cat", "note.txt")
    hidden = dlrun(WASI, "cat", str(tmp_path / "note.txt"))
    passed_on = dlrun("--env", "COLOUR", WASI, "env", "COLOUR", environment={"COLOUR": "red"})
    not_passed_on = dlrun(WASI, "env", "COLOUR", environment={"COLOUR": "red"})

    assert "written here" in renamed.stdout
    assert "written here" in as_it_is.stdout
    assert "written here" not in hidden.stdout
    assert "red" in passed_on.stdout
    assert "red" not in not_passed_on.stdout


def test_stack_size_is_what_the_option_says() -> None:
    """A recursion that fits a large stack overflows a small one."""
    assert main(["--stack-size", "64k", TRAPS, "recursion"]) == 134
    assert main(["--stack-size", "2MiB", HELLO]) == 0


def test_memory_sizes_bound_the_program(capfd: pytest.CaptureFixture[str]) -> None:
    """A maximum below what data and stack need cannot be linked; a range that holds it runs."""
    too_small = main(["--memory-max", "64k", HELLO])
    message = capfd.readouterr().err

    assert too_small == 127
    assert "1 page" in message or "pages" in message
    assert main(["--memory-min", "4M", "--memory-max", "16M", HELLO]) == 0


def test_trace_tells_every_step_on_standard_error(dlrun: DlRun) -> None:
    """`--trace` names each module, where it was placed and what ran, and leaves standard output alone."""
    traced, plain = dlrun("--trace", HELLO), dlrun(HELLO)

    assert traced.stdout == plain.stdout
    assert plain.stderr == ""
    lines = traced.stderr.splitlines()
    assert all(line.startswith("dlrun: ") for line in lines)
    assert any("libgreet.so" in line and "loaded" in line for line in lines)
    assert any("__wasm_call_ctors" in line for line in lines)


# endings


def test_a_trap_shows_its_reason_and_the_stack(dlrun: DlRun) -> None:
    """A trap ends with 134, one line for its reason and one for each frame, the innermost first."""
    done = dlrun(TRAPS, "library")

    lines = done.stderr.splitlines()
    assert done.returncode == 134
    assert lines[0] == "dlrun: error: guest trapped: unreachable"
    assert lines[1] == "  at libtrap.so!fall"
    assert all(line.startswith("  at ") for line in lines[1:])


def test_a_call_of_what_nobody_provides_ends_with_127(dlrun: DlRun) -> None:
    """A program runs until it calls an import that nothing defines, and then names it."""
    done = dlrun(UNDEFINED, "call")

    assert done.returncode == 127
    assert done.stdout.startswith("started")
    assert "nothing provides it" in done.stderr


@pytest.mark.parametrize("options", [[], ["--interrupts"]])
@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_interrupt_ends_a_program_that_computes(options: list[str], tmp_path: Path) -> None:
    """Ctrl-C ends a program in an endless loop with 130, also one whose code cannot be interrupted."""
    app = tmp_path / "loop.wasm"
    app.write_bytes(looping())
    # A process that a test runner starts in the background may ignore SIGINT.
    script = (
        "import signal, sys\n"
        "from dl.cli import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"sys.exit(main({[*options, '--trace', str(app)]!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stderr is not None
    # Linking is over when the last link step was told; what follows is the loop, or the moment before it.
    while "loaded" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=60)

    assert process.returncode == 130
    assert messages.splitlines()[-1] == "dlrun: error: interrupted"


@pytest.mark.parametrize("option", [about["option"] for about in limit_options().values()])
def test_every_limit_has_an_option(option: str) -> None:
    """Each limit of a program can be set; 1 is below what some need, and never an internal error."""
    assert main([f"--{option}", "1", HELLO]) in (0, 127)
    assert main([f"--{option}", "0", HELLO]) == 2


def test_a_limit_that_is_reached_says_how_to_raise_it(dlrun: DlRun) -> None:
    """The error of a program that needs more names the option."""
    ended = dlrun("--max-memory", "64k", HELLO)

    assert ended.returncode == 127
    assert "dlrun --max-memory" in ended.stderr
