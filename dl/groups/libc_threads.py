"""Threads of the host as threads of the program's C library.

A thread that the host attaches has its own instances and its own thread-local variables, but the C library does not know it:
its `pthread_self()` is null and its number 0, the number that means "nobody" in a lock. Recursive locks, those of `FILE` among
them, would not lock.

Only the library itself can make one of its threads, so it is asked to: `pthread_create` runs in a group that is kept for this
purpose (the maker), up to the host call that starts a thread. That call starts none, but notes the record that the new thread
is to begin with. The attached thread begins with it, in `wasi_thread_start` like any thread of the guest. The function that it
is to run is one of ours, which leaves the guest immediately by an exception; what remains is the thread's identity.
`pthread_exit` ends it.

The maker must itself be a thread that the library knows. It is bootstrapped by a throw-away group that calls `__wasi_init_tp`,
as the main thread does, and is closed right after, because both would have thread number 1.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import get_ident

from dl.errors import DlError, ResourceLimitError, ThreadExited
from dl.groups.allocating import Stoppable, turn
from dl.groups.endings import PATIENCE_SECONDS
from dl.groups.entry import Group
from dl.groups.registry import Groups
from dl.logs import logger
from dl.modules.linked_module import LinkedModule
from dl.records import dataclass
from dl.wasm.types import FuncType

log = logger("dl.threads")

THREAD_START = "wasi_thread_start"
THREAD_START_TYPE = FuncType(("i32", "i32"), ())
INIT_FIRST = "__wasi_init_tp"
NOTHING = FuncType((), ())
_CREATE, _DETACH, _EXIT = "pthread_create", "pthread_detach", "pthread_exit"
_CREATE_TYPE = FuncType(("i32",) * 4, ("i32",))
_ONE_TO_ONE, _TO_NOTHING = FuncType(("i32",), ("i32",)), FuncType(("i32",), ())
_NEEDED_EXPORTS = {
    THREAD_START: THREAD_START_TYPE,
    INIT_FIRST: NOTHING,
    _CREATE: _CREATE_TYPE,
    _DETACH: _ONE_TO_ONE,
    _EXIT: _TO_NOTHING,
}
_ATTRIBUTE_BYTES = 256
"""Room for a `pthread_attr_t`, and before it for the `pthread_t` that is returned."""
_STACK_BYTES = 16 << 10
"""Of the stack that the library allocates for a thread, which serves it for its first few calls only."""


class _Begun(Exception):  # noqa: N818  it leaves the guest, and is no fault
    """The thread has its identity."""


@dataclass
class ThreadRecord:
    """What a thread begins with.

    Attributes:
        number: the thread's.
        start: address of the record that `wasi_thread_start` gets.
        stack_pointer: upper end of its stack, bytes.
        tls: its block of the main module's thread-local storage, bytes.
    """

    number: int
    start: int
    stack_pointer: int
    tls: int | None


def has_threads(main: LinkedModule) -> bool:
    """Whether a program's C library can make threads, and end one from within."""
    known: bool | None = main.wasm.derived.get("has threads")
    if known is None:  # asked for each thread
        known = any((i.module, i.name) == ("wasix_32v1", "thread_exit") for i in main.wasm.imports) and all(
            (export := main.wasm.exports.get(name)) is not None and export.type == kind
            for name, kind in _NEEDED_EXPORTS.items()
        )
        main.wasm.derived["has threads"] = known
    return known


