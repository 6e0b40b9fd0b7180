"""A small program with many threads: what the tests of instance groups share."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import dl
from dl.linker import Linker
from dl.stress.modules import STACK_BYTES, WORDS_BYTES, LibraryKind, library_module, program_module
from memory import LinearMemory

SECONDS = 30
"""What nothing here takes; a wait that ends by it has failed."""


class Program:
    """The program of `dl.stress.modules`, with host functions a test can set.

    Attributes:
        linker: it.
        on_thread: called by each thread that the guest starts, with its number and record.
        on_construct: called by constructors, with what their library adds.
    """

    def __init__(self, **options: Any) -> None:
        self.on_thread: Callable[[int, int], object] = lambda _number, _record: None
        self.on_construct: Callable[[int], object] = lambda _addend: None
        self._records = 0
        self.linker = Linker(
            program_module(),
            name="program",
            imports={
                "env": {
                    "on_thread": lambda number, record: self.on_thread(number, record) and None,
                    "on_construct": lambda addend: self.on_construct(addend) and None,
                }
            },
            **options,
        )
        self.words = self.main.dlsym(dl.MAIN_HANDLE, "words").address

    @property
    def main(self) -> dl.InstanceGroup:
        return self.linker.main_group

    @property
    def memory(self) -> LinearMemory:
        return self.linker.memory

    def here(self) -> dl.InstanceGroup:
        """The calling thread's group."""
        return self.linker.own.view(self.linker.parts.groups.current())

    def is_alone(self) -> bool:
        """Whether the main group is the only one, and no thread of the guest is still giving back what it had."""
        parts = self.linker.parts
        groups = [self.linker.own.view(group) for group in parts.groups.all()]
        return groups == [self.main] and not parts.guest_threads._running

    def word(self, number: int) -> int:
        """Address of a word of the program's data; 0 to begin with."""
        return self.words + 64 + 16 * number

    def call(self, group: dl.InstanceGroup, name: str, *arguments: int) -> Any:
        """Call a function of the program in a group."""
        return group.dlsym(dl.MAIN_HANDLE, name)(*arguments)

    def start(self, group: dl.InstanceGroup | None = None) -> int:
        """Have the guest start a thread; returns the number it got."""
        record = self.words + WORDS_BYTES + STACK_BYTES * self._records
        self._records += 1
        self.memory.write_u32(record, record + STACK_BYTES)
        assert self.call(group or self.main, "start", record) == 0
        return self.memory.read_u32(record + 8)

    def until(self, number: int, state: str) -> None:
        """Wait until so many threads are in a state: `guest`, `host` or `detached`."""
        until(lambda: getattr(self.linker.statistics().protocol, state) >= number)

    def until_waiting(self, what: str, number: int = 1) -> None:
        """Wait until so many threads wait for something that contains a text."""
        until(lambda: sum(what in w for _, w in self.linker.program.waits.waiting()) >= number)

    def until_given_back(self, before: tuple[object, ...]) -> None:
        """Wait until the main group is the only one, and the program holds what it held before; see `held`.

        A thread's group is taken from it first, and freed afterwards.
        """
        until(lambda: self.is_alone() and held(self.linker) == before)

    def publish(self, word: int, address: int) -> None:
        """Write a function pointer where threads spin or wait, and wake them."""
        self.memory.write_u32(word, address)
        self.call(self.main, "notify", word, -1)


def until(condition: Callable[[], object]) -> None:
    """Wait for a condition that nothing announces."""
    timer = threading.Event()
    for _ in range(SECONDS * 1000):
        if condition():
            return
        timer.wait(0.001)
    raise AssertionError("it does not come true")


@contextlib.contextmanager
def program(**options: Any) -> Iterator[Program]:
    """A program, closed at the end."""
    made = Program(**options)
    with made.linker:
        yield made


def library(addend: int, **options: Any) -> bytes:
    """A library; see `dl.stress.modules.LibraryKind`."""
    return library_module(LibraryKind(addend, **options))


def state_of(group: dl.InstanceGroup) -> dict[str, object]:
    """Everything that must be equal in all groups: the table, symbols' addresses, each instance's bases and GOT values."""
    linker = group.linker
    state: dict[str, object] = {"table": group.table()}
    for module in linker.modules:
        names = [symbol.name for symbol in module.symbols()]
        for name in names:
            found = group.dlsym(module.handle, name)
            if isinstance(found, dl.GuestFunction):
                state[f"{module.name} {name}"] = found.address
        if "where" in names:
            where = group.dlsym(module.handle, "where")
            state[f"{module.name} bases"] = where()
            state[f"{module.name} through the table"] = group.dlsym(dl.MAIN_HANDLE, "where_at")(where.address)
            state[f"{module.name} GOT"] = group.dlsym(module.handle, "own_value")()
    return state


def held(linker: dl.Linker) -> tuple[object, ...]:
    """What a program holds, for comparing before and after; without what only ever grows."""
    now = linker.statistics()
    return (now.modules, now.global_scope, now.table_elements, now.side_bytes, now.side_regions)
