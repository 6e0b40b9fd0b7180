"""Long lives: what a program has done and undone costs nothing later. Counts are compared, never times."""

from __future__ import annotations

import gc
import os
import random
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

import dl
from dl.dlfcn import DlFlags
from dl.engine.code_cache import PROCESS_CODE
from dl.modules.symbols import Symbol
from dl.program.seats import Seats
from dl.program.state import LinkerState
from tests.support.engines import fresh_engine
from tests.support.groups import Program, program, until
from tests.support.groups import library as stress_library
from tests.support.modules import calls, constructor, imports, library, pie, returns, static

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="counts memory maps as Linux shows them"),
]

SLACK_MAPS = 24
"""Maps that the C library's allocator may add while it warms up."""


def maps() -> list[str]:
    return Path("/proc/self/maps").read_text().splitlines()


@dataclass(frozen=True)
class Held:
    """What is compared."""

    code: int
    descriptors: int
    entries: int
    modules: int
    table: int
    regions: int


def held(linker: dl.Linker) -> Held:
    gc.collect()
    now, code = linker.statistics(), PROCESS_CODE.of(linker.engine)
    return Held(
        len(code._in_use),
        len(os.listdir("/proc/self/fd")),
        len(linker.program.rendezvous.log),
        now.modules,
        now.table_length,
        now.side_regions,
    )


@contextmanager
def flat(linker: dl.Linker, step: Callable[[int], object], *, warm_up: int, rounds: int) -> Iterator[None]:
    """Check that after a warm-up nothing is held that was not held before."""
    for number in range(warm_up):
        step(number)
    before, maps_before = held(linker), len(maps())
    for number in range(warm_up, warm_up + rounds):
        step(number)
    assert held(linker) == before
    assert len(maps()) <= maps_before + SLACK_MAPS
    yield


@pytest.mark.parametrize("thread_local", [False, True])
def test_loads_that_fail(thread_local: bool) -> None:
    """A library whose constructor fails again and again is the same code each time, in every group."""
    lib = stress_library(1, traps=True, thread_local=thread_local)
    with program(engine=fresh_engine(), cache=False) as p:

        def step(_number: int) -> None:
            with pytest.raises(dl.InitializationError):
                p.main.dlopen(lib, dl.RTLD_NOW, name="trap.so")

        with flat(p.linker, step, warm_up=20, rounds=200):
            assert p.linker.spawn(lambda group: len(group.table())).join() > 0


def test_loads_that_fail_with_stubs_and_needs() -> None:
    """A tree with stubs, whose modules import from each other, is the same code each time too."""
    needed = library(returns("f", 7), imports("nowhere"), calls("stub", "nowhere"))
    top = library(
        imports("f"), imports("missing"), calls("g", "missing"), constructor("unreachable"), needed=["f.so"]
    )
    with dl.Linker(
        None, libraries={"f.so": needed, "top.so": top}, engine=fresh_engine(), cache=False
    ) as linker:

        def step(_number: int) -> None:
            with pytest.raises(dl.InitializationError):
                linker.main_group.dlopen("top.so", dl.RTLD_LAZY)

        with flat(linker, step, warm_up=10, rounds=100):
            pass


def test_a_stub_names_its_module_whatever_the_seat() -> None:
    """Two modules that had one seat after the other ask for their own imports, in the first group and in later ones."""
    bad = library(imports("missing"), calls("call", "missing"), constructor("unreachable"))
    good = library(imports("other"), calls("call", "other"))
    with dl.Linker(None, engine=fresh_engine(), memory=dl.MemoryType(1, 100, shared=True)) as linker:
        linker.program.state.seats = Seats(most_free=0)
        with pytest.raises(dl.InitializationError):
            linker.main_group.dlopen(bad, dl.RTLD_LAZY, name="bad.so")
        handle = linker.main_group.dlopen(good, dl.RTLD_LAZY, name="good.so")
        (module,) = linker.program.state.modules.values()
        assert (int(handle), module.seat) == (3, 2)
        with pytest.raises(dl.UnresolvedCallError, match="other"):
            linker.main_group.dlsym(handle, "call")()
        linker.main_group.dlopen(library(returns("other", 9)), dl.RTLD_NOW | dl.RTLD_GLOBAL, name="other.so")
        assert linker.main_group.dlsym(handle, "call")() == 9
        assert linker.spawn(lambda group: group.dlsym(handle, "call")()).join() == 9


def test_closures() -> None:
    """Callbacks that are opened and closed leave neither log entries nor table elements."""
    with program(engine=fresh_engine(), cache=False) as p:

        def step(_number: int) -> None:
            with p.linker.callback("(i32) -> i32", lambda x: x):
                pass

        with flat(p.linker, step, warm_up=300, rounds=1500):
            pass


@pytest.mark.parametrize("way", ["spawned", "guest"])
def test_threads(way: str) -> None:
    """Threads that have ended leave nothing."""
    with program(engine=fresh_engine(), cache=False) as p:
        p.main.dlopen(stress_library(3, thread_local=True), dl.RTLD_NOW, name="a.so")

        def step(_number: int) -> None:
            if way == "spawned":
                p.linker.spawn(lambda _group: None).join()
            else:
                p._records = 0  # one stack serves all
                p.start()
            until(p.is_alone)

        with flat(p.linker, step, warm_up=30, rounds=150):
            pass


