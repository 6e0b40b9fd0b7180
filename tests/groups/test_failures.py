"""Failure anywhere: an instigator leaves no trace in any group, a follower ends alone and says why."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import dl
from tests.support.groups import SECONDS, Program, held, library, program, state_of, until

LOAD_STEPS = ["tree", "place", "define", "resolve", "generate", "instantiate", "commit"]
INITIALIZE_STEPS = ["relocate", "construct"]
GROUP_STEPS = ["table", "instantiate", "place", "thread-local"]


class Fault(Exception):
    """What the tests make go wrong."""


class Cancelled(BaseException):
    """What no `except Exception` stops."""


def libraries() -> dict[str, bytes]:
    """A tree of three, with data, thread-local variables and constructors."""
    return {
        "top.so": library(1, thread_local=True, constructor=True, needed=("left.so", "right.so")),
        "left.so": library(2, thread_local=True),
        "right.so": library(3, constructor=True, needed=("left.so",)),
    }


class Fails:
    """Raises at the n-th time a step is reached: one of a load, or one of a group that makes an operation, any or one."""

    def __init__(
        self, step: str, number: int, error: BaseException, *, in_group: bool = False, only: str | None = None
    ) -> None:
        self.step, self.left, self.error = step, number, error
        self.in_group, self.only = in_group, only

    def __call__(self, step: str, group: str | None) -> None:
        if step == self.step and (group is not None) == self.in_group and self.only in (None, group):
            self.left -= 1
            if self.left == 0:
                raise self.error


@pytest.fixture(name="p")
def _program() -> Iterator[Program]:
    with program(libraries=libraries()) as made:
        made.main.dlopen(library(9, thread_local=True), name="before.so")
        yield made


def states(p: Program, threads: int = 2) -> list[dict[str, Any]]:
    """State of the main group, and of some that are there already, each asked in its own thread."""
    return [state_of(p.main)] + [p.linker.spawn(state_of).join(SECONDS) for _ in range(threads)]


class Bystanders:
    """Threads that have groups throughout: one computes, one waits, one is outside guest code."""

    def __init__(self, p: Program) -> None:
        self._p = p
        self._go, ready = threading.Event(), threading.Event()
        for number in (0, 1):
            p.memory.write_u32(p.word(number), 0)
        self._threads = [
            p.linker.spawn(lambda g: (p.call(g, "spin", p.word(0)), state_of(g))),
            p.linker.spawn(lambda g: (p.call(g, "wait", p.word(1), 0, -1), state_of(g))),
            p.linker.spawn(lambda g: (ready.set(), self._go.wait(SECONDS), state_of(g))),
        ]
        p.until(1, "guest")
        p.until_waiting("futex")
        assert ready.wait(SECONDS)

    def states(self) -> list[object]:
        before = self._p.linker.modules[1].handle
        address = self._p.main.dlsym(before, "value").address
        for number in (0, 1):
            self._p.publish(self._p.word(number), address)
        self._go.set()
        return [thread.join(SECONDS)[-1] for thread in self._threads]


class TestInstigator:
    @pytest.mark.parametrize("error", [Fault, Cancelled, MemoryError])
    @pytest.mark.parametrize("step", LOAD_STEPS + INITIALIZE_STEPS)
    def test_fault_at_each_step_of_a_load_leaves_no_trace(
        self, p: Program, step: str, error: type[Exception]
    ) -> None:
        """Whatever goes wrong in a load, and where: statistics and every group's tables, bases and GOT are as before."""
        for number in (1, 2, 3) if step in INITIALIZE_STEPS else (1,):
            before, expected = held(p.linker), state_of(p.main)
            bystanders = Bystanders(p)
            p.linker.program.checkpoint = Fails(step, number, error("injected"))
            with pytest.raises(error):
                p.main.dlopen("top.so")
            p.linker.program.checkpoint = lambda _step, _group: None

            assert bystanders.states() == [expected] * 3
            assert states(p) == [expected] * 3
            p.until_given_back(before)

        handle = p.main.dlopen("top.so")
        assert p.main.dlsym(handle, "value")(1) == 2
        assert len({repr(state) for state in states(p)}) == 1

    @pytest.mark.parametrize("step", GROUP_STEPS)
    def test_fault_in_the_instigators_group_leaves_no_trace(self, p: Program, step: str) -> None:
        """So it is when an operation fails half-way through the instigator's own group."""
        for number in (1, 2, 3) if step == "instantiate" else (1,):
            before, expected = held(p.linker), state_of(p.main)
            bystanders = Bystanders(p)
            p.linker.program.checkpoint = Fails(step, number, Fault("injected"), in_group=True)
            with pytest.raises(Fault):
                p.main.dlopen("top.so")
            p.linker.program.checkpoint = lambda _step, _group: None

            assert bystanders.states() == [expected] * 3
            assert states(p) == [expected] * 3
            p.until_given_back(before)
        assert p.main.dlopen("top.so")

    def test_interrupt_at_the_barrier_gives_the_load_up(self, p: Program) -> None:
        """A thread that is cancelled while its load waits at the barrier commits nothing."""
        before, expected = held(p.linker), state_of(p.main)
        in_commit = threading.Event()
        slow = threading.Event()

        def checkpoint(step: str, _group: str | None) -> None:
            if step == "commit":
                in_commit.set()
                assert slow.wait(SECONDS)

        p.linker.program.checkpoint = checkpoint
        loading = p.linker.spawn(lambda g: g.dlopen("top.so"))
        assert in_commit.wait(SECONDS)
        loading.cancel(Fault())
        slow.set()
        with pytest.raises(Fault):
            loading.join(SECONDS)
        p.linker.program.checkpoint = lambda _step, _group: None

        p.until_given_back(before)
        assert states(p) == [expected] * 3

    def test_interrupts_do_not_stop_the_undoing(self, p: Program) -> None:
        """A thread that is cancelled again and again while its load is undone undoes it whole."""
        before, expected = held(p.linker), state_of(p.main)
        reached = threading.Event()

        def checkpoint(step: str, group: str | None) -> None:
            if step == "clear" and group == "loading":
                thread.cancel(Fault("second"))
                thread.cancel(Fault("third"))
                reached.set()

        def on_construct(_addend: int) -> None:
            thread.cancel(Fault("first"))

        p.on_construct = on_construct
        p.linker.program.checkpoint = checkpoint
        start = threading.Event()
        thread = p.linker.spawn(lambda g: (start.wait(SECONDS), g.dlopen("top.so")), name="loading")
        start.set()
        with pytest.raises(Fault):
            thread.join(SECONDS)
        assert reached.is_set()
        p.until_given_back(before)
        assert states(p) == [expected] * 3


