"""Trees of needed libraries: each library once, in whatever order they need each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import dl
from tests.support.modules import calls, constructor, imports, library, module, pie, returns

LIB = library(returns("f", 1))


def names(program: dl.Linker) -> list[str]:
    return [m.name for m in program.modules]


class TestTrees:
    def test_diamond(self) -> None:
        """A library that two others need is loaded once, and its constructor runs once."""
        log: list[Any] = []
        note = imports("note", "(param i32)")
        tick = lambda n: constructor(f"i32.const {n} call $note")  # noqa: E731
        libs = {
            "top.so": library(note, tick(1), needed=["left.so", "right.so"]),
            "left.so": library(note, tick(2), needed=["bottom.so"]),
            "right.so": library(note, tick(3), needed=["bottom.so"]),
            "bottom.so": library(note, tick(4)),
        }
        with dl.Linker(None, libraries=libs, imports={"env": {"note": log.append}}) as program:
            program.main_group.dlopen("top.so")

            assert log == [4, 2, 3, 1]
            assert names(program) == ["bottom.so", "left.so", "right.so", "top.so"]
            assert [m.handle for m in program.modules] == [2, 3, 4, 5]

    def test_deep_diamonds_do_not_multiply(self) -> None:
        """Twenty diamonds on top of each other are 61 modules, not a million."""
        libs = {"0.so": LIB}
        for n in range(1, 21):
            libs[f"{n}.so"] = library(needed=[f"l{n}.so", f"r{n}.so"])
            libs[f"l{n}.so"] = libs[f"r{n}.so"] = library(needed=[f"{n - 1}.so"])
        with dl.Linker(None, libraries=libs) as program:
            top = program.main_group.dlopen("20.so")

            assert len(program.modules) == 61
            assert program.main_group.dlsym(top, "f")() == 1

    @pytest.mark.parametrize("length", [1, 2, 3, 7])
    def test_cycles(self, length: int) -> None:
        """A cycle of needed libraries is cut where it closes: each is loaded once, and functions reach all ways round."""
        libs = {
            f"{n}.so": library(
                returns(f"f{n}", n), imports(f"f{(n + 1) % length}x"), calls(f"g{n}", f"f{(n + 1) % length}x"),
                returns(f"f{n}x", 10 * n), needed=[f"{(n + 1) % length}.so"],
            )
            for n in range(length)
        }  # fmt: skip
        with dl.Linker(None, libraries=libs) as program:
            group = program.main_group
            top = group.dlopen("0.so")

            assert sorted(names(program)) == sorted(libs)
            assert [group.dlsym(top, f"g{n}")() for n in range(length)] == [
                10 * ((n + 1) % length) for n in range(length)
            ]

    def test_a_cycle_through_the_main_module(self, tmp_path: Path) -> None:
        """A library may need the program itself."""
        (tmp_path / "main.wasm").write_bytes(
            pie(returns("f", 3), imports("g"), calls("h", "g"), needed=["lib.so"])
        )
        (tmp_path / "lib.so").write_bytes(library(imports("f"), calls("g", "f"), needed=["main.wasm"]))
        with dl.Linker(tmp_path / "main.wasm", library_path=[tmp_path]) as program:
            group = program.main_group

            assert group.dlsym(1, "h")() == 3
            assert [m.handle for m in program.modules] == [1, 2]

    def test_a_long_chain(self) -> None:
        """A chain of 1,000 libraries, each needing the next, is loaded without recursion, the last one first."""
        libs = {f"{n}.so": library(needed=[f"{n + 1}.so"]) for n in range(999)}
        libs["999.so"] = LIB
        with dl.Linker(None, libraries=libs) as program:
            top = program.main_group.dlopen("0.so")

            assert top == 1001
            assert names(program)[0] == "999.so"
            assert program.main_group.dlsym(top, "f")() == 1

    def test_a_name_listed_twice(self) -> None:
        """A needed list that repeats a name, or names one library in two ways, needs it once."""
        libs = {"top.so": library(imports("f"), calls("g", "f"), needed=["lib.so"] * 50_000), "lib.so": LIB}
        with dl.Linker(None, libraries=libs) as program:
            group = program.main_group

            assert group.dlsym(group.dlopen("top.so"), "g")() == 1
            assert names(program) == ["lib.so", "top.so"]

    def test_missing_deep_in_a_tree(self, tmp_path: Path) -> None:
        """A library that is missing deep in a tree is named with who needs it and every path that was tried."""
        (tmp_path / "top.so").write_bytes(library(needed=["middle.so"]))
        (tmp_path / "middle.so").write_bytes(library(needed=["gone.so"], run_path=["$ORIGIN/extra"]))
        other = tmp_path / "other"
        other.mkdir()
        with dl.Linker(None, library_path=[tmp_path, other]) as program:
            before = program.statistics()
            with pytest.raises(dl.LibraryNotFoundError) as caught:
                program.main_group.dlopen("top.so")

            error = caught.value
            assert error.module == "gone.so"
            assert error.needed_by is not None
            assert error.needed_by.endswith("middle.so")
            tried = [path for path, _ in error.tried]
            directories = (tmp_path, other, tmp_path / "extra")
            assert tried == [str(d / f"gone.{s}") for d in directories for s in ("so", "wasm")]
            assert all(path in str(error) for path in tried)
            assert program.statistics() == before
            (other / "gone.so").write_bytes(LIB)
            assert program.main_group.dlsym(program.main_group.dlopen("top.so"), "f")() == 1

    def test_needed_by_the_main_module_and_missing(self) -> None:
        """A program whose library is missing does not start."""
        with pytest.raises(dl.LibraryNotFoundError, match=r"gone\.so.*needed by prog"):
            dl.Linker(pie(needed=["gone.so"]), name="prog")

    def test_a_needed_library_that_is_none(self, tmp_path: Path) -> None:
        """A needed file that is a module but no library, or no module at all, is an error that names it."""
        (tmp_path / "plain.so").write_bytes(module(returns("f", 1)))
        (tmp_path / "cut.so").write_bytes(LIB[:-3])
        for name, error in (("plain.so", dl.NotDynamicError), ("cut.so", dl.MalformedModuleError)):
            with dl.Linker(
                None, library_path=[tmp_path], libraries={"top.so": library(needed=[name])}
            ) as program:
                with pytest.raises(error, match=name):
                    program.main_group.dlopen("top.so")
                assert program.modules == ()

    @pytest.mark.parametrize("name", ["", "a\0b", "x" * 5000, "ä" * 3000])
    def test_impossible_names(self, name: str) -> None:
        """Names that no file can have are not found, and are shortened in the message."""
        with dl.Linker(None, libraries={"top.so": library(needed=[name])}) as program:
            with pytest.raises(dl.LibraryNotFoundError) as caught:
                program.main_group.dlopen("top.so")
            assert len(str(caught.value)) < 1000

    def test_more_modules_than_allowed(self) -> None:
        """The bound on modules counts those of the load under way."""
        libs = {f"{n}.so": library(needed=[f"{n + 1}.so"]) for n in range(20)} | {"20.so": LIB}
        with dl.Linker(None, libraries=libs, limits=dl.Limits(libraries=10)) as program:
            with pytest.raises(
                dl.ResourceLimitError, match=r"10 \(Limits.libraries, dlrun --max-libraries\)"
            ):
                program.main_group.dlopen("0.so")

            assert program.main_group.dlopen("15.so") == 7


def test_names_are_found_level_by_level(tmp_path: Path) -> None:
    """As in ELF, all that one list names is found before what those need: here decides which of two files a name means."""
    files = {
        "top.so": library(imports("x"), calls("f", "x"), needed=["a.so", "x.so"], run_path=["$ORIGIN/near"]),
        "near/a.so": library(needed=["x.so"], run_path=["$ORIGIN/../far"]),
        "near/x.so": library(returns("x", 1)),
        "far/x.so": library(returns("x", 2)),
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with dl.Linker(None) as program:
        group = program.main_group
        assert group.dlsym(group.dlopen(tmp_path / "top.so"), "f")() == 1
        assert len(program.modules) == 3
