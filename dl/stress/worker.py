"""One thread of a stress run: what it does, and how it checks what comes of it."""

from __future__ import annotations

import random
import threading
import traceback
from collections import Counter
from collections.abc import Callable
from threading import get_ident
from typing import TYPE_CHECKING

from dl.api.guest import GuestFunction
from dl.api.host_thread import HostThread
from dl.dlfcn import RTLD_NOW, ModuleHandle
from dl.errors import (
    DlError,
    InitializationError,
    LibraryNotFoundError,
    ThreadExited,
    TrapError,
    UnresolvedSymbolsError,
)
from dl.group import InstanceGroup
from dl.records import dataclass, field
from dl.stress.modules import LibraryKind

if TYPE_CHECKING:
    from dl.stress.run import _Run

KINDS = [
    LibraryKind(
        1000 + i, thread_local=i % 2 == 1, constructor=i % 3 == 2, needed=("lib0.so",) if i == 5 else ()
    )
    for i in range(8)
]
TRAPS, UNDEFINED = LibraryKind(2000, traps=True), LibraryKind(2001, undefined=True)
WAKE_ALL = 0xFFFFFFFF

MOST_LIBRARIES = 300
"""A new group instantiates every library, so their number bounds what a new thread costs."""

_CLOSED = [number for number, kind in enumerate(KINDS) if not kind.constructor]
"""Kinds of the libraries that are closed again: how often constructors have run is checked at the end."""

_OPEN_AT_ONCE = 3
"""How many threads, about, are after one new library."""

_DEEPEST = 3
"""How deep constructors open libraries whose constructors open libraries."""


class Cancelled(Exception):  # noqa: N818  an ending asked for, not a fault
    """What cancelled threads raise."""

    def __str__(self) -> str:
        return "cancelled by the stress run"


class Ended(Exception):  # noqa: N818  an ending asked for, not a fault
    """What threads raise that end by an exception of their own."""


@dataclass
class Slot:
    """A thread's place: the word it waits or spins at, and who has it now.

    Attributes:
        number: from 0.
        word: an address in the program's memory.
        generation: how many threads have had it.
        host: the thread, if the linker started it for the host.
        plain: the thread, if it attached itself.
        alive: whether a thread has it.
        released: what the thread waits for others to end: "spin", "wait" or "". Written by the thread alone.
        published: what functions that were given to it return for 1; written by whoever gives it one.
    """

    number: int
    word: int
    generation: int = 0
    host: HostThread | None = None
    plain: threading.Thread | None = None
    alive: bool = False
    released: str = ""
    published: dict[int, None] = field(default_factory=dict)


