"""The fences that order memory without a GIL, on the machine itself; `test_weak_memory` has the protocol without them."""

from __future__ import annotations

import os
import signal
import sys
import threading

import pytest

from threads import DETACHED, GUEST, SYSTEM, Interrupted, Rendezvous, Replica, Waiter
from threads.fences import (
    Fence,
    Fences,
    GilFences,
    LockFences,
    MembarrierFences,
    fences_of_this_interpreter,
    pass_heavy,
)
from threads.platform import System
from threads.replica import FencedReplica

SECONDS = 30
linux = pytest.mark.skipif(sys.platform != "linux", reason="membarrier is a call of Linux")


def kinds() -> list[Fences]:
    made: list[Fences] = [LockFences()]
    if sys.platform == "linux":
        made.append(MembarrierFences())
    if "free-threading" not in sys.version:
        made.append(GilFences())
    return made


def test_the_interpreter_decides_which_fences_there_are() -> None:
    """With a GIL there is nothing to do; without one, on Linux, it is the kernel's call, which leaves the light side free."""
    fences = fences_of_this_interpreter()

    if "free-threading" in sys.version:
        assert isinstance(fences, MembarrierFences if sys.platform == "linux" else LockFences)
    else:
        assert isinstance(fences, GilFences)
    assert SYSTEM.light_is_free == fences.light_is_free


@pytest.mark.parametrize("fences", kinds(), ids=lambda fences: type(fences).__name__)
def test_barriers_of_real_threads_keep_the_invariant(fences: Fences) -> None:
    """With any fences that suffice here, nobody is in guest code when an operation is committed, and nobody misses one."""
    platform = System(fences)
    threads_in_guest = 3
    executing = [False] * threads_in_guest
    caught: list[str] = []
    stop = threading.Event()
    rendezvous: Rendezvous[int] = Rendezvous(lambda: None, platform=platform)
    made: list[list[int]] = [[] for _ in range(threads_in_guest)]

    def run(number: int) -> None:
        replica: Replica[int] = Replica(
            str(number), lambda _, operation: made[number].append(operation), platform=platform
        )
        assert isinstance(replica, FencedReplica) != platform.light_is_free
        rendezvous.join(replica)
        while not stop.is_set():
            replica.enter_guest()
            executing[number] = True
            if len(made[number]) < rendezvous.committed:
                caught.append(f"{number} has missed an operation")
            executing[number] = False
            replica.enter_host()
            replica.exit_host()
            replica.leave_guest()
        replica.synchronize()

    running = [threading.Thread(target=run, args=(number,)) for number in range(threads_in_guest)]
    for thread in running:
        thread.start()
    for operation in range(150):
        with rendezvous.instigate(None):
            rendezvous.commit(None, operation, timeout=SECONDS)
    stop.set()
    for thread in running:
        thread.join(SECONDS)

    assert caught == []
    assert made == [list(range(150))] * threads_in_guest


def test_replica_on_a_platform_with_free_light_sides_is_the_plain_one() -> None:
    """The class whose stores pass a fence is used only where they must, so that others pay nothing."""
    plain: Replica[int] = Replica("plain", lambda _number, _operation: None)
    fenced: Replica[int] = Replica("fenced", lambda _number, _operation: None, platform=System(LockFences()))

    assert type(plain) is (Replica if SYSTEM.light_is_free else FencedReplica)
    assert type(fenced) is FencedReplica
    fenced.state = GUEST
    assert fenced.state == GUEST
    fenced.state = DETACHED
    assert plain.state == fenced.state == DETACHED


def test_heavy_sides_that_several_share_are_passed_once() -> None:
    """A barrier of many groups costs one call of the kernel, where all have one fence."""

    class Counted:
        def __init__(self) -> None:
            self.passed = 0

        def light(self) -> None:
            """Nothing."""

        def heavy(self) -> None:
            self.passed += 1

    class Owner:
        def __init__(self, fence: Fence) -> None:
            self.fence = fence

    one, other = Counted(), Counted()
    pass_heavy([Owner(one), Owner(other), Owner(one)])
    assert (one.passed, other.passed) == (1, 1)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
def test_lock_fence_is_passed_in_a_signal_handler_of_its_own_thread() -> None:
    """A handler that runs while its thread passes the fence passes it too, and does not wait for itself."""
    fence = LockFences().fence()
    handled: list[int] = []

    def handle(number: int, _frame: object) -> None:
        fence.heavy()
        handled.append(number)

    former = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        while len(handled) < 20:
            fence.light()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    assert len(handled) >= 20


@linux
def test_membarrier_works_in_a_forked_child() -> None:
    """A child has a memory of its own, in which the call is registered anew if need be."""
    fence = MembarrierFences().fence()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            fence.heavy()
            os.write(write, b"y")
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    assert os.read(read, 1) == b"y"
    os.close(read)


def test_interrupt_is_delivered_or_withdrawn_never_both() -> None:
    """Beside threads that post and withdraw, the owner gets each interrupt that was not withdrawn, once."""
    waiter = Waiter("owner")
    withdrawn: list[Interrupted] = []
    posters, each = 3, 1200

    def post() -> None:
        for _ in range(each // 40):
            batch = [Interrupted(str(number)) for number in range(40)]
            for exception in batch:
                waiter.interrupt(exception)
            withdrawn.extend(filter(waiter.withdraw, batch))

    running = [threading.Thread(target=post) for _ in range(posters)]
    for thread in running:
        thread.start()
    taken: list[BaseException] = []
    while any(thread.is_alive() for thread in running) or waiter.interrupted:
        exception = waiter.take_interrupt()
        if exception is not None:
            taken.append(exception)
    assert len(taken) + len(withdrawn) == posters * each
    assert not {id(one) for one in taken} & {id(one) for one in withdrawn}


def test_machine_without_the_call_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the number of the call is not known, making these fences says so, and locks take their place."""
    monkeypatch.setattr("threads.fences._CALL_NUMBERS", {})
    monkeypatch.setattr("threads.fences.FREE_THREADED", True)
    with pytest.raises(OSError, match="membarrier"):
        MembarrierFences()
    assert isinstance(fences_of_this_interpreter(), LockFences)
