"""A timeline: what the threads of this process did and how long it took, in the format of Chrome's trace viewer."""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from typing_extensions import Self

from dl.checks import any_path, at_least, taken, word
from threads import recording, uninterrupted

DEFAULT_TIMELINE_EVENTS = 100_000
"""Some 40 MB of memory, and 20 MB of JSON."""

_MOST_CHARACTERS = 200
_NOISE_NS = 20_000
"""What is waited for no longer than this was not waited for: taking a free lock takes a microsecond."""


class TimelineEvent(NamedTuple):
    """Something that a thread did.

    Attributes:
        thread: the thread's identity, as `threading.get_ident` returns it, and its name, as `threading` names it.
        group: its name in the program; empty while it had none.
        kind: `load`, `barrier`, `wait` or `guest`.
        phase: what it did, one of few texts, such as `compile`.
        subject: to what: a module, a function, what is waited for; may be empty.
        begin_ns: when it began, of `time.monotonic_ns`.
        end_ns: when it ended; the same for what takes no time.
        about: more, by name.
    """

    thread: tuple[int, str]
    group: str
    kind: str
    phase: str
    subject: str
    begin_ns: int
    end_ns: int
    about: Mapping[str, Any]


class _Thread(threading.local):
    """What one thread's events have in common."""

    thread: tuple[int, str] | None = None
    group: str = ""


class Timeline:
    """A record of what the threads of this process do for programs of WebAssembly while a `with` lasts.

    Loads by phase, barriers with those that were waited for, waits, compilations, and calls from the host into the guest. What
    is under way when the `with` ends is not in it. From any thread.

    Args:
        limit: how many events are kept, from 1; of more, the oldest are dropped and counted. 400 bytes each, about.

    Raises:
        LinkerUsageError: the limit is less than 1.
    """

    def __init__(self, limit: int = DEFAULT_TIMELINE_EVENTS) -> None:
        taken(at_least(1), limit, "limit")
        # Additions and copies are single steps, and a name belongs to its thread. No thread waits for a lock here, since
        # barriers are recorded half-way, and signal handlers record as well; so the list may pass the limit for a moment.
        self._events: list[TimelineEvent] = []
        self._limit, self._most = limit, limit + limit // 8
        self._dropped = 0  # written by whoever has `_dropping`
        self._dropping = threading.Lock()  # only ever tried
        self._threads = _Thread()
        self._began = time.monotonic_ns()

    def __enter__(self) -> Self:
        recording.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        recording.remove(self)

    # what `threads.recording` calls

    def span(
        self, kind: str, phase: str, subject: str, begin_ns: int, end_ns: int, about: dict[str, Any]
    ) -> None:
        """Record something that took time; called by the linker itself."""
        if end_ns - begin_ns < _NOISE_NS and phase.startswith("wait for") and kind != "wait":
            return
        self._append(kind, phase, subject, begin_ns, end_ns, about)

    def moment(self, kind: str, what: str, about: dict[str, Any]) -> None:
        """Record something that takes no time; called by the linker itself."""
        now = time.monotonic_ns()
        self._append(kind, what, "", now, now, about)

    def named(self, name: str) -> None:
        """Note the calling thread's name in its program; called by the linker itself."""
        self._threads.group = name

    def _append(
        self, kind: str, phase: str, subject: str, begin_ns: int, end_ns: int, about: dict[str, Any]
    ) -> None:
        own = self._threads
        if own.thread is None:
            own.thread = (threading.get_ident(), threading.current_thread().name)
        self._events.append(
            TimelineEvent(
                own.thread, own.group, kind, phase, subject[:_MOST_CHARACTERS], begin_ns, end_ns, about
            )
        )
        if len(self._events) > self._most:
            self._drop()

    def _drop(self) -> None:
        with uninterrupted():  # or the lock would be nobody's between its claim and its end
            if self._dropping.acquire(blocking=False):
                over = len(self._events) - self._limit
                del self._events[:over]
                self._dropped += over
                self._dropping.release()

    # what users ask

    @property
    def lost(self) -> int:
        """How many events were dropped, because there were more than the limit."""
        return self._dropped + max(0, len(self._events) - self._limit)

    @property
    def events(self) -> tuple[TimelineEvent, ...]:
        """What was recorded, in the order in which it ended."""
        return tuple(self._events.copy()[-self._limit :])

    def totals(self) -> dict[tuple[str, str], tuple[int, float]]:
        """Return how often each thing was done, and how many seconds it took, by kind and phase; phases contain each other."""
        totals: dict[tuple[str, str], tuple[int, float]] = {}
        for event in self.events:
            count, seconds = totals.get((event.kind, event.phase), (0, 0.0))
            totals[event.kind, event.phase] = (count + 1, seconds + (event.end_ns - event.begin_ns) / 1e9)
        return totals

    def to_json(self, program: str = "") -> str:
        """Return the timeline in Chrome's trace event format; docs/looking.md says how it is opened.

        Args:
            program: what the viewer calls the process.
        """
        taken(word, program, "program")
        return json.dumps(_chrome_trace(self.events, self._began, self.lost, program))

    def write(self, path: str | os.PathLike[str], program: str = "") -> None:
        """Write `to_json()` to a file.

        Raises:
            OSError: it cannot be written.
        """
        shown = self.to_json(program)
        with open(taken(any_path, path, "path"), "w", encoding="utf-8") as file:
            file.write(shown)

    def __len__(self) -> int:
        return min(len(self._events), self._limit)

    def __repr__(self) -> str:
        lost = f", {self.lost} lost" if self.lost else ""
        return f"<Timeline of {len(self)} events{lost}>"


