"""`Linker.executor`: threads that keep their instance groups."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

import dl
from tests.support.groups import until
from tests.support.modules import SHARED_MEMORY, library

pytestmark = pytest.mark.timeout(60)

LIB = library(
    SHARED_MEMORY,
    '(func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))',
    '(func (export "spin") (loop $again (br $again)))',
)


@pytest.fixture(name="linker")
def _linker() -> Iterator[dl.Linker]:
    with dl.Linker(None, libraries={"l.so": LIB}, memory=dl.MemoryType(2, 1000, shared=True)) as linker:
        linker.main_group.library("l.so")
        yield linker


def add(group: dl.InstanceGroup, left: int, right: int = 1) -> int:
    total: int = group.library("l.so").add(left, right)
    return total


def test_tasks_run_in_groups_that_stay(linker: dl.Linker) -> None:
    """A hundred tasks run in no more groups than there are workers, and their results come in order."""
    groups: set[str] = set()

    def work(group: dl.InstanceGroup, number: int) -> int:
        groups.add(group.name)
        return add(group, number)

    with linker.executor(3) as executor:
        assert list(executor.map(work, range(100))) == list(range(1, 101))
        assert executor.submit(add, 2, right=3).result(30) == 5
    assert 1 <= len(groups) <= 3
    with pytest.raises(RuntimeError, match="shut down"):
        executor.submit(add, 1)


def test_no_more_threads_than_workers_run_at_once(linker: dl.Linker) -> None:
    """Tasks that all wait for each other fill the workers, and one more waits in line."""
    barrier = threading.Barrier(4)
    running = threading.Semaphore(0)

    def meet(_group: dl.InstanceGroup) -> int:
        running.release()
        return barrier.wait(30)

    with linker.executor(3) as executor:
        futures = [executor.submit(meet) for _ in range(3)]
        late = executor.submit(add, 1)
        for _ in range(3):
            assert running.acquire(timeout=30)
        assert not late.done()
        barrier.wait(30)
        assert late.result(30) == 2
        assert sorted(future.result(30) for future in futures) != []


def test_errors_belong_to_the_task(linker: dl.Linker) -> None:
    """What a task raises is raised by its result, and the worker goes on."""
    with linker.executor(1) as executor:
        with pytest.raises(dl.GuestTimeoutError):
            executor.submit(lambda group: group.library("l.so").spin(timeout=0.05)).result(30)
        assert executor.submit(add, 1).result(30) == 2


def test_a_worker_whose_group_has_ended_is_replaced(linker: dl.Linker) -> None:
    """A task that closes its group costs the next ones nothing."""
    with linker.executor(1) as executor:
        executor.submit(lambda group: group.close()).result(30)
        assert [executor.submit(add, n).result(30) for n in range(3)] == [1, 2, 3]


def test_closing_the_linker_ends_the_executor(linker: dl.Linker) -> None:
    """What runs is interrupted, what waits is cancelled, and nothing hangs."""
    executor = linker.executor(1)
    started = threading.Event()

    def spin(group: dl.InstanceGroup) -> None:
        started.set()
        group.library("l.so").spin()

    endless, waiting = executor.submit(spin), executor.submit(add, 1)
    assert started.wait(30)
    linker.close()
    with pytest.raises(dl.LinkerClosedError):
        endless.result(30)
    assert waiting.cancelled()


def test_shutdown_waits_for_a_thread_that_is_being_started(linker: dl.Linker) -> None:
    """Work that was taken is done when `shutdown` returns, also if its thread is started at that moment."""
    executor = linker.executor(1)
    done: list[str] = []

    def work(group: dl.InstanceGroup) -> None:
        threading.Event().wait(0.05)
        done.append(group.name)

    seen: list[list[str]] = []

    def shut_down() -> None:
        executor.shutdown()
        seen.append(list(done))

    with linker.parts.host_threads._lock:  # no thread is started meanwhile
        submitting = threading.Thread(target=executor.submit, args=(work,))
        submitting.start()
        until(lambda: executor._alive)
        ending = threading.Thread(target=shut_down)
        ending.start()
        until(lambda: executor._closed)
    submitting.join(30)
    ending.join(30)
    assert seen == [["worker 1"]]


def test_a_program_without_shared_memory_has_no_executor() -> None:
    """It has one group, which is refused by name; so are no workers at all."""
    with (
        dl.Linker(None, memory=dl.MemoryType(2)) as single,
        pytest.raises(dl.LinkerUsageError, match="shared"),
    ):
        single.executor(2)
    with dl.Linker(None, memory=dl.MemoryType(2, 100, shared=True)) as linker:
        with pytest.raises(dl.LinkerUsageError, match="at least one"):
            linker.executor(0)


@pytest.mark.parametrize("host", ["executor", "spawn"])
def test_a_thread_of_the_linker_closes_it_without_waiting_for_itself(
    linker: dl.Linker, host: str, caplog: pytest.LogCaptureFixture
) -> None:
    """`close` called by one that the linker has started is over at once, and warns of no thread that does not end."""
    taken: Future[float] = Future()

    def close(group: dl.InstanceGroup) -> None:
        assert add(group, 1) == 2
        began = time.monotonic()
        linker.close()
        taken.set_result(time.monotonic() - began)

    if host == "executor":
        executor = linker.executor(2)
        executor.submit(close).result(30)
        executor.shutdown()
    else:
        linker.spawn(close)
    assert taken.result(30) < 3
    assert "does not end" not in caplog.text
    with pytest.raises(dl.LinkerClosedError):
        linker.main_group.library("l.so")


def test_an_executor_is_shut_down_by_a_task_of_its_own(linker: dl.Linker) -> None:
    """It waits for the other threads, not for the one that calls."""
    executor = linker.executor(2)
    others = [executor.submit(add, 1) for _ in range(4)]
    executor.submit(lambda _group: executor.shutdown()).result(30)
    assert [other.result(30) for other in others] == [2] * 4
    executor.shutdown()
