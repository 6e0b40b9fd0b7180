"""What goes wrong in a close, at each of its steps, and what destructors do: every group is as if nothing had gone wrong."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest

import dl
from tests.groups.test_failures import Bystanders, Cancelled, Fails, Fault
from tests.support.groups import SECONDS, Program, held, library, program, state_of, until
from tests.support.modules import MEMORY_BASE, SHARED_MEMORY, TABLE, TABLE_BASE, returns
from tests.support.modules import library as small_library


@pytest.fixture(name="p")
def _program() -> Iterator[Program]:
    libraries = {
        "top.so": library(1, thread_local=True, needed=("low.so",)),
        "low.so": library(2, thread_local=True),
    }
    with program(libraries=libraries) as made:
        made.main.dlopen(library(9, thread_local=True), name="before.so")
        yield made


def check_gone(p: Program, before: tuple[object, ...], bystanders: Bystanders) -> None:
    """Check that all groups are equal, that nothing is held, and that the library can be loaded again."""
    p.linker.program.checkpoint = lambda _step, _group: None
    expected = state_of(p.main)
    assert bystanders.states() == [expected] * 3
    assert p.linker.spawn(state_of).join(SECONDS) == expected
    p.until_given_back(before)
    with p.main.library("top.so") as again:
        assert p.main.dlsym(again, "value")(1) == 2
    assert held(p.linker) == before


class TestFaults:
    @pytest.mark.parametrize("error", [Fault, Cancelled, MemoryError])
    @pytest.mark.parametrize(("step", "in_group"), [("commit", False), ("clear", True)])
    def test_at_a_step_of_the_close(
        self, p: Program, step: str, in_group: bool, error: type[Exception]
    ) -> None:
        """A close that a fault cuts off is made nevertheless: what its destructors have ended cannot stay."""
        before = held(p.linker)
        top = p.main.dlopen("top.so")
        bystanders = Bystanders(p)
        # Other groups may make the change before the one whose thread closes: it is committed first.
        only = p.main.name if in_group else None
        p.linker.program.checkpoint = Fails(step, 1, error("injected"), in_group=in_group, only=only)
        with pytest.raises(error):
            p.main.dlclose(top)
        check_gone(p, before, bystanders)


def ends(*body: str, **options: object) -> bytes:
    """A library whose end does something."""
    return small_library(
        '(import "env" "at_end" (func $at_end))',
        SHARED_MEMORY,
        MEMORY_BASE,
        returns("f", 7),
        f'(func (export "_fini") {" ".join(body)})',
        memory_size=4096,
        **options,
    )


class Ending:
    """A program of libraries only, one of which, `a.so`, calls `at_end` at its end, or does what is given."""

    def __init__(self, *body: str, **libraries: bytes) -> None:
        self.at_end: Callable[[], object] = lambda: None
        libs = {"a.so": ends(*(body or ("call $at_end",))), "b.so": small_library(returns("g", 8))}
        self.linker = dl.Linker(
            None,
            memory=dl.MemoryType(minimum=20, maximum=200, shared=True),
            libraries={**libs, **libraries},
            imports={"env": {"at_end": lambda: self.at_end() and None}},
        )
        self.main = self.linker.main_group

    def check_gone(self, before: tuple[object, ...]) -> None:
        """Check that nothing is left, and that the library can be loaded anew, in this thread and for others."""
        assert held(self.linker) == before
        self.at_end = lambda: None
        with self.main.library("b.so") as other:
            assert self.main.dlsym(other, "g")() == 8
        tables = [self.main.table(), self.linker.spawn(lambda group: group.table()).join(SECONDS)]
        assert tables[0] == tables[1]


class TestDestructors:
    def test_that_never_ends_is_cancelled(self) -> None:
        """A thread that closes a library whose destructor never ends can be cancelled; the library is gone."""
        made = Ending("call $at_end", "(loop $l (br $l))")
        with made.linker as linker:
            before, entered = held(linker), threading.Event()
            made.at_end = entered.set
            handle = made.main.dlopen("a.so")
            closing = linker.spawn(lambda group: group.dlclose(handle))
            assert entered.wait(SECONDS)
            closing.cancel(Fault("cancelled"))
            with pytest.raises(Fault):
                closing.join(SECONDS)
            until(lambda: linker.parts.groups.all() == [made.main.own])
            made.check_gone(before)

    def test_that_never_ends_ends_with_ctrl_c(self) -> None:
        """Ctrl-C ends a destructor in the main thread, and the close raises it; the library is gone."""
        made = Ending("call $at_end", "(loop $l (br $l))")
        with made.linker as linker:
            before = held(linker)
            main = threading.main_thread().ident
            assert main is not None
            made.at_end = lambda: threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT)).start()
            handle = made.main.dlopen("a.so")
            with pytest.raises(KeyboardInterrupt):
                made.main.dlclose(handle)
            made.check_gone(before)

    def test_that_exits_ends_the_program(self) -> None:
        """A destructor that ends the program ends it: the close raises that, and so does every later call."""
        leave = '(import "wasi_snapshot_preview1" "proc_exit" (func $leave (param i32)))'
        lib = small_library(leave, returns("f", 7), '(func (export "_fini") i32.const 5 call $leave)')
        with dl.Linker(None, libraries={"a.so": lib, "b.so": small_library(returns("g", 8))}) as linker:
            group = linker.main_group
            handle = group.dlopen("a.so")
            with pytest.raises(dl.ProgramExited) as exited:
                group.dlclose(handle)
            assert exited.value.code == 5

    def test_that_opens_and_closes_what_goes_with_it(self) -> None:
        """A destructor that closes a library that is going is refused; one that opens it gets another instance of it."""
        made = Ending()
        with made.linker as linker:
            before = held(linker)
            told: list[object] = []

            def at_end() -> None:
                made.at_end = lambda: None
                try:
                    made.main.dlclose(handle)
                except dl.InvalidHandleError as error:
                    told.append(str(error))
                with made.main.library("a.so") as again:
                    told.append(again.handle != handle and made.main.dlsym(again, "f")())

            made.at_end = at_end
            handle = made.main.dlopen("a.so")
            made.main.dlclose(handle)
            assert told == [told[0], 7]
            assert "it was closed" in str(told[0])
            made.check_gone(before)

    def test_that_closes_what_its_library_needs(self) -> None:
        """A library that its user keeps to its end, and whose own open is taken back meanwhile, goes after it."""
        made = Ending(**{"user.so": ends("call $at_end", needed=("b.so",))})
        with made.linker as linker:
            for by_another in (False, True):
                before = held(linker)
                handle, needed = made.main.dlopen("user.so"), made.main.dlopen("b.so")

                def close(group: dl.InstanceGroup, needed: dl.ModuleHandle = needed) -> None:
                    group.dlclose(needed)

                def close_in_another(close: Callable[[dl.InstanceGroup], None] = close) -> None:
                    linker.spawn(close).join(SECONDS)

                made.at_end = close_in_another if by_another else partial(close, made.main)
                made.main.dlclose(handle)
                made.check_gone(before)

    def test_that_waits_for_another_thread_s_close(self) -> None:
        """No lock is held while a destructor runs: it may wait for another thread that opens, calls and closes."""
        made = Ending()
        with made.linker as linker:
            before = held(linker)

            def use(group: dl.InstanceGroup) -> int:
                with group.library("b.so") as other:
                    return int(group.dlsym(other, "g")())

            results: list[int] = []
            made.at_end = lambda: results.append(linker.spawn(use).join(SECONDS))
            made.main.dlclose(made.main.dlopen("a.so"))
            assert results == [8]
            made.check_gone(before)

    def test_whoever_opens_it_meanwhile_gets_the_next_one(self) -> None:
        """A thread that opens the library while its destructor runs waits, and loads it anew."""
        made = Ending()
        with made.linker as linker:
            before, entered, go = held(linker), threading.Event(), threading.Event()
            made.at_end = lambda: (entered.set(), go.wait(SECONDS))
            handle = made.main.dlopen("a.so")
            closing = linker.spawn(lambda group: group.dlclose(handle))
            assert entered.wait(SECONDS)
            opening = linker.spawn(lambda group: int(group.dlopen("a.so")))
            until(lambda: any("a.so" in what for _, what in linker.program.waits.waiting()))
            go.set()
            closing.join(SECONDS)
            again = opening.join(SECONDS)
            assert again > handle
            assert made.main.dlsym(again, "f")() == 7
            made.main.dlclose(again)
            made.check_gone(before)


def test_thread_local_destructors_are_those_of_the_closing_thread() -> None:
    """What the closing thread has registered for its own end runs at the close; what another has is dropped, and never runs."""
    ran: list[int] = []
    lib = small_library(
        TABLE,
        TABLE_BASE,
        '(import "env" "__cxa_thread_atexit" (func $atexit (param i32 i32 i32) (result i32)))',
        '(import "env" "ran" (func $ran (param i32)))',
        "(func $end (param i32) (call $ran (local.get 0)))",
        "(elem (global.get $table_base) $end)",
        '(func (export "register") (param i32)'
        " (drop (call $atexit (global.get $table_base) (local.get 0) (i32.const 0))))",
        table_size=1,
    )
    shared = dl.MemoryType(minimum=20, maximum=200, shared=True)
    imports = {"env": {"ran": ran.append}}
    with dl.Linker(None, memory=shared, libraries={"a.so": lib}, imports=imports) as linker:
        group = linker.main_group
        handle = group.dlopen("a.so")
        registered, go = threading.Event(), threading.Event()

        def other(own: dl.InstanceGroup) -> None:
            own.dlsym(handle, "register")(3)
            registered.set()
            assert go.wait(SECONDS)

        thread = linker.spawn(other)
        for number in (1, 2):
            group.dlsym(handle, "register")(number)
        assert registered.wait(SECONDS)
        group.dlclose(handle)
        assert ran == [2, 1]
        go.set()
        thread.join(SECONDS)
    assert ran == [2, 1]


def registering(registrar: str) -> bytes:
    """A library whose function registers another, with the argument that it gets, for its end."""
    return small_library(
        TABLE,
        TABLE_BASE,
        f'(import "env" "{registrar}" (func $atexit (param i32 i32 i32) (result i32)))',
        '(import "env" "ran" (func $ran (param i32)))',
        "(func $end (param i32) (call $ran (local.get 0)))",
        "(elem (global.get $table_base) $end)",
        '(func (export "register") (param i32)'
        " (drop (call $atexit (global.get $table_base) (local.get 0) (i32.const 0))))",
        table_size=1,
    )


def test_a_thread_that_has_ended_leaves_its_destructors_to_no_other() -> None:
    """A later thread has the system's identity of an earlier one, and closes the library: what that registered does not run."""
    ran: list[int] = []
    shared = dl.MemoryType(minimum=20, maximum=200, shared=True)
    libraries = {"a.so": registering("__cxa_thread_atexit")}
    with dl.Linker(None, memory=shared, libraries=libraries, imports={"env": {"ran": ran.append}}) as linker:
        handle = linker.main_group.dlopen("a.so")
        linker.spawn(lambda group: group.dlsym(handle, "register")(1)).join(SECONDS)
        linker.spawn(lambda group: group.dlclose(handle)).join(SECONDS)
    assert ran == []


