"""Real threads that run one at a time, in the order that a test chooses; see `threads.testing`."""

from __future__ import annotations

import contextlib
import pathlib
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final

from threads.fences import Fence, GilFences, LockFence
from threads.platform import SYSTEM, LockLike, Wake
from threads.testing import store_buffers, tracing

__all__ = ["Decision", "ScheduleError", "Scheduler", "WeakMemory"]

_FOR_EVER: Final = 600.0  # seconds of virtual time; a longer wait counts as one without a limit
_MAX_STEPS: Final = 6_000


class ScheduleError(AssertionError):
    """A run failed: a thread raised, no thread could continue, or it did not end.

    Attributes:
      kind: "error", "deadlock" or "endless".
      schedule: the choices, for `replay`.
      trail: the last steps, each thread's name and place in the source.
    """

    def __init__(self, kind: str, detail: str, schedule: tuple[int, ...], trail: tuple[str, ...]) -> None:
        super().__init__(kind, detail, schedule, trail)
        self.kind = kind
        self.detail = detail
        self.schedule = schedule
        self.trail = trail

    def __str__(self) -> str:
        steps = "\n  ".join(self.trail[-60:])
        return f"{self.kind}: {self.detail}\nschedule {list(self.schedule)}\nlast steps:\n  {steps}"


class _Abort(BaseException):
    """Unwinds the threads of a run that is over."""


@dataclass(frozen=True)
class WeakMemory:
    """That threads see each other's stores late; see `store_buffers`.

    Attributes:
      locks: whether fences are locks that both sides pass, as where there is no `membarrier`.
      without: fences to leave out, as "file.function side": "replica.settle light".
    """

    locks: bool = False
    without: frozenset[str] = frozenset()


@dataclass(eq=False)
class _Task:
    name: str
    index: int
    run: Callable[[], object]
    daemon: bool
    go: Wake = field(default_factory=SYSTEM.wake)  # released when it is this task's turn
    waits_for: _Lock | None = None
    deadline: int | None = None  # nanoseconds, of a wait with a time limit
    timed_out: bool = False
    done: bool = False
    buffer: store_buffers.StoreBuffer = field(default_factory=store_buffers.StoreBuffer)


@dataclass
class Decision:
    """One choice of a run: which of `count` threads continued, 0 being the one that would have anyway."""

    chosen: int
    count: int
    preempts: bool  # whether any choice but 0 takes the processor from a thread that could continue