@dataclass
class Shared:
    """What all threads of a run write; guarded by `lock`, a leaf."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    operations: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    handles: dict[str, ModuleHandle] = field(default_factory=dict)
    addresses: dict[tuple[ModuleHandle, str], int] = field(default_factory=dict)
    states: dict[str, dict[str, str]] = field(default_factory=dict)
    next_name: int = 0
    broken_loads: int = 0
    constructed: Counter[int] = field(default_factory=Counter)
    quiet: int = 0

    def count(self, what: str) -> None:
        """Count an operation."""
        with self.lock:
            self.operations[what] += 1

    def ended(self, how: str) -> None:
        """Count a thread that has ended."""
        with self.lock:
            self.ends[how] += 1


def addend_of(name: str) -> int:
    """Return what the functions of a library that stays add, by its name, `lib<number>.so`."""
    return KINDS[int(name[3:-3]) % len(KINDS)].addend


def function(group: InstanceGroup, handle: ModuleHandle, name: str) -> GuestFunction:
    """Look up a function."""
    found = group.dlsym(handle, name)
    assert isinstance(found, GuestFunction)
    return found


class Worker:
    """A thread.

    Args:
        run: the run.
        slot: its place.
        way: how it came to be.
        chooser: decides what it does.
    """

    def __init__(self, run: _Run, slot: Slot, way: str, chooser: random.Random) -> None:
        self._run = run
        self._shared = run.shared
        self._slot = slot
        self._way = way
        self.random = chooser
        self._group: InstanceGroup = run.linker.main_group
        self._thread_local: dict[ModuleHandle, int] = {}
        self._depth = 0
        choices: list[tuple[Callable[[], None], int]] = [
            (self._open_new, 6),
            (self._open_again, 10),
            (self._look_up, 25),
            (self._thread_local_variable, 12),
            (self._publish, 8),
            (self._spin, 3),
            (self._wait, 3),
            (self._wait_a_while, 6),
            (self._notify, 8),
            (self._count, 10),
            (self._trap, 3),
            (self._open_undefined, 2),
            (self._open_trapping, 1),
            (self._open_and_close, 3),
            (self._open_and_close_with_others, 3),
            (self._open_missing, 2),
            (self._open_malformed, 2),
        ]
        self._operations = [operation for operation, _ in choices]
        self._weights = [weight for _, weight in choices]

    # its life

    def attach(self, name: str) -> None:
        """Be a thread of the host's that attaches itself."""
        try:
            with self._run.linker.attach(name) as group:
                self.run(group)
        except (Cancelled, Ended, TrapError):
            pass
        except BaseException as error:  # noqa: BLE001  it is what the run is looking for
            self._run.fail(f"{name}: {error!r}")
        finally:
            self._slot.alive = False

    def run(self, group: InstanceGroup) -> None:
        """Do what the seed says, in the thread's group."""
        me = get_ident()
        self._run.workers[me] = self
        self._group = group
        how = "finished"
        try:
            self._live()
            if self._run.stop.is_set():
                self._be_compared()
            else:
                how = "returned"
                self._end()
        except BaseException as error:
            how = self._named(error)
            raise
        finally:
            self._shared.ended(how)
            self._slot.released = ""
            del self._run.workers[me]
            if self._way != "attached":
                self._slot.alive = False

    def _named(self, error: BaseException) -> str:
        if isinstance(error, Cancelled):
            with self._shared.lock:
                self._shared.broken_loads += 1  # perhaps: a constructor may have been cut off
            return "cancelled"
        if isinstance(error, Ended):
            return "raised"
        if isinstance(error, TrapError):
            return "trapped"
        if isinstance(error, ThreadExited):
            return "exited"
        if isinstance(error, InitializationError) and str(Cancelled()) in str(error):
            return "cancelled"
        self._run.fail(f"{self._group.name}: {''.join(traceback.format_exception(error))}")
        return "failed"

    def _live(self) -> None:
        for _ in range(self.random.randrange(20, 80)):
            if self._run.stop.is_set():
                return
            operation = self.random.choices(self._operations, self._weights)[0]
            try:
                operation()
            except InitializationError as error:
                # Another thread ran the constructors of the same library and was cancelled there.
                if str(Cancelled()) not in str(error):
                    raise
                self._shared.count("open cut off elsewhere")

    def _end(self) -> None:
        way = self.random.choice(("return", "raise", "trap"))
        if self._way == "guest":
            # Anything else would end the program.
            if way != "return":
                raise ThreadExited
        elif way == "raise":
            raise Ended
        elif way == "trap":
            self._call("trap")

    def _be_compared(self) -> None:
        while True:
            try:
                self._count()
                break
            except Cancelled:
                continue
        with self._shared.lock:
            self._shared.quiet += 1
        self._run.compare.wait()
        self._run.state_of(self._group)

    # operations

    def _call(self, name: str, *arguments: int) -> int:
        result = function(self._group, self._run.linker.main, name)(*arguments)
        return 0 if result is None else int(result)

    def _check(self, condition: object, what: str) -> None:
        if not condition:
            self._run.fail(f"{self._group.name}: {what}")

    def _new_name(self) -> str:
        with self._shared.lock:
            number = self._shared.next_name
            if number >= MOST_LIBRARIES:
                return f"lib{self.random.randrange(MOST_LIBRARIES)}.so"
            if self.random.randrange(_OPEN_AT_ONCE) == 0:
                self._shared.next_name += 1
        return f"lib{number}.so"

    def _open(self, name: str) -> ModuleHandle:
        number = int(name[3:-3])
        handle = self._group.dlopen(self._run.libraries[number % len(KINDS)], RTLD_NOW, name=name)
        with self._shared.lock:
            known = self._shared.handles.get(name, handle)
            # In a constructor it may be the very library whose constructor it is, and its load may be undone.
            if not self._depth:
                self._shared.handles[name] = known
        self._check(known == handle, f"{name} is {known} and {handle}")
        self._verify(name, handle)
        return handle

    def _verify(self, name: str, handle: ModuleHandle) -> int:
        addend = addend_of(name)
        value = function(self._group, handle, "value")
        with self._shared.lock:
            known = self._shared.addresses.setdefault((handle, "value"), value.address)
        self._check(known == value.address, f"{name}: value at {value.address} and {known}")
        number = self.random.randrange(1 << 20)
        self._check(value(number) == number + addend, f"{name}: value({number}) is not {number + addend}")
        through_table = self._call("call", value.address, number)
        self._check(through_table == number + addend, f"{name}: another function at {value.address}")
        return value.address

    def _some(self) -> tuple[str, ModuleHandle] | None:
        with self._shared.lock:
            return self.random.choice(list(self._shared.handles.items())) if self._shared.handles else None

    def _open_new(self) -> None:
        self._open(self._new_name())
        self._shared.count("open")

    def _open_again(self) -> None:
        known = self._some()
        if known is not None:
            self._open(known[0])
            self._shared.count("open again")

    def _look_up(self) -> None:
        known = self._some()
        if known is not None:
            self._verify(*known)
            self._shared.count("look up and call")

    def _thread_local_variable(self) -> None:
        known = self._some()
        if known is None or not KINDS[int(known[0][3:-3]) % len(KINDS)].thread_local:
            return
        name, handle = known
        before = self._thread_local.get(handle, addend_of(name))
        added = self.random.randrange(1000)
        after = function(self._group, handle, "local")(added)
        self._check(after == before + added, f"{name}: thread-local {before} + {added} = {after}")
        self._thread_local[handle] = after
        self._shared.count("thread-local variable")

    def _publish(self) -> None:
        """Open a library and give its function to a thread that spins or waits, at once."""
        waiting = [slot for slot in self._run.slots if slot.released]
        if not waiting:
            return
        name = self._new_name()
        address = self._verify(name, self._open(name))
        addend = addend_of(name)
        self._run.release(self._group, self.random.choice(waiting), address, addend)
        self._shared.count("publish")

    def _spin(self) -> None:
        if sum(slot.released == "spin" for slot in self._run.slots) > len(self._run.slots) // 8:
            return
        slot = self._slot
        self._run.linker.memory.write_u32(slot.word, 0)
        slot.released = "spin"
        result = self._call("spin", slot.word)
        slot.released = ""
        self._check(result in slot.published, f"spin returned {result}, not one of {list(slot.published)}")
        self._shared.count("spin")

    def _wait(self) -> None:
        slot, memory = self._slot, self._run.linker.memory
        memory.write_u32(slot.word, 0)
        slot.released = "wait"
        while not memory.read_u32(slot.word):
            result = self._call("wait", slot.word, 0, -1)
            self._check(result in (0, 1), f"a wait without end returned {result}")
        slot.released = ""
        result = self._call("call", memory.read_u32(slot.word), 1)
        self._check(result in slot.published, f"called {result}, not one of {list(slot.published)}")
        self._shared.count("wait")

    def _wait_a_while(self) -> None:
        word = self._run.words + 8 * self.random.randrange(4)
        result = self._call(
            "wait", word, 0, self.random.randrange(-1, 2_000_000) if self.random.random() < 0.9 else 0
        )
        self._check(result in (0, 1, 2), f"a wait returned {result}")
        self._shared.count("wait a while")

    def _notify(self) -> None:
        word = self._run.words + 8 * self.random.randrange(4)
        woken = self._call("notify", word, self.random.choice((0, 1, WAKE_ALL)))
        self._check(0 <= woken <= len(self._run.slots) + 1, f"notify woke {woken}")
        self._shared.count("notify")

    def _count(self) -> None:
        self._call("count", self._run.words + 48)
        self._shared.count("count")

    def _trap(self) -> None:
        try:
            self._call("trap")
        except TrapError:
            self._shared.count("trap")
        else:
            self._run.fail("unreachable did not trap")

    # loads that fail

    def _fails(self, with_error: type[DlError], what: str, load: Callable[[], object]) -> None:
        try:
            load()
        except with_error:
            self._shared.count(what)
        else:
            self._run.fail(f"{what}: it was loaded")

    def _odd_name(self) -> str:
        return f"odd{self.random.getrandbits(64):x}.so"

    def _open_undefined(self) -> None:
        name = self._odd_name()
        self._fails(
            UnresolvedSymbolsError,
            "open, undefined",
            lambda: self._group.dlopen(self._run.undefined, RTLD_NOW, name=name),
        )

    def _open_trapping(self) -> None:
        name = self._odd_name()
        self._fails(
            InitializationError,
            "open, trapping",
            lambda: self._group.dlopen(self._run.traps, RTLD_NOW, name=name),
        )

    def _open_and_close(self) -> None:
        """Open a library that nobody else knows, use it, and close it: so a run links and unlinks until it is told to stop."""
        self._use_and_close(self.random.choice(_CLOSED), self._odd_name())
        self._shared.count("open and close")

    def _open_and_close_with_others(self) -> None:
        """Open a library that others open and close at the same time, so that a close meets the next open."""
        number = self.random.choice(_CLOSED)
        self._use_and_close(number, f"passing{number}.so")
        self._shared.count("open and close with others")

    def _use_and_close(self, number: int, name: str) -> None:
        handle = self._group.dlopen(self._run.libraries[number], RTLD_NOW, name=name)
        try:
            found = function(self._group, handle, "value")(5)
            self._check(found == 5 + KINDS[number].addend, f"value of {name}, module {handle}, is wrong")
        finally:
            self._group.dlclose(handle)

    def _open_missing(self) -> None:
        self._fails(LibraryNotFoundError, "open, missing", lambda: self._group.dlopen("missing.so"))

    def _open_malformed(self) -> None:
        cut = self._run.libraries[0][: self.random.randrange(9, 60)] + b"\xff"
        name = self._odd_name()
        self._fails(DlError, "open, malformed", lambda: self._group.dlopen(cut, RTLD_NOW, name=name))

    def open_in_constructor(self) -> None:
        """Open a library, or look one up in a thread of its own, from a constructor."""
        if self._depth >= _DEEPEST:
            return
        self._depth += 1
        try:
            if self.random.random() < 0.8:
                self._open_new()
                self._shared.count("open in a constructor")
            else:
                known = self._some()
                if known is not None:
                    thread = self._run.linker.spawn(lambda group: function(group, known[1], "value").address)
                    address = thread.join()
                    self._check(
                        address == self._shared.addresses.get((known[1], "value"), address),
                        f"a constructor's thread finds {known[0]} elsewhere",
                    )
                    self._shared.count("spawn in a constructor")
        finally:
            self._depth -= 1


__all__ = [
    "KINDS",
    "TRAPS",
    "UNDEFINED",
    "WAKE_ALL",
    "Cancelled",
    "Ended",
    "Shared",
    "Slot",
    "Worker",
    "addend_of",
    "function",
]
