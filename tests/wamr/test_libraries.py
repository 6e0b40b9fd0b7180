"""Libraries as WAMR's programs have them: named in imports, needed implicitly, opened without what they need."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import dl
from dl.wasm.module import parse_module
from tests.support.groups import held
from tests.support.modules import MEMORY, TABLE, calls, imports, library, module, returns
from tests.wamr.programs import program
from tests.wamr.roots import root, side

MID = library(
    MEMORY,
    TABLE,
    '(import "side.wasm" "bump" (func $bump (result i32)))',
    '(import "side.wasm" "add42" (func $add (param i32) (result i32)))',
    calls("mid", "bump"),
    '(func (export "sum") (result i32) (call $add (i32.const 5)))',
    needed=("side.wasm",),
)


class TestNames:
    def test_an_import_that_names_its_library(self) -> None:
        """`(import "side.wasm" "f")` means the function of the needed library of that name, also if `env` has another."""
        other = library(MEMORY, TABLE, returns("add42", 1))
        with program({"side.wasm": side(), "mid.wasm": MID, "other.wasm": other}) as guest:
            guest.open("other.wasm", 2 | 256)
            assert guest.call("call0", guest.symbol(guest.open("mid.wasm"), "sum")) == 47

    def test_events_tell_of_what_the_guest_opens(self) -> None:
        """Loads, closes and failures of the program's own calls are told to the host."""
        with program({"side.wasm": side()}) as guest, guest.linker.events.queue() as events:
            assert guest.close(guest.open("side.wasm")) == 0
            assert guest.open("gone.wasm") == 0
            kinds = [f"{event.kind} {event.module}" for _ in range(len(events)) if (event := events.get(0))]
        assert kinds == [
            "loaded side.wasm",
            "constructed side.wasm",
            "closed side.wasm",
            "unloaded side.wasm",
            "failed gone.wasm",
        ]

    def test_the_root_by_its_name_and_by_env(self) -> None:
        """A library reaches a function of the root under the name of its file, and through `env`."""
        main = root(returns("own", 1003))
        for namespace in ("root.wasm", "env"):
            user = library(imports("own", namespace=namespace), calls("f", "own"))
            with program({"app.wasm": user}, main) as guest:
                assert guest.call("call0", guest.symbol(guest.open("app.wasm"), "f")) == 1003

    def test_a_wrong_type_and_a_missing_name(self) -> None:
        """Under a library's name too, a definition of another type is an error, and a missing one is named."""
        wrong = library('(import "side.wasm" "add42" (func $f (result f64)))', needed=("side.wasm",))
        missing = library(imports("no", namespace="side.wasm"), calls("f", "no"), needed=("side.wasm",))
        with program({"side.wasm": side(), "wrong.wasm": wrong, "missing.wasm": missing}) as guest:
            assert guest.open("wrong.wasm") == 0
            assert "side.wasm.add42" in (guest.error() or "")
            assert guest.open("missing.wasm") == 0
            assert "side.wasm.no" in (guest.error() or "")
            lazily = guest.open("missing.wasm", 1)
            with pytest.raises(dl.UnresolvedCallError, match=r"side\.wasm\.no"):
                guest.call("call0", guest.symbol(lazily, "f"))

    def test_a_stub_finds_a_library_that_comes_later(self) -> None:
        """A function of a library that is opened later is found by its library's name at the first call."""
        user = library(imports("add", namespace="late.wasm"), calls("f", "add"))
        with program({"app.wasm": user, "late.wasm": library(returns("add", 6))}, mode=1) as guest:
            f = guest.symbol(guest.open("app.wasm"), "f")
            guest.open("late.wasm", 2 | 256)
            assert guest.call("call0", f) == 6

    def test_names_are_one_object(self) -> None:
        """Equal names of two modules are one string, so that they compare by identity."""
        one, two = (
            parse_module(library(imports("strange_name"), returns(f"f{i}", i)), "x") for i in range(2)
        )
        assert one.imports[0].name is two.imports[0].name
        with pytest.raises(dl.MalformedModuleError, match="not valid UTF-8"):
            parse_module(library(imports("xyz")).replace(b"xyz", b"x\xffz"), "x")


class TestNeeded:
    def test_open_side_open_mid_close_side(self) -> None:
        """A library that is needed implicitly keeps its state when its own handle is closed, and goes with its user."""
        with program({"side.wasm": side(), "mid.wasm": MID}) as guest:
            guest.close(guest.open("side.wasm"))  # the stack of libraries, which the first one brings, stays
            before = held(guest.linker)
            first, mid = guest.open("side.wasm"), guest.open("mid.wasm")
            for _ in range(9):
                guest.call("call0", guest.symbol(first, "bump"))
            assert guest.close(first) == 0
            assert guest.call("call0", guest.symbol(mid, "mid")) == 52
            assert [m.name for m in guest.linker.modules] == ["root.wasm", "side.wasm", "mid.wasm"]
            assert guest.close(mid) == 0
            assert held(guest.linker) == before

    def test_a_cycle(self) -> None:
        """Two libraries that need each other are opened once each, call each other, and go together."""
        a = library(imports("b", namespace="b.wasm"), calls("ab", "b"), returns("a", 1), needed=("b.wasm",))
        b = library(imports("a", namespace="a.wasm"), calls("ba", "a"), returns("b", 2), needed=("a.wasm",))
        with program({"a.wasm": a, "b.wasm": b}) as guest:
            guest.close(guest.open("a.wasm"))
            before = held(guest.linker)
            handle = guest.open("a.wasm")
            assert len(guest.linker.modules) == 3
            assert guest.call("call0", guest.symbol(handle, "ab")) == 2
            assert guest.call("call0", guest.symbol(handle, "ba")) == 1
            assert guest.close(handle) == 0
            assert held(guest.linker) == before

    def test_opening_without_what_it_needs(self) -> None:
        """From Python too, a library can be opened without its needed list, if nothing of it is demanded."""
        alone = library(imports("f"), returns("g", 4), needed=("nowhere.so",))
        with dl.Linker(None, libraries={"a.so": alone}) as linker:
            group = linker.main_group
            with pytest.raises(dl.LibraryNotFoundError, match=r"nowhere\.so"):
                group.dlopen("a.so", dl.RTLD_LAZY)
            g = group.dlsym(group.dlopen("a.so", dl.RTLD_LAZY, load_needed=False), "g")
            assert isinstance(g, dl.GuestFunction)
            assert g() == 4