def test_libraries_again_in_another_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second program that opens the same 200 libraries compiles nothing."""
    own = fresh_engine()
    libs = {f"{n}.so": library(returns(f"f{n}", n)) for n in range(200)}
    compiled: list[int] = []
    compile_before = own.compile

    def counting(wasm: bytes) -> object:
        compiled.append(len(wasm))
        return compile_before(wasm)

    def open_all() -> None:
        with dl.Linker(None, libraries=libs, engine=own, cache=False) as linker:
            for name in libs:
                linker.main_group.dlopen(name)

    open_all()
    monkeypatch.setattr(own, "compile", counting)
    open_all()
    assert not compiled


@pytest.mark.parametrize(
    "make",
    [
        lambda: Program().linker,
        lambda: dl.Linker(pie(returns("f", 1)), name="app"),
        lambda: dl.Linker(static(returns("f", 1)), name="app"),
        lambda: dl.Linker(None),
    ],
)
def test_a_closed_program_holds_no_memory(make: Callable[[], dl.Linker]) -> None:
    """The address space of a program's memory is free when it is closed, though the linker is still referred to."""

    def reservations() -> int:
        sizes = [[int(end, 16) for end in line.split()[0].split("-")] for line in maps()]
        return sum(end - start >= 1 << 31 for start, end in sizes)

    make().close()  # an engine's first program makes what all share: the memory that its clocks write to
    gc.collect()
    before = reservations()
    gc.disable()
    try:
        linker = make()
        linker.main_group.dlopen(library(memory_size=64), name="a.so")
        memory = weakref.ref(linker.program._memory)
        assert reservations() > before
        linker.close()
        assert memory() is None
        assert reservations() == before
        with pytest.raises(dl.LinkerClosedError):
            linker.memory  # noqa: B018
    finally:
        gc.enable()


class TestIndex:
    def test_the_global_scope_is_indexed(self) -> None:
        """After any opens, promotions and failures, the index is what walking the global scope finds."""
        seed = random.SystemRandom().randrange(1 << 32)
        print("seed", seed)
        chooser = random.Random(seed)
        with dl.Linker(None) as linker:
            for number in range(60):
                names = chooser.sample("abcdef", 2)
                fields = [returns(name, number) for name in names]
                if chooser.random() < 0.3:
                    fields.append(constructor("unreachable"))
                known = [m.name for m in linker.modules]
                needed = [chooser.choice(known)] if known and chooser.random() < 0.5 else []
                flags = dl.RTLD_NOW | chooser.choice((dl.RTLD_LOCAL, dl.RTLD_GLOBAL))
                with suppress(dl.InitializationError):
                    linker.main_group.dlopen(library(*fields, needed=needed), flags, name=f"{number}.so")
                check_index(linker.program.state)
                for name in "abcdef":
                    walked = walk(linker.program.state).get(name)
                    if walked is not None:
                        found = linker.main_group.dlsym(dl.RTLD_DEFAULT, name)
                        assert found.address == linker.main_group.own.address_of(walked)

    def test_a_name_that_is_exported_again_in_a_large_tree(self) -> None:
        """Symbols that a load adds while it resolves are found in scope order, as without an index."""
        libs = {
            "def.so": library(returns("f", 1)),
            "pass.so": library(imports("f"), '(export "g" (func $f))', needed=["def.so"]),
            "use.so": library(imports("g"), calls("h", "g"), needed=["pass.so"]),
        }
        for flags in (dl.RTLD_LOCAL, dl.RTLD_GLOBAL, dl.RTLD_LOCAL | DlFlags.DEEPBIND):
            with dl.Linker(None, libraries=libs) as linker:
                handle = linker.main_group.dlopen("use.so", dl.RTLD_NOW | flags)
                assert linker.main_group.dlsym(handle, "h")() == 1


def walk(state: LinkerState) -> dict[str, Symbol]:
    """The first definitions, found module by module."""
    first: dict[str, Symbol] = {}
    for module in state.global_scope:
        for name, symbol in module.symbols.items():
            first.setdefault(name, symbol)
    return first


def check_index(state: LinkerState) -> None:
    assert state.global_symbols == walk(state)
    copies = [(m.image.digest, m.copy) for m in state.modules.values()]
    assert sum(sum(counts.values()) for counts in state.copies.values()) == len(copies)
    assert all(copy in state.copies_of(digest) for digest, copy in copies)
    seats = [m.seat for m in state.modules.values()]
    assert len(set(seats)) == len(seats)


def test_seats_are_used_again() -> None:
    """A content gets the lowest seat that it had; others get it when many are free, the longest free first."""
    seats = Seats()
    assert [seats.take(name) for name in (b"a", b"b", b"a")] == [2, 3, 4]
    seats.give_back(3)
    seats.give_back(2)
    assert [seats.take(name) for name in (b"a", b"b", b"b")] == [2, 3, 5]
    seats = Seats(most_free=1)
    assert [seats.take(name) for name in (b"a", b"b", b"c")] == [2, 3, 4]
    for seat in (4, 2):
        seats.give_back(seat)
    assert [seats.take(name) for name in (b"d", b"c", b"a")] == [4, 5, 2]
