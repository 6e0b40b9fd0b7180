"""`dl_ext`: what a guest closes, and what its look-ups keep."""

from __future__ import annotations

import pytest

import dl
from tests.support.guest_dlfcn import (
    NOENT,
    UNKNOWN,
    asking,
)
from tests.support.modules import MEMORY, imports, library, returns
from tests.wasix.dl_ext_programs import (
    DEFAULT,
    GLOBAL,
    MAIN,
    NEXT,
    NOW,
    SCRATCH,
    called,
    caller,
    main_module,
)


class TestClose:
    def test_a_guest_closes_what_it_opened_only(self) -> None:
        """What the host or a needed list keeps, the guest cannot close; what it opened itself goes with its last close."""
        libs = {
            "host.so": library(returns("h", 1)),
            "top.so": library(needed=["low.so"]),
            "low.so": library(returns("l", 1)),
        }
        with dl.Linker(main_module(), libraries=libs) as program:
            guest, group = caller(program), program.main_group
            host = group.dlopen("host.so")
            assert "has not opened it" in guest.dlclose(host)
            assert guest.dlopen("host.so", NOW) == host
            assert guest.dlclose(host) == ""
            assert "has not opened it" in guest.dlclose(host)
            group.dlclose(host)
            assert guest.module(host) == NOENT

            top = guest.dlopen("top.so", NOW)
            assert isinstance(top, int)
            low = next(m.handle for m in program.modules if m.name == "low.so")
            assert "not open" in guest.dlclose(low)
            for wrong in (DEFAULT, NEXT, 999, host):
                assert "invalid module handle" in guest.dlclose(wrong)
            assert guest.dlclose(top) == ""
            assert [m.handle for m in program.modules] == [MAIN]

    def test_the_host_takes_back_its_own_open_first(self) -> None:
        """A close by the host leaves the guest's open; the host may close the guest's too."""
        with dl.Linker(main_module(), libraries={"a.so": library(returns("f", 1))}) as program:
            guest, group = caller(program), program.main_group
            handle = guest.dlopen("a.so", NOW)
            assert isinstance(handle, int)
            assert group.dlopen("a.so") == handle
            group.dlclose(handle)
            assert guest.dlclose(handle) == ""
            handle = guest.dlopen("a.so", NOW)
            assert isinstance(handle, int)
            group.dlclose(handle)
            assert "it was closed" in guest.dlclose(handle)

    def test_what_wasix_opened_can_be_closed(self) -> None:
        """An open through WASIX's dlopen is one of the guest's."""
        wasix = imports("dlopen", f"(param {'i32 ' * 8}) (result i32)", "wasix_32v1").replace(
            "$dlopen", "$wdlopen"
        )
        arguments = " ".join(f"(local.get {i})" for i in range(8))
        field = f'(func (export "w") (param {"i32 " * 8}) (result i32) (call $wdlopen {arguments}))'
        with dl.Linker(main_module(wasix, field), libraries={"a.so": library(returns("f", 1))}) as program:
            guest = caller(program)
            program.memory.write(SCRATCH, b"a.so")
            opened = program.main_group.dlsym(MAIN, "w")(SCRATCH, 4, 0, 0, 0, 0, 0, SCRATCH + 64)
            assert opened == 0
            assert guest.dlclose(program.memory.read_u32(SCRATCH + 64)) == ""
            assert len(program.modules) == 1

    def test_a_library_that_closes_itself(self) -> None:
        """Its code runs on to its end with its data untouched, its look-ups fail, and nothing stays when it is left."""
        lib = library(
            MEMORY,
            *asking("dlclose", "dlsym", "dlerror", "module"),
            '(import "env" "__memory_base" (global $mb i32))',
            '(func (export "leave") (param $own i32) (param $out i32) (result i32)'
            " (i32.store (global.get $mb) (i32.const 99))"
            " (i32.store (local.get $out) (call $dlclose (local.get $own)))"
            # what it asks for now is refused: it is no module any longer
            " (i32.store offset=4 (local.get $out)"
            "  (call $dlsym (i32.const -1) (local.get $out) (i32.const 1) (i32.add (local.get $out) (i32.const 16))))"
            " (i32.store offset=8 (local.get $out)"
            "  (call $module (i32.const 0) (i32.add (local.get $out) (i32.const 16)) (i32.const 0) (i32.const 0)))"
            " (i32.load (global.get $mb)))",
            memory_size=4096,
        )
        with dl.Linker(main_module(), libraries={"a.so": lib}) as program:
            guest = caller(program)
            before = program.statistics().side_bytes
            for _ in range(3):
                handle = guest.dlopen("a.so", NOW)
                assert isinstance(handle, int)
                assert program.main_group.dlsym(handle, "leave")(handle, SCRATCH) == 99
                assert program.memory.read_struct("3I", SCRATCH) == (0, UNKNOWN, NOENT)
                assert "it was closed" in guest.error()
                assert len(program.modules) == 1
            program.program.limbo.drain()
            assert program.statistics().side_bytes == before

    def test_destructors(self) -> None:
        """They run before dlclose returns; one that traps fails the call, and the library is gone; exit ends all."""
        exits = '(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))'
        libs = {
            "traps.so": library('(func (export "_fini") unreachable)'),
            "exits.so": library(exits, '(func (export "_fini") (call $exit (i32.const 7)))'),
        }
        with dl.Linker(main_module(), libraries=libs) as program:
            guest = caller(program)
            handle = guest.dlopen("traps.so", NOW)
            assert isinstance(handle, int)
            assert "_fini" in guest.dlclose(handle)
            assert guest.module(handle) == NOENT
            handle = guest.dlopen("exits.so", NOW)
            assert isinstance(handle, int)
            with pytest.raises(dl.ProgramExited):
                guest.call("dlclose", handle)