class _Lock:
    """A lock whose waiting is the scheduler's business; as `threading.Lock`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._held = False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        scheduler = self._scheduler
        scheduler.point()
        task = scheduler.current()
        deadline = None
        if 0 <= timeout < _FOR_EVER:
            deadline = scheduler.monotonic_ns() + int(timeout * 1e9)
        if task is not None and task.buffer.take_back(self, "released"):
            return True  # nobody has seen it released: nothing becomes visible by taking it again
        while self._held:
            if not blocking:
                return False
            if task is None:
                message = "a thread outside the scheduler would wait"
                raise RuntimeError(message)
            if not scheduler.block(task, self, deadline):
                return False
        self._held = True
        return True

    def release(self) -> None:
        scheduler = self._scheduler
        buffer = scheduler.buffer()
        if not self._held or (buffer is not None and buffer.has(self, "released")):
            if scheduler.aborting:
                return  # its acquire was cut off
            message = "release unlocked lock"
            raise RuntimeError(message)
        if buffer is None:
            self._held = False
        else:
            buffer.put(self, "released", True, self._let_go)

    def _let_go(self) -> None:
        self._held = False

    @property
    def held(self) -> bool:
        return self._held

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None:
        self.release()


class _ModelFence:
    """A fence of a run with a weak memory, which may leave out the places that the test names."""

    def __init__(self, scheduler: Scheduler, memory: WeakMemory) -> None:
        self._scheduler = scheduler
        self._without = memory.without
        self._lock = LockFence() if memory.locks else None
        if self._lock is not None:
            self._lock.lock = scheduler.lock()

    def light(self) -> None:
        if self._lock is not None and _caller("light") not in self._without:
            self._lock.light()

    def heavy(self) -> None:
        if _caller("heavy") in self._without:
            return
        if self._lock is not None:
            self._lock.heavy()
        else:
            self._scheduler.point("membarrier")
            self._scheduler.drain_all()


def _caller(side: str) -> str:
    frame = sys._getframe(2)  # noqa: SLF001 - who has called the fence
    if frame.f_code.co_name == "pass_heavy" and frame.f_back is not None:
        frame = frame.f_back
    return f"{pathlib.Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name} {side}"


class Scheduler:
    """One run: a platform for the code under test, and the choice of the thread that runs.

    Args:
      choose: given the decision's number and how many choices there are, returns one; 0 is to continue as before.
      early_timeouts: whether a wait's time limit may pass while others can run.
      memory: how late threads see each other's stores; None: at once, as with a GIL.

    Attributes:
      light_is_free: as of a platform.
    """

    def __init__(
        self,
        choose: Callable[[int, int, bool], int],
        *,
        early_timeouts: bool = False,
        memory: WeakMemory | None = None,
    ) -> None:
        self._choose = choose
        self._early_timeouts = early_timeouts
        self._memory = memory
        self.light_is_free = memory is None or not memory.locks
        self._tasks: list[_Task] = []
        self._local = threading.local()
        self._now = 0
        self._steps = 0
        self._over = SYSTEM.wake()
        self._failure: tuple[str, str, BaseException | None] | None = None
        self._started = False
        self._trail: deque[tuple[str, str]] = deque(maxlen=400)
        self._threads: list[threading.Thread] = []
        self.decisions: list[Decision] = []
        self.aborting = False

    # The platform.

    def lock(self) -> LockLike:
        """Return a lock under this scheduler."""
        return _Lock(self)

    def wake(self) -> Wake:
        """Return a new wake under this scheduler: a lock that is held."""
        lock = _Lock(self)
        lock.acquire()
        return lock

    def fence(self) -> Fence:
        """Return a new fence."""
        return GilFences().fence() if self._memory is None else _ModelFence(self, self._memory)

    def get_ident(self) -> int:
        """Return the task's number, or -1 outside."""
        task = self.current()
        return -1 if task is None else task.index + 1

    def monotonic_ns(self) -> int:
        """Return the virtual time."""
        return self._now

    def start_daemon(self, run: Callable[[], None], name: str) -> None:
        """Start a thread that the run's end does not wait for."""
        self._add(run, name, daemon=True)

    def hurry(self, asker: object) -> None:
        """Do nothing: whose turn it is, the test decides."""

    def relax(self, asker: object) -> None:
        """Do nothing."""

    # For the test.

    def spawn(self, run: Callable[[], object], name: str) -> None:
        """Add a thread; it may run from the next step on. The run ends when all of them have returned."""
        self._add(run, name, daemon=False)

    def point(self, place: str = "") -> None:
        """Run another thread first, if the schedule says so."""
        task = self.current()
        if task is None or not self._started:
            return
        if not place:
            caller = sys._getframe(2)  # noqa: SLF001 - the documented way to name the calling line cheaply
            place = f"{pathlib.Path(caller.f_code.co_filename).name}:{caller.f_lineno}"
        self._trail.append((task.name, place))
        self._switch(task)

    def pause(self) -> None:
        """Run any other thread first that can run, or advance time; for loops that wait for something to change."""
        task = self.current()
        if task is not None:
            self._trail.append((task.name, "pause"))
            task.buffer.drain()
            self._switch(task, yields=True)

    # Internals. Only the running thread touches any of this, so it needs no lock.

    def current(self) -> _Task | None:
        """Return the calling thread's task, None outside the scheduler's threads."""
        task: _Task | None = getattr(self._local, "task", None)
        return task

    def buffer(self) -> store_buffers.StoreBuffer | None:
        """Return the running thread's late stores; None if stores are done at once."""
        task = self.current()
        return None if self._memory is None or task is None else task.buffer

    def drain_all(self) -> None:
        """Have every thread's stores done."""
        for task in self._tasks:
            task.buffer.drain()

    def block(self, task: _Task, lock: _Lock, deadline: int | None) -> bool:
        """Wait until the lock is free; False if the deadline came first."""
        task.waits_for = lock
        task.deadline = deadline
        task.timed_out = False
        task.buffer.drain()
        try:
            self._switch(task)
        finally:
            task.waits_for = None
            task.deadline = None
        return not task.timed_out

    def run(self) -> None:
        """Run until every thread has returned.

        Raises:
          ScheduleError: the run failed.
        """
        self._started = True
        if self._tasks:
            self._start_next(None)
            self._over.acquire()
        for thread in self._threads:
            thread.join()
        if self._failure is not None:
            kind, detail, cause = self._failure
            raise self.error(kind, detail) from cause
        self.aborting = False  # daemons are gone, and the caller may use locks again

    def error(self, kind: str, detail: str) -> ScheduleError:
        """Return the error that describes how this run failed."""
        schedule = tuple(decision.chosen for decision in self.decisions)
        return ScheduleError(kind, detail, schedule, tuple(f"{name}: {place}" for name, place in self._trail))

    def _add(self, run: Callable[[], object], name: str, *, daemon: bool) -> None:
        starter = self.buffer()
        if starter is not None:
            starter.drain()
        task = _Task(name, len(self._tasks), run, daemon)
        self._tasks.append(task)
        thread = threading.Thread(target=self._body, args=(task,), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _body(self, task: _Task) -> None:
        task.go.acquire()
        self._local.task = task
        try:
            if not self.aborting:
                with contextlib.ExitStack() as stack:
                    if self._memory is not None:
                        stack.enter_context(store_buffers.this_thread(task.buffer))
                    stack.enter_context(tracing.this_thread(self.point))
                    task.run()
        except _Abort:
            pass
        except BaseException as error:  # noqa: BLE001 - reported by run(), in the thread that can fail the test
            self._fail("error", f"{task.name} raised {type(error).__name__}: {error}", error)
        finally:
            task.done = True
            with contextlib.suppress(_Abort):
                self._start_next(task)

    def _fail(self, kind: str, detail: str, cause: BaseException | None = None) -> None:
        if self._failure is None:
            self._failure = (kind, detail, cause)
        self.aborting = True

    def _start_next(self, task: _Task | None) -> None:
        # The running task has ended; or, None, the run begins.
        if not self.aborting and all(other.done or other.daemon for other in self._tasks):
            self.aborting = True  # only daemons are left: unwind them
        if self.aborting:
            alive = [other for other in self._tasks if not other.done]
            if alive:
                alive[0].go.release()
            else:
                self._over.release()
            return
        following = self._next(task, yields=False)
        if following is None:
            self._start_next(task)
        else:
            following.go.release()

    def _switch(self, task: _Task, *, yields: bool = False) -> None:
        if self.aborting:
            raise _Abort
        following = self._next(task, yields=yields)
        if following is None:
            raise _Abort
        if following is not task:
            following.go.release()
            task.go.acquire()
            if self.aborting:
                raise _Abort

    def _releasing(self, lock: _Lock) -> list[_Task]:
        """Return the threads that have released a lock, which others do not see yet."""
        return [task for task in self._tasks if task.buffer.has(lock, "released")]

    def _next(self, task: _Task | None, *, yields: bool) -> _Task | None:
        """Choose the thread that runs next; None if the run has failed."""
        self._steps += 1
        if self._steps > _MAX_STEPS:
            self._fail("endless", f"no end after {_MAX_STEPS} steps")
            return None
        runnable = [
            other
            for other in self._tasks
            if not other.done
            and (other.waits_for is None or not other.waits_for.held or self._releasing(other.waits_for))
        ]
        sleeping = sorted(
            (
                other
                for other in self._tasks
                if not other.done and other.deadline is not None and other not in runnable
            ),
            key=lambda other: other.deadline or 0,
        )
        goes_on = task in runnable and not yields
        if goes_on and task is not None:
            runnable.remove(task)
            runnable.insert(0, task)
        elif yields and task is not None:
            runnable.remove(task)
            if not runnable and not sleeping:
                runnable = [task]
        choices = runnable if runnable and not self._early_timeouts else runnable + sleeping[:1]
        # To do a waiting store is a choice like another, after which to choose again.
        late = [other for other in self._tasks if other.buffer] if goes_on else []
        if not choices:
            waiting = ", ".join(other.name for other in self._tasks if not other.done)
            self._fail("deadlock", f"nobody can go on; waiting: {waiting}")
            return None
        chosen = 0
        count = len(choices) + len(late)
        if count > 1:
            # A time-out that comes early is a preemption too: it is what a slow machine does.
            preempts = goes_on or bool(runnable and len(choices) > len(runnable))
            try:
                chosen = self._choose(len(self.decisions), count, preempts)
            except Exception as error:  # noqa: BLE001 - reported by run()
                self._fail("error", str(error), error)
                return None
            self.decisions.append(Decision(chosen, count, preempts))
        if chosen >= len(choices):
            late[chosen - len(choices)].buffer.drain_one()
            return self._next(task, yields=False)
        following = choices[chosen]
        if following in runnable and following.waits_for is not None and following.waits_for.held:
            self._releasing(following.waits_for)[0].buffer.drain_until_done(following.waits_for, "released")
        if following in sleeping:
            following.timed_out = True
            self._now = max(self._now, following.deadline or 0)
        return following
