"""WASIX's own dlopen and dlsym, as `guest_dlfcn` has them act: leniently, or as ELF does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import dl
from tests.support.guest_dlfcn import passing
from tests.support.modules import MEMORY, calls, imports, library, pie, returns

LAZY, NOW, GLOBAL, NOLOAD, NODELETE, DEEPBIND = (1 << bit for bit in range(6))
MAIN, NEXT = 1, 0xFFFFFFFF
TEXT, ERROR, OUT = 1 << 16, (1 << 16) + 4096, (1 << 16) + 8192
SIZES = {"dlopen": 8, "dlsym": 6}


def wasix() -> tuple[str, ...]:
    """Fields by which a module calls WASIX's functions, exported as `w_…`."""
    return passing("wasix_32v1", "w_", SIZES)


def start(libraries: dict[str, bytes], *fields: str, elf: bool = True, **options: Any) -> dl.Linker:
    info = {"needed": options.pop("needed", ())}
    main = pie(*wasix(), *fields, memory_size=1 << 17, **info)
    return dl.Linker(main, libraries=libraries, guest_dlfcn="elf" if elf else "wasix", **options)


def _call(program: dl.Linker, handle: int, name: str, *arguments: int) -> int | str:
    program.memory.fill(ERROR, 0, 1024)
    errno = program.main_group.dlsym(handle, f"w_{name}")(*arguments)
    assert errno in (0, 79)
    return program.memory.read_cstring(ERROR, 1024) if errno else program.memory.read_u32(OUT)


def dlopen(program: dl.Linker, name: str, flags: int, caller: int = MAIN) -> int | str:
    program.memory.write(TEXT, name.encode())
    return _call(program, caller, "dlopen", TEXT, len(name.encode()), flags, ERROR, 1024, 0, 0, OUT)


def dlsym(program: dl.Linker, handle: int, name: str, caller: int = MAIN) -> int | str:
    program.memory.write(TEXT, name.encode())
    return _call(program, caller, "dlsym", handle, TEXT, len(name.encode()), ERROR, 1024, OUT)


def value(program: dl.Linker, handle: int, name: str) -> Any:
    return program.main_group.dlsym(handle, name)()


LIBS = {
    "lib.so": library(returns("f", 1)),
    "user.so": library(imports("f"), calls("g", "f")),
    "lacking.so": library(imports("one"), imports("two"), calls("g", "one")),
    "other.so": library(returns("f", 2)),
    "deep.so": library(imports("f"), calls("g", "f"), needed=["lib.so"]),
}


def test_flags_are_honoured_as_in_elf() -> None:
    """LOCAL, GLOBAL, promotion, NOW, LAZY, NOLOAD, NODELETE and DEEPBIND of the guest's own dlopen."""
    with start(LIBS) as program:
        assert "invalid mode" in str(dlopen(program, "lib.so", GLOBAL))
        assert "not loaded" in str(dlopen(program, "lib.so", NOW | NOLOAD))
        lib = dlopen(program, "lib.so", NOW)
        assert isinstance(lib, int)
        assert "user.so" in str(dlopen(program, "user.so", NOW))
        assert "undefined symbol" in str(dlsym(program, 0, "f"))
        assert dlopen(program, "lib.so", NOW | NOLOAD | GLOBAL | NODELETE) == lib
        user = dlopen(program, "user.so", NOW)
        assert isinstance(user, int)
        assert value(program, user, "g") == 1
        text = str(dlopen(program, "lacking.so", NOW))
        assert "env.one" in text
        assert "env.two" in text
        assert isinstance(dlopen(program, "lacking.so", LAZY), int)
        assert program.program.state.modules[dl.ModuleHandle(lib)].stays
    for flags, expected in ((NOW, 2), (NOW | DEEPBIND, 1)):
        with start(LIBS) as program:
            dlopen(program, "other.so", NOW | GLOBAL)
            deep = dlopen(program, "deep.so", flags)
            assert isinstance(deep, int)
            assert value(program, deep, "g") == expected


def test_the_default_is_lenient_exactly_where_the_documentation_says() -> None:
    """Without `guest_dlfcn="elf"` every open is LAZY and GLOBAL whatever is asked for, and a handle is searched alone."""
    libs = LIBS | {"top.so": library(returns("t", 3), needed=["low.so"]), "low.so": library(returns("l", 4))}
    with start(libs, elf=False) as program:
        assert dlopen(program, "lib.so", 0) == 2
        assert dlopen(program, "other.so", NOW | NOLOAD | DEEPBIND) == 3
        assert isinstance(dlopen(program, "lacking.so", NOW), int)
        top = dlopen(program, "top.so", NOW)
        assert isinstance(top, int)
        assert isinstance(dlsym(program, 0, "f"), int)
        assert isinstance(dlsym(program, 0, "l"), int)
        assert "undefined symbol: l" in str(dlsym(program, top, "l"))
        assert "undefined symbol: t" in str(dlsym(program, MAIN, "t"))
        assert "invalid module handle" in str(dlsym(program, NEXT, "f"))
        assert not any(dl.RTLD_NODELETE in m.flags for m in program.modules if m.handle != MAIN)
    with start(libs) as program:
        top = dlopen(program, "top.so", NOW | GLOBAL)
        assert isinstance(top, int)
        assert isinstance(dlsym(program, top, "l"), int)
        assert isinstance(dlsym(program, MAIN, "t"), int)


def test_next_is_that_of_the_module_whose_import_is_called() -> None:
    """The main module's dlsym goes on behind the main module, a library's own behind that library."""
    a = library(MEMORY, *wasix(), returns("f", 2))
    libs = {"a.so": a, "b.so": library(returns("f", 3))}
    with start(libs, returns("f", 1), needed=["a.so", "b.so"]) as program:
        by_name = {m.name: m.handle for m in program.modules}
        found = [dlsym(program, NEXT, "f"), dlsym(program, NEXT, "f", by_name["a.so"])]
        assert found == [program.main_group.dlsym(by_name[n], "f").address for n in ("a.so", "b.so")]


def test_the_run_path_of_the_module_that_asks(tmp_path: Path) -> None:
    """As in ELF, a bare name is looked for in the run path of the module whose code opens it; WASIX does not ask whose."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "p.so").write_bytes(library(returns("p", 1)))
    (tmp_path / "main.wasm").write_bytes(pie(*wasix(), memory_size=1 << 17, run_path=["$ORIGIN/plugins"]))
    for elf in (True, False):
        with dl.Linker(
            tmp_path / "main.wasm",
            preopens={"/app": tmp_path},
            guest_dlfcn="elf" if elf else "wasix",
        ) as program:
            opened = dlopen(program, "p.so", NOW)
            assert isinstance(opened, int) is elf
            assert str(tmp_path) not in str(opened)


def test_bind_now_is_for_the_guest_too() -> None:
    """With `bind="now"` the guest's opens miss nothing, however lenient they are otherwise."""
    with start(LIBS, elf=False, bind="now") as program:
        assert "env.two" in str(dlopen(program, "lacking.so", LAZY))


def test_another_word_is_refused() -> None:
    """Only the two ways exist."""
    with pytest.raises(dl.LinkerUsageError, match="guest_dlfcn must be one of"):
        dl.Linker(None, guest_dlfcn="posix")  # type: ignore[arg-type]
