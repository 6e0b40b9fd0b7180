"""Events: what happens to the libraries of a program, in order, for hosts and tools.

An event is recorded in the step that it tells of, also under the link lock, so that the order of events is that of the steps.
Queues have it from then on. Functions are called later in the same thread, when it holds no lock.

Nothing is recorded while nobody listens.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING

from dl.errors import LinkerUsageError
from dl.logs import logger
from dl.records import dataclass
from memory import Uncopied
from threads import recording

if TYPE_CHECKING:
    from typing_extensions import Self

log = logger("dl.events")

DEFAULT_QUEUE_EVENTS = 1000


class EventKind(str, Enum):
    """What an event tells of."""

    LOADED = "loaded"
    """A module became part of the program, for all threads; its constructors have not run."""
    CONSTRUCTED = "constructed"
    """Its constructors have run; other threads that open it wait for those of all modules of its load."""
    CLOSED = "closed"
    """Nothing keeps it any longer: it can be found no more, and its destructors run next."""
    UNLOADED = "unloaded"
    """It left the program, after its destructors or because its load was taken back."""
    BOUND = "bound"
    """A function that was undefined when its caller was loaded was found at its first call."""
    FAILED = "failed"
    """A dlopen failed, and the program is as it was before."""

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Event:
    """Something that happened to a module.

    Attributes:
        number: its place in the order of the program's events, from 1; events that nobody listened for have none.
        kind: what happened.
        time: when, seconds since the epoch, as `time.time` returns it.
        thread: name of the thread that did it, as `threading` names it.
        thread_id: its identity, as `threading.get_ident` returns it.
        module: name of the module; of the library that could not be opened, for `failed`.
        handle: its handle; 0 if it has none.
        symbol: the function that was bound, for `bound`; empty otherwise.
        provider: name of the module that defines it, for `bound`; empty otherwise.
        error: what a dlopen failed with, for `failed`; None otherwise.
    """

    number: int
    kind: EventKind
    time: float
    thread: str
    thread_id: int
    module: str
    handle: int = 0
    symbol: str = ""
    provider: str = ""
    error: BaseException | None = None

    def __str__(self) -> str:
        about = {
            EventKind.BOUND: f": {self.symbol} of {self.provider}",
            EventKind.FAILED: f": {self.error}",
        }.get(self.kind, "")
        handle = f" ({self.handle})" if self.handle else ""
        return f"{self.number} {self.thread}: {self.kind} {self.module}{handle}{about}"


Listener = Callable[[Event], object]


class EventSubscription:
    """A function that is called with events, until `close`; made by `Events.subscribe`.

    Attributes:
        listener: the function.
        kinds: what it is called with.
        after: number of the last event before it; those up to this one may still wait to be delivered to others.
    """

    def __init__(self, events: EventLog, listener: Listener, kinds: frozenset[EventKind], after: int) -> None:
        self._events = events
        self.listener = listener
        self.kinds = kinds
        self.after = after

    def close(self) -> None:
        """Call the function no longer; idempotent, from any thread. A call under way goes on."""
        self._events.remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<EventSubscription of {getattr(self.listener, '__qualname__', self.listener)!s}>"


class EventQueue:
    """Events that wait to be taken, oldest first; made by `Events.queue`. From any thread.

    Iterating waits for events, and ends when the queue or the linker is closed and every event is taken.

    Attributes:
        kinds: what it takes.
        limit: how many events wait at most; of more, the oldest are dropped.
        lost: how many were dropped.
    """

    def __init__(self, events: EventLog, kinds: frozenset[EventKind], limit: int) -> None:
        self._events = events
        self._waiting: deque[Event] = deque()
        self._closed = False
        self.kinds = kinds
        self.limit = limit
        self.lost = 0

    def put(self, event: Event) -> None:
        """Append an event; by `EventLog`, while it holds the lock."""
        if len(self._waiting) >= self.limit:
            self._waiting.popleft()
            self.lost += 1
        self._waiting.append(event)

    def end(self) -> None:
        """Take no more events; by `EventLog`, while it holds the lock."""
        self._closed = True

    def get(self, timeout: float | None = None) -> Event | None:
        """Take the oldest event, waiting for one.

        Args:
            timeout: seconds to wait; None to wait without end.

        Returns:
            None after the time-out, or when the queue or the linker is closed and no event is left.
        """
        with self._events.changed:
            self._events.changed.wait_for(lambda: self._waiting or self._closed, timeout)
            return self._waiting.popleft() if self._waiting else None

    def close(self) -> None:
        """Take no more events, and end those that wait for one; idempotent, from any thread."""
        self._events.remove(self)

    def __iter__(self) -> Iterator[Event]:
        while (event := self.get()) is not None:
            yield event

    def __len__(self) -> int:
        return len(self._waiting)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<EventQueue with {len(self)} events{' (closed)' if self._closed else ''}>"


class EventLog:
    """The events of a program.

    Attributes:
        listening: whether anybody listens; without, nothing is recorded. Read without a lock, as the list of functions is.
        changed: guards the lists of listeners, the number of the last event and every queue, and is where takers of queues
            wait; a leaf.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.Lock())
        self._subscriptions: tuple[EventSubscription, ...] = ()
        self._queues: tuple[EventQueue, ...] = ()
        self._number = 0
        self._ended = False
        self._undelivered = threading.local()
        self.listening = False

    def subscribe(
        self, listener: Listener, kinds: Iterable[EventKind | str] | None = None
    ) -> EventSubscription:
        """Add a function; see `Events.subscribe`."""
        if not callable(listener):
            raise LinkerUsageError(f"listener: events are told to a function, not to {listener!r}")
        wanted = _checked(kinds)
        with self.changed:
            subscription = EventSubscription(self, listener, wanted, self._number)
            self._subscriptions = (*self._subscriptions, subscription)
            self._note_listeners()
        return subscription

    def queue(self, kinds: Iterable[EventKind | str] | None, limit: int) -> EventQueue:
        """Add a queue; see `Events.queue`."""
        if not hasattr(limit, "__index__") or limit < 1:
            raise LinkerUsageError(f"limit: a queue of events holds at least one, not {limit!r}")
        queue = EventQueue(self, _checked(kinds), limit)
        with self.changed:
            if self._ended:
                queue.end()
            else:
                self._queues = (*self._queues, queue)
                self._note_listeners()
        return queue

    def remove(self, listener: EventSubscription | EventQueue) -> None:
        """Take a listener off; see their `close`."""
        with self.changed:
            self._subscriptions = tuple(one for one in self._subscriptions if one is not listener)
            self._queues = tuple(one for one in self._queues if one is not listener)
            if isinstance(listener, EventQueue):
                listener.end()
            self._note_listeners()
            self.changed.notify_all()

    def _note_listeners(self) -> None:
        """Only while holding the lock."""
        self.listening = bool(self._subscriptions or self._queues)

    def record(
        self,
        kind: EventKind,
        module: str,
        handle: int = 0,
        *,
        symbol: str = "",
        provider: str = "",
        error: BaseException | None = None,
    ) -> None:
        """Note that something happened; with any lock held or none. `deliver` follows in the same thread.

        Whoever calls this asks `listening` first.
        """
        now, thread = time.time(), threading.current_thread()
        with self.changed:
            self._number += 1
            event = Event(
                self._number,
                kind,
                now,
                thread.name,
                threading.get_ident(),
                module,
                int(handle),
                symbol,
                provider,
                error,
            )
            for queue in self._queues:
                if kind in queue.kinds:
                    queue.put(event)
            if self._queues:
                self.changed.notify_all()
        if self._subscriptions:
            self._pending().append(event)

    @contextmanager
    def telling_failure(self, library: str) -> Iterator[None]:
        """Tell of a dlopen, in a `with`: how long it takes to who records it, and that it fails to who listens.

        Args:
            library: what is opened.
        """
        try:
            with recording.span("load", "dlopen", library):
                yield
        except BaseException as error:
            if self.listening:
                self.record(EventKind.FAILED, library, error=error)
                self.deliver()
            raise

    def _pending(self) -> deque[Event]:
        pending: deque[Event] | None = getattr(self._undelivered, "events", None)
        if pending is None:
            pending = self._undelivered.events = deque()
        return pending

    def deliver(self) -> None:
        """Call the functions with what this thread has recorded; it holds no lock."""
        if not self.listening:
            return
        pending = self._pending()
        while pending:
            event = pending.popleft()
            for subscription in self._subscriptions:
                if event.kind in subscription.kinds and event.number > subscription.after:
                    try:
                        subscription.listener(event)
                    except Exception:
                        log.exception("a listener failed at the event %s", event)

    def end(self) -> None:
        """End all queues: the program is closed."""
        with self.changed:
            self._ended = True
            for queue in self._queues:
                queue.end()
            self._queues = self._subscriptions = ()
            self._note_listeners()
            self.changed.notify_all()

    def __repr__(self) -> str:
        return f"<Events: {len(self._subscriptions)} functions and {len(self._queues)} queues listen>"


