"""Errors that newcomers meet say what to do about them."""

from __future__ import annotations

import pytest

import dl
from tests.support.modules import MEMORY, imports, library, module


def wanting(*names: str) -> bytes:
    """A library that imports functions, whose addresses it takes at its load, so that each must be there."""
    return library(MEMORY, *(imports(name) for name in names))


@pytest.mark.parametrize(
    ("symbol", "remedy"),
    [
        ("_ZNSt3__29to_stringEi", "another C++ library, std::__2"),
        ("_Znwm", "`dlrun c++ -rdynamic`"),
        ("_ZNSt3__15mutex4lockEv", "`dlrun c++ -rdynamic`"),
        ("__cxa_throw", "`dlrun c++ -rdynamic`"),
        ("malloc", "`dlrun cc -rdynamic`"),
        ("printf", "`dlrun cc -rdynamic`"),
        ("errno", "`dlrun cc -rdynamic`"),
        ("pthread_create", "`dlrun cc -pthread -rdynamic`"),
        ("sem_wait", "; build this with -pthread, too"),
    ],
)
def test_a_symbol_of_a_known_library_is_told_with_what_brings_it(symbol: str, remedy: str) -> None:
    """What is of the C or C++ library is reported with how to build a program that has it."""
    with dl.Linker(None) as linker, pytest.raises(dl.UnresolvedSymbolsError) as caught:
        linker.main_group.dlopen(wanting(symbol), name="a.so")

    assert remedy in caught.value.remedy
    assert str(caught.value).endswith(caught.value.remedy)


def test_a_library_in_the_place_of_a_program_is_told_how_it_is_loaded_into_one() -> None:
    """A library of C that is to be run itself is reported with the command that loads it into a program."""
    needs_errno = module(MEMORY, '(import "GOT.mem" "errno" (global (mut i32)))')

    with pytest.raises(dl.UnresolvedSymbolsError) as caught:
        dl.Linker(needs_errno, name="plug.so")

    assert "`dlrun --preload ./plug.so --invoke FUNCTION app.wasm`" in caught.value.remedy


def test_a_symbol_of_nobody_is_told_without_advice() -> None:
    """A name that is of no known library brings no guess."""
    with dl.Linker(None) as linker, pytest.raises(dl.UnresolvedSymbolsError) as caught:
        linker.main_group.dlopen(wanting("my_own"), name="a.so")

    assert caught.value.remedy == ""
    assert str(caught.value).endswith(")")


def test_a_bare_name_without_directories_is_told_with_what_to_give() -> None:
    """With no directory to search, the error says that a path has a slash, and which argument has directories."""
    with dl.Linker(None) as linker:
        with pytest.raises(dl.LibraryNotFoundError, match=r"library_path.*'\./nothing\.so'"):
            linker.main_group.dlopen("nothing.so")


def test_threads_without_shared_memory_are_told_how_to_get_it() -> None:
    """An executor of a program that has one thread says how to build or make it for several."""
    with dl.Linker(None) as linker:
        with pytest.raises(dl.LinkerUsageError, match=r"-pthread.*MemoryType\(shared=True\)"):
            linker.executor(2)
        with pytest.raises(dl.LinkerUsageError, match=r"-pthread.*MemoryType\(shared=True\)"):
            linker.spawn(lambda group: None)
