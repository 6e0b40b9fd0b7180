"""Signals: sent to a thread of the guest, handled by a function of the main module that its C library names.

WASIX has no handlers in the host. The C library exports one function (`__wasm_signal`), says so with `callback_signal`, and
finds the program's handler itself. What is left for the host is when and where to call it: in the thread that the signal is
for, and

* when that thread sends it to itself, before the call that sends it returns (`raise` promises as much);
* when it waits, at once: the wait ends for the handler's sake and then answers `intr`, or goes on, as its kind does;
* when it computes, at its next check for interruption, like a link operation. Nothing of the program is interrupted that C
  does not allow a handler to interrupt. While the handler itself computes, the thread cannot be interrupted again.

Without such a function a signal does what its default action says, as the comments of `api_wasix.h` list them; "stop" and
"continue" do nothing.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from dl.errors import ProgramExited
from dl.wasix.abi import Errno
from dl.wasix.adapter import running_guest
from dl.wasix.alarms import Alarms
from dl.wasix.system import FIRST_THREAD
from dl.wasm.types import FuncType
from threads import GUEST
from threads.nudger import Nudger
from threads.platform import SYSTEM
from threads.waiter import Waiter

if TYPE_CHECKING:
    from dl.groups.entry import Group
    from dl.wasix.system import System

log = logging.getLogger("dl.wasix")

HANDLER_TYPE = FuncType(("i32",), ())
SIGKILL = 9
LAST_SIGNAL = 64
_IGNORED = frozenset({13, 16, 17, 18, 19, 20, 21, 22, 23, 28})
_EXIT_BASE = 128

Result = TypeVar("Result")


class SignalArrived(Exception):  # noqa: N818  not a fault: it ends a wait so that a handler can run
    """Ends the wait of a thread that a signal was sent to; never leaves this package."""


class Signals:
    """The signals of one program.

    `_lock` guards the fields below it; the thread's `Waiter` is interrupted under it, which takes no lock.

    Attributes:
        alarms: signals that come after a time.
    """

    def __init__(self, system: System) -> None:
        self._system = system
        self._lock = threading.Lock()
        self._callback: str | None = None
        self._pending: weakref.WeakKeyDictionary[Group, deque[int]] = weakref.WeakKeyDictionary()
        self._waiting: dict[Group, SignalArrived] = {}
        self._nudger = Nudger(SYSTEM, system.interrupt, self._unheard)
        self.alarms = Alarms(self.send_to_main, system.waits)

    # sending

    def send(self, number: int, signal: int) -> Errno:
        """Send a signal to a thread; 0 only asks whether it exists. From any thread.

        Args:
            number: the thread's, as the guest knows it.
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
            self._post(group, signal)
            if group is self._system.find_group():
                self._deliver_inside()
        return Errno.SUCCESS

    def send_to_main(self, signal: int) -> None:
        """Send a signal to the program's first thread, if there still is one; from any thread."""
        group = self._system.group(FIRST_THREAD)
        if group is not None:
            self._post(group, signal)

    def _post(self, group: Group, signal: int) -> None:
        with self._lock:
            queue = self._pending.setdefault(group, deque())
            if signal in queue:
                return  # as for standard signals: one that is pending already is the same one
            queue.append(signal)
            waiting = self._waiting.pop(group, None)
            if waiting is not None:
                group.replica.waiter.interrupt(waiting)
        if waiting is None and self._system.can_interrupt:
            self._nudger.nudge()

    def _unheard(self) -> bool:
        """Whether a thread that has a signal to handle computes, unaware of it."""
        with self._lock:
            return any(queue and group.replica.state == GUEST for group, queue in self._pending.items())

    # handling

    def register(self, name: str) -> None:
        """Name the main module's export that handles signals."""
        with self._lock:
            self._callback = name

    def pending(self, group: Group) -> bool:
        """Whether a thread has signals to handle."""
        return bool(self._pending and self._pending.get(group))

    def deliver_if_pending(self) -> None:
        """Do `deliver` at the end of a host call, at next to no cost when no thread has a signal to handle."""
        if self._pending:
            self.deliver()

    def deliver(self) -> bool:
        """Handle what was sent to the calling thread, in a host call of its; returns whether there was anything.

        Raises:
            BaseException: what the handler raised, or the end of the program.
        """
        group = self._system.current_group()
        any_handled = False
        while True:
            with self._lock:
                queue = self._pending.get(group)
                if not queue:
                    return any_handled
                signal = queue.popleft()
            any_handled = True
            self._handle(group, signal)

    def _deliver_inside(self) -> None:
        """Do `deliver` in the middle of a system function."""
        with running_guest():
            self.deliver()

    def _handle(self, group: Group, signal: int) -> None:
        main, callback = self._system.main_module, self._callback
        export = main.wasm.exports.get(callback) if main is not None and callback is not None else None
        if signal != SIGKILL and export is not None and export.type == HANDLER_TYPE:
            assert main is not None
            assert callback is not None
            log.debug("signal %d for %s", signal, group.name)
            group.call_export(main, callback, HANDLER_TYPE, signal)
        elif signal != SIGKILL and signal in _IGNORED:
            log.debug("signal %d for %s: ignored", signal, group.name)
        else:
            log.info("signal %d for %s: nothing handles it, the program ends", signal, group.name)
            ending = ProgramExited(_EXIT_BASE + signal)
            self._system.end(ending)
            raise ending

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
        """Send nothing any more."""
        self.alarms.close()