class LibcThreads:
    """The C library's side of the threads that the host attaches.

    `_lock` lets one thread at a time ask for a thread. It is held over guest code, `pthread_create`, which waits for locks of
    the C library only; no thread that holds one of those comes here, because it has a group already. The fields are guarded by
    it; `_asked` is each thread's own.

    Attributes:
        make_entry: makes a Python function a function pointer of the guest; set once, when callbacks are there.
    """

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._program = groups.program
        self.make_entry: Callable[[FuncType, Callable[[int], int]], int] | None = None
        self._lock = threading.Lock()
        self._asked: dict[int, ThreadRecord | None] = {}
        self._maker: Group | None = None
        self._kept = ExitStack()
        self._entry = 0
        self._told: tuple[int, int] | None = (
            None  # addresses of the `pthread_t` and of the attributes of each thread
        )

    def record(self, number: int, start: int, stack_pointer: int, tls: int | None) -> bool:
        """Note what a thread is to begin with, if it is one that was asked for here; else return False."""
        if get_ident() not in self._asked:
            return False
        self._asked[get_ident()] = ThreadRecord(number, start, stack_pointer, tls)
        return True

    def create(self, thread: Stoppable) -> ThreadRecord | None:
        """Have the C library make a thread; None if the program has no such library.

        Args:
            thread: the calling thread, which learns in which group it runs guest code meanwhile: such code may never end.

        Raises:
            ResourceLimitError: it cannot.
            BaseException: what the thread was cancelled with.
        """
        main = self._program.main_module
        if main is None or not has_threads(main):
            return None
        with turn(self._lock, lambda: self._program.ended, thread):
            try:
                if self._maker is None:
                    self._make_maker(main, thread)
                assert self._maker is not None
                with self._groups.lend(self._maker):
                    thread.runs_in(self._maker)
                    return self._ask(self._maker, main)
            finally:
                thread.runs_in(None)

    def _make_maker(self, main: LinkedModule, thread: Stoppable) -> None:
        groups = self._groups
        assert self.make_entry is not None
        self._entry = self.make_entry(_ONE_TO_ONE, self._begun)
        with groups.stack(thread) as stack:
            first = groups.new_group("first maker of threads", stack_pointer=stack, thread=thread)
            try:
                first.call_export(main, INIT_FIRST, NOTHING)
                record = self._ask(first, main)
            finally:
                thread.runs_in(None)
                groups.leave(first)
        stack = self._kept.enter_context(groups.stack(thread))
        maker = groups.new_group(
            "maker of threads",
            stack_pointer=stack,
            main_tls=record.tls,
            number=record.number,
            thread=thread,
        )
        with ExitStack() as undo:
            undo.callback(groups.leave, maker)
            self.begin(maker, record)
            undo.pop_all()
        groups.take_off(maker)
        self._maker = maker

    def _begun(self, _argument: int) -> int:
        raise _Begun

    def _ask(self, group: Group, main: LinkedModule) -> ThreadRecord:
        """Call `pthread_create` in a group that has an identity."""
        me = get_ident()
        side_memory, memory = self._program.side_memory, self._program.memory
        assert side_memory is not None
        if self._told is None:
            block = side_memory.allocate(_ATTRIBUTE_BYTES, 4, "attributes of threads")
            self._kept.callback(side_memory.free_later, block)
            self._told = block.address, self._attributes(group, main, block.address + 16)
        answer, attributes = self._told
        self._asked[me] = None
        try:
            error = group.call_export(main, _CREATE, _CREATE_TYPE, answer, attributes, self._entry, 0)
            record = self._asked[me]
            if error or record is None:
                raise ResourceLimitError(main.name, f"its C library makes no thread: error {error}")
            group.call_export(main, _DETACH, _ONE_TO_ONE, memory.read_u32(answer))
            return record
        finally:
            del self._asked[me]

    def _attributes(self, group: Group, main: LinkedModule, address: int) -> int:
        """Ask for a small stack, if the library can be asked; return the address of its attributes, or 0."""
        wanted = {
            "pthread_attr_init": _ONE_TO_ONE,
            "pthread_attr_setstacksize": FuncType(("i32", "i32"), ("i32",)),
        }
        for name, kind in wanted.items():
            export = main.wasm.exports.get(name)
            if export is None or export.type != kind:
                return 0
        group.call_export(main, "pthread_attr_init", _ONE_TO_ONE, address)
        kind = wanted["pthread_attr_setstacksize"]
        return (
            0
            if group.call_export(main, "pthread_attr_setstacksize", kind, address, _STACK_BYTES)
            else address
        )

    def begin(self, group: Group, record: ThreadRecord) -> None:
        """Give a group's thread, which is the calling one, the identity that was made for it."""
        main = self._program.main_module
        assert main is not None
        with group.replica.waiter.shielded():
            try:
                group.call_export(main, THREAD_START, THREAD_START_TYPE, record.number, record.start)
            except _Begun:
                return
        raise ResourceLimitError(main.name, f"its {THREAD_START} did not run the thread's function")

    def end(self, group: Group) -> None:
        """End the calling thread for the C library; its destructors of thread-specific data run."""
        main = self._program.main_module
        if main is None or group.replica.closed is not None or self._program.ended is not None:
            return
        if not self._program.rendezvous.process.is_this_one():
            return
        try:
            with group.replica.waiter.shielded():
                group.call_export(main, _EXIT, _TO_NOTHING, 0)
        except ThreadExited:
            pass
        except DlError as error:
            # The thread's own result counts more than what its destructors did.
            log.warning("%s: the end of the thread failed: %s", group.name, error)

    @contextmanager
    def identity(self, group: Group, record: ThreadRecord | None) -> Iterator[None]:
        """Let the calling thread be one of the C library's while the block runs."""
        if record is None:
            yield
            return
        self.begin(group, record)
        try:
            yield
        finally:
            self.end(group)

    def close(self) -> None:
        """Give back what is kept to make threads; the program has ended."""
        if not self._lock.acquire(timeout=PATIENCE_SECONDS):
            log.warning("a thread that is being made does not end: it is in a function of the host")
            return
        try:
            maker, self._maker = self._maker, None
            if maker is not None:
                maker.close()
            self._kept.close()
        finally:
            self._lock.release()