class TestFollower:
    @pytest.mark.parametrize("step", GROUP_STEPS)
    @pytest.mark.parametrize("way", ["spin", "wait", "detached"])
    def test_that_cannot_follow_ends_alone(self, p: Program, step: str, way: str) -> None:
        """A thread whose group cannot make an operation ends with an error that names it and the cause; others go on."""

        def checkpoint(reached: str, group: str | None) -> None:
            if group == "victim" and reached == step and armed.is_set():
                raise Fault("injected")

        armed, ready, go = threading.Event(), threading.Event(), threading.Event()
        ways = {
            "spin": lambda g: p.call(g, "spin", p.word(0)),
            "wait": lambda g: p.call(g, "wait", p.word(0), 0, -1),
            "detached": lambda g: (ready.set(), go.wait(SECONDS), p.call(g, "count", p.word(5))),
        }
        p.linker.program.checkpoint = checkpoint
        victim = p.linker.spawn(ways[way], name="victim")
        if way == "spin":
            p.until(1, "guest")
        elif way == "wait":
            p.until_waiting("futex")
        else:
            assert ready.wait(SECONDS)
        witness = p.linker.spawn(lambda g: (p.call(g, "wait", p.word(1), 0, -1), state_of(g)))
        p.until_waiting("futex", 2 if way == "wait" else 1)
        armed.set()
        p.main.dlopen("top.so")
        p.memory.write_u32(p.word(0), 1)
        p.call(p.main, "notify", p.word(0), -1)
        go.set()
        with pytest.raises(dl.ReplayFailedError) as raised:
            victim.join(SECONDS)

        assert raised.value.thread == "victim"
        assert isinstance(raised.value.cause, Fault)
        assert "victim" in str(raised.value)
        assert "injected" in str(raised.value)
        p.memory.write_u32(p.word(1), 1)
        p.call(p.main, "notify", p.word(1), -1)
        expected = state_of(p.main)
        assert witness.join(SECONDS)[1] == expected
        assert states(p) == [expected] * 3
        until(p.is_alone)
        assert p.linker.statistics().protocol.replay_failures == 1

    def test_that_cannot_forget_a_library_ends_alone(self, p: Program) -> None:
        """A thread that has loaded a library and cannot unload it ends with an error; a thread that has not is not asked."""

        def fail_the_victim(step: str, group: str | None) -> None:
            if group == "victim" and step == "clear":
                raise Fault("injected")

        def follow(group: dl.InstanceGroup) -> None:
            assert constructing.wait(SECONDS)
            group.synchronize()
            followed.set()
            assert failed.wait(SECONDS)
            p.call(group, "count", p.word(5))

        constructing, followed, failed = threading.Event(), threading.Event(), threading.Event()
        p.on_construct = lambda _addend: (constructing.set(), followed.wait(SECONDS), 1 // 0)
        p.linker.program.checkpoint = fail_the_victim
        before = held(p.linker)
        victim = p.linker.spawn(follow, name="victim")
        with pytest.raises(ZeroDivisionError):
            p.main.dlopen(library(4, constructor=True), name="fails.so")
        failed.set()
        with pytest.raises(dl.ReplayFailedError, match="victim.*injected"):
            victim.join(SECONDS)

        until(lambda: p.linker.parts.groups.all() == [p.main.own])
        assert held(p.linker) == before

    def test_without_memory_ends_alone(self) -> None:
        """A thread for whose thread-local block there is no memory left ends with an error that says so."""
        with program(memory=dl.MemoryType(minimum=24, maximum=40, shared=True), thread_stack_size=1024) as p:
            thread = p.linker.spawn(lambda g: p.call(g, "wait", p.word(0), 0, -1), name="poor")
            p.until_waiting("futex")
            handle = p.main.dlopen(library(1, thread_local=True), name="tls.so")
            side_memory = p.linker.program.side_memory
            taken: list[Any] = []
            for size in (1 << 16, 1 << 12, 16):
                with contextlib.suppress(dl.ResourceLimitError):
                    taken.extend(side_memory.allocate(size, 4, "the test") for _ in range(1 << 16))
            p.call(p.main, "notify", p.word(0), -1)
            with pytest.raises(
                dl.ReplayFailedError, match="poor: .*no room for thread-local storage: no linear memory"
            ):
                thread.join(SECONDS)
            with pytest.raises(dl.DlError, match="no linear memory"):
                p.linker.spawn(lambda g: None).join(SECONDS)

            assert p.main.dlsym(handle, "local")(1) == 2
            for block in taken:
                side_memory.free(block)
            assert p.linker.spawn(lambda g: g.dlsym(handle, "local")(4)).join(SECONDS) == 5

    def test_new_thread_that_cannot_be_made(self, p: Program) -> None:
        """A thread whose group cannot be made fails where it was asked for, and leaves nothing behind."""
        before = held(p.linker)
        p.linker.program.checkpoint = Fails("instantiate", 2, Fault("injected"), in_group=True)
        with pytest.raises(dl.ReplayFailedError, match="injected"):
            p.linker.spawn(lambda g: None).join(SECONDS)
        p.linker.program.checkpoint = lambda _step, _group: None
        p.until_given_back(before)


class TestGuestThread:
    def test_that_cannot_be_made_is_an_errno(self, p: Program) -> None:
        """A thread of the guest whose group cannot be made is an error of the call, and the program goes on."""
        before = held(p.linker)
        p.linker.program.checkpoint = Fails("instantiate", 2, Fault("injected"), in_group=True)
        record = p.words + 20_000
        assert p.call(p.main, "start", record) != 0
        until(p.is_alone)
        p.linker.program.checkpoint = lambda _step, _group: None

        assert held(p.linker) == before
        assert p.start() >= 2
        until(p.is_alone)


class TestInstanceGroups:
    def test_ended_group_says_so(self, p: Program) -> None:
        """A thread that goes on in its own code after its group has ended gets an error that says why, each time."""

        def error_of(group: dl.InstanceGroup) -> dl.GroupEndedError | dl.ReplayFailedError:
            with pytest.raises(dl.GroupEndedError) as raised:
                p.call(group, "count", p.word(5))
            return raised.value

        def body(group: dl.InstanceGroup) -> list[dl.GroupEndedError | dl.ReplayFailedError]:
            ready.set()
            armed.wait(SECONDS)
            return [error_of(group) for _ in range(2)]

        armed, ready = threading.Event(), threading.Event()
        thread = p.linker.spawn(body, name="victim")
        assert ready.wait(SECONDS)

        def checkpoint(_step: str, group: str | None) -> None:
            if group == "victim":
                raise Fault("injected")

        p.linker.program.checkpoint = checkpoint
        p.main.dlopen("top.so")
        armed.set()
        first, second = thread.join(SECONDS)

        assert isinstance(first, dl.ReplayFailedError)
        assert str(second) == "victim: its instance group has ended: its replay of operation 3 failed"
