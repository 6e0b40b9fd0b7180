"""Ctrl-C in bursts: held back while something must not stop half-way, and delivered after it."""

from __future__ import annotations

import contextlib
import linecache
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any

import pytest

from tests.support.rendezvous_program import DEADLINE, AtLine, AtLook, Program, held, running
from threads import HOST, BarrierTimeoutError, protect, uninterrupted, unwound_whole


def press(times: int = 1) -> None:
    for _ in range(times):
        signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def _handler() -> Iterator[None]:
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, former)


class TestUninterrupted:
    """The guard that holds everything back."""

    def test_presses_in_the_body_are_delivered_once_at_its_end(self) -> None:
        """A burst in the body does not cut it short; one Ctrl-C comes after it."""
        done = []
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - what it does before is the point
            with uninterrupted():
                press(3)
                done.append("body")
            done.append("after")
        assert done == ["body"]

    def test_no_press_is_made_up(self) -> None:
        """Without a signal nothing is raised."""
        with uninterrupted(), unwound_whole():
            pass

    def test_nested_guards_deliver_at_the_end_of_the_outermost_that_holds(self) -> None:
        """What an inner guard holds back, the outer one holds back too."""
        done = []
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012
            with uninterrupted():
                with unwound_whole():
                    press()
                done.append(1)
                with uninterrupted():
                    press()
                done.append(2)
        assert done == [1, 2]

    def test_exception_of_the_body_becomes_the_context_of_the_press(self) -> None:
        """A body that fails and a press in it: both can be seen."""
        with pytest.raises(KeyboardInterrupt) as caught, uninterrupted():  # noqa: PT012
            press()
            raise ValueError
        assert isinstance(caught.value.__context__, ValueError)

    def test_handler_that_does_not_raise_is_called_at_the_end(self) -> None:
        """A program's own handler gets the signal late, not never."""
        calls: list[int] = []
        signal.signal(signal.SIGINT, lambda number, _: calls.append(number))
        with uninterrupted():
            press(2)
            assert calls == []
        assert calls == [signal.SIGINT]
        signal.signal(signal.SIGINT, signal.default_int_handler)

    @pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
    def test_guard_leaves_a_handler_that_is_not_pythons_alone(self, handler: Any) -> None:
        """Where SIGINT raises nothing, nothing is installed."""
        signal.signal(signal.SIGINT, handler)
        with uninterrupted():
            assert signal.getsignal(signal.SIGINT) is handler
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def test_handler_that_the_body_installs_stays(self) -> None:
        """A body that installs a handler of its own keeps it, also around guards inside."""
        calls: list[int] = []
        own = lambda number, _: calls.append(number)  # noqa: E731
        with uninterrupted():
            signal.signal(signal.SIGINT, own)
            with uninterrupted():
                press()
                assert calls == []
            assert calls == [signal.SIGINT]
        assert signal.getsignal(signal.SIGINT) is own
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def test_guard_in_another_thread_does_nothing(self) -> None:
        """Only the main thread runs handlers, so others install none."""

        def run() -> None:
            with uninterrupted(), unwound_whole():
                assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

        with running(run):
            pass


class TestUnwoundWhole:
    """The guard that holds back while an exception is being handled."""

    def test_press_in_the_body_is_raised_and_those_that_follow_wait_for_its_undoing(self) -> None:
        """Computing is interrupted; undoing, in an except, a finally or an __exit__, is not."""
        done = []

        class Undo:
            def __enter__(self) -> None:
                pass

            def __exit__(self, *_: object) -> None:
                press()
                done.append("exit")

        with pytest.raises(KeyboardInterrupt):  # noqa: PT012
            with unwound_whole():
                try:
                    with Undo():
                        press()
                        done.append("not reached")
                except KeyboardInterrupt:
                    press(2)
                    done.append("except")
                try:
                    done.append("again")
                    raise ValueError
                except ValueError:
                    press()
                    done.append("other error")
        assert done == ["exit", "except", "again", "other error"]

    def test_press_after_an_exception_was_handled_is_raised(self) -> None:
        """A body that swallowed one Ctrl-C can be interrupted again."""
        with unwound_whole():
            with contextlib.suppress(KeyboardInterrupt):
                press()
                pytest.fail("not interrupted")
            with pytest.raises(KeyboardInterrupt):
                press()

    def test_guard_that_is_entered_while_an_exception_is_handled_can_be_interrupted(self) -> None:
        """What a caller handles is no undoing of the body's."""
        try:
            raise ValueError
        except ValueError:
            with pytest.raises(KeyboardInterrupt), unwound_whole():  # noqa: PT012
                press()
                pytest.fail("not interrupted")

    def test_guard_in_an_undoing_inherits_it(self) -> None:
        """A guard entered where the outer one holds back holds back too."""
        done = []
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012
            with unwound_whole():
                try:
                    raise ValueError
                except ValueError:
                    with unwound_whole():
                        press()
                        done.append(1)
                done.append(2)
        assert done == [1, 2]

    def test_protected_function_is_not_interrupted(self) -> None:
        """A function that is marked holds back from its first line, with what it calls."""
        done = []

        @protect
        def release() -> None:
            press()
            done.append(1)

        with pytest.raises(KeyboardInterrupt), unwound_whole():
            release()
        assert done == [1]


