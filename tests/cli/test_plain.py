"""A command line that has nothing but a program and its arguments is not parsed, which would take longer than to run it."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from dl.cli import app, main
from dl.cli.commands import dlrun as command
from dl.cli.running import Running, run_program
from dl.records import fields
from tests.support.command_line import DlRun, seen_after_hello
from tests.support.paths import ROOT

HELLO = ROOT / "fixtures/hello/shared/main.wasm"


def test_options_that_nobody_gives_are_as_if_nothing_was_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The defaults of the options, and those of a program that is run without click, are the same."""
    seen: list[Running] = []

    def note(program: str, arguments: tuple[str, ...], options: Running) -> int:
        assert (program, arguments) == ("app.wasm", ("--verbose", "x"))
        seen.append(options)
        return 0

    monkeypatch.setattr("dl.cli.running.run_program", note)
    with command.make_context("dlrun", ["app.wasm", "--verbose", "x"]) as context:
        command.invoke(context)

    for field in fields(Running):
        assert getattr(seen[0], field.name) == getattr(Running(), field.name), field.name


@pytest.mark.parametrize("words", [("one", "--two"), ()])
def test_both_ways_end_alike(words: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    """The same output and exit code with `run` before the program, which is parsed, and without."""
    outcomes = []
    for before in ([], ["run"]):
        code = main([*before, str(HELLO), *words])
        outcomes.append((code, capfd.readouterr()))

    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("first", ["--help", "-", "cache", "missing.wasm", "directory"])
def test_what_is_no_file_is_parsed(dlrun_here: DlRun, tmp_path: Path, first: str) -> None:
    """Options, standard input, commands, and names of which there is no file; also a file with the name of a command."""
    (tmp_path / "directory").mkdir()
    (tmp_path / "cache").write_bytes(b"\0asm\1\0\0\0")

    assert not app.is_plain([first])
    assert first == "-" or dlrun_here(first).returncode in (0, 2, 127)


def test_usage_errors_need_no_context() -> None:
    """What a program cannot be given is a wrong command line, however it came."""
    with pytest.raises(click.UsageError, match="UTF-8"):
        run_program(str(HELLO), ("\udcff",), Running())


def test_running_a_program_imports_neither_click_nor_rich() -> None:
    """Nor what they import, nor the engine's package, nor OpenSSL, nor what is for type checkers alone."""
    seldom = (
        "click",
        "rich",
        "wasmtime",
        "dataclasses",
        "inspect",
        "typing_extensions",
        "json",
        "concurrent.futures",
        "importlib.metadata",
        "hashlib",
        "zlib",
        "dl.engine.protocol",
    )

    assert seen_after_hello("sys", f"[n for n in {seldom} if n in sys.modules]") == "[]"
