"""A model of guest code around one rendezvous, run by the exploring scheduler.

It executes "instructions", each of which checks the invariant; a model of the engine's epochs interrupts it, and loses an
interrupt where a real engine can.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from threads import GUEST, OperationLog, Rendezvous, ReplayError, Replica, ReplicaClosedError
from threads.testing import Scheduler


class ReplayFaultError(Exception):
    """What a group's replay raises when the test wants it to fail."""


class ProgramEndedError(Exception):
    """What the program ends with."""


def unless_ended(run: Callable[[], object]) -> Callable[[], None]:
    def ending() -> None:
        with contextlib.suppress(ProgramEndedError):
            run()

    return ending


class World:
    """Groups with model guest code around one rendezvous."""

    def __init__(
        self,
        scheduler: Scheduler,
        rendezvous: type[Rendezvous[str]] = Rendezvous,
        replica: type[Replica[str]] = Replica,
    ) -> None:
        self.scheduler = scheduler
        self.epoch = 0
        self.executing: set[str] = set()
        self.rendezvous = rendezvous(self.interrupt, platform=scheduler)
        self.rendezvous.log = self.new_log()
        self.replica_type = replica
        self.groups: list[Group] = []

    def new_log(self) -> OperationLog[str]:
        return CheckedLog(self)

    def interrupt(self) -> None:
        """The engine's epoch bump."""
        self.scheduler.point("epoch bump")
        self.epoch += 1

    def group(self, name: str, *, fails_at: int = 0) -> Group:
        group = Group(self, name, fails_at)
        self.groups.append(group)
        return group

    def commit(self, group: Group | None, operation: str, timeout: float | None = None) -> int:
        """What a dlopen does: take the link lock, make the operation privately, commit it."""
        replica = None if group is None else group.replica
        with self.rendezvous.instigate(replica):
            if group is not None:
                assert group.applied == [operation for _, operation in self.rendezvous.log.since(0)]
                group.applied.append(operation)
            try:
                return self.rendezvous.commit(replica, operation, timeout=timeout)
            except BaseException:
                if group is not None:
                    group.applied.pop()
                raise

    def check(self) -> None:
        """What holds when all threads have returned: all groups are alike, and the next operation goes through."""
        rendezvous = self.rendezvous
        assert rendezvous._awaited == {}
        assert rendezvous._turn.holder is None
        assert not self.executing
        if rendezvous._ended is None:
            assert rendezvous.version == rendezvous.committed
            with rendezvous.instigate(None):
                rendezvous.commit(None, "last")
        for group in self.groups:
            while group.replica.waiter.take_interrupt() is not None:
                pass  # one that came too late
            with contextlib.suppress(ReplayError, ReplicaClosedError, ProgramEndedError):
                group.replica.synchronize()
                assert group.applied == [operation for _, operation in rendezvous.log.since(0)]


class CheckedLog(OperationLog[str]):
    """Fails the run if an operation is committed while any group executes guest code."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def append(self, operation: str, **how: Any) -> int:
        assert not self.world.executing, f"committed {operation} while {self.world.executing} run guest code"
        return super().append(operation, **how)


class Group:
    """An instance group whose guest code is a Python function."""

    def __init__(self, world: World, name: str, fails_at: int) -> None:
        self.world = world
        self.name = name
        self.fails_at = fails_at
        self.applied: list[str] = []
        self.deadline = 0
        self.replica = world.replica_type(name, self.apply, platform=world.scheduler)
        world.rendezvous.join(self.replica)

    def apply(self, sequence: int, operation: str) -> None:
        assert self.name not in self.world.executing
        assert sequence == len(self.applied) + 1
        self.world.scheduler.point("replay")
        if sequence == self.fails_at:
            raise ReplayFaultError(sequence)
        self.applied.append(operation)

    def is_current(self) -> bool:
        return len(self.applied) == self.world.rendezvous.committed

    @contextlib.contextmanager
    def guest(self) -> Iterator[None]:
        """A call into Wasm."""
        self.deadline = self.world.epoch + 1
        outer = self.replica.enter_guest()
        self.world.executing.add(self.name)
        try:
            yield
        finally:
            self.world.executing.discard(self.name)
            self.replica.leave_guest(outer)

    @contextlib.contextmanager
    def host_call(self) -> Iterator[None]:
        """A call from Wasm to the host, with the callback wrapper's rules."""
        self.world.executing.discard(self.name)
        self.replica.enter_host()
        yield
        self.replica.exit_host()
        self.world.executing.add(self.name)

    def instruction(self) -> None:
        """One guest instruction, with an epoch check after it."""
        self.world.scheduler.point("guest instruction")
        assert self.name in self.world.executing
        assert self.replica.state == GUEST
        assert self.is_current(), "a guest instruction ran in a group that has yet to make an operation"
        if self.world.epoch >= self.deadline:
            self.world.executing.discard(self.name)
            self.replica.safe_point()
            self.world.executing.add(self.name)
            # The engine adds the callback's result to the epoch as it is now: a bump up to here is lost.
            self.world.scheduler.point("return from the epoch callback")
            self.deadline = self.world.epoch + 1

    def run(self, instructions: int = 2) -> None:
        with self.guest():
            for _ in range(instructions):
                self.instruction()

    def spin_until(self, condition: Callable[[], bool]) -> None:
        """Guest code that computes without ever calling the host."""
        with self.guest():
            while not condition():
                self.instruction()
                self.world.scheduler.pause()