class TestPromptness:
    """What is held back for a function comes at its end, also when the guard's body then waits for ever."""

    @pytest.mark.parametrize("outer", [contextlib.nullcontext, unwound_whole])
    def test_press_while_a_guard_is_entered_or_left_does_not_wait_for_a_body(
        self, outer: Callable[[], contextlib.AbstractContextManager[object]]
    ) -> None:
        """Wherever it comes in a guard, or in a protected function within: the handler has run before the body goes on."""

        @protect
        def step() -> None:
            pass

        pressed: list[int] = []
        handled: list[int] = []
        late: list[str] = []
        former = signal.signal(signal.SIGINT, lambda *_: handled.append(1))

        def look(where: str) -> None:
            if len(handled) < len(pressed):
                late.append(f"{number}: {where}")

        def act() -> None:
            pressed.append(1)
            press()

        try:
            for number in range(1, 500):
                with AtLook(number, act) as place, outer():
                    with unwound_whole():
                        look("entered")
                        with unwound_whole():
                            look("nested")
                        look("left")
                        step()
                        look("returned")
                    look("outermost left")
                assert late == []
                assert len(handled) == len(pressed)
                if not place.acted:
                    break
        finally:
            signal.signal(signal.SIGINT, former)
        assert number > 30

    def test_press_that_raises_while_a_guard_is_entered_leaves_no_guard(self) -> None:
        """The handler of before is back, and the body has not begun or is interrupted."""
        for number in range(1, 500):
            began = []
            place = AtLook(number, press)
            try:
                with place, unwound_whole():
                    began.append(1)
            except KeyboardInterrupt:
                pass
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            if not place.acted:
                break
        assert number > 10


def at_a_with(frame: FrameType) -> bool:
    # The line of a `with` is traced once more at its end, where the interpreter does not look for signals.
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with ")


class Burst(AtLine):
    """Presses before the n-th line, and at the calls and returns that follow, `times` in all."""

    def __init__(self, number: int, times: int, skip: Callable[[FrameType], bool]) -> None:
        self.left = times - 1
        super().__init__(number, self._first, skip)

    def __exit__(self, *arguments: object) -> None:
        sys.setprofile(None)
        super().__exit__(*arguments)

    def _first(self) -> None:
        # A trace function that raises is switched off; a profile function takes over.
        sys.setprofile(self._profile)
        press()

    def _profile(self, frame: FrameType, event: str, _argument: object) -> None:
        if "call" in event and os.path.dirname(frame.f_code.co_filename).endswith("threads") and self.left:
            self.left -= 1
            press()
        if not self.left:
            sys.setprofile(None)


