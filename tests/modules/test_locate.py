"""Where a library is found, when two files are one module, and libraries that are held in memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import dl
from tests.support.modules import calls, got, imports, library, pie, reads, returns

LIB = library(returns("f", 1))


def names(program: dl.Linker) -> list[str]:
    return [m.name for m in program.modules]


class TestSearch:
    def put(self, directory: Path, name: str, value: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(library(returns("f", value)))

    def opened(self, program: dl.Linker, name: Path | str, **options: Any) -> int:
        group = program.main_group
        return group.dlsym(group.dlopen(name, **options), "f")()

    def test_library_path_in_order(self, tmp_path: Path) -> None:
        """Bare names are looked for in the directories of the library path, in order; those of the call come first."""
        for n, d in enumerate("abc"):
            self.put(tmp_path / d, "lib.so", n)
        with dl.Linker(None, library_path=[tmp_path / "b", tmp_path / "a"]) as program:
            assert self.opened(program, "lib.so") == 1
            assert self.opened(program, "lib.so", library_path=[tmp_path / "c"]) == 2

    def test_the_current_directory_is_not_searched(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A bare name never means a file of the current directory; a name with a slash is a path."""
        self.put(tmp_path, "lib.so", 5)
        monkeypatch.chdir(tmp_path)
        with dl.Linker(None) as program:
            with pytest.raises(dl.LibraryNotFoundError):
                program.main_group.dlopen("lib.so")
            assert self.opened(program, "./lib.so") == 5

    def test_absolute_paths(self, tmp_path: Path) -> None:
        """An absolute path is that file only."""
        self.put(tmp_path, "lib.so", 6)
        with dl.Linker(None) as program:
            assert self.opened(program, str(tmp_path / "lib.so")) == 6
            assert self.opened(program, tmp_path / "lib.so") == 6

    def test_so_falls_back_to_wasm(self, tmp_path: Path) -> None:
        """A .so that is not there may be there as .wasm, beside where it would be; the .so itself comes first."""
        self.put(tmp_path / "a", "lib.wasm", 1)
        self.put(tmp_path / "b", "lib.so", 2)
        with dl.Linker(None, library_path=[tmp_path / "a", tmp_path / "b"]) as program:
            assert self.opened(program, "lib.so") == 1
            assert self.opened(program, str(tmp_path / "a" / "lib.so")) == 1
            self.put(tmp_path / "a", "lib.so", 3)
            assert self.opened(program, "lib.so") == 3

    def test_other_formats_are_passed_over(self, tmp_path: Path) -> None:
        """A search passes over files that are no modules, such as a library of the host; a path to one is an error."""
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "lib.so").write_bytes(b"\x7fELF" + bytes(100))
        self.put(tmp_path / "b", "lib.so", 2)
        (tmp_path / "lib.so").mkdir()
        with dl.Linker(None, library_path=[tmp_path / "a", tmp_path, tmp_path / "b"]) as program:
            assert self.opened(program, "lib.so") == 2
            with pytest.raises(dl.MalformedModuleError):
                program.main_group.dlopen(tmp_path / "a" / "lib.so")

    @pytest.mark.parametrize("origin", ["$ORIGIN", "${ORIGIN}"])
    def test_run_path(self, tmp_path: Path, origin: str) -> None:
        """A library's run path is searched for what it needs, relative to itself; after the library path."""
        (tmp_path / "top").mkdir()
        top = library(imports("f"), calls("g", "f"), needed=["dep.so"], run_path=[f"{origin}/../deps"])
        (tmp_path / "top" / "top.so").write_bytes(top)
        self.put(tmp_path / "deps", "dep.so", 1)
        with dl.Linker(None) as program:
            group = program.main_group
            assert group.dlsym(group.dlopen(tmp_path / "top" / "top.so"), "g")() == 1
        self.put(tmp_path / "first", "dep.so", 2)
        with dl.Linker(None, library_path=[tmp_path / "first"]) as program:
            group = program.main_group
            assert group.dlsym(group.dlopen(tmp_path / "top" / "top.so"), "g")() == 2

    def test_run_paths_are_not_inherited(self, tmp_path: Path) -> None:
        """What a needed library needs is not looked for in the run path of who needs it."""
        (tmp_path / "top.so").write_bytes(library(needed=["middle.so"], run_path=["$ORIGIN/deps"]))
        self.put(tmp_path / "deps", "bottom.so", 1)
        (tmp_path / "deps" / "middle.so").write_bytes(library(needed=["bottom.so"]))
        with dl.Linker(None) as program:
            with pytest.raises(dl.LibraryNotFoundError, match="bottom"):
                program.main_group.dlopen(tmp_path / "top.so")
        (tmp_path / "deps" / "middle.so").write_bytes(library(needed=["bottom.so"], run_path=["$ORIGIN"]))
        with dl.Linker(None) as program:
            assert self.opened(program, tmp_path / "top.so") == 1

    def test_origin_follows_links(self, tmp_path: Path) -> None:
        """$ORIGIN is the directory of the file itself, not of a link to it."""
        self.put(tmp_path / "real", "dep.so", 4)
        (tmp_path / "real" / "top.so").write_bytes(library(needed=["dep.so"], run_path=["$ORIGIN"]))
        (tmp_path / "link.so").symlink_to(tmp_path / "real" / "top.so")
        with dl.Linker(None) as program:
            assert self.opened(program, tmp_path / "link.so") == 4

    def test_origin_is_a_whole_word(self, tmp_path: Path) -> None:
        """A directory whose name merely begins like $ORIGIN is not taken for it."""
        (tmp_path / "top.so").write_bytes(library(needed=["dep.so"], run_path=["$ORIGINAL"]))
        self.put(tmp_path.parent / (tmp_path.name + "AL"), "dep.so", 1)
        with dl.Linker(None) as program, pytest.raises(dl.LibraryNotFoundError):
            program.main_group.dlopen(tmp_path / "top.so")

    def test_run_path_of_bytes(self) -> None:
        """Modules held in memory have no origin: such entries are left out, not taken for the root directory."""
        libs = {"top.so": library(needed=["dep.so"], run_path=["$ORIGIN/x", "${ORIGIN}", "/nowhere"])}
        with dl.Linker(None, libraries=libs) as program:
            with pytest.raises(dl.LibraryNotFoundError) as caught:
                program.main_group.dlopen("top.so")
            assert [path for path, _ in caught.value.tried] == ["/nowhere/dep.so", "/nowhere/dep.wasm"]

    def test_names_outside_of_utf8(self, tmp_path: Path) -> None:
        """A path with bytes that are no UTF-8 is a path like any other, found or not."""
        path = os.fsdecode(os.fsencode(tmp_path) + b"/l\xff.so")
        with dl.Linker(None) as program:
            with pytest.raises(dl.LibraryNotFoundError):
                program.main_group.dlopen(path)
            with open(path, "wb") as file:
                file.write(LIB)
            assert self.opened(program, path) == 1
            with pytest.raises(dl.LibraryNotFoundError):
                program.main_group.dlopen("\ud800.so")


