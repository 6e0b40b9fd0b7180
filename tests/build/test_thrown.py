"""What the error for an uncaught exception of C++ says: the type that was thrown, and its text."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import dl
from tests.build.test_driver import cc, pytestmark

__all__ = ["pytestmark"]

SOURCE = """
#include <exception>
#include <stdexcept>
struct Own : virtual std::exception { const char *what() const noexcept override { return "own words"; } };
struct Other { int number; virtual ~Other() {} };
struct Both : Other, std::logic_error { Both() : std::logic_error("both") {} };
struct Plain { int number; };
int main(int count, char **arguments) {
  switch (arguments[1][0]) {
  case 'r': throw std::runtime_error("the text");
  case 'o': throw Own();
  case 'b': throw Both();
  case 'p': throw Plain();
  case 'i': throw 42;
  case 'a': std::rethrow_exception(std::make_exception_ptr(std::out_of_range("again")));
  }
}
"""
CASES = {
    "r": ("std::runtime_error", "the text"),
    "o": ("Own", "own words"),
    "b": ("Both", "both"),
    "p": ("Plain", None),
    "i": ("int", None),
    "a": ("std::out_of_range", "again"),
}


@pytest.fixture(name="program", scope="module")
def _program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("thrown")
    (folder / "main.cpp").write_text(SOURCE)
    cc(folder, "main.cpp", "-o", "main.wasm", cplusplus=True)
    return folder / "main.wasm"


@pytest.mark.parametrize("case", CASES)
def test_type_and_text_are_said(program: Path, case: str) -> None:
    """Bases at other offsets, virtual bases, types without a text and exceptions that are thrown again are all told."""
    if case == "i":
        pytest.importorskip("pydemumble")
    with (
        dl.Linker(program, args=["main", case]) as linker,
        pytest.raises(dl.UncaughtExceptionError) as caught,
    ):
        linker.main_group.run()

    assert (caught.value.type_name, caught.value.what) == CASES[case]


def test_the_command_says_so_as_native_programs_do(program: Path) -> None:
    """`dlrun` says the type and the text in one line, as libc++abi does, with the frames below, and exits with 134."""
    done = subprocess.run(
        [sys.executable, "-m", "dl", str(program), "r"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert done.returncode == 134
    first, *frames = done.stderr.splitlines()
    assert first == "dlrun: error: terminating due to uncaught exception of type std::runtime_error: the text"
    assert frames[1].strip() == "at main.wasm!__cxa_throw"
