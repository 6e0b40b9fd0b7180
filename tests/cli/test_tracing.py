"""`dlrun --trace`: categories, what each shows, and where it goes."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from pathlib import Path

import pytest

from dl.cli import main
from dl.cli.tracing import CATEGORIES
from tests.support.command_line import HELLO, TRAPS, DlRun
from tests.support.modules import imports, library, pie, returns
from tests.support.paths import FIXTURES

LINE = re.compile(r"dlrun: \d+\.\d{6} \[(?P<thread>[^\]]+)\] (?P<category>\w+): (?P<text>.*)")


def lines(text: str) -> list[re.Match[str]]:
    """Return a trace's lines; each has a time, a thread and a category."""
    found = [LINE.fullmatch(line) for line in text.splitlines()]
    assert None not in found, text
    return [match for match in found if match]


@pytest.fixture
def program(tmp_path: Path) -> str:
    """A program that calls what two libraries define, and what nothing does."""
    (tmp_path / "app.wasm").write_bytes(
        pie(
            imports("f"),
            imports("gone"),
            '(func (export "_start") (drop (call $f)))',
            needed=["a.so", "b.so"],
        )
    )
    (tmp_path / "a.so").write_bytes(library(returns("f", 1)))
    (tmp_path / "b.so").write_bytes(library(returns("f", 2)))
    return str(tmp_path / "app.wasm")


