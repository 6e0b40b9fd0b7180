"""Closures: function pointers of the guest that are made while it runs, in every thread and for every signature."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import dl
from tests.support.closures import (
    FAULT,
    INT,
    INVALID,
    MEMORY_VIOLATION,
    NOT_SUPPORTED,
    SUCCESS,
    SYSTEM_CALLS,
    WASIX,
    Guest,
    functions,
    in_thread,
)
from tests.support.modules import MEMORY, SHARED_MEMORY, TABLE, library, static

pytestmark = pytest.mark.timeout(120)


class TestLife:
    def test_preparing_again_replaces_function_and_signature_at_the_same_index(self, guest: Guest) -> None:
        """The pointer stays, what it does and how it is called change."""
        closure = guest.adder(5)
        assert guest.call(closure, 10) == 15

        assert guest.prepare(closure, guest.address("twice")) == SUCCESS
        assert guest.call(closure, 10) == 20

        assert guest.prepare(closure, guest.address("twice"), b"\0\0", b"\0") == SUCCESS
        with pytest.raises(dl.TrapError, match="type mismatch"):
            guest.call(closure, 10)

    def test_a_closure_that_is_not_prepared_traps(self, guest: Guest) -> None:
        """An index that was only handed out is a null pointer."""
        with pytest.raises(dl.TrapError, match="uninitialized"):
            guest.call(guest.allocate(), 1)

    def test_a_freed_closure_traps_and_comes_back_from_the_pool(
        self, linker: dl.Linker, guest: Guest
    ) -> None:
        """Freeing clears the index in every group, and it is handed out again when all others have been."""
        closure = guest.adder(5)
        assert in_thread(linker, lambda other: other.call(closure, 1)) == 6

        assert guest.closure_free(closure) == SUCCESS

        with pytest.raises(dl.TrapError, match="uninitialized"):
            guest.call(closure, 1)
        with pytest.raises(dl.TrapError, match="uninitialized"):
            in_thread(linker, lambda other: other.call(closure, 1))
        assert [guest.allocate() for _ in range(100)].index(closure) == 99
        with pytest.raises(dl.TrapError, match="uninitialized"):
            guest.call(closure, 1)

    def test_freeing_what_is_no_closure_does_nothing(self, linker: dl.Linker, guest: Guest) -> None:
        """An index that is unknown, already free, or a function's own is ignored."""
        closure = guest.adder(5)
        guest.closure_free(closure)
        table = linker.main_group.table()

        for address in (closure, 0, 1, guest.address("add"), 0xFFFFFFFF, 1 << 20):
            assert guest.closure_free(address) == SUCCESS

        assert linker.main_group.table() == table
        assert [guest.allocate() for _ in range(100)].count(closure) == 1

    def test_preparing_what_is_not_handed_out_is_refused(self, linker: dl.Linker, guest: Guest) -> None:
        """Nobody overwrites a function, the linker's own indices, or a freed closure by preparing it."""
        closure = guest.adder(5)
        guest.closure_free(closure)
        table = linker.main_group.table()

        for address in (closure, 0, 1, guest.address("add"), 0xFFFFFFFF, 1 << 20):
            assert guest.prepare(address, guest.address("twice")) == INVALID

        assert linker.main_group.table() == table

    def test_bad_lists_of_types_are_refused_and_change_nothing(self, guest: Guest) -> None:
        """A list outside memory and an unknown type have their errnos; the closure stays as it was."""
        closure = guest.adder(5)
        ok, backing = guest.scratch + 1024, guest.address("twice")

        assert guest.prepare(closure, backing, b"\5") == INVALID
        assert guest.prepare(closure, backing, b"", b"\xff") == INVALID
        assert guest.closure_prepare(backing, closure, 0xFFFFFFF0, 32, ok, 0, 0) == MEMORY_VIOLATION
        assert guest.closure_prepare(backing, closure, ok, 0, 0xFFFFFFF0, 32, 0) == MEMORY_VIOLATION
        assert guest.closure_prepare(backing, closure, ok, 0xFFFFFFFF, ok, 0, 0) == MEMORY_VIOLATION
        assert guest.call(closure, 1) == 6

    def test_a_backing_function_of_another_type_traps_when_called(self, guest: Guest) -> None:
        """The backing function is looked at only when the closure is called."""
        closure = guest.allocate()

        assert guest.prepare(closure, guest.address("call")) == SUCCESS
        with pytest.raises(dl.TrapError, match="type mismatch"):
            guest.call(closure, 1)
        assert guest.prepare(closure, 0) == SUCCESS
        with pytest.raises(dl.TrapError, match="uninitialized"):
            guest.call(closure, 1)

    def test_an_address_that_cannot_be_written_wastes_no_closure(
        self, linker: dl.Linker, guest: Guest
    ) -> None:
        """By the ABI a bad out pointer is no error; the index goes back to the pool."""
        closure = guest.allocate()
        guest.closure_free(closure)

        for _ in range(3):
            assert guest.closure_allocate(0xFFFFFFFE) == SUCCESS

        assert linker.parts.slots().pool.in_use() == 0
        assert closure in [guest.allocate() for _ in range(100)]
        assert linker.parts.slots().pool.in_use() == 100

    def test_the_pool_grows_in_steps_each_of_which_is_one_operation(
        self, linker: dl.Linker, guest: Guest
    ) -> None:
        """250 closures take three growths of the table, and no other operation."""
        before = linker.statistics()

        closures = [guest.allocate() for _ in range(250)]

        after = linker.statistics()
        assert len(set(closures)) == 250
        assert after.protocol.committed - before.protocol.committed == 3
        assert after.table_elements - before.table_elements == 300


