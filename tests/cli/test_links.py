"""`dlrun inspect --links`: what would be linked to what, as the linker itself decides it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import dl
from tests.support.command_line import HELLO, PLUGINS, UNDEFINED, DlRun
from tests.support.modules import MEMORY, calls, data, got, imports, library, reads, returns


def links(dlrun: DlRun, *words: str, code: int = 0) -> list[dict[str, Any]]:
    """Ask for the links of a file."""
    done = dlrun("inspect", "--links", "--json", *words)
    assert done.returncode == code, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["links"]
    return found


def test_of_a_program(dlrun: DlRun) -> None:
    """Each import of a program and of its library has its place: the other one, the program's memory, the system."""
    meant = {(link["importer"].split("/")[-1], link["name"]): link for link in links(dlrun, HELLO)}
    greet = meant["main.wasm", "greet"]
    assert greet["state"] == "linked"
    assert Path(greet["provider"]).name == "libgreet.so"
    assert Path(meant["libgreet.so", "decorate"]["provider"]).name == "main.wasm"
    assert meant["libgreet.so", "memory"]["state"] == "linked"
    assert meant["main.wasm", "fd_write"]["meaning"] == "a function of the host"
    assert {link["state"] for link in meant.values()} == {"linked"}


def test_as_the_linker_does_it(dlrun: DlRun, tmp_path: Path) -> None:
    """A tree with a name that two libraries define, a weak, a late and a missing import is told as a load decides it."""
    files = {
        "a.so": library(returns("f", 1), data("d", 0), memory_size=4),
        "b.so": library(returns("f", 2)),
        "top.so": library(
            MEMORY,
            imports("f"),
            imports("late"),
            got("d", "mem"),
            got("maybe", "mem"),
            calls("g", "f"),
            reads("at", "got_mem_d"),
            needed=("b.so", "a.so"),
            weak=("maybe",),
        ),
        "bad.so": library(MEMORY, got("nowhere", "mem"), imports("f", "(result f64)"), needed=("a.so",)),
    }
    for name, wasm in files.items():
        (tmp_path / name).write_bytes(wasm)
    found = {(link["name"], link["module"]): link for link in links(dlrun, "top.so")}
    assert found["f", "env"]["provider"].endswith("b.so")
    assert found["d", "GOT.mem"]["provider"].endswith("a.so")
    assert found["late", "env"]["state"] == "late"
    assert found["maybe", "GOT.mem"]["state"] == "weak"
    bad = {link["name"]: link for link in links(dlrun, "bad.so", code=127)}
    assert bad["nowhere"]["state"] == "undefined"
    assert bad["f"]["state"] == "refused"
    assert "f64" in bad["f"]["meaning"]
    with dl.Linker(None, library_path=[tmp_path]) as linker:
        group = linker.main_group
        g = group.dlsym(group.dlopen("top.so", dl.RTLD_LAZY), "g")
        assert isinstance(g, dl.GuestFunction)
        assert g() == 2
        with pytest.raises(dl.DlError):
            group.dlopen("bad.so", dl.RTLD_LAZY)


@pytest.mark.parametrize("program", [HELLO, PLUGINS, UNDEFINED])
def test_for_people(dlrun: DlRun, program: str) -> None:
    """The columns have one line for each import, under the name of its module."""
    done = dlrun("inspect", "--links", program)
    lines = done.stdout.splitlines()
    assert lines[0] == program
    assert any(line.split()[:2] == ["linked", "memory"] for line in lines)
    assert "Traceback" not in done.stderr


def test_nothing_is_run(dlrun: DlRun, tmp_path: Path) -> None:
    """A library whose constructor traps, and whose code the engine would refuse, is shown all the same."""
    (tmp_path / "a.so").write_bytes(
        library(MEMORY, '(func (export "__wasm_call_ctors") unreachable)', imports("x"))
    )
    assert [link["name"] for link in links(dlrun, "a.so")] == ["memory", "x"]