def _chrome_trace(events: Iterable[TimelineEvent], began_ns: int, lost: int, program: str) -> dict[str, Any]:
    """Return events in the format of <https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU>."""
    process = os.getpid()
    numbers: dict[tuple[int, str], int] = {}
    groups: dict[tuple[int, str], str] = {}
    barriers: dict[int, tuple[TimelineEvent, dict[str, Any]]] = {}
    arrows = itertools.count(1)
    found: list[dict[str, Any]] = []

    def at(nanoseconds: int) -> float:
        return (nanoseconds - began_ns) / 1e3

    # What encloses comes before what it encloses, as the viewers want it.
    for event in sorted(events, key=lambda e: (e.begin_ns, -e.end_ns)):
        number = numbers.setdefault(event.thread, len(numbers) + 1)
        groups[event.thread] = event.group
        common = {"cat": event.kind, "pid": process, "tid": number}
        title = f"{event.phase} {event.subject.rpartition('/')[2]}".rstrip()
        about = dict(event.about) | ({"of": event.subject} if "/" in event.subject else {})
        if event.end_ns == event.begin_ns:
            found.append(
                common | {"name": title, "ph": "i", "s": "t", "ts": at(event.begin_ns), "args": about}
            )
        else:
            duration = (event.end_ns - event.begin_ns) / 1e3
            found.append(
                common | {"name": title, "ph": "X", "ts": at(event.begin_ns), "dur": duration, "args": about}
            )
        if event.phase == "barrier":
            barriers[about["operation"]] = (event, common)
        elif event.phase == "arrives":
            found += _arrow(event, common, barriers.get(about["operation"]), next(arrows), at)
    names = [
        {"name": "process_name", "ph": "M", "pid": process, "tid": 0, "args": {"name": program or "program"}}
    ]
    for thread, number in numbers.items():
        name, group = thread[1], groups[thread]
        if group not in ("", name):
            name = f"{name} ({group})"
        about = {"ph": "M", "pid": process, "tid": number}
        names.append(about | {"name": "thread_name", "args": {"name": name}})
        names.append(about | {"name": "thread_sort_index", "args": {"sort_index": number}})
    return {
        "traceEvents": [*names, *found],
        "displayTimeUnit": "ms",
        "otherData": {"lost events": lost},
    }


def _arrow(
    arrival: TimelineEvent,
    of_arrival: dict[str, Any],
    at_barrier: tuple[TimelineEvent, dict[str, Any]] | None,
    number: int,
    at: Callable[[int], float],
) -> list[dict[str, Any]]:
    """Return an arrow from where a thread arrives at a barrier to the end of that; nothing if the barrier is not recorded."""
    if at_barrier is None:
        return []
    barrier, of_barrier = at_barrier
    if not barrier.begin_ns <= arrival.begin_ns <= barrier.end_ns:
        return []
    arrow = {"name": "arrival", "id": number}
    # Inside the barrier: an arrow binds to what encloses its ends.
    end = max(arrival.begin_ns, barrier.end_ns - 1000)
    return [
        of_arrival | arrow | {"ph": "s", "ts": at(arrival.begin_ns)},
        of_barrier | arrow | {"ph": "f", "bp": "e", "ts": at(end)},
    ]
