"""Runs threads one step at a time, in every order that matters, and repeats the order that failed.

Real threads, of which exactly one runs at any moment. Before each access to shared state, and at each lock, the running
thread asks the scheduler which thread continues. A run is thus a sequence of choices; another sequence is another interleaving,
and the same sequence is the same run again. `explore` tries them systematically: first the run without any
preemption, then all with one, with two, ... (most races need very few: Musuvathi and Qadeer, "Iterative context
bounding for systematic testing", PLDI 2007). `walk` draws them at random from a seed, for programs too large for that.

Where a thread can be preempted: at every lock operation of the package (all its locks come from a `Platform`, and
a `Scheduler` is one), at every bytecode of the package's own files that loads or stores an attribute named in
`tracing.SHARED`, and where the test says `point()`. Code of the test itself is not interrupted, so its checks between
two points all see the same state.

Time is virtual. It passes only when nobody can run (or, with `early_timeouts`, whenever the scheduler chooses to), so a
time-out of an hour costs nothing and a thread that waits for ever is found immediately: nobody can run, and nothing is
left to happen.

With `memory=WeakMemory()`, threads see each other's stores late, as without a GIL: see `store_buffers`. A `WeakMemory` can
leave fences out, so that a test can show that each is needed.

What it does not find: effects of memory ordering other than late stores, and races within a single bytecode.
"""

from __future__ import annotations

import contextlib
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from threads.testing import store_buffers, tracing
from threads.testing.scheduler import Decision, ScheduleError, Scheduler, WeakMemory

__all__ = ["Exploration", "Program", "ScheduleError", "Scheduler", "WeakMemory", "explore", "replay", "walk"]

Program = Callable[[Scheduler], "Callable[[], None] | None"]
"""Sets up one run and spawns its threads; may return a check to be made after all of them have returned."""


@dataclass(frozen=True)
class Exploration:
    """What was tried.

    Attributes:
      schedules: runs made.
      complete: whether every schedule with at most `preemptions` preemptions was among them.
      preemptions: the bound reached.
    """

    schedules: int
    complete: bool
    preemptions: int


def _run(
    program: Program,
    choose: Callable[[int, int, bool], int],
    *,
    early_timeouts: bool,
    memory: WeakMemory | None,
) -> list[Decision]:
    scheduler = Scheduler(choose, early_timeouts=early_timeouts, memory=memory)
    with contextlib.nullcontext() if memory is None else store_buffers.in_place():
        check = program(scheduler)
        scheduler.run()
    if check is not None:
        try:
            check()
        except AssertionError as error:
            raise scheduler.error("error", f"the final check failed: {error}") from error
    return scheduler.decisions


@tracing.all_threads()
def replay(
    program: Program,
    schedule: tuple[int, ...],
    *,
    early_timeouts: bool = False,
    memory: WeakMemory | None = None,
) -> None:
    """Make one run again; after the schedule's end, without preemptions.

    Raises:
      ScheduleError: it fails, as it did.
    """
    _run(
        program,
        lambda i, count, _: min(schedule[i], count - 1) if i < len(schedule) else 0,
        early_timeouts=early_timeouts,
        memory=memory,
    )


@tracing.all_threads()
def explore(
    program: Program,
    *,
    preemptions: int = 2,
    limit: int = 2_000,
    early_timeouts: bool = False,
    memory: WeakMemory | None = None,
) -> Exploration:
    """Run a program under every schedule with at most `preemptions` preemptions, fewest first.

    Args:
      program: sets up a run; must do the same for the same choices.
      preemptions: bound.
      limit: runs after which to give up; see `Exploration.complete`.
      early_timeouts: whether time limits may pass while others can run.
      memory: how late threads see each other's stores; None: at once.

    Raises:
      ScheduleError: one failed; its message has the schedule.
    """
    # One queue a bound: prefixes of choices still to try, each followed by a run without preemptions. A run
    # hands in the prefixes that branch off it, so each schedule is made exactly once.
    queues: list[deque[tuple[int, ...]]] = [deque() for _ in range(preemptions + 1)]
    queues[0].append(())
    runs = 0
    for bound, queue in enumerate(queues):
        while queue:
            if runs >= limit:
                return Exploration(runs, complete=False, preemptions=bound)
            prefix = queue.popleft()
            runs += 1
            choices = prefix

            def choose(i: int, count: int, _preempts: bool, choices: tuple[int, ...] = choices) -> int:
                if i < len(choices):
                    if choices[i] >= count:
                        message = "the program does not do the same for the same choices"
                        raise RuntimeError(message)
                    return choices[i]
                return 0

            decisions = _run(program, choose, early_timeouts=early_timeouts, memory=memory)
            made = tuple(decision.chosen for decision in decisions)
            for i in range(len(prefix), len(decisions)):
                cost = bound + decisions[i].preempts
                if cost <= preemptions:
                    queues[cost].extend((*made[:i], other) for other in range(1, decisions[i].count))
    return Exploration(runs, complete=True, preemptions=preemptions)


@tracing.all_threads()
def walk(
    program: Program,
    *,
    seed: int,
    walks: int,
    preempt: float = 0.1,
    early_timeouts: bool = False,
    memory: WeakMemory | None = None,
) -> Exploration:
    """Run a program under random schedules.

    Args:
      program: as in `explore`.
      seed: of the first run; the following ones count up.
      walks: number of runs.
      preempt: probability of taking the processor from a thread that could continue.
      early_timeouts: as in `explore`.
      memory: as in `explore`.

    Raises:
      ScheduleError: one failed; `replay` its schedule.
    """
    for i in range(walks):
        generator = random.Random(seed + i)  # noqa: S311 - choices of a test, not secrets

        def choose(_i: int, count: int, preempts: bool, generator: random.Random = generator) -> int:
            if preempts:
                return generator.randrange(1, count) if generator.random() < preempt else 0
            return generator.randrange(count)

        _run(program, choose, early_timeouts=early_timeouts, memory=memory)
    return Exploration(walks, complete=False, preemptions=-1)
