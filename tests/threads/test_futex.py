"""Futexes, sleeps, events and foreign waits on real threads: woken, timed out, interrupted, or hopeless."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from functools import partial

import pytest

from threads import (
    DeadlockError,
    Event,
    FutexTable,
    Interrupted,
    ProtocolError,
    Waiter,
    WaitResult,
    Waits,
)

DEADLINE = 30.0  # seconds: far more than anything here takes; only a failing test ever waits so long
FOR_EVER = None
MILLISECOND = 1_000_000  # nanoseconds


class Background:
    """A function on a thread of its own, and how it ended."""

    def __init__(self, run: Callable[[], object]) -> None:
        self.result: object = None
        self.error: BaseException | None = None

        def guarded() -> None:
            try:
                self.result = run()
            except BaseException as error:  # noqa: BLE001 - for the test to look at
                self.error = error

        self.thread = threading.Thread(target=guarded, daemon=True)
        self.thread.start()

    def end(self) -> object:
        self.thread.join(DEADLINE)
        assert not self.thread.is_alive()
        if self.error is not None:
            raise self.error
        return self.result


def until(condition: Callable[[], object]) -> None:
    """Wait until another thread is where the test wants it; its wait has no event to offer."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0)


def waiting_threads(table: FutexTable, key: int, count: int) -> list[Background]:
    """Start threads that wait at a key, in order."""
    started = []
    for i in range(count):
        waiter = Waiter(str(i))
        started.append(Background(partial(table.wait, key, lambda: True, FOR_EVER, waiter)))
        until(lambda: table.waiting(key) == len(started))
    return started


