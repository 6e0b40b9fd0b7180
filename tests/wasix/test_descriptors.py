"""The table of descriptors, pipes and event counters, against the plainest models of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dl
from dl.modules.guest_paths import guest_root
from dl.wasix.abi import Errno, ErrnoError
from dl.wasix.files.descriptors import MAX_DESCRIPTORS, DescriptorTable, OpenFile
from dl.wasix.files.preopens import below_preopen
from dl.wasix.files.streams import PIPE_ATOMIC, PIPE_CAPACITY, Changes, EventCounter, pipe
from dl.wasix.limits import Budget
from tests.support.modules import module
from threads import Waits

NUMBERS = st.integers(0, 12)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 8)),
        st.tuples(st.just("remove"), NUMBERS),
        st.tuples(st.just("put"), NUMBERS, NUMBERS),
    ),
    max_size=60,
)


def refusal(call: Callable[[], object]) -> Errno:
    """The errno that a call answers with."""
    with pytest.raises(ErrnoError) as caught:
        call()
    return caught.value.errno


@given(OPERATIONS)
@settings(max_examples=300)
def test_the_lowest_free_number_is_given_and_the_last_reference_closes(
    operations: list[tuple[str, int, int]],
) -> None:
    """However descriptors come and go: a new one is the lowest free number, and a file closes with its last one."""
    table, model = DescriptorTable(), {}
    for what, *arguments in operations:
        if what == "add":
            file = OpenFile(wasi=0)
            number = table.add(file, least=arguments[0])
            assert number == next(n for n in range(arguments[0], 100) if n not in model)
            model[number] = file
        elif what == "remove":
            if arguments[0] not in model:
                assert refusal(lambda: table.remove(arguments[0])) == Errno.BADF  # noqa: B023
                continue
            closed = table.remove(arguments[0])
            gone = model.pop(arguments[0])
            assert closed is (None if gone in model.values() else gone)
        else:
            number, source = arguments
            if source not in model:
                continue
            former = model.get(number)
            closed = table.put(number, model[source])
            model[number] = model[source]
            assert closed is (None if former is None or former in model.values() else former)
    assert {number: entry.file for number, entry in table.entries.items()} == model
    for file in model.values():
        assert file.references == sum(1 for other in model.values() if other is file)


def test_opening_and_closing_for_ever_takes_no_memory() -> None:
    """What a table remembers of closed descriptors is bounded by their numbers, not by how often they were closed."""
    table = DescriptorTable()
    kept = table.add(OpenFile(wasi=0))
    for _ in range(100):
        table.remove(table.add(OpenFile(wasi=0)))
        table.put(7, table.file(kept))
        table.remove(7)
    assert len(table._free) <= 8


def test_numbers_have_an_end() -> None:
    """A number beyond the table is refused: as a wish with `inval`, as a target with `badf`; with all taken, `mfile`."""
    table = DescriptorTable()
    file = OpenFile(wasi=0)
    assert refusal(lambda: table.add(file, least=MAX_DESCRIPTORS)) == Errno.INVAL
    assert refusal(lambda: table.put(MAX_DESCRIPTORS, file)) == Errno.BADF
    assert refusal(lambda: table.put(-1, file)) == Errno.BADF
    table.add(file, least=MAX_DESCRIPTORS - 1)
    assert refusal(lambda: table.add(file, least=MAX_DESCRIPTORS - 1)) == Errno.MFILE


@given(st.lists(st.one_of(st.binary(max_size=9000), st.integers(0, 20000)), max_size=40))
@settings(max_examples=150)
def test_a_pipe_is_a_queue_of_bytes(steps: list[bytes | int]) -> None:
    """What goes in comes out, in order; a small write goes in whole or not at all; nothing is kept beyond the capacity."""
    reader, writer = pipe(Changes(Waits()), Budget(PIPE_CAPACITY))
    model = b""
    for step in steps:
        if isinstance(step, bytes):
            taken = writer.write(step)
            if taken is Errno.AGAIN:
                room = PIPE_CAPACITY - len(model)
                assert room < len(step) if len(step) <= PIPE_ATOMIC else room == 0
                continue
            assert isinstance(taken, int)
            assert taken == len(step) or len(step) > PIPE_ATOMIC
            model += step[:taken]
            assert len(model) <= PIPE_CAPACITY
        else:
            data = reader.read(step)
            expected = model[:step]
            assert data == (expected if expected or not step else Errno.AGAIN)
            model = model[len(expected) :]
        assert reader.available() == len(model)
        assert reader.readable() == bool(model)
    writer.close()
    assert reader.read(PIPE_CAPACITY) == model
    assert reader.read(1) == b""
    reader.close()
    assert writer.write(b"x") == Errno.PIPE


@given(st.integers(0, 1 << 63), st.booleans(), st.lists(st.integers(0, (1 << 64) - 1), max_size=12))
@settings(max_examples=200)
def test_an_event_counts(value: int, semaphore: bool, added: list[int]) -> None:
    """Writes add up, as far as 64 bits go; a read takes all, or one from a semaphore."""
    event = EventCounter(Changes(Waits()), value, semaphore=semaphore)
    for number in added:
        result = event.write(number.to_bytes(8, "little"))
        if number == (1 << 64) - 1:
            assert result == Errno.INVAL
        elif value + number >= (1 << 64) - 1:
            assert result == Errno.AGAIN
        else:
            assert result == 8
            value += number
    data = event.read(8)
    if not value:
        assert data == Errno.AGAIN
        return
    taken = 1 if semaphore else value
    assert data == taken.to_bytes(8, "little")
    assert event.readable() == (value > taken)


def test_an_absolute_path_begins_at_the_longest_name() -> None:
    """An absolute path leads into the open directory with the longest name it begins with, name by name."""
    directories = [
        OpenFile(wasi=n, preopen=name) for n, name in enumerate(["/data", "/data/deep/", ".", "x/y"])
    ]
    found = {
        path: (directories.index(hit[0]), path[hit[1] :])
        if (hit := below_preopen(path, directories))
        else None
        for path in [b"/data/a", b"/data/deep//b/c", b"/database", b"/x/y/z", b"/data/", b"/data/deep", b"/"]
    }

    assert found == {
        b"/data/a": (0, b"a"),
        b"/data/deep//b/c": (1, b"b/c"),
        b"/database": (2, b"database"),
        b"/x/y/z": (3, b"z"),
        b"/data/": (0, b""),
        b"/data/deep": (1, b""),
        b"/": (2, b""),
    }
    assert [guest_root(name) for name in (".", "/", "./a", "a/", "/a/../b")] == ["/", "/", "/a", "/a", "/b"]


def test_pipes_take_their_capacity_from_a_budget() -> None:
    """A pipe needs 64 KiB of the budget until both its ends are closed; without them it is 41 (`nfile`)."""
    budget = Budget(2 * PIPE_CAPACITY + 1)
    changes = Changes(Waits())
    reader, writer = pipe(changes, budget)
    pipe(changes, budget)
    with pytest.raises(ErrnoError) as refused:
        pipe(changes, budget)
    writer.close()
    with pytest.raises(ErrnoError):
        pipe(changes, budget)
    reader.close()
    pipe(changes, budget)

    assert refused.value.errno == Errno.NFILE
    assert budget.left == 1


@pytest.mark.parametrize(("limits", "errno"), [((1 << 20, 100), 41), ((1 << 30, 20), 33)])
def test_a_guest_that_opens_pipes_without_end_gets_an_error(limits: tuple[int, int], errno: int) -> None:
    """Without bytes for pipes or descriptors left, `fd_pipe` answers 41 or 33 and opens nothing; later it works again."""
    bounds = dl.Limits(pipe_bytes=limits[0], descriptors=limits[1])
    wasm = module(
        '(memory (export "memory") 1)',
        '(import "wasix_32v1" "fd_pipe" (func $pipe (param i32 i32) (result i32)))',
        '(import "wasix_32v1" "fd_close" (func $close (param i32) (result i32)))',
        '(export "pipe" (func $pipe)) (export "close" (func $close))',
    )
    with dl.Linker(wasm, default_files=False, limits=bounds) as linker:
        make = linker.main_group.dlsym(linker.main, "pipe")
        close = linker.main_group.dlsym(linker.main, "close")
        assert isinstance(make, dl.GuestFunction)
        assert isinstance(close, dl.GuestFunction)
        count = 0
        while (answer := make(8, 12)) == 0:
            count += 1
        entries = len(linker.parts.process.files.table.entries)
        again = make(8, 12)
        assert entries == len(linker.parts.process.files.table.entries)
        last = linker.memory.read_u32(8), linker.memory.read_u32(12)
        assert [close(number) for number in last] == [0, 0]

        assert (answer, again) == (errno, errno)
        assert make(8, 12) == 0
        assert (linker.memory.read_u32(8), linker.memory.read_u32(12)) == last
    assert count == min(limits[0] // PIPE_CAPACITY, (limits[1] - 3) // 2)


@pytest.mark.parametrize("wasix", [True, False])
def test_closing_all_descriptors_leaves_wasix_programs_their_directories(tmp_path: Path, wasix: bool) -> None:
    """A loop that closes all numbers from 3 on closes no directory of a program of WASIX; one of WASI can close its own."""
    also = '(import "wasix_32v1" "fd_dup" (func (param i32 i32) (result i32)))' if wasix else ""
    wasm = module(
        '(memory (export "memory") 1)',
        '(import "wasi_snapshot_preview1" "fd_close" (func $close (param i32) (result i32)))',
        '(import "wasi_snapshot_preview1" "fd_prestat_get" (func $prestat (param i32 i32) (result i32)))',
        also,
        '(export "close" (func $close)) (export "prestat" (func $prestat))',
    )
    with dl.Linker(wasm, preopens={"/data": tmp_path}, default_files=False) as linker:
        close = linker.main_group.dlsym(linker.main, "close")
        prestat = linker.main_group.dlsym(linker.main, "prestat")
        assert isinstance(close, dl.GuestFunction)
        assert isinstance(prestat, dl.GuestFunction)
        answers = [close(number) for number in range(3, 64)]

        assert answers[0] == 0
        assert answers[-1] == 8
        assert prestat(3, 64) == (0 if wasix else 8)