class TestKept:
    """What a module's own look-up by RTLD_DEFAULT finds stays as long as the module, as in glibc."""

    LIBS = {
        "asks.so": library(MEMORY, *asking("dlsym", "dlerror"), returns("own", 1)),
        "a.so": library(returns("a", 2)),
    }

    def test_as_long_as_who_asked(self) -> None:
        """A library that another one found by name is closed with that one, and not before."""
        with dl.Linker(main_module(), libraries=self.LIBS) as program:
            guest = caller(program)
            asks, a = guest.dlopen("asks.so", NOW), guest.dlopen("a.so", NOW | GLOBAL)
            assert isinstance(asks, int)
            assert isinstance(a, int)
            for handle in (a, NEXT):
                caller(program, asks).dlsym(handle, "a")
            assert guest.dlclose(a) == ""
            assert guest.module(a) == NOENT

            a = guest.dlopen("a.so", NOW | GLOBAL)
            assert isinstance(a, int)
            found = caller(program, asks).dlsym(DEFAULT, "a")
            assert guest.dlclose(a) == ""
            assert called(program, found) == 2
            kept = next(m for m in program.modules if m.handle == a)
            assert [b.module.name for b in kept.bound_by] == ["asks.so"]
            assert guest.dlclose(asks) == ""
            assert guest.module(a) == guest.module(asks) == NOENT
            assert len(program.modules) == 1

    def test_for_good_by_the_main_module(self) -> None:
        """The main module stays, and so does what it found; a handle or the program's handle keeps nothing."""
        with dl.Linker(main_module(), libraries=self.LIBS) as program:
            guest = caller(program)
            a = guest.dlopen("a.so", NOW | GLOBAL)
            assert isinstance(a, int)
            assert isinstance(guest.dlsym(MAIN, "a"), int)
            assert guest.dlclose(a) == ""
            assert guest.module(a) == NOENT
            a = guest.dlopen("a.so", NOW | GLOBAL)
            assert isinstance(a, int)
            assert isinstance(guest.dlsym(DEFAULT, "a"), int)
            assert guest.dlclose(a) == ""
            assert isinstance(guest.module(a), dict)
