"""`dlrun --invoke`: one function called from the command line, its arguments from words, its results as lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command_line import DlRun
from tests.support.modules import MEMORY, data, library, pie, returns, static

MAIN = static(
    '(func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))',
    '(func (export "long") (param i64) (result i64) (local.get 0))',
    '(func (export "half") (param f64) (result f32) (f32.demote_f64 (f64.mul (local.get 0) (f64.const 0.5))))',
    '(func (export "both") (result i32 i64) (i32.const -1) (i64.const 5000000000))',
    '(func (export "nothing"))',
    '(func (export "vector") (param v128) (result v128) (local.get 0))',
    '(func (export "$a$b") (result i32) (i32.const 8))',
    '(func (export "breaks") unreachable)',
)


@pytest.fixture
def main(tmp_path: Path) -> str:
    """A program with functions of every type."""
    (tmp_path / "main.wasm").write_bytes(MAIN)
    return "main.wasm"


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        (("add", "3", "-5"), ["-2"]),
        (("add", "0xffffffff", "2"), ["1"]),
        (("long", "-9223372036854775808"), ["-9223372036854775808"]),
        (("half", "3"), ["1.5"]),
        (("half", "inf"), ["inf"]),
        (("both",), ["-1", "5000000000"]),
        (("nothing",), []),
        (("vector", "000102030405060708090a0b0c0d0e0f"), ["000102030405060708090a0b0c0d0e0f"]),
        (("$a$b",), ["8"]),
    ],
)
def test_values(dlrun: DlRun, main: str, words: tuple[str, ...], printed: list[str]) -> None:
    """Numbers of every type go in and come out, one result a line."""
    name, *arguments = words
    done = dlrun("run", "--invoke", name, main, *arguments)
    assert (done.stdout.splitlines(), done.returncode) == (printed, 0), done.stderr


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("add", "3"), 2, "takes 2 arguments, not 1"),
        (("add", "3", "4", "5"), 2, "takes 2 arguments, not 3"),
        (("add", "3", "x"), 2, "'x' is no i32"),
        (("add", "3", "4294967296"), 2, "is no i32"),
        (("half", "one"), 2, "'one' is no f64"),
        (("vector", "00"), 2, "'00' is no v128"),
        (("absent",), 127, "undefined symbol: absent"),
        (("$nowhere$add", "1", "2"), 127, "undefined symbol: $nowhere$add"),
        (("$a",), 127, "undefined symbol: $a"),
        (("$$add",), 127, "undefined symbol: $$add"),
        (("breaks",), 134, "unreachable"),
    ],
)
def test_what_cannot_be_called(dlrun: DlRun, main: str, words: tuple[str, ...], code: int, text: str) -> None:
    """Wrong words, missing functions and traps end with their exit codes and one line that says what is wrong."""
    name, *arguments = words
    done = dlrun("run", "--invoke", name, main, *arguments)
    assert (done.stdout, done.returncode) == ("", code), done.stderr
    assert text in done.stderr


def test_of_a_library(dlrun: DlRun, tmp_path: Path) -> None:
    """`$LIB$NAME` is the function of a library that the program needs, by its base name; data is none."""
    (tmp_path / "lib.so").write_bytes(library(MEMORY, returns("f", 9), data("d", 0), memory_size=4))
    (tmp_path / "main.wasm").write_bytes(pie(returns("f", 1), needed=("lib.so",)))
    assert dlrun("--invoke", "f", "main.wasm").stdout == "1\n"
    assert dlrun("--invoke", "$lib.so$f", "main.wasm").stdout == "9\n"
    done = dlrun("--invoke", "$lib.so$d", "main.wasm")
    assert done.returncode == 127
    assert "is data, not a function" in done.stderr


def test_a_misspelt_function(dlrun_here: DlRun, main: str, tmp_path: Path) -> None:
    """The error says which function has much the same name: of a program, of a library, and of a program linked by name."""
    (tmp_path / "lib.so").write_bytes(library(returns("answer", 42)))
    (tmp_path / "app.wasm").write_bytes(pie(returns("own", 1), needed=["lib.so"]))
    for words, meant in (
        (("adds", main, "1", "2"), "add"),
        (("answr", "app.wasm"), "answer"),
        (("$lib.so$answr", "app.wasm"), "answer"),
    ):
        done = dlrun_here("--invoke", *words)
        assert done.returncode == 127
        assert done.stderr.endswith(f"; did you mean {meant}?\n"), done.stderr
    done = dlrun_here("--invoke", "adds", "--module-path", ".", main, "1", "2")
    assert done.stderr.endswith("; did you mean add?\n"), done.stderr
    assert "did you mean" not in dlrun_here("--invoke", "zzz", main).stderr