class Events(Uncopied):
    """The events of a program, for those who listen; `Linker.events`. From any thread."""

    __slots__ = ("_log",)

    def __init__(self, log: EventLog) -> None:
        self._log = log

    def subscribe(
        self, listener: Listener, kinds: Iterable[EventKind | str] | None = None
    ) -> EventSubscription:
        """Call a function with each event from now on.

        It is called in the thread that did what the event tells of, before this goes on, with no lock held: so it may wait,
        and it may use the linker. Events of several threads may come at the same time; each thread's come in order. What it
        raises is logged (`dl.events`) and changes nothing, except what is no `Exception`, such as KeyboardInterrupt. It holds
        up nobody else but those who wait for the library that is being loaded or closed.

        Args:
            listener: gets an `Event`.
            kinds: which events; None for all.

        Raises:
            LinkerUsageError: there is no such kind.
        """
        return self._log.subscribe(listener, kinds)

    def queue(
        self, kinds: Iterable[EventKind | str] | None = None, limit: int = DEFAULT_QUEUE_EVENTS
    ) -> EventQueue:
        """Return a queue that holds all events from now on, in the order of the steps that they tell of.

        Args:
            kinds: which events; None for all.
            limit: how many wait at most, from 1; of more, the oldest are dropped and counted.

        Raises:
            LinkerUsageError: there is no such kind, or the limit is less than 1.
        """
        return self._log.queue(kinds, limit)

    def __repr__(self) -> str:
        return repr(self._log)


def _checked(kinds: Iterable[EventKind | str] | None) -> frozenset[EventKind]:
    if kinds is None:
        return frozenset(EventKind)
    try:
        return frozenset(EventKind(kind) for kind in ([kinds] if isinstance(kinds, str) else kinds))
    except (ValueError, TypeError) as error:
        raise LinkerUsageError(f"{error}: the kinds of events are {', '.join(EventKind)}") from None
