"""The command line: which words mean what, what is printed where, and the exit codes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dl.cli import main
from dl.wasm.encode import ModuleBuilder, i32_const, name_bytes, section, unsigned
from dl.wasm.types import FuncType, GlobalType, Limits, MemoryType

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "fixtures"
HELLO = str(FIXTURES / "hello/shared/main.wasm")
GREET = str(FIXTURES / "hello/shared/libgreet.so")
PLUGINS = str(FIXTURES / "plugins/shared/main.wasm")
TRAPS = str(FIXTURES / "traps/shared/main.wasm")
WASI = str(FIXTURES / "wasi/unshared/main.wasm")
UNDEFINED = str(FIXTURES / "undefined/shared/main.wasm")

NOTHING = FuncType((), ())
MEMORY = MemoryType(Limits(1, 100, shared=False, is64=False))

DlRun = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def dlrun(tmp_path: Path) -> DlRun:
    """Runs `python -m dl` in an empty directory, as a process of its own."""

    def run(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("environment", {})}
        return subprocess.run(
            [sys.executable, "-m", "dl", *words],
            env=environment,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            **options,
        )

    return run


def looping() -> bytes:
    """Return a program that computes for ever."""
    build = ModuleBuilder()
    build.import_("env", "memory", MEMORY)
    build.export("_start", "func", build.function(NOTHING, b"\x03\x40\x0c\x00\x0b"))
    return build.build()


def library(*subsections: bytes, imports: bool = False) -> bytes:
    """Return a library with the given dylink subsections."""
    build = ModuleBuilder()
    build.import_("env", "memory", MEMORY)
    if imports:
        build.import_("env", "missing_one", FuncType(("i32", "f64"), ()))
    build.export("seven", "func", build.function(FuncType((), ("i32",)), i32_const(7)))
    build.export("here", "global", build.global_(GlobalType("i32", mutable=False), 16))
    dylink = section(0, name_bytes("dylink.0") + b"".join(subsections))
    wasm = build.build()
    return wasm[:8] + dylink + wasm[8:]


def subsection(kind: int, payload: bytes) -> bytes:
    return bytes([kind]) + unsigned(len(payload)) + payload


MEM_INFO = subsection(1, unsigned(4096) + unsigned(4) + unsigned(3) + unsigned(1))


def needed(*names: str) -> bytes:
    return subsection(2, unsigned(len(names)) + b"".join(map(name_bytes, names)))


# running


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
    build.export("_start", "func", build.function(NOTHING, i32_const(0x1234) + b"\x10" + unsigned(leave)))
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
    assert all(line.startswith("dlrun: link: ") for line in lines)
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


# a wrong command line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no program given"),
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
        (["inspect"], "missing argument 'FILE'"),
        (["inspect", HELLO, HELLO], "unexpected extra argument"),
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


# inspect


def inspected(path: Path | str, capfd: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Return what `inspect --json` prints for a file."""
    assert main(["inspect", "--json", str(path)]) == 0
    report: dict[str, Any] = json.loads(capfd.readouterr().out)
    return report