def test_the_c_library_s_list_does_not_grow_with_each_close() -> None:
    """Places of libraries that are gone are used again, and at the program's end all runs in reverse order of registration."""
    ran: list[int] = []
    placed: list[tuple[int, int]] = []
    c_library = small_library(
        TABLE,
        '(import "env" "placed" (func $placed (param i32 i32)))',
        '(func (export "__cxa_atexit") (param i32 i32 i32) (result i32)'
        " (call $placed (local.get 0) (local.get 1)) (i32.const 0))",
        '(func (export "run") (param i32 i32) (call_indirect (param i32) (local.get 1) (local.get 0)))',
    )

    def place(function: int, argument: int) -> None:
        placed.append((function, argument))

    libraries = {"c.so": c_library, "a.so": registering("__cxa_atexit"), "b.so": registering("__cxa_atexit")}
    with dl.Linker(
        None, libraries=libraries, imports={"env": {"ran": ran.append, "placed": place}}
    ) as linker:
        group = linker.main_group
        run = group.dlsym(group.dlopen("c.so", dl.RTLD_NOW | dl.RTLD_GLOBAL), "run")
        stays = group.dlsym(group.dlopen("b.so"), "register")
        for number in range(200):
            with group.library("a.so") as library:
                library.register(-number)
            if number % 50 == 0:
                stays(number + 1)
        assert len(placed) < 80
        assert ran == [-number for number in range(200)]
        ran.clear()
        group.dlsym(group.dlopen("a.so"), "register")(1000)
        for function, argument in reversed(placed):
            run(function, argument)
    assert ran == [1000, 151, 101, 51, 1]