class TestBursts:
    """Several presses, at every line of the protocol."""

    @pytest.mark.parametrize("times", [1, 2, 5])
    @pytest.mark.parametrize("gives_up", [False, True])
    @pytest.mark.parametrize("with_group", [False, True])
    def test_burst_at_any_line_of_an_operation_leaves_all_or_nothing(
        self, with_group: bool, gives_up: bool, times: int
    ) -> None:
        """Committed or undone as a whole; the gate is open, nobody is in it, and the link lock is free."""
        outcomes = set()
        for number in range(1, 2_000):
            program = Program()
            group = program.group() if with_group else None
            replica = None if group is None else group.replica
            other = program.group("other")
            other.replica.enter_guest()
            if not gives_up:
                program.on_interrupt = partial(other.replica.leave_guest, HOST)
            undone: list[int] = []
            returned = False

            burst = Burst(number, times, at_a_with)
            try:
                with burst, program.rendezvous.instigate(replica):
                    try:
                        program.rendezvous.commit(replica, "a", timeout=0 if gives_up else None)
                        returned = True
                    except BaseException:
                        for step in range(4):
                            undone.append(step)
                            step.bit_count() if step > 99 else None
                        raise
            except (KeyboardInterrupt, BarrierTimeoutError):
                pass
            finally:
                sys.setprofile(None)
            outcomes.add((returned, bool(undone)))

            assert not (returned and undone)
            assert undone in ([], [0, 1, 2, 3])
            assert program.operations == (["a"] if returned else [])
            rendezvous = program.rendezvous
            assert rendezvous.version == rendezvous.committed
            assert rendezvous._gate == {}
            assert rendezvous._awaited == {}
            assert rendezvous._turn.holder is None
            assert not held(program)
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            if group is not None:
                group.replica.waiter.take_interrupt()
                group.made = list(program.operations)
            other.replica.leave_guest(HOST)
            program.on_interrupt = lambda: None
            assert program.commit("b") == len(program.operations)
            other.replica.synchronize()
            assert other.made == program.operations
            if not burst.acted:
                break
        assert number > 30
        assert outcomes == (
            {(False, True), (False, False)} if gives_up else {(True, False), (False, True), (False, False)}
        )

    @pytest.mark.parametrize("times", [1, 3])
    def test_burst_at_any_line_of_a_replay_ends_the_group_or_leaves_it_whole(self, times: int) -> None:
        """A replay that was cut off has left the rendezvous; one that was not has made its operation, once."""
        for number in range(1, 2_000):
            program = Program()
            group = program.group()
            program.commit("a")
            performed: list[int] = []

            def apply(_sequence: int, program: Program = program, performed: list[int] = performed) -> None:
                program.rendezvous.after_replays(lambda: performed.append(1))

            group.on_apply = apply

            burst = Burst(number, times, at_a_with)
            try:
                with burst:
                    group.replica.enter_guest()
                    group.replica.leave_guest()
            except KeyboardInterrupt:
                group.replica.leave_guest()
            finally:
                sys.setprofile(None)

            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            assert program.rendezvous.replays._grace._under_way == {}
            assert not held(program)
            if group.replica.closed is None:
                with group.guest():
                    assert group.made == ["a"]
            else:
                assert program.rendezvous.statistics().detached == 0
            assert len(performed) <= 1
            if not burst.acted:
                break
        assert number > 20

    def test_waiter_whose_wait_at_the_gate_raised_is_forgotten(self) -> None:
        """Ctrl-C in a thread that waits for the gate leaves no waiter there."""
        program = Program()
        group, deaf = program.group(), program.group("deaf")
        deaf.replica.enter_guest()
        at_barrier = threading.Event()
        program.on_interrupt = at_barrier.set
        main = threading.main_thread().ident
        assert main is not None

        def ctrl_c() -> None:
            while group.replica.waiter not in program.rendezvous._gate:
                time.sleep(0)
            # Again, because what comes just before Python begins to wait for a lock does not end that wait.
            while group.replica.waiter in program.rendezvous._gate:
                for _ in range(4):
                    signal.pthread_kill(main, signal.SIGINT)
                time.sleep(0.01)

        raised: list[int] = []

        def once(number: int, _frame: object) -> None:
            # The others of a burst may come when this thread is past the wait: without a GIL it runs beside the sender.
            raised.append(number)
            if len(raised) == 1:
                raise KeyboardInterrupt

        former = signal.signal(signal.SIGINT, once)
        try:
            with running(lambda: program.commit("a")):
                assert at_barrier.wait(DEADLINE)
                with running(ctrl_c):
                    with pytest.raises(KeyboardInterrupt):
                        group.replica.enter_guest()
                    assert program.rendezvous._gate == {}
                deaf.replica.leave_guest()
        finally:
            signal.signal(signal.SIGINT, former)

    def test_random_bursts_of_real_signals_never_leave_half_an_operation(self) -> None:
        """For some seconds, bursts within a millisecond hit operations that are undone: none is undone by half."""
        seed = 17
        print(f"seed {seed}")
        generator = random.Random(seed)
        program = Program()
        group, deaf = program.group(), program.group("deaf")
        replica = group.replica
        deaf.replica.enter_guest()
        main = threading.main_thread().ident
        assert main is not None
        stop = threading.Event()
        begun: list[int] = []
        whole: list[int] = []
        kind: list[BaseException] = []

        def attempt() -> None:
            with program.rendezvous.instigate(replica):
                try:
                    begun.append(1)
                    program.rendezvous.commit(replica, "x", timeout=2e-4)
                except BaseException as error:
                    kind.append(error)
                    for _ in range(200):
                        whole[:] = []
                    whole.append(1)
                    raise

        def handler(_number: int, frame: FrameType | None) -> None:
            # Inside of an attempt only: whatever is raised there comes out of one call, whose handler covers it.
            while frame is not None:
                if frame.f_code is attempt.__code__:
                    raise KeyboardInterrupt
                frame = frame.f_back

        def spend(seconds: float) -> None:
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                pass

        def presses() -> None:
            while not stop.is_set():
                for _ in range(generator.randrange(2, 5)):
                    signal.pthread_kill(main, signal.SIGINT)
                    spend(generator.random() * 2e-4)
                spend(generator.random() * 1e-3)

        signal.signal(signal.SIGINT, handler)
        pressed = undone = 0
        with running(presses):
            finish = time.monotonic() + 3
            while time.monotonic() < finish:
                for one in (begun, whole, kind):
                    one.clear()
                with contextlib.suppress(KeyboardInterrupt, BarrierTimeoutError):
                    attempt()
                undone += len(whole)
                pressed += any(isinstance(error, KeyboardInterrupt) for error in kind)
                rendezvous = program.rendezvous
                assert begun in (whole, [])
                assert (rendezvous.committed, rendezvous.version, rendezvous._gate) == (0, 0, {})
                assert rendezvous._turn.holder is None
                assert signal.getsignal(signal.SIGINT) is handler
            stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print(f"{undone} operations undone, {pressed} of them because of a press")
        assert pressed > 10