class TestReader:
    def test_a_reader_and_destroyer_of_libraries(self) -> None:
        """A finder gives libraries that are opened and that they need: each read once, released once, at the program's end."""
        log: list[str] = []
        modules = {"side.wasm": side(), "mid.wasm": MID, "broken.wasm": b"no module"}

        @contextlib.contextmanager
        def read(name: str) -> Iterator[bytes]:
            log.append(f"read {name}")
            yield modules[name]
            log.append(f"released {name}")

        with program({}, finder=lambda name: read(name) if name in modules else None) as guest:
            for _ in range(2):
                handle = guest.open("mid.wasm")
                assert guest.call("call0", guest.symbol(handle, "sum")) == 47
                assert guest.close(handle) == 0
            assert log == ["read mid.wasm", "read side.wasm"]
            for _ in range(2):
                assert guest.open("broken.wasm") == 0
            assert log[2:] == ["read broken.wasm"] * 2
            assert guest.open("nowhere.wasm") == 0
            assert "not found" in (guest.error() or "")
        assert log[4:] == ["released side.wasm", "released mid.wasm"]

    def test_a_path_of_a_finder(self, tmp_path: Path) -> None:
        """A finder may give a path, which is the same library as by any other way; what is found otherwise is not asked for."""
        (tmp_path / "deep").mkdir()
        (tmp_path / "deep/app.so").write_bytes(library(returns("f", 8)))
        (tmp_path / "here.so").write_bytes(library(returns("f", 9)))
        asked: list[str] = []

        def find(name: str) -> Path | None:
            asked.append(name)
            return tmp_path / "deep/app.so" if name == "app.so" else None

        with dl.Linker(None, library_path=[tmp_path], finder=find) as linker:
            group = linker.main_group
            handle = group.dlopen("app.so")
            assert group.dlopen(tmp_path / "deep/app.so") == handle
            group.dlopen("here.so")
        assert asked == ["app.so"]

    def test_a_library_is_no_ordinary_module(self, tmp_path: Path) -> None:
        """A name in imports that is a needed library's is not looked for in the module path."""
        (tmp_path / "side.wasm").write_bytes(side())
        (tmp_path / "mid.wasm").write_bytes(MID)
        (tmp_path / "m.wasm").write_bytes(module(returns("f", 3)))
        (tmp_path / "both.wasm").write_bytes(
            library(
                MEMORY,
                imports("bump", namespace="side.wasm"),
                imports("f", namespace="m"),
                calls("g", "bump"),
                calls("h", "f"),
                needed=("side.wasm",),
            )
        )
        with program({}, library_path=[tmp_path], module_path=[tmp_path]) as guest:
            handle = guest.open("both.wasm")
            assert guest.error() is None
            assert guest.call("call0", guest.symbol(handle, "g")) == 43
            assert guest.call("call0", guest.symbol(handle, "h")) == 3


class TestNaming:
    def test_names_of_needed_lists_are_mapped(self, tmp_path: Path) -> None:
        """`map_name` is asked for each name of a needed list, with the extension of its user, and not for what is opened."""
        (tmp_path / "low.v2.so").write_bytes(library(returns("low", 3)))
        (tmp_path / "top.so").write_bytes(library(imports("low"), calls("top", "low"), needed=("low.so",)))
        asked = []

        def map_name(name: str, needed_by: str) -> str:
            asked.append((name, needed_by))
            return name.replace(".so", ".v2.so")

        with dl.Linker(None, library_path=[tmp_path], map_name=map_name) as linker:
            top = linker.main_group.dlsym(linker.main_group.dlopen("top.so"), "top")
            assert isinstance(top, dl.GuestFunction)
            assert top() == 3
        assert asked == [("low.so", ".so")]

    def test_a_name_that_is_none(self, tmp_path: Path) -> None:
        """What `map_name` returns must be a name; one that leads nowhere is in the error."""
        (tmp_path / "top.so").write_bytes(library(needed=("low.so",)))
        answers: list[object] = [None, "other.so"]
        with dl.Linker(
            None,
            library_path=[tmp_path],
            map_name=lambda *_: answers.pop(0),  # type: ignore[arg-type]
        ) as linker:
            with pytest.raises(dl.LinkerUsageError, match="map_name must return a name"):
                linker.main_group.dlopen("top.so")
            with pytest.raises(dl.LibraryNotFoundError, match=r"other\.so"):
                linker.main_group.dlopen("top.so")