class TestInUse:
    def test_the_code_of_another_thread_goes_on(self) -> None:
        """A thread that computes in a library while it is closed keeps its data and its code, until it has come out."""
        spins = small_library(
            SHARED_MEMORY,
            MEMORY_BASE,
            '(import "env" "at_end" (func $at_end))',
            '(func (export "spin") (result i32) (i32.store (global.get $memory_base) (i32.const 41)) (call $at_end)'
            " (loop $l (br_if $l (i32.eqz (i32.atomic.load offset=4 (global.get $memory_base)))))"
            " (i32.add (i32.load (global.get $memory_base)) (i32.const 1)))",
            memory_size=4096,
            memory_align=2,
        )
        writes = small_library(
            SHARED_MEMORY,
            MEMORY_BASE,
            '(func (export "__wasm_call_ctors") (memory.fill (global.get $memory_base) (i32.const 255) (i32.const 4096)))',
            memory_size=4096,
        )
        made = Ending(**{"spins.so": spins, "writes.so": writes})
        with made.linker as linker:
            before, inside = held(linker), threading.Event()
            made.at_end = inside.set
            handle = made.main.dlopen("spins.so")
            base = linker.program.state.modules[handle].memory_base
            running = linker.spawn(lambda group: group.dlsym(handle, "spin")())
            assert inside.wait(SECONDS)
            made.main.dlclose(handle)
            for _ in range(3):
                other = made.main.dlopen("writes.so")
                assert linker.program.state.modules[other].memory_base != base
                made.main.dlclose(other)
            linker.memory.write_u32(base + 4, 1)
            assert running.join(SECONDS) == 42
            until(lambda: linker.parts.groups.all() == [made.main.own])
            made.check_gone(before)