class TestFutex:
    """Wait and wake."""

    def test_wait_when_the_value_has_changed_does_not_wait(self) -> None:
        """A value that is not the expected one any more ends the wait before it begins."""
        table = FutexTable()
        assert table.wait(8, lambda: False, FOR_EVER, Waiter("w")) is WaitResult.NOT_EQUAL
        assert len(table) == 0

    @pytest.mark.parametrize("timeout_ns", [-1, 0, 1, MILLISECOND])
    def test_wait_with_a_time_limit_ends_after_it(self, timeout_ns: int) -> None:
        """A wait that nobody wakes lasts at least its limit, and leaves nothing in the table."""
        table = FutexTable()
        started = time.monotonic_ns()
        assert table.wait(8, lambda: True, timeout_ns, Waiter("w")) is WaitResult.TIMED_OUT
        assert time.monotonic_ns() - started >= timeout_ns
        assert len(table) == 0

    def test_wake_takes_the_oldest_first_and_no_more_than_asked(self) -> None:
        """Five waiters, woken two and three at a time, go on in the order they came."""
        table = FutexTable()
        waiting = waiting_threads(table, 8, 5)

        assert table.wake(8, 2) == 2
        assert [waiting[i].end() for i in (0, 1)] == [WaitResult.WOKEN] * 2
        assert table.waiting(8) == 3
        assert all(background.thread.is_alive() for background in waiting[2:])
        assert table.wake(8, 2**32 - 1) == 3
        assert [background.end() for background in waiting] == [WaitResult.WOKEN] * 5
        assert len(table) == 0

    @pytest.mark.parametrize("count", [-1, 0])
    def test_wake_of_none_wakes_none(self, count: int) -> None:
        """Waking no thread is allowed and does that."""
        table = FutexTable()
        waiting = waiting_threads(table, 8, 1)
        assert table.wake(8, count) == 0
        assert table.waiting(8) == 1
        table.wake(8, 1)
        waiting[0].end()

    def test_wake_at_another_address_wakes_nobody(self) -> None:
        """Addresses are told apart to the byte."""
        table = FutexTable()
        waiting = waiting_threads(table, 8, 1)
        assert table.wake(12, 1) == 0
        assert table.wake(8, 1) == 1
        assert waiting[0].end() is WaitResult.WOKEN

    def test_wait_interrupted_raises_and_takes_no_wake(self) -> None:
        """A cancelled waiter leaves the queue: the next wake goes to the one behind it."""
        table = FutexTable()
        first, second = Waiter("first"), Waiter("second")
        cancelled = Background(lambda: table.wait(8, lambda: True, FOR_EVER, first))
        until(lambda: table.waiting(8) == 1)
        behind = Background(lambda: table.wait(8, lambda: True, FOR_EVER, second))
        until(lambda: table.waiting(8) == 2)

        first.interrupt(Interrupted("cancelled"))
        with pytest.raises(Interrupted, match="cancelled"):
            cancelled.end()

        assert table.wake(8, 1) == 1
        assert behind.end() is WaitResult.WOKEN

    def test_wait_of_a_thread_with_a_pending_interrupt_raises_at_once(self) -> None:
        """An interrupt that came before the wait is not slept over."""
        table = FutexTable()
        waiter = Waiter("w")
        waiter.interrupt(Interrupted())
        with pytest.raises(Interrupted):
            table.wait(8, lambda: True, FOR_EVER, waiter)
        assert len(table) == 0

    def test_wait_of_an_ended_thread_raises_every_time(self) -> None:
        """What ends a thread is raised by every wait from then on, the first given reason counts."""
        table = FutexTable()
        waiter = Waiter("w")
        waiting = Background(lambda: table.wait(8, lambda: True, FOR_EVER, waiter))
        until(lambda: table.waiting(8))
        waiter.end(SystemExit(5))
        waiter.end(SystemExit(6))

        for attempt in (waiting.end, lambda: table.wait(8, lambda: True, FOR_EVER, waiter)):
            with pytest.raises(SystemExit, match="5"):
                attempt()

    def test_wait_when_ctrl_c_comes_leaves_the_table_clean(self) -> None:
        """A signal handler's exception ends the wait, and the next wake is not wasted on the gone thread."""
        table = FutexTable()
        waiter = Waiter("main")

        def press() -> None:
            until(lambda: table.waiting(8))
            os.kill(os.getpid(), signal.SIGINT)
            waiter.unpark()  # it may have come just before the main thread's system call, which it then does not end

        pressing = Background(press)
        with pytest.raises(KeyboardInterrupt):
            table.wait(8, lambda: True, int(DEADLINE * 1e9), waiter)
        pressing.end()
        assert (len(table), table.wake(8, 1)) == (0, 0)

    def test_wait_when_the_memory_cannot_be_read_raises_and_waits_not(self) -> None:
        """What the check raises (a bad address) comes out, and nothing is left in the table."""
        table = FutexTable()

        def bad_address() -> bool:
            raise IndexError(8)

        with pytest.raises(IndexError):
            table.wait(8, bad_address, FOR_EVER, Waiter("w"))
        assert len(table) == 0
        assert table.wait(8, lambda: True, 0, Waiter("w")) is WaitResult.TIMED_OUT

    @pytest.mark.parametrize("count", [2, 8, 41])
    def test_mutex_made_of_a_futex_excludes(self, count: int) -> None:
        """A lock built as a C library builds it loses no wake and lets one thread in at a time."""
        table = FutexTable()
        memory = [0]  # 0 free, 1 taken, 2 taken and waited for
        atomic = threading.Lock()  # makes the list element an atomic variable
        total = [0]

        def exchange(value: int, only_if: int | None = None) -> int:
            with atomic:
                old = memory[0]
                if only_if is None or old == only_if:
                    memory[0] = value
                return old

        def work(waiter: Waiter) -> None:
            for _ in range(2_000 // count):
                # Drepper, "Futexes are tricky", mutex 3.
                if exchange(1, only_if=0) != 0:
                    while exchange(2) != 0:
                        table.wait(8, lambda: memory[0] == 2, FOR_EVER, waiter)
                seen = total[0]
                time.sleep(0)
                total[0] = seen + 1
                if exchange(0) == 2:
                    table.wake(8, 1)

        for thread in [Background(partial(work, Waiter(str(i)))) for i in range(count)]:
            thread.end()
        assert total == [2_000 // count * count]
        assert len(table) == 0


class TestSleepAndEvents:
    """The other waits, which are the same."""

    def test_sleep_lasts_at_least_as_long_as_asked(self) -> None:
        """A sleep is not cut short by wakes that were meant for nobody."""
        waits = Waits()
        waiter = Waiter("w")
        waiter.unpark()
        started = time.monotonic_ns()
        waits.sleep(waiter, 2 * MILLISECOND)
        assert time.monotonic_ns() - started >= 2 * MILLISECOND

    def test_sleep_can_be_interrupted(self) -> None:
        """A sleep of an hour ends when its thread is cancelled."""
        waits = Waits()
        waiter = Waiter("w")
        with waits.participant(waiter):
            sleeping = Background(lambda: waits.sleep(waiter, 3_600 * 10**9))
            until(lambda: waits.waiting() == (("w", "3600 s to pass"),))
            waiter.interrupt(Interrupted())
            with pytest.raises(Interrupted):
                sleeping.end()
            assert waits.waiting() == (("w", ""),)

    def test_event_lets_all_waiters_go_now_and_later(self) -> None:
        """Setting an event once ends all waits for it, those to come included."""
        waits = Waits()
        event = Event(waits, "the end of 'a'")
        waiting = [Background(partial(event.wait, Waiter(str(i)))) for i in range(3)]
        until(lambda: len(event._queue) == 3)
        assert not event.is_set()
        event.set()
        event.set()
        assert [background.end() for background in waiting] == [True] * 3
        assert event.is_set()
        assert event.wait(Waiter("late"))

    def test_event_that_does_not_happen_in_time_is_told(self) -> None:
        """A join with a limit says whether the thread has ended."""
        assert not Event(Waits(), "the end of 'a'").wait(Waiter("w"), MILLISECOND)

    def test_external_wait_is_ended_by_an_interrupt_through_its_bell(self) -> None:
        """A thread that polls file descriptors is woken by the bell and raises after its poll returns."""
        waits = Waits()
        waiter = Waiter("w")
        reading, writing = os.pipe()

        def ring() -> None:
            os.write(writing, b"!")

        def poll() -> None:
            with waits.external(waiter, "input", ring):
                assert select.select([reading], [], [], DEADLINE)[0]

        with waits.participant(waiter):
            polling = Background(poll)
            until(lambda: waits.waiting() == (("w", "input"),))
            waiter.interrupt(Interrupted())
            with pytest.raises(Interrupted):
                polling.end()
            with contextlib.closing(os.fdopen(reading)), contextlib.closing(os.fdopen(writing, "w")):
                assert waiter.bell is None

    def test_external_wait_with_a_pending_interrupt_does_not_begin(self) -> None:
        """An interrupt that came before the poll is not slept over."""
        waits = Waits()
        waiter = Waiter("w")
        waiter.interrupt(Interrupted())
        with pytest.raises(Interrupted), waits.external(waiter, "input", lambda: None):
            pytest.fail("began to wait")


class TestDeadlocks:
    """Nothing left to wake anybody."""

    @staticmethod
    def start(waits: Waits, name: str, wait: Callable[[Waiter], object]) -> Background:
        waiter = Waiter(name)
        waits.add(waiter)  # before it runs

        def run() -> object:
            try:
                return wait(waiter)
            finally:
                waits.remove(waiter)

        return Background(run)

    def test_threads_that_all_wait_for_each_other_are_told_with_names_and_reasons(self) -> None:
        """Every waiter raises, the callback gets one report, both name each thread and what it waits for."""
        reports: list[DeadlockError] = []
        waits = Waits(reports.append)
        table = FutexTable(waits)
        end = Event(waits, "the end of 'worker'")
        main, worker = Waiter("main"), Waiter("worker")
        waits.add(main)
        waits.add(worker)

        first = Background(lambda: end.wait(main))
        until(lambda: dict(waits.waiting())["main"])
        second = Background(lambda: table.wait(0x1040, lambda: True, FOR_EVER, worker))

        for background in (first, second):
            with pytest.raises(DeadlockError) as caught:
                background.end()
            assert caught.value.threads == (("main", "the end of 'worker'"), ("worker", "futex 0x1040"))
        assert [str(report) for report in reports] == [
            "deadlock: nothing is left to wake any thread: "
            "'main' waits for the end of 'worker'; 'worker' waits for futex 0x1040"
        ]
        assert len(table) == 0

    def test_last_runner_that_ends_leaves_the_waiters_hopeless(self) -> None:
        """A thread that ends without waking the others makes them raise, in its last step."""
        waits = Waits()
        table = FutexTable(waits)
        runner = Waiter("runner")
        waits.add(runner)
        waiting = self.start(waits, "waiting", lambda waiter: table.wait(8, lambda: True, FOR_EVER, waiter))
        until(lambda: table.waiting(8))
        assert waiting.thread.is_alive()

        waits.remove(runner)

        with pytest.raises(DeadlockError, match="'waiting' waits for futex 0x8"):
            waiting.end()

    @pytest.mark.parametrize("other", ["computes", "sleeps", "waits with a limit", "polls", "is an outsider"])
    def test_while_anybody_could_still_act_there_is_no_deadlock(self, other: str) -> None:
        """One thread that computes, sleeps, waits with a limit or polls, or an outsider, and nobody is told off."""
        reports: list[DeadlockError] = []
        waits = Waits(reports.append)
        table = FutexTable(waits)
        companion = Waiter("companion")

        with contextlib.ExitStack() as stack:
            if other == "is an outsider":
                stack.enter_context(waits.outsider())
            else:
                stack.enter_context(waits.participant(companion))
            if other == "polls":
                stack.enter_context(waits.external(companion, "input", lambda: None))
            waiting = self.start(waits, "w", lambda waiter: table.wait(8, lambda: True, FOR_EVER, waiter))
            until(lambda: table.waiting(8))
            if other == "sleeps":
                waits.sleep(companion, MILLISECOND)
            if other == "waits with a limit":
                table.wait(16, lambda: True, MILLISECOND, companion)
            assert waiting.thread.is_alive()
            table.wake(8, 1)
            assert waiting.end() is WaitResult.WOKEN

        assert reports == []

    def test_outsider_that_goes_leaves_the_waiters_hopeless(self) -> None:
        """When the last one who could call in has gone, those who wait for it are told."""
        waits = Waits()
        table = FutexTable(waits)
        with waits.outsider():
            waiting = self.start(waits, "w", lambda waiter: table.wait(8, lambda: True, FOR_EVER, waiter))
            until(lambda: table.waiting(8))
        with pytest.raises(DeadlockError):
            waiting.end()

    def test_threads_after_a_deadlock_can_wait_again(self) -> None:
        """A thread that handles the error is a participant like before; a second deadlock is found too."""
        reports: list[DeadlockError] = []
        waits = Waits(reports.append)
        table = FutexTable(waits)
        waiter = Waiter("w")
        with waits.participant(waiter):
            for _ in range(2):
                with pytest.raises(DeadlockError):
                    table.wait(8, lambda: True, FOR_EVER, waiter)
            waits.sleep(waiter, 1)
        assert len(reports) == 2

    def test_participant_twice_is_refused_and_removing_is_idempotent(self) -> None:
        """A thread counts once."""
        waits = Waits()
        waiter = Waiter("w")
        waits.add(waiter)
        with pytest.raises(ProtocolError, match=r"^'w' is a participant already$"):
            waits.add(waiter)
        waits.remove(waiter)
        waits.remove(waiter)
        assert waits.waiting() == ()

    def test_threads_that_do_not_count_are_never_told(self) -> None:
        """A wait of a thread that is no participant is nobody's deadlock."""
        table = FutexTable()
        waiting = waiting_threads(table, 8, 1)
        assert table.waits.waiting() == ()
        assert table.wake(8, 1) == 1
        assert waiting[0].end() is WaitResult.WOKEN