class TestLimits:
    def test_a_table_that_cannot_grow_is_an_errno_and_spoils_no_later_load(self) -> None:
        """Where 100 more elements do not fit, allocation fails with 21, and a library that does fit still loads."""
        main = static(*WASIX[:1], table='(table (export "__indirect_function_table") 4 40 funcref)')
        with dl.Linker(main, name="main.wasm") as linker:
            group = linker.main_group
            before = linker.statistics().table_elements

            assert group.dlsym(linker.main, "closure_allocate")(0) == FAULT
            assert linker.statistics().table_elements == before
            assert linker.parts.slots().pool.in_use() == 0
            small = library(MEMORY, TABLE, '(func (export "seven") (result i32) i32.const 7)')
            assert group.dlsym(group.dlopen(small, name="small.so"), "seven")() == 7

    def test_a_program_that_takes_no_libraries_has_no_closures(self) -> None:
        """Without a table that can grow, all three calls answer 58."""
        fields = [
            f"""(import "wasix_32v1" "{name}" (func ${name} (param{" i32" * count}) (result i32)))
            (func (export "{name}") (result i32) (call ${name} {"(i32.const 0)" * count}))"""
            for name, count in SYSTEM_CALLS.items()
            if name.startswith("closure")
        ]
        imported, exported = zip(*(f.split("\n", 1) for f in fields), strict=True)
        with dl.Linker(static(*imported, *exported, table=""), name="main.wasm") as linker:
            main: Any = linker.program.main_module
            for name in ("closure_allocate", "closure_prepare", "closure_free"):
                kind = main.wasm.exports[name].type
                assert linker.main_group.own.call_export(main, name, kind) == NOT_SUPPORTED