class TestIdentity:
    def test_spellings_and_links(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """One file is one module by whatever path, relative, with dots, or through a link, it is opened."""
        (tmp_path / "sub").mkdir()
        (tmp_path / "lib.so").write_bytes(LIB)
        (tmp_path / "link.so").symlink_to("lib.so")
        (tmp_path / "linked").symlink_to(tmp_path, target_is_directory=True)
        monkeypatch.chdir(tmp_path)
        with dl.Linker(None, library_path=["."]) as program:
            spellings = [
                "lib.so",
                "./lib.so",
                "sub/../lib.so",
                str(tmp_path / "lib.so"),
                "link.so",
                "./link.so",
                "linked/lib.so",
            ]
            handles = {program.main_group.dlopen(s) for s in spellings}

            assert len(handles) == 1
            assert len(program.modules) == 1

    def test_same_base_name(self, tmp_path: Path) -> None:
        """Two files of one base name are two modules, each with its own data, and handles tell them apart."""
        for n, d in enumerate("ab"):
            (tmp_path / d).mkdir()
            (tmp_path / d / "lib.so").write_bytes(library(returns("f", n)))
        with dl.Linker(None) as program:
            group = program.main_group
            handles = [group.dlopen(tmp_path / d / "lib.so") for d in "ab"]

            assert [group.dlsym(h, "f")() for h in handles] == [0, 1]
            assert group.dlsym(handles[0], "f").address != group.dlsym(handles[1], "f").address

    def test_equal_content_is_no_identity(self, tmp_path: Path) -> None:
        """Two files with the same bytes are two modules."""
        counter = library(
            "(global $n (mut i32) (i32.const 0))",
            '(func (export "f") (result i32) (global.set $n (i32.add (global.get $n) (i32.const 1))) global.get $n)',
        )
        with dl.Linker(None, libraries={"a.so": counter, "b.so": counter}) as program:
            group = program.main_group
            a, b = group.dlopen("a.so"), group.dlopen("b.so")

            assert [group.dlsym(a, "f")(), group.dlsym(a, "f")(), group.dlsym(b, "f")()] == [1, 2, 1]

    def test_opened_twice(self, tmp_path: Path) -> None:
        """Opening a library again gives its handle and does not construct it again, even if the file is changed or gone."""
        path = tmp_path / "lib.so"
        path.write_bytes(LIB)
        with dl.Linker(None, library_path=[tmp_path]) as program:
            group = program.main_group
            handle = group.dlopen("lib.so")
            path.write_bytes(b"garbage")

            assert group.dlopen(path) == handle
            assert group.dlopen("lib.so") == handle

    def test_a_needed_name_finds_what_was_opened_by_its_path(self, tmp_path: Path) -> None:
        """A bare name in a needed list is served by a loaded library of that base name when the search finds none."""
        (tmp_path / "lib.so").write_bytes(LIB)
        user = library(imports("f"), calls("g", "f"), needed=["lib.so"])
        with dl.Linker(None, libraries={"user.so": user}) as program:
            group = program.main_group
            lib = group.dlopen(tmp_path / "lib.so")

            assert group.dlsym(group.dlopen("user.so"), "g")() == 1
            assert [m.handle for m in program.modules] == [lib, lib + 1]

    def test_handles_are_never_reused(self) -> None:
        """Handles count on, also past loads that failed, and a failed load leaves none."""
        libs = {"ok.so": LIB, "ok2.so": LIB, "bad.so": library(imports("nothing"))}
        with dl.Linker(None, libraries=libs) as program:
            group = program.main_group
            first = group.dlopen("ok.so")
            with pytest.raises(dl.UnresolvedSymbolsError):
                group.dlopen("bad.so")
            second = group.dlopen("ok2.so")

            assert (first, second) == (2, 3)
            assert repr(first) == "ModuleHandle(2)"
            assert first < second


class TestInMemory:
    def test_bytes_that_need_bytes(self) -> None:
        """Modules held in memory need each other by name, the main module's included, and files beside them."""
        libs = {"a.so": library(imports("f"), calls("g", "f"), needed=["b.so"]), "b.so": LIB}
        main = pie(imports("g"), calls("h", "g"), needed=["a.so"])
        with dl.Linker(main, libraries=libs) as program:
            assert program.main_group.dlsym(1, "h")() == 1

    def test_bytes_before_files(self, tmp_path: Path) -> None:
        """A library held in memory is found before any file of its name."""
        (tmp_path / "lib.so").write_bytes(library(returns("f", 2)))
        with dl.Linker(None, libraries={"lib.so": LIB}, library_path=[tmp_path]) as program:
            group = program.main_group

            assert group.dlsym(group.dlopen("lib.so"), "f")() == 1
            assert group.dlsym(group.dlopen(tmp_path / "lib.so"), "f")() == 2

    def test_opened_bytes_with_a_name(self) -> None:
        """Bytes opened under a name are that module from then on: for dlopen and for needed lists."""
        user = library(imports("f"), calls("g", "f"), needed=["lib.so"])
        with dl.Linker(None) as program:
            group = program.main_group
            handle = group.dlopen(LIB, name="lib.so")

            assert group.dlopen("lib.so") == handle
            assert group.dlopen(LIB, name="lib.so") == handle
            assert group.dlsym(group.dlopen(user), "g")() == 1

    def test_bytes_without_a_name(self) -> None:
        """Bytes opened without a name are a new module each time."""
        with dl.Linker(None) as program:
            group = program.main_group

            assert group.dlopen(LIB) != group.dlopen(bytearray(LIB))  # type: ignore[arg-type]

    def test_a_failed_load_of_bytes_leaves_its_name_free(self) -> None:
        """Bytes that cannot be loaded do not keep their name: others may be opened under it."""
        with dl.Linker(None) as program:
            group = program.main_group
            for bad in (library(imports("nothing")), LIB[:20], b"", library(needed=["gone.so"])):
                with pytest.raises(dl.DlError):
                    group.dlopen(bad, name="lib.so")
            with pytest.raises(dl.LibraryNotFoundError):
                group.dlopen("lib.so")
            user = library(imports("f"), calls("g", "f"), needed=["lib.so"])

            assert group.dlsym(group.dlopen(LIB, name="lib.so"), "f")() == 1
            assert group.dlsym(group.dlopen(user), "g")() == 1

    def test_bytes_in_a_cycle(self) -> None:
        """Bytes opened under a name may need a library that needs them."""
        libs = {"b.so": library(imports("f"), calls("g", "f"), needed=["a.so"])}
        with dl.Linker(None, libraries=libs) as program:
            group = program.main_group
            a = group.dlopen(
                library(returns("f", 1), imports("g"), calls("h", "g"), needed=["b.so"]), name="a.so"
            )

            assert group.dlsym(a, "h")() == 1
            assert names(program) == ["b.so", "a.so"]

    def test_a_name_with_a_slash(self) -> None:
        """Names of bytes may look like paths."""
        with dl.Linker(None, libraries={"/lib/x.so": LIB}) as program:
            group = program.main_group

            assert group.dlsym(group.dlopen("/lib/x.so"), "f")() == 1

    def test_got_of_a_tree_in_memory(self) -> None:
        """Data and function addresses are resolved between modules in memory too."""
        libs = {
            "lib.so": library(
                '(import "env" "memory" (memory 0))',
                '(global (export "d") i32 (i32.const 8))',
                memory_size=16,
            )
        }
        user = library(got("d", "mem"), reads("at", "got_mem_d"), needed=["lib.so"])
        with dl.Linker(None, libraries=libs) as program:
            group = program.main_group
            handle = group.dlopen(user)

            assert group.dlsym(handle, "at")() == group.dlsym(handle, "d").address