def test_inspect_reports_every_subsection(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """JSON has all five subsections in their units, the flags by name, and unknown subsections as they are."""
    path = tmp_path / "lib.so"
    path.write_bytes(
        library(
            MEM_INFO,
            needed("liba.so", "libb.so"),
            subsection(
                3, unsigned(2) + name_bytes("seven") + unsigned(0x01) + name_bytes("here") + unsigned(0x8104)
            ),
            subsection(4, unsigned(1) + name_bytes("env") + name_bytes("missing_one") + unsigned(0x11)),
            subsection(5, unsigned(2) + name_bytes("$ORIGIN") + name_bytes("/lib")),
            subsection(9, b"\x01\x02\x03"),
            imports=True,
        )
    )
    report = inspected(path, capfd)

    assert (report["memory_size"], report["memory_alignment"]) == (4096, 16)
    assert (report["table_size"], report["table_alignment"]) == (3, 2)
    assert report["needed"] == ["liba.so", "libb.so"]
    assert report["runtime_path"] == ["$ORIGIN", "/lib"]
    assert report["export_info"] == [
        {"name": "seven", "flags": ["binding_weak"], "value": 1},
        {"name": "here", "flags": ["visibility_hidden", "tls", "0x8000"], "value": 0x8104},
    ]
    assert report["import_info"] == [
        {"module": "env", "name": "missing_one", "flags": ["binding_weak", "undefined"], "value": 0x11}
    ]
    assert [(u["type"], u["size"], u["data"]) for u in report["unknown_subsections"]] == [(9, 3, "010203")]
    assert (report["kind"], report["legacy"]) == ("side", False)
    assert report["dylink"]["section"] == "dylink.0"
    assert report["imports"][0]["type"] == "memory 1 100"
    assert report["imports"][1:] == [
        {
            "module": "env",
            "name": "missing_one",
            "kind": "func",
            "type": "(i32, f64) -> ()",
            "params": ["i32", "f64"],
            "results": [],
        }
    ]
    here = report["exports"][1]
    assert (here["name"], here["kind"], here["type"], here["init"]) == (
        "here",
        "global",
        "global i32",
        "i32.const 16",
    )


DOCUMENTED_KEYS = {
    "file", "size", "kind", "module_name", "takes_libraries", "takes_no_libraries_because", "dylink", "legacy",
    "memory_size", "memory_alignment", "table_size", "table_alignment", "needed", "runtime_path", "export_info",
    "import_info", "unknown_subsections", "imports", "exports", "memories", "tables", "start", "functions", "globals",
    "tags", "element_segments", "data_segments", "sections", "features", "target_features", "target_architecture",
    "notes",
}  # fmt: skip


MODULES = sorted(path for path in FIXTURES.rglob("*") if path.suffix in (".wasm", ".so"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(FIXTURES)))
def test_inspect_reads_every_fixture(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Every built module can be inspected, has exactly the documented keys, and sections that fill the file."""
    report = inspected(path, capfd)

    assert report.keys() == DOCUMENTED_KEYS
    assert 8 + sum(s["size"] for s in report["sections"]) == report["size"] == path.stat().st_size
    assert (report["kind"] == "static") == (report["dylink"] is None) == (report["memory_size"] is None)
    if path.suffix == ".so":
        assert report["kind"] == "side"


def test_every_key_is_documented() -> None:
    """`docs/cli.md` explains each key of the JSON."""
    text = (ROOT / "docs/cli.md").read_text()

    assert [key for key in sorted(DOCUMENTED_KEYS) if f"`{key}`" not in text] == []


def test_inspect_tells_the_kinds_of_module_apart(capfd: pytest.CaptureFixture[str]) -> None:
    """A program is a main module, a library a side module, and a module without a dylink section an ordinary one."""
    main_module, side = inspected(HELLO, capfd), inspected(GREET, capfd)
    static = inspected(FIXTURES / "static/unshared/stock.wasm", capfd)

    assert (main_module["kind"], main_module["takes_libraries"]) == ("pie", True)
    assert (side["kind"], side["takes_libraries"]) == ("side", None)
    assert (static["kind"], static["takes_libraries"]) == ("static", False)
    assert "table" in static["takes_no_libraries_because"]
    assert "shared-memory" in main_module["features"]
    assert "shared-memory" not in static["features"]


def test_inspect_is_plain_text_when_it_is_no_terminal(dlrun: DlRun) -> None:
    """Into a pipe no colours are written and no line is wrapped, even if a colour is demanded."""
    done = dlrun("inspect", PLUGINS, environment={"FORCE_COLOR": "1", "COLUMNS": "20"})

    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert any(len(line) > 60 for line in done.stdout.splitlines())
    assert all(line == line.rstrip() for line in done.stdout.splitlines())


def test_names_in_a_module_cannot_control_the_terminal(tmp_path: Path, dlrun: DlRun) -> None:
    """Control characters in names are written as escapes, in listings and in errors."""
    path = tmp_path / "evil.so"
    path.write_bytes(library(MEM_INFO, needed("lib\x1b]0;owned\x07\nkind  safe.so")))

    for command in (["inspect"], ["deps"], []):
        done = dlrun(*command, str(path))
        text = done.stdout + done.stderr

        assert "\x1b" not in text
        assert "\x07" not in text
        assert "lib\\x1b]0;owned\\x07\\nkind  safe.so" in text


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(("variable", "colours"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colours_are_for_terminals_that_want_them(variable: dict[str, str], colours: bool) -> None:
    """On a terminal the listing has colours, unless NO_COLOR is set."""
    import pty

    master, slave = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TERM")}
    with subprocess.Popen(
        [sys.executable, "-m", "dl", "inspect", GREET],
        stdout=slave,
        stdin=subprocess.DEVNULL,
        env={**environment, "TERM": "xterm-256color", **variable},
        cwd=ROOT,
    ) as process:
        os.close(slave)
        written = b""
        while True:
            try:
                chunk = os.read(master, 65536)
            except OSError:
                break
            if not chunk:
                break
            written += chunk
        process.wait(timeout=60)
    os.close(master)

    assert (b"\x1b[36m" in written) == colours
    assert b"libgreet.so" in written


def test_nobody_reading_is_no_error(tmp_path: Path) -> None:
    """When the reader of a pipe goes away, the command ends quietly with 141."""
    reading, writing = os.pipe()
    os.close(reading)
    with subprocess.Popen(
        [sys.executable, "-m", "dl", "inspect", PLUGINS], stdout=writing, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        os.close(writing)
        _, messages = process.communicate(timeout=60)

    assert (process.returncode, messages) == (141, b"")


# deps


def test_deps_shows_cycles_and_repetitions_once(capfd: pytest.CaptureFixture[str]) -> None:
    """A cycle is marked where it closes, a library that was shown is not unfolded again, and both end."""
    assert main(["deps", str(FIXTURES / "cyclic/shared/main.wasm")]) == 0
    cyclic = capfd.readouterr().out
    assert main(["deps", "--json", str(FIXTURES / "diamond/shared/main.wasm")]) == 0
    diamond = json.loads(capfd.readouterr().out)

    assert cyclic.count("(cycle)") == 1
    assert cyclic.count("(shown above)") == 1
    first, second, third = diamond["needed"]
    assert diamond["complete"]
    assert [n["name"] for n in (first, second, third)] == ["liba.so", "libb.so", "libc_state.so"]
    assert not first["needed"][0]["repeated"]
    assert second["needed"][0]["repeated"]
    assert third["repeated"]


def test_deps_uses_run_paths(capfd: pytest.CaptureFixture[str]) -> None:
    """Libraries are found through the run path of the library that needs them, and `.so` as `.wasm`."""
    assert main(["deps", "--json", str(FIXTURES / "runpath/shared/main.wasm")]) == 0
    tree = json.loads(capfd.readouterr().out)
    middle = tree["needed"][0]["needed"][0]

    assert [n["name"] for n in middle["needed"]] == ["libside.so", "libwasm.so"]
    assert middle["needed"][1]["path"].endswith("nested/libwasm.wasm")


def test_deps_tells_every_path_tried_and_goes_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A missing or broken library is reported with what was tried, the rest of the tree is shown, and the code is 127."""
    (tmp_path / "top.so").write_bytes(
        library(MEM_INFO, needed("libgone.so", "libbad.so", "./plain.wasm", "libgood.so"))
    )
    (tmp_path / "libgood.so").write_bytes(library(MEM_INFO))
    (tmp_path / "libbad.so").write_bytes(Path(HELLO).read_bytes()[:100])
    build = ModuleBuilder()
    (tmp_path / "plain.wasm").write_bytes(build.build())
    extra = tmp_path / "extra"
    extra.mkdir()

    code = main(["deps", "-L", str(extra), "--json", str(tmp_path / "top.so")])
    tree = json.loads(capfd.readouterr().out)
    gone, bad, plain, good = tree["needed"]

    assert code == 127
    assert not tree["complete"]
    assert [t["path"] for t in gone["tried"]] == [
        str(directory / name) for directory in (extra, tmp_path) for name in ("libgone.so", "libgone.wasm")
    ]
    assert "malformed" in bad["error"]
    assert not plain["found"]
    assert good["found"]
    assert main(["deps", "-L", str(extra), str(tmp_path / "top.so")]) == 127
    assert f"{extra}/libgone.so: no such file" in capfd.readouterr().out


def test_deps_of_a_module_that_needs_nothing_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    """A module without needed libraries is complete."""
    assert main(["deps", GREET]) == 0
    assert "needs no libraries" in capfd.readouterr().out