class TestThreads:
    def test_a_pointer_works_in_threads_from_before_and_after(self, linker: dl.Linker, guest: Guest) -> None:
        """What one thread prepares is a function in all others, whenever they came to be."""
        ready, go = threading.Barrier(4), threading.Event()
        closures: list[Any] = []

        def early(group: dl.InstanceGroup) -> list[int]:
            ready.wait(30)
            go.wait(30)
            return [group.dlsym(guest.handle, "call")(closure, 10) for closure in closures]

        threads = [linker.spawn(early) for _ in range(3)]
        ready.wait(30)
        closures += [guest.adder(n) for n in range(5)]
        go.set()
        expected = [10, 11, 12, 13, 14]

        assert [thread.join(timeout=30) for thread in threads] == [expected] * 3
        assert in_thread(linker, lambda g: [g.call(closure, 10) for closure in closures]) == expected

    def test_preparing_while_others_call_never_shows_them_anything_else(
        self, linker: dl.Linker, guest: Guest
    ) -> None:
        """Threads inside the guest, calling without pause, see one of the two functions until they see the last."""
        closure = guest.adder(5)
        started = threading.Barrier(4)

        def calling(group: dl.InstanceGroup) -> int:
            spin = group.dlsym(guest.handle, "spin")
            started.wait(30)
            return spin(closure, 2)

        threads = [linker.spawn(calling) for _ in range(3)]
        started.wait(30)
        environment = guest.scratch + 8192 + 4 * closure
        for _ in range(50):
            assert guest.prepare(closure, guest.address("add"), environment=environment) == SUCCESS
        assert guest.prepare(closure, guest.address("twice")) == SUCCESS

        assert [thread.join(timeout=60) for thread in threads] == [2, 2, 2]

    def test_all_groups_have_the_same_table_after_many_changes(self, linker: dl.Linker, guest: Guest) -> None:
        """Groups that replayed everything, some, or only what was left hold the same functions."""
        tables, closures = {}, [guest.adder(n) for n in range(20)]
        middle, done = threading.Barrier(3), threading.Event()

        def table(group: dl.InstanceGroup) -> None:
            middle.wait(30)
            done.wait(30)
            tables[group.name] = group.table()

        threads = [linker.spawn(table, name=f"early {n}") for n in range(2)]
        middle.wait(30)
        for n, closure in enumerate(closures):
            if n % 3 == 0:
                guest.closure_free(closure)
            elif n % 3 == 1:
                guest.prepare(closure, guest.address("twice"), b"\0", b"\0" * (n % 4))
        again = [guest.adder(100 + n) for n in range(3)]
        done.set()
        for thread in threads:
            thread.join(timeout=30)
        in_thread(linker, lambda g: tables.update(late=g.group.table()))

        assert len(tables) == 3
        assert all(other == linker.main_group.table() for other in tables.values())
        assert in_thread(linker, lambda g: [g.call(c, 1) for c in again]) == [101, 102, 103]

    def test_a_late_group_makes_no_instances_for_closures_that_are_gone(
        self, linker: dl.Linker, guest: Guest
    ) -> None:
        """Thousands of closures that were replaced or freed cost a new thread next to nothing."""
        closure = guest.adder(5)
        for _ in range(1000):
            guest.prepare(closure, guest.address("twice"))
            guest.prepare(closure, guest.address("add"), environment=guest.scratch)
            guest.closure_free(guest.adder(1))
        linker.memory.write_u32(guest.scratch, 41)

        def look(other: Guest) -> tuple[int, int]:
            slots = other.group.own.instances._slots
            return other.call(closure, 1), len(slots._placed) + sum(map(len, slots._idle.values()))

        assert in_thread(linker, look) == (42, 1)

    def test_threads_that_allocate_at_once_get_different_closures(
        self, linker: dl.Linker, guest: Guest
    ) -> None:
        """Eight threads make 60 closures each: no index twice, and all work in all threads."""
        addresses = [guest.address("twice"), guest.scratch + 1024]
        linker.memory.write(addresses[1], INT)
        blocks = [guest.scratch + 16384 + 64 * n for n in range(8)]

        def make(group: dl.InstanceGroup, block: int) -> list[int]:
            call = {n: group.dlsym(guest.handle, n) for n in ("closure_allocate", "closure_prepare", "call")}
            made = []
            for _ in range(60):
                assert call["closure_allocate"](block) == SUCCESS
                made.append(linker.memory.read_u32(block))
                assert (
                    call["closure_prepare"](addresses[0], made[-1], addresses[1], 1, addresses[1], 1, 0) == 0
                )
                assert call["call"](made[-1], 4) == 8
            return made

        threads = [linker.spawn(make, block) for block in blocks]
        made = [closure for thread in threads for closure in thread.join(timeout=60)]

        assert len(set(made)) == 480
        assert all(guest.call(closure, 3) == 6 for closure in made)


def test_a_load_after_closures_gets_indices_of_its_own(linker: dl.Linker, guest: Guest) -> None:
    """Libraries and closures share the table and never each other's indices."""
    closures = [guest.adder(n) for n in range(3)]
    handle = linker.main_group.dlopen(functions(SHARED_MEMORY), name="more.so")
    more = [guest.adder(n) for n in range(3, 110)]
    own = linker.main_group.dlsym(handle, "add").address

    assert own not in {*closures, *more}
    assert [guest.call(c, 0) for c in (*closures, *more)] == list(range(110))


@pytest.mark.parametrize("step", ["apply", "commit"])
def test_an_operation_that_fails_leaves_everything_as_it_was(
    linker: dl.Linker, guest: Guest, step: str
) -> None:
    """Wherever making, replacing or freeing a closure fails, the table and the pool are as before, in all groups."""
    closure, spare = guest.adder(5), guest.allocate()
    before, table = linker.statistics(), linker.main_group.table()

    def refuse(reached: str, _group: str | None) -> None:
        if reached == step:
            raise TimeoutError("refused")

    taken: list[Any] = []
    linker.program.checkpoint = refuse
    for change in (
        lambda: guest.prepare(closure, guest.address("twice")),
        lambda: guest.prepare(closure, guest.address("twice"), b"\1"),
        lambda: guest.prepare(spare, guest.address("twice")),
        lambda: guest.closure_free(closure),
        lambda: linker.callback("() -> ()", lambda: None),
        lambda: taken.extend(guest.allocate() for _ in range(100)),
    ):
        with pytest.raises(TimeoutError, match="refused"):
            change()
    linker.program.checkpoint = lambda _step, _group: None

    assert linker.main_group.table()[: len(table)] == table
    assert len(taken) == linker.parts.slots().pool.in_use() - 2 == 98
    assert linker.statistics().table_elements == before.table_elements
    assert guest.call(closure, 1) == 6
    assert in_thread(linker, lambda other: other.call(closure, 1)) == 6
    with pytest.raises(dl.TrapError, match="uninitialized"):
        guest.call(spare, 1)
