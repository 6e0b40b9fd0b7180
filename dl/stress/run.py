"""A stress run: many threads do everything at once to one program, and in the end all instance groups must be equal.

Threads come in three ways (spawned, attached, started by the guest), do what the seed says, and end in four (return,
exception, trap, cancellation); new ones take their places. They open libraries, the same ones at the same time, good ones
and bad ones; look up; call; wait in atomic instructions, with and without an end; spin until they find a function pointer
in shared memory, which is that of a library that was opened the moment before; constructors open libraries themselves.

Each result is checked where it arises. At the end no operation is under way, and every living group tells what it
has: its whole table, each instance's bases and GOT values, each symbol's address. One difference fails the run.

The seed fixes what each thread does, one after the other; not how threads interleave.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Mapping
from threading import get_ident

from dl.dlfcn import ModuleHandle
from dl.group import InstanceGroup
from dl.linker import Linker
from dl.records import dataclass, field
from dl.stress.modules import STACK_BYTES, STACKS, WORDS_BYTES, library_module, program_module
from dl.stress.worker import (
    KINDS,
    TRAPS,
    UNDEFINED,
    WAKE_ALL,
    Cancelled,
    Shared,
    Slot,
    Worker,
    addend_of,
    function,
)

GRACE_SECONDS = 60.0
"""How long nothing may move, while the threads come to their end, before the run counts as hung."""

_MOST_GRACES = 10
"""How many times that long the threads may take, although something moves."""

TICK_SECONDS = 0.005


class Patience:
    """Tells a run that is hung from one that is slow, because the machine has other things to do.

    Args:
        now: the time, seconds.
    """

    def __init__(self, now: float) -> None:
        self._until = now + GRACE_SECONDS
        self._end = now + _MOST_GRACES * GRACE_SECONDS
        self._seen: object = None

    def is_over(self, now: float, state: object) -> bool:
        """Return whether the state, which is another one whenever something moved, has been the same for too long."""
        if state != self._seen:
            self._seen = state
            self._until = min(now + GRACE_SECONDS, self._end)
        return now > self._until


@dataclass
class Barriers:
    """How long barriers took, seconds.

    Attributes:
        count: of all of them.
        latest: the last ones; not all, since a run may last for days.
    """

    count: int = 0
    latest: deque[float] = field(default_factory=lambda: deque(maxlen=100_000))


@dataclass(frozen=True)
class Percentiles:
    """Of how long barriers took, milliseconds."""

    count: int
    median: float
    p90: float
    p99: float
    most: float

    @classmethod
    def of(cls, barriers: Barriers) -> Percentiles:
        """Return those of the durations that are kept; the count is that of all."""
        if not barriers.latest:
            return cls(0, 0.0, 0.0, 0.0, 0.0)
        ordered = sorted(1e3 * s for s in barriers.latest)

        def at(share: float) -> float:
            return ordered[min(int(share * len(ordered)), len(ordered) - 1)]

        return cls(barriers.count, at(0.5), at(0.9), at(0.99), ordered[-1])


@dataclass(frozen=True)
class StressProgress:
    """How far a run is.

    Attributes:
        seconds: since its start.
        operations: done so far.
        threads: alive.
        committed: link operations committed.
    """

    seconds: float
    operations: int
    threads: int
    committed: int


@dataclass(frozen=True)
class StressReport:
    """What a run did and found.

    Attributes:
        threads: how many ran at a time.
        seconds: how long they did.
        seed: what to give to repeat it.
        operations: by what they were.
        ends: threads that ended before the run did, by how.
        barriers: durations of those that were committed.
        committed: link operations committed.
        catch_ups: times a group made operations up.
        interrupts: times the engine was interrupted.
        libraries: how many were loaded at the end.
        compared: how many groups were compared at the end.
        failures: what went wrong; empty for a good run.
    """

    threads: int
    seconds: float
    seed: int
    operations: Mapping[str, int]
    ends: Mapping[str, int]
    barriers: Percentiles
    committed: int
    catch_ups: int
    interrupts: int
    libraries: int
    compared: int
    failures: tuple[str, ...]

    @property
    def total(self) -> int:
        """Operations in all."""
        return sum(self.operations.values())

    @property
    def per_second(self) -> float:
        """Operations per second."""
        return self.total / self.seconds if self.seconds else 0.0


def run_stress(
    threads: int,
    seconds: float,
    seed: int | None = None,
    progress: Callable[[StressProgress], object] | None = None,
    *,
    engine: str | None = None,
) -> StressReport:
    """Run one stress run.

    Args:
        threads: how many at a time, 1 to 200.
        seconds: how long they act; the comparison comes after.
        seed: what decides what they do; None for a random one, which the report tells.
        progress: called about once a second, and when the threads are told to end.
        engine: name of the engine; None for the default.

    Raises:
        EngineNotFoundError: there is no such engine.
        ValueError: the number of threads is out of range.
    """
    if not 1 <= threads <= STACKS * 3 // 4:
        raise ValueError(f"{threads} threads; 1 to {STACKS * 3 // 4} can be run")
    if seed is None:
        seed = random.SystemRandom().getrandbits(32)
    return _Run(threads, seconds, seed, engine).run(progress)


class _Run:
    """One run."""

    def __init__(self, threads: int, seconds: float, seed: int, engine: str | None) -> None:
        self.seconds = seconds
        self.seed = seed
        self.random = random.Random(f"{seed}")  # noqa: S311  it only has to differ
        self.shared = Shared()
        self.stop = threading.Event()
        self.compare = threading.Event()
        self.libraries = [library_module(kind) for kind in KINDS]
        self.traps, self.undefined = library_module(TRAPS), library_module(UNDEFINED)
        self.workers: dict[int, Worker] = {}  # by thread; each written by its own thread alone
        self.linker = Linker(
            program_module(),
            name="stress",
            libraries={"lib0.so": self.libraries[0]},
            imports={"env": {"on_thread": self._on_guest_thread, "on_construct": self._on_construct}},
            engine=engine,
        )
        self.words = self._program_address("words")
        self.slots = [Slot(i, self.words + 64 + 16 * i) for i in range(threads)]
        self.records: dict[int, Worker] = {}
        self.compared = 0

    def _table(self, group: InstanceGroup) -> list[object]:
        """Return what a group's table holds, as far as the engine can tell."""
        return group.table() if self.linker.engine.capabilities.table_reflection else []

    def _program_address(self, name: str) -> int:
        return self.linker.main_group.dlsym(self.linker.main, name).address

    # the run

    def run(self, progress: Callable[[StressProgress], object] | None) -> StressReport:
        began = time.monotonic()
        barriers = Barriers()
        regions = self.linker.statistics().side_regions
        try:
            told = began
            while time.monotonic() - began < self.seconds and not self.shared.failures:
                self._keep_alive()
                self._disturb()
                self._sample(barriers)
                if progress and time.monotonic() - told >= 1.0:
                    told = time.monotonic()
                    progress(self._progress(told - began))
                self.stop.wait(TICK_SECONDS)
            lasted = time.monotonic() - began
            self.stop.set()
            if progress:
                progress(self._progress(lasted))
            try:
                self._finish(regions)
            except Exception:  # noqa: BLE001  it is what the run is looking for
                self.fail(traceback.format_exc())
            self._sample(barriers)
            report = self._report(lasted, barriers)
        except BaseException:
            self._stop_all()
            raise
        try:
            self._stop_all()
        except Exception:  # noqa: BLE001  as above; beside what was found before it, and not in its place
            self.fail(traceback.format_exc())
            return dataclasses.replace(report, failures=tuple(self.shared.failures))
        return report

    def _stop_all(self) -> None:
        """Let every thread end, and close the linker."""
        self.stop.set()
        self.compare.set()
        self.linker.close()

    def _keep_alive(self) -> None:
        """Put new threads in the places of those that have ended."""
        for slot in self.slots:
            self._notice_end(slot)
            if not slot.alive:
                slot.generation += 1
                slot.alive = True
                self._start(slot)

    def _notice_end(self, slot: Slot) -> None:
        """Note why a thread has ended that never came to its work."""
        if slot.host is not None and slot.alive and not slot.host.is_alive() and slot.alive:
            slot.alive = False
            try:
                slot.host.join()
            except Cancelled:
                self.shared.ended("cancelled at its start")
            except Exception as error:  # noqa: BLE001  it is what the run is looking for
                self.fail(f"{slot.host.name} does not start: {error!r}")

    def _start(self, slot: Slot) -> None:
        way = self.random.choices(("spawned", "attached", "guest"), (6, 3, 2))[0]
        name = f"{way} {slot.number}.{slot.generation}"
        chooser = random.Random(f"{self.seed} {slot.number} {slot.generation}")  # noqa: S311  as above
        worker = Worker(self, slot, way, chooser)
        slot.host = slot.plain = None
        if way == "spawned":
            slot.host = self.linker.spawn(worker.run, name=name)
        elif way == "attached":
            slot.plain = threading.Thread(target=worker.attach, args=(name,), name=name, daemon=True)
            slot.plain.start()
        else:
            record = self.words + WORDS_BYTES + STACK_BYTES * slot.number
            self.linker.memory.write_u32(record, record + STACK_BYTES)
            self.linker.memory.write_u32(record + 4, 0)
            self.records[record] = worker
            error = function(self.linker.main_group, self.linker.main, "start")(record)
            if error:
                self.fail(f"{name}: thread_spawn_v2 returned {error}")
        self.count(f"start {way}")

    def _on_guest_thread(self, _number: int, record: int) -> None:
        self.records[record & 0xFFFFFFFF].run(self.linker.own.view(self.linker.parts.groups.current()))

    def _disturb(self) -> None:
        """Let the threads that wait for somebody go on, and cancel one now and then."""
        waiting = [slot for slot in self.slots if slot.released]
        self.random.shuffle(waiting)
        for slot in waiting[: 1 + len(waiting) // 8]:
            self.release(self.linker.main_group, slot)
        if self.random.random() < 0.2:
            slot = self.random.choice(self.slots)
            if slot.host is not None and slot.alive:
                slot.host.cancel(Cancelled())
                self.count("cancel")

    def release(self, group: InstanceGroup, slot: Slot, address: int = 0, addend: int = 0) -> None:
        """Write a function pointer to where a thread spins or waits, and wake it."""
        if not address:
            with self.shared.lock:
                name = self.random.choice(list(self.shared.handles) or ["lib0.so"])
            address, addend = function(group, self._handle(group, name), "value").address, addend_of(name)
        slot.published[addend + 1] = None
        self.linker.memory.write_u32(slot.word, address)
        function(group, self.linker.main, "notify")(slot.word, WAKE_ALL)

    def _handle(self, group: InstanceGroup, name: str) -> ModuleHandle:
        return self.shared.handles.get(name) or group.dlopen(name)

    def _sample(self, barriers: Barriers) -> None:
        protocol = self.linker.statistics().protocol
        new = protocol.committed - barriers.count
        if new > 0:
            barriers.count = protocol.committed
            barriers.latest.extend(protocol.barrier_seconds[-new:])

    def _progress(self, seconds: float) -> StressProgress:
        with self.shared.lock:
            operations = sum(self.shared.operations.values())
        alive = sum(slot.alive for slot in self.slots)
        return StressProgress(seconds, operations, alive, self.linker.program.rendezvous.committed)

    def _report(self, seconds: float, barriers: Barriers) -> StressReport:
        protocol = self.linker.statistics().protocol
        return StressReport(
            len(self.slots),
            seconds,
            self.seed,
            dict(sorted(self.shared.operations.items())),
            dict(sorted(self.shared.ends.items())),
            Percentiles.of(barriers),
            protocol.committed,
            protocol.catch_ups,
            protocol.interrupts,
            len(self.linker.modules) - 1,
            self.compared,
            tuple(self.shared.failures),
        )

    # what workers use

    def count(self, what: str) -> None:
        self.shared.count(what)

    def fail(self, what: str) -> None:
        with self.shared.lock:
            self.shared.failures.append(what)

    def _on_construct(self, addend: int) -> None:
        """Be called by constructors: open another library, look it up, start a thread."""
        with self.shared.lock:
            self.shared.constructed[addend] += 1
        worker = self.workers.get(get_ident())
        if worker is not None and worker.random.random() < 0.5:
            worker.open_in_constructor()

    # the end

    def _finish(self, regions: int) -> None:
        """Bring all threads to their end, compare their groups, and look for what they have left behind."""
        main = self.linker.main_group
        patience = Patience(time.monotonic())
        while self.shared.quiet < sum(slot.alive for slot in self.slots):
            for slot in self.slots:
                self._notice_end(slot)
                if slot.released:
                    self.release(main, slot)
            if patience.is_over(time.monotonic(), self._moved()):
                self._hung()
                return
            threading.Event().wait(TICK_SECONDS)
        self.state_of(main)
        self.compare.set()
        for slot in self.slots:
            while slot.alive:
                if patience.is_over(time.monotonic(), self._moved()):
                    self._hung()
                    return
                threading.Event().wait(TICK_SECONDS)
            if slot.plain is not None:
                slot.plain.join(GRACE_SECONDS)
            if slot.host is not None:
                with contextlib.suppress(BaseException):
                    slot.host.join(GRACE_SECONDS)
        while len(self.linker.parts.groups.all()) > 1:
            if patience.is_over(time.monotonic(), self._moved()):
                self._hung()
                return
            threading.Event().wait(TICK_SECONDS)
        self.linker.spawn(self.state_of, name="new").join()
        self._compare(self.shared.states.pop(main.name))
        self._check_left_over(regions)

    def _moved(self) -> object:
        """Return something that is another value whenever a thread has done something."""
        alive, groups = sum(slot.alive for slot in self.slots), len(self.linker.parts.groups.all())
        with self.shared.lock:
            done = sum(self.shared.operations.values()), len(self.shared.states), self.shared.quiet
        return alive, groups, done, self.linker.program.rendezvous.committed

    def _compare(self, expected: dict[str, str]) -> None:
        """Note how groups differ from the main one."""
        self.compared += 1
        for group, state in self.shared.states.items():
            self.compared += 1
            if state != expected:
                odd = sorted(k for k in {*state, *expected} if state.get(k) != expected.get(k))
                first = [f"{what} is {state.get(what)}, not {expected.get(what)}" for what in odd[:3]]
                self.fail(f"{group} differs in {len(odd)} places: {'; '.join(first)}")

    def _check_left_over(self, regions: int) -> None:
        modules = list(self.linker.program.state.modules.copy().values())
        staying = Counter(addend_of(module.name) for module in modules if module.name.startswith("lib"))
        expected = regions + sum(m.block is not None for m in modules)
        expected += sum(m.thread_local is not None and m.thread_local.size > 0 for m in modules)
        patience = Patience(time.monotonic())
        while (
            regions := self.linker.statistics().side_regions
        ) != expected:  # a thread may still be giving its own back
            if patience.is_over(time.monotonic(), regions):
                self.fail(f"{regions} regions of linear memory in use, {expected} expected")
                break
            threading.Event().wait(TICK_SECONDS)
        if not self.shared.broken_loads:
            for kind in KINDS:
                expected = staying[kind.addend] if kind.constructor else 0
                if self.shared.constructed[kind.addend] != expected:
                    times = self.shared.constructed[kind.addend]
                    self.fail(f"constructors of kind {kind.addend} ran {times} times, not {expected}")

    def _hung(self) -> None:
        frames = sys._current_frames()  # noqa: SLF001  the documented way to see where threads are
        stuck = [slot for slot in self.slots if slot.alive]
        where = []
        for thread in threading.enumerate():
            frame = frames.get(thread.ident or 0)
            if frame is not None:
                where.append(f"{thread.name}:\n" + "".join(traceback.format_stack(frame)[-4:]))
        self.fail(
            f"hung: {len(stuck)} threads do not end; waits: {self.linker.program.waits.waiting()}; "
            f"protocol: {dataclasses.replace(self.linker.program.rendezvous.statistics(), barrier_seconds=())}\n"
            + "\n".join(where)
        )

    def state_of(self, group: InstanceGroup) -> None:
        """Note everything that must be equal in all groups."""
        modules = self.linker.modules
        told_of = {f"table index {i}": repr(entry) for i, entry in enumerate(self._table(group))}
        where_at = function(group, self.linker.main, "where_at")
        for module in modules:
            for symbol in module.symbols():
                if symbol.kind == "function":
                    address = function(group, module.handle, symbol.name).address
                    told_of[f"{module.name}: address of {symbol.name}"] = str(address)
            if module.handle == self.linker.main:
                continue
            where = function(group, module.handle, "where")
            told, own = where(), function(group, module.handle, "own_value")()
            through_table = where_at(where.address)
            if told != through_table or told[0] != module.memory_base:
                self.fail(f"{group.name}: {module.name} tells {told}, through the table {through_table}")
            told_of[f"{module.name}: bases and GOT values"] = f"{told} {own}"
        with self.shared.lock:
            self.shared.states[group.name] = told_of
