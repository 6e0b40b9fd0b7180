"""Signals: sent to a thread of the guest, handled by a function of the main module that its C library names.

In WASIX the host knows no handlers. The C library exports one function (`__wasm_signal`), names it with `callback_signal`, and
finds the program's handler itself. The host decides when and where to call it: in the thread that the signal is for, and

* when that thread sends it to itself, before the call that sends it returns (`raise` promises as much);
* when it waits, immediately: the wait is interrupted, the handler runs, and the wait returns `intr` or continues, as its kind
  requires;
* when it computes, at its next check for interruption, like a link operation. While the handler itself computes, the thread
  cannot be interrupted again;
* never while it applies a link operation: a start function belongs to the operation, so the signal stays pending until it
  is done.

Without such a function a signal does what its default action says, as the comments of `api_wasix.h` list them; "stop" and
"continue" do nothing.

With it, the C library takes default actions itself, and its way out of all of them is `abort`: it prints a line, raises
SIGABRT, whose own default is to abort again, or exits with 127. So that a program ends as POSIX says, these are recognized:
SIGABRT sent by a thread to itself while it handles SIGABRT, a handler of SIGABRT, SIGPIPE or SIGINT that traps (a C library
that has not set up default actions calls a null pointer there), and `proc_exit(127)` right after a handled SIGABRT.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, TypeVar

from dl.errors import ProgramExited, TrapError
from dl.logs import logger
from dl.modules.linked_module import LinkedModule
from dl.wasix.abi import Errno
from dl.wasix.adapter import running_guest
from dl.wasix.alarms import Alarms
from dl.wasix.system import FIRST_THREAD
from dl.wasm.types import FuncType
from threads import GUEST, Waiter

if TYPE_CHECKING:
    from dl.groups.entry import Group
    from dl.wasix.system import System

log = logger("dl.wasix")

HANDLER_TYPE = FuncType(("i32",), ())
SIGINT, SIGABRT, SIGKILL, SIGPIPE, SIGTERM = 2, 6, 9, 13, 15
LAST_SIGNAL = 64
_IGNORED = frozenset({13, 16, 17, 18, 19, 20, 21, 22, 23, 28})
_EXIT_BASE = 128
_ABORTED_CODE = 127
"""The exit code of `abort` in wasix-libc, when SIGABRT has not ended the program."""
_RAISED_HERE = (SIGINT, SIGPIPE)
"""Signals that the host raises by itself: what their handler aborts ends with their exit code, not with that of SIGABRT."""

Result = TypeVar("Result")


class SignalArrived(Exception):  # noqa: N818  not a fault: it ends a wait so that a handler can run
    """Ends the wait of a thread that a signal was sent to; never leaves this package."""


class Signals:
    """The signals of one program.

    `_lock` guards the fields below it; the thread's `Waiter` is interrupted under it, which takes no lock.

    Attributes:
        alarms: signals that come after a time.
        interrupt_pending: whether a SIGINT or SIGTERM of the host's was sent on and its handler has not begun; see
            `dl.cli.interrupt`.
    """

    def __init__(self, system: System) -> None:
        self._system = system
        self._lock = threading.Lock()
        self._callback: str | None = None
        self._pending: weakref.WeakKeyDictionary[Group, deque[int]] = weakref.WeakKeyDictionary()
        self._waiting: dict[Group, SignalArrived] = {}
        self._handling: dict[Group, list[int]] = {}  # each entry is written by its group's own thread only
        self._aborted: weakref.WeakSet[Group] = weakref.WeakSet()  # likewise
        self._interrupted = (
            False  # whether the handler that runs has the host's SIGINT; the first thread's only
        )
        self.interrupt_pending = False
        self._unaware: tuple[
            Group, ...
        ] = ()  # those with a pending signal; a new tuple each time, read without a lock
        system.nudger.add(self._unheard)
        self.alarms = Alarms(self.send_to_main, system.waits)

    # sending

    def send(self, number: int, signal: int) -> Errno:
        """Send a signal to a thread; 0 only asks whether it exists. From any thread.

        Args:
            number: the thread's, as the guest knows it; the C library's number of the first thread too.
            signal: 1 to 64, or 0.

        Returns:
            SRCH without such a thread, INVAL for another signal.
        """
        if not 0 <= signal <= LAST_SIGNAL:
            return Errno.INVAL
        group = self._system.group(number)
        if group is None:
            return Errno.SRCH
        if signal:
            to_itself = group is self._system.find_group()
            if to_itself and signal == SIGABRT and SIGABRT in self._handling.get(group, ()):
                self._end(group, SIGABRT, "it aborted")
            self._post(group, signal)
            if to_itself:
                self._deliver_inside()
        return Errno.SUCCESS

    def send_to_caller(self, signal: int) -> None:
        """Send a signal to the calling thread, which handles it at the end of the system function it is in."""
        self._post(self._system.current_group(), signal)

    def send_to_main(self, signal: int) -> None:
        """Send a signal to the program's first thread, if there still is one; from any thread."""
        group = self._system.group(FIRST_THREAD)
        if group is not None:
            self._post(group, signal)

    def wake_main(self) -> None:
        """End a wait of the program's first thread early, so that it runs Python's own signal handlers; from any thread."""
        group = self._system.group(FIRST_THREAD)
        if group is not None:
            group.replica.waiter.unpark()

    def _post(self, group: Group, signal: int) -> None:
        with self._lock:
            queue = self._pending.setdefault(group, deque())
            if signal in queue:
                return  # as for standard signals: one that is pending already is the same one
            queue.append(signal)
            self._note_unaware()
            waiting = self._waiting.pop(group, None)
            if waiting is not None:
                group.replica.waiter.interrupt(waiting)
        if waiting is None and self._system.can_interrupt:
            group.replica.fence.heavy()  # before its state is read; see `Nudger.nudge`
            self._system.nudger.nudge()

    def _unheard(self) -> bool:
        """Whether a thread that has a signal to handle computes, unaware of it, or will after it has replayed an operation."""
        return any(group.replica.state == GUEST or group.replica.replaying for group in self._unaware)

    def _note_unaware(self) -> None:
        """Note which threads have signals to handle, for `_unheard`, which takes no lock, and for them; under the lock."""
        # Not `items()`: without a GIL, a group that dies in another thread may change what is walked.
        groups = [group for reference in self._pending.keyrefs() if (group := reference()) is not None]
        for group in groups:
            group.set_attention(wanted=bool(self._pending.get(group)))
        self._unaware = tuple(group for group in groups if self._pending.get(group))

    # handling

    def register(self, name: str) -> None:
        """Name the main module's export that handles signals."""
        with self._lock:
            self._callback = name

    @property
    def has_handler(self) -> bool:
        """Whether the guest has named a function that handles signals."""
        return self._callback is not None

    def pending(self, group: Group) -> bool:
        """Whether the calling thread, which owns a group, has signals that it can handle now."""
        return bool(self._pending and self._pending.get(group) and not self._system.in_link_operation(group))

    def deliver_if_pending(self) -> None:
        """Call `deliver` at the end of a host call; costs next to nothing when no signal is pending."""
        if self._unaware:  # and not `_pending`, whose length is Python
            self.deliver()

    def deliver(self) -> bool:
        """Handle what was sent to the calling thread, in a host call of its; returns whether there was anything.

        While the thread applies a link operation, everything stays pending.

        Raises:
            BaseException: what the handler raised, or the end of the program.
        """
        group = self._system.current_group()
        any_handled = False
        while self.pending(group):
            with self._lock:
                queue = self._pending.get(group)
                if not queue:
                    break
                signal = queue.popleft()
                self._note_unaware()
            any_handled = True
            self._handle(group, signal)
        return any_handled

    def _deliver_inside(self) -> None:
        """Call `deliver` in the middle of a system function."""
        with running_guest():
            self.deliver()

    def _handle(self, group: Group, signal: int) -> None:
        main, callback = self._system.main_module, self._callback
        export = main.wasm.exports.get(callback) if main is not None and callback is not None else None
        if signal != SIGKILL and export is not None and export.type == HANDLER_TYPE:
            assert main is not None
            assert callback is not None
            log.debug("signal %d for %s", signal, group.name)
            self._run_handler(group, main, callback, signal)
        elif signal != SIGKILL and signal in _IGNORED:
            log.debug("signal %d for %s: ignored", signal, group.name)
        else:
            self._end(group, signal, "nothing handles it")

    def _run_handler(self, group: Group, main: LinkedModule, name: str, signal: int) -> None:
        handling = self._handling.setdefault(group, [])
        handling.append(signal)
        self._aborted.discard(group)
        if signal in (SIGINT, SIGTERM):
            self._interrupted, self.interrupt_pending = self.interrupt_pending, False
        try:
            group.call_export(main, name, HANDLER_TYPE, signal)
        except TrapError as trap:
            if signal not in (SIGABRT, *_RAISED_HERE):
                raise
            self._end(group, signal, f"its handler trapped: {trap.reason}")
        finally:
            handling.pop()
            if not handling:
                del self._handling[group]
        if signal == SIGABRT:
            self._aborted.add(group)

    def _end(self, group: Group, signal: int, why: str) -> NoReturn:
        """End the program by a signal.

        Raises:
            ProgramExited: with 128 + signal.
            KeyboardInterrupt: for a SIGINT of the host's.
        """
        by = next((s for s in self._handling.get(group, ()) if s in _RAISED_HERE), signal)
        if by == SIGABRT:
            log.error("the program aborted (signal %d in %s): %s", by, group.name, why)
        else:
            log.info("signal %d for %s ends the program: %s", by, group.name, why)
        by_host = by == SIGINT and self._interrupted
        ending: BaseException = KeyboardInterrupt() if by_host else ProgramExited(_EXIT_BASE + by)
        self._system.end(ending)
        raise ending

    def exit_code(self, code: int) -> int:
        """Return the exit code that the program ends with when the calling thread asks for one."""
        group = self._system.find_group()
        if code != _ABORTED_CODE or group is None or group not in self._aborted:
            return code
        log.error("the program aborted (signal %d in %s): its handler has returned", SIGABRT, group.name)
        return _EXIT_BASE + SIGABRT

    # waiting

    def wait(self, body: Callable[[Waiter], Result]) -> Result:
        """Run a wait that a signal for the calling thread ends.

        Args:
            body: waits with the thread's waiter, in `threads.Waits`.

        Returns:
            What the body does.

        Raises:
            SignalArrived: there is a signal to handle: call `deliver`, then answer `intr` or wait again.
            BaseException: what the body raises.
        """
        group = self._system.current_group()
        waiter = group.replica.waiter
        if self._system.in_link_operation(group):
            return body(waiter)
        arrived = SignalArrived()
        with self._lock:
            if self._pending.get(group):
                raise arrived
            self._waiting[group] = arrived
        try:
            return body(waiter)
        finally:
            with self._lock:
                self._waiting.pop(group, None)
            waiter.withdraw(arrived)

    def interrupted(self, body: Callable[[Waiter], Result]) -> Result | None:
        """Run a wait; if a signal ends it, handle that and return None: the caller answers `intr`."""
        try:
            return self.wait(body)
        except SignalArrived:
            self._deliver_inside()
            return None

    def resuming(self, body: Callable[[Waiter], Result]) -> Result:
        """Run a wait to its end, however many signals are handled meanwhile."""
        while True:
            try:
                return self.wait(body)
            except SignalArrived:  # noqa: PERF203  the loop goes round once per signal
                self._deliver_inside()

    def close(self) -> None:
        """Stop all alarms, and interrupt nobody any longer."""
        self.alarms.close()
        self._system.nudger.remove(self._unheard)