class SlotWorld(World):
    """Groups with a table: an operation "slot=value" fills an element, and "slot=" empties it.

    Every operation replaces what its slot had before, and emptying it undoes it, so the log can drop both.
    """

    def __init__(self, scheduler: Scheduler, **types: Any) -> None:
        super().__init__(scheduler, **types)
        self.table: dict[str, str] = {}  # what every group must have after the last commit
        self.filling: dict[str, list[int]] = {}  # operations on a slot since it was last empty

    def new_log(self) -> OperationLog[str]:
        return SlotLog(self)

    def slots(self, name: str, *, on_apply: Callable[[str], object] = lambda _: None) -> SlotGroup:
        group = SlotGroup(self, name, on_apply)
        self.groups.append(group)
        return group

    def set(
        self, group: SlotGroup | None, slot: str, value: str, *, after: Callable[[], None] | None = None
    ) -> None:
        """Fill a slot, or empty it ("") and perform `after` once no group is still filling it."""
        replica = None if group is None else group.replica
        with self.rendezvous.instigate(replica):
            earlier = self.filling.get(slot, [])
            if group is not None:
                change(group.table, f"{slot}={value}")
            number = self.rendezvous.commit(
                replica,
                f"{slot}={value}",
                replaces=dict.fromkeys(earlier),
                only_after=None if value else earlier[0],
            )
            self.filling[slot] = [*earlier, number] if value else []
            if after is not None:
                self.rendezvous.after_replays(after)

    def check(self) -> None:
        rendezvous = self.rendezvous
        assert rendezvous._turn.holder is None
        for group in self.groups:
            while group.replica.waiter.take_interrupt() is not None:
                pass  # one that came too late
            with contextlib.suppress(ReplayError, ReplicaClosedError, ProgramEndedError):
                group.replica.synchronize()
                assert group.is_current()
        assert len(rendezvous.log) == len(self.table), "the log keeps what nobody needs"
        assert rendezvous.replays._grace._under_way == {}
        assert not rendezvous.replays._grace._due


def change(table: dict[str, str], operation: str) -> None:
    for part in operation.split("|"):
        slot, _, value = part.partition("=")
        if value:
            table[slot] = value
        else:
            assert slot in table, "a group empties a slot that it has not filled"
            del table[slot]


class SlotLog(CheckedLog):
    """Knows what every table must hold."""

    world: SlotWorld

    def append(self, operation: str, **how: Any) -> int:
        number = super().append(operation, **how)
        change(self.world.table, operation)
        return number


class SlotGroup(Group):
    """A group with a table of its own."""

    world: SlotWorld

    def __init__(self, world: SlotWorld, name: str, on_apply: Callable[[str], object]) -> None:
        self.table: dict[str, str] = {}
        self.on_apply = on_apply
        super().__init__(world, name, fails_at=0)

    def apply(self, sequence: int, operation: str) -> None:
        assert self.name not in self.world.executing
        self.world.scheduler.point("replay")
        self.on_apply(operation)
        change(self.table, operation)

    def is_current(self) -> bool:
        return self.table == self.world.table

    def start_function(self) -> None:
        """Guest code of an operation that computes for ever; it notices interrupts as all guest code does."""
        deadline = self.world.epoch + 1
        outer = self.replica.enter_guest()
        try:
            while True:
                self.world.scheduler.point("guest instruction of a replay")
                if self.world.epoch >= deadline:
                    self.replica.safe_point()
                    self.world.scheduler.point("return from the epoch callback")
                    deadline = self.world.epoch + 1
                self.world.scheduler.pause()
        finally:
            self.replica.leave_guest(outer)
