"""`dl_ext` among threads: opens and closes by guests and hosts at once, and libraries closed under running code."""

from __future__ import annotations

import threading
from random import Random

import dl
from tests.support.groups import held
from tests.support.guest_dlfcn import NOENT, Caller, asking
from tests.support.modules import SHARED_MEMORY, calls, imports, library, pie, returns

NOW, GLOBAL, NOLOAD = int(dl.RTLD_NOW), int(dl.RTLD_GLOBAL), int(dl.RTLD_NOLOAD)
MAIN = int(dl.MAIN_HANDLE)
SCRATCH = 1 << 16
SHARED = dl.MemoryType(minimum=20, maximum=400, shared=True)


def start(libs: dict[str, bytes], **options: object) -> dl.Linker:
    main = pie(*asking(), shared=True, memory_size=1 << 17)
    return dl.Linker(main, libraries=libs, memory=SHARED, **options)  # type: ignore[arg-type]


def test_guests_and_hosts_open_and_close_at_once() -> None:
    """Each thread finds its own opens counted whatever the others do, every call between is right, and nothing stays."""
    libs = {
        "a.so": library(SHARED_MEMORY, returns("f", 1), memory_size=64, needed=["low.so"]),
        "b.so": library(SHARED_MEMORY, returns("f", 2), memory_size=64, needed=["low.so"]),
        "low.so": library(SHARED_MEMORY, returns("low", 3), memory_size=64),
    }
    seed = 11
    print(f"seed {seed}")
    with start(libs) as program:
        before = held(program)

        def guest(group: dl.InstanceGroup, number: int) -> None:
            own, rng = Caller(group, MAIN, SCRATCH + 4096 * number), Random(seed + number)
            for _ in range(40):
                name = rng.choice(["a.so", "b.so", "low.so"])
                handle = own.dlopen(name, NOW | rng.choice([0, GLOBAL]))
                assert isinstance(handle, int)
                symbol, expected = ("low", 3) if name == "low.so" else ("f", 1 if name == "a.so" else 2)
                address = own.dlsym(handle, symbol)
                assert group.dlsym(handle, symbol)() == expected
                found = own.dladdr(int(address))
                assert isinstance(found, tuple)
                assert found[:4] == (handle, 1, name, symbol)
                assert handle in own.modules()[0]
                assert own.dlclose(handle) == ""

        def host(group: dl.InstanceGroup, number: int) -> None:
            rng = Random(seed + number)
            for _ in range(40):
                with group.library(rng.choice(["a.so", "b.so", "low.so"])) as handle:
                    assert group.dlsym(handle, "low")() == 3

        threads = [program.spawn(guest, n) for n in range(1, 5)] + [program.spawn(host, n) for n in (5, 6)]
        for thread in threads:
            thread.join(60)
        program.program.limbo.drain()
        assert held(program) == before
        assert Caller(program.main_group, MAIN, SCRATCH).modules()[0] == [MAIN]


def test_a_library_that_is_closed_while_another_thread_is_in_its_code() -> None:
    """The other thread's function runs to its end over its own data, whatever has been loaded since."""
    inside, go = threading.Event(), threading.Event()

    def wait() -> None:
        inside.set()
        assert go.wait(30)

    lib = library(
        SHARED_MEMORY,
        imports("wait", ""),
        '(import "env" "__memory_base" (global $mb i32))',
        '(func (export "f") (result i32) (i32.store (global.get $mb) (i32.const 77)) (call $wait)'
        " (i32.load (global.get $mb)))",
        memory_size=4096,
    )
    spoils = library(
        SHARED_MEMORY,
        '(import "env" "__memory_base" (global $mb i32))',
        '(func (export "__wasm_call_ctors") (i32.store (global.get $mb) (i32.const 1)))',
        memory_size=4096,
    )
    with start({"a.so": lib, "spoils.so": spoils}, imports={"env": {"wait": wait}}) as program:
        guest = Caller(program.main_group, MAIN, SCRATCH)
        before = program.statistics().side_bytes
        handle = guest.dlopen("a.so", NOW)
        assert isinstance(handle, int)
        thread = program.spawn(lambda group: group.dlsym(handle, "f")())
        assert inside.wait(30)
        assert guest.dlclose(handle) == ""
        assert guest.module(handle) == NOENT
        other = guest.dlopen("spoils.so", NOW)
        assert isinstance(other, int)
        go.set()
        assert thread.join(30) == 77
        assert guest.dlclose(other) == ""
        program.program.limbo.drain()
        assert program.statistics().side_bytes == before


def test_a_close_that_another_thread_s_look_up_meets() -> None:
    """A symbol that a library's own look-up has just found does not go, and one that goes is not found."""
    libs = {
        "asks.so": library(SHARED_MEMORY, *asking("dlsym", "dlerror"), returns("own", 1)),
        "a.so": library(SHARED_MEMORY, returns("f", 7)),
        "user.so": library(SHARED_MEMORY, imports("f"), calls("g", "f")),
    }
    with start(libs) as program:
        asks = program.main_group.dlopen("asks.so")
        stop = threading.Event()

        def churn(group: dl.InstanceGroup) -> int:
            turns = 0
            while not stop.is_set():
                with group.library("a.so", dl.RTLD_NOW | dl.RTLD_GLOBAL):
                    stop.wait(0.0005)
                turns += 1
            return turns

        def ask(group: dl.InstanceGroup) -> int:
            own = Caller(group, asks, SCRATCH)
            while True:
                address = own.dlsym(0, "f")
                if isinstance(address, int):
                    # it is bound now: whatever the other thread closes, this stays
                    found = Caller(group, MAIN, SCRATCH + 4096).dladdr(address)
                    assert isinstance(found, tuple)
                    return int(group.dlsym(found[0], "f")())
                assert "undefined symbol: f" in address

        churning = program.spawn(churn)
        assert program.spawn(ask).join(60) == 7
        stop.set()
        churning.join(60)
        program.main_group.dlclose(asks)
        assert [m.handle for m in program.modules] == [MAIN]