@pytest.mark.parametrize("category", ["files", "symbols", "bindings", "statistics"])
def test_one_category_shows_itself_alone(
    category: str, program: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each line of one category is of that category, and there are some."""
    assert main([f"--trace={category}", program]) == 0
    assert {match["category"] for match in lines(capfd.readouterr().err)} == {category}


def test_several_categories_and_all(
    program: str, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two categories show both; a bare `--trace` is `all`, and leaves the program's name to be the program."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "--trace").mkdir()
    assert main(["--trace=files,statistics", program]) == 0
    assert {match["category"] for match in lines(capfd.readouterr().err)} == {"files", "statistics"}
    shown = []
    for words in (["--trace"], ["--trace=all"], ["--trace", "-L", "--trace"]):
        assert main([*words, program]) == 0
        shown.append({match["category"] for match in lines(capfd.readouterr().err)})
    assert shown[0] == shown[1] == shown[2] >= {"files", "symbols", "bindings", "statistics"}


def test_help_lists_the_categories(capfd: pytest.CaptureFixture[str]) -> None:
    """`--trace=help` needs no program, says what each category shows, and ends with 0."""
    assert main(["--trace=help"]) == 0
    text = capfd.readouterr().out
    assert all(f"  {name} " in text and what in text for name, what in CATEGORIES.items())


def test_an_unknown_category_is_a_wrong_command_line(program: str, capfd: pytest.CaptureFixture[str]) -> None:
    """The error names it, and those that there are."""
    assert main(["--trace=file", program]) == 2
    assert "'file' is none of files, symbols" in capfd.readouterr().err


def test_bindings_say_why(program: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Of a symbol with two definitions the trace names the one that counts, its rule, and why not the other."""
    assert main(["--trace=bindings", program]) == 0
    (of_f,) = (match["text"] for match in lines(capfd.readouterr().err) if "env.f " in match["text"])
    assert "\\n" not in of_f
    assert re.search(r"is that of \S*a\.so at 0x\w+: the first definition in the global scope", of_f)
    assert re.search(r"not \S*b\.so .*: it comes after \S*a\.so in the search order", of_f)


def test_symbols_say_where_it_was_looked_for(program: str, capfd: pytest.CaptureFixture[str]) -> None:
    """The modules that were searched, in order, up to the one that has it; all of them for what nobody has."""
    assert main(["--trace=symbols", program]) == 0
    texts = [match["text"] for match in lines(capfd.readouterr().err)]
    assert any(re.search(r": f: looked for in \S*app\.wasm, \S*a\.so: found in \S*a\.so", t) for t in texts)
    assert any(re.search(r": gone: looked for in .*b\.so: none of them has it", t) for t in texts)


def test_what_the_guest_looks_up(capfd: pytest.CaptureFixture[str]) -> None:
    """A program's own dlopen and dlsym are shown with what they found."""
    assert main(["--trace=symbols", str(FIXTURES / "plugins/shared/main.wasm"), "libadd.so", "-add"]) == 0
    texts = [match["text"] for match in lines(capfd.readouterr().err)]
    assert any(
        re.fullmatch(r"dlsym\(RTLD_DEFAULT, add\): looked for in .*libadd.so: found in \S*libadd.so", t)
        for t in texts
    )


def test_json_lines(program: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Each line is an object with time, thread, category and message; those of bindings have their parts as well."""
    assert main(["--trace=bindings,files", "--trace-format", "json", program]) == 0
    objects = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert {entry["category"] for entry in objects} == {"bindings", "files"}
    common = {"time", "elapsed", "process", "thread", "thread_id", "category", "level", "message"}
    assert all(common <= set(entry) for entry in objects)
    assert [entry["elapsed"] for entry in objects] == sorted(entry["elapsed"] for entry in objects)
    (of_f,) = (entry for entry in objects if entry.get("symbol") == "f")
    assert of_f["provider"].endswith("a.so")
    assert of_f["rule"] == "the first definition in the global scope"
    assert len(of_f["not"]) == 1


def test_a_file_of_its_own(program: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A file takes the trace instead of standard error, with the number of the process in its name; alone it means all."""
    assert main(["--trace-output", str(tmp_path / "trace.%p"), program]) == 0
    assert capfd.readouterr().err == ""
    (file,) = tmp_path.glob("trace.*")
    assert re.fullmatch(r"trace\.\d+", file.name)
    assert {match["category"] for match in lines(file.read_text())} >= {"files", "symbols", "bindings"}
    assert main(["--trace-output", str(tmp_path / "no" / "x"), program]) == 74


def test_loggers_are_as_before(program: str) -> None:
    """After a trace no logger of the linker's has another level or handler than before."""
    names = ["dl", *(f"dl.{name}" for name in ("link", "link.bindings", "cache", "threads", "wasix"))]
    before = [(logging.getLogger(n).level, list(logging.getLogger(n).handlers)) for n in names]
    assert main(["--trace", program]) == 0
    assert [(logging.getLogger(n).level, list(logging.getLogger(n).handlers)) for n in names] == before


def test_names_cannot_forge_lines(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A line end in the name of an import is an escape in the trace."""
    app = tmp_path / "app.wasm"
    app.write_bytes(pie('(import "env" "x\\0adlrun: 0.1 [y] files: z" (func))', '(func (export "_start"))'))
    assert main(["--trace=bindings", str(app)]) == 0
    assert "x\\ndlrun" in capfd.readouterr().err


def test_hello_is_traced_in_all(capfd: pytest.CaptureFixture[str]) -> None:
    """A C program with a library: its standard output is as without a trace."""
    assert main([HELLO]) == 0
    plain = capfd.readouterr().out
    assert main(["--trace", HELLO]) == 0
    assert capfd.readouterr().out == plain


def test_a_file_that_takes_no_more_ends_the_trace(dlrun: DlRun, tmp_path: Path) -> None:
    """A full device, or a pipe whose reader goes, is one line at the end and exit code 74; the program runs to its end."""
    expected = dlrun(HELLO)
    os.mkfifo(tmp_path / "pipe")

    def leaves() -> None:
        with (tmp_path / "pipe").open("rb") as file:
            file.readline()

    threading.Thread(target=leaves, daemon=True).start()
    (tmp_path / "full").symlink_to("/dev/full")
    for name, why in (("full", "No space left on device"), ("pipe", "Broken pipe")):
        done = dlrun("--trace-output", name, HELLO)
        assert done.stdout == expected.stdout
        assert done.stderr == f"{expected.stderr}dlrun: error: cannot write or read {name}: {why}\n"
        assert done.returncode == 74


def test_a_program_that_traps_keeps_its_exit_code_without_a_trace(dlrun: DlRun, tmp_path: Path) -> None:
    """Of a trap and a trace that cannot be written both are said, and the exit code is the trap's."""
    (tmp_path / "full").symlink_to("/dev/full")
    done = dlrun("--trace-output", "full", TRAPS, "library")
    assert done.returncode == 134
    assert "guest trapped" in done.stderr
    assert "cannot write or read full: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
