"""Roots of other kinds than WAMR's, and several threads: position-independent roots, shared memory."""

from __future__ import annotations

import pytest

import dl
from tests.support.modules import SHARED_MEMORY, TABLE, calls, imports, library, pie, returns
from tests.wamr.programs import Guest
from tests.wamr.roots import DLFCN, GLOBAL, NOW, side

LIBRARY = library(
    SHARED_MEMORY,
    TABLE,
    '(import "env" "malloc" (func $malloc (param i32) (result i32)))',
    '(import "env" "free" (func $free (param i32)))',
    returns("seven", 7),
    '(func (export "use") (param i32) (result i32) (local i32)'
    " (local.set 1 (call $malloc (local.get 0)))"
    " (i32.store (local.get 1) (local.get 0))"
    " (i32.load (local.get 1))"
    " (call $free (local.get 1)))",
    memory_size=16,
)


def shared_root() -> bytes:
    """A position-independent root over a shared memory."""
    return pie(*DLFCN, '(func (export "_start"))', shared=True, memory_size=4096, memory_align=4)


def test_a_position_independent_root() -> None:
    """The functions of `env` serve a root that the linker lays out, too."""
    with dl.Linker(
        pie(*DLFCN, memory_size=4096, memory_align=4),
        name="root.wasm",
        libraries={"app.wasm": side()},
        wamr=1,
    ) as linker:
        guest = Guest(linker)
        handle = guest.open("app.wasm")
        assert guest.call("call1", guest.symbol(handle, "add42"), 1) == 43
        assert guest.close(handle) == 0


@pytest.mark.timeout(120)
def test_threads_that_open_use_and_close_at_once() -> None:
    """Eight threads open, call and close the same libraries through `env`, and nothing is left; pointers are one for all."""
    libraries = {f"l{i}.wasm": LIBRARY for i in range(3)}
    with dl.Linker(shared_root(), name="root.wasm", libraries=libraries, wamr=16) as linker:
        guest = Guest(linker)
        guest.close(guest.open("l0.wasm"))
        names = [guest.text(name) for name in libraries]
        seven, use = guest.text("seven"), guest.text("use")
        before = linker.statistics()

        def work(group: dl.InstanceGroup, number: int) -> int:
            def call(name: str, *arguments: int) -> int:
                function = group.dlsym(dl.MAIN_HANDLE, name)
                assert isinstance(function, dl.GuestFunction)
                result: int = function(*arguments)
                return result

            done = 0
            for i in range(12):
                handle = call("dlopen", names[(number + i) % 3], 0)
                assert handle > 1
                assert call("call0", call("dlsym", handle, seven)) == 7
                assert call("call1", call("dlsym", handle, use), 64 + number) == 64 + number
                assert call("dlclose", handle) == 0
                done += 1
            return done

        threads = [linker.spawn(work, number) for number in range(8)]
        assert [thread.join(100) for thread in threads] == [12] * 8
        after = linker.statistics()
        assert after.modules == before.modules == 1
        assert after.side_bytes == before.side_bytes
        # A handle counts as long as its library is loaded by anybody.
        first = guest.open("l0.wasm")
        assert guest.open("l0.wasm") == first


def test_a_library_that_another_thread_opened() -> None:
    """What one thread opens with RTLD_GLOBAL another finds in the default scope, by the same pointer."""
    libraries = {"l.wasm": LIBRARY, "u.wasm": library(SHARED_MEMORY, imports("seven"), calls("f", "seven"))}
    with dl.Linker(shared_root(), name="root.wasm", libraries=libraries, wamr=0) as linker:
        guest = Guest(linker)
        name, symbol = guest.text("l.wasm"), guest.text("seven")

        def opens(group: dl.InstanceGroup) -> tuple[int, int]:
            dlopen, dlsym = group.dlsym(dl.MAIN_HANDLE, "dlopen"), group.dlsym(dl.MAIN_HANDLE, "dlsym")
            assert isinstance(dlopen, dl.GuestFunction)
            assert isinstance(dlsym, dl.GuestFunction)
            handle = dlopen(name, NOW | GLOBAL)
            return handle, dlsym(handle, symbol)

        _, pointer = linker.spawn(opens).join(30)
        assert guest.symbol(0, "seven") == pointer
        assert guest.call("call0", pointer) == 7
        assert guest.call("call0", guest.symbol(guest.open("u.wasm"), "f")) == 7
