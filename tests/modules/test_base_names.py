"""A loaded library serves its base name, as a soname does for ELF: `docs/finding.md`."""

from __future__ import annotations

from pathlib import Path

import pytest

import dl
from tests.support.modules import calls, imports, library, returns


def put(path: Path, value: int, **info: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(library(returns("b", value), **info))
    return path


def needing(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(library(imports("b"), calls("a", "b"), needed=["libB.so"]))
    return path


@pytest.fixture
def dirs(tmp_path: Path) -> Path:
    """Two libraries of one base name, and one that needs the name."""
    put(tmp_path / "d1" / "libB.so", 1)
    put(tmp_path / "d2" / "libB.so", 2)
    needing(tmp_path / "d3" / "libA.so")
    return tmp_path


@pytest.mark.parametrize("searched", [[], ["d2"], ["d2", "d1"]])
def test_what_is_loaded_serves_a_name(dirs: Path, searched: list[str]) -> None:
    """With a library open by its path, a needed name and a bare one mean it, whatever the library path holds."""
    with dl.Linker(None, library_path=[dirs / d for d in searched]) as program:
        group = program.main_group
        first = group.dlopen(dirs / "d1" / "libB.so")

        assert group.dlopen("libB.so") == first
        assert group.dlsym(group.dlopen(dirs / "d3" / "libA.so"), "a")() == 1
        assert len(program.modules) == 2


def test_a_path_means_its_file(dirs: Path) -> None:
    """A name with a slash is never matched by base name: the other file is another module."""
    with dl.Linker(None) as program:
        group = program.main_group
        handles = [group.dlopen(dirs / d / "libB.so") for d in ("d1", "d2")]

        assert [group.dlsym(handle, "b")() for handle in handles] == [1, 2]
        assert group.dlopen("libB.so") == handles[0], "of several, the first that was loaded"


def test_what_the_same_load_has_found(dirs: Path) -> None:
    """A library serves its base name already in the load that adds it, also before it has a handle."""
    top = dirs / "top" / "libT.so"
    put(top, 5, needed=["libM.so"], run_path=["$ORIGIN/../m"])
    put(dirs / "m" / "libM.so", 6, needed=["libT.so"])
    put(dirs / "wrong" / "libT.so", 7)
    with dl.Linker(None, library_path=[dirs / "wrong"]) as program:
        program.main_group.dlopen(top)

        assert sorted(Path(m.name).parent.name for m in program.modules) == ["m", "top"]


def test_directories_of_the_call_come_first(dirs: Path) -> None:
    """The directories given to one `dlopen` are searched before what is loaded: the caller asks for a file of those."""
    with dl.Linker(None) as program:
        group = program.main_group
        group.dlopen(dirs / "d1" / "libB.so")

        assert group.dlsym(group.dlopen("libB.so", library_path=[dirs / "d2"]), "b")() == 2


def test_modules_in_memory_come_first(dirs: Path) -> None:
    """A name that the host has given to a module in memory means that module."""
    libraries = {"libB.so": library(returns("b", 3))}
    with dl.Linker(None, libraries=libraries) as program:
        group = program.main_group
        group.dlopen(dirs / "d1" / "libB.so")

        assert group.dlsym(group.dlopen("libB.so"), "b")() == 3


def test_a_library_that_failed_serves_no_name(dirs: Path) -> None:
    """A library whose constructor failed is not found by its name, and the next search finds another file."""
    bad = dirs / "bad" / "libB.so"
    bad.parent.mkdir()
    bad.write_bytes(library('(func (export "__wasm_call_ctors") unreachable)'))
    with dl.Linker(None, library_path=[dirs / "d2"]) as program:
        group = program.main_group
        with pytest.raises(dl.InitializationError):
            group.dlopen(bad)

        assert group.dlsym(group.dlopen("libB.so"), "b")() == 2
