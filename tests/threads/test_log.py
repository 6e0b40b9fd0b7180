"""The operation log: what it keeps, for whom, and that its size does not grow with a program's age."""

from __future__ import annotations

import random
from collections import OrderedDict
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.support.rendezvous_program import Program as RealProgram
from threads import OperationLog, ProtocolError, Rendezvous, Replica
from threads.log import Debtor


class Member:
    """A group with a table; an operation is (slot, value), None empties the slot."""

    def __init__(self, rendezvous: Rendezvous[Any], name: str = "member", like: Member | None = None) -> None:
        self.table: dict[Any, Any] = {} if like is None else dict(like.table)
        self.made: list[int] = []
        self.replica: Replica[Any] = Replica(name, self.apply)
        rendezvous.join(self.replica, 0 if like is None else like.replica.sequence)

    def apply(self, sequence: int, operation: tuple[Any, Any]) -> None:
        slot, value = operation[:2]
        self.table.update(operation[2:])
        assert self.made == [] or self.made[-1] < sequence
        self.made.append(sequence)
        if value is None:
            # It may be owed to a group that was absent while fillings replaced each other, and has made none of them.
            self.table.pop(slot, None)
        else:
            self.table[slot] = value


class Slots:
    """A program that fills and empties slots, each operation replacing what is obsolete.

    If it counts, a slot "emptied" holds how many were emptied: each emptying says so, and leaves it for those it is not
    owed to.
    """

    def __init__(self, *, counts: bool = False) -> None:
        self.counts = counts
        self.counted = 0
        self.rendezvous: Rendezvous[Any] = Rendezvous(lambda: None)
        self.table: dict[Any, Any] = {}
        self.filling: dict[Any, list[int]] = {}

    def change(self, slot: Any, value: Any) -> int:
        """Fill or empty (None) a slot."""
        earlier = self.filling.get(slot, [])
        replaces: dict[int, Any] = dict.fromkeys(earlier)
        operation: tuple[Any, ...] = (slot, value)
        leaves = None
        if self.counts and value is None:
            leaves = ("emptied", self.table.get("emptied", 0) + 1)
            operation = (*operation, leaves)
            if self.counted:
                replaces[self.counted] = None
        with self.rendezvous.instigate(None):
            number = self.rendezvous.commit(
                None,
                operation,
                replaces=replaces,
                only_after=earlier[0] if value is None else None,
                leaves=leaves,
            )
        if leaves is not None:
            self.counted = number
            self.table["emptied"] = leaves[1]
        if value is None:
            del self.filling[slot]
            del self.table[slot]
        else:
            # What was first filled counts for undoing, however often it was replaced.
            self.filling[slot] = [*earlier[:1], number]
            self.table[slot] = value
        return number


class TestLog:
    """The log by itself."""

    def test_dropped_and_unknown_operations_are_told_apart(self) -> None:
        """Asking for an operation that was dropped, or never committed, raises an error that says which."""
        log: OperationLog[str] = OperationLog()
        assert [log.append("a"), log.append("b", replaces={1: None})] == [1, 2]

        assert (log[2], log.committed, len(log), list(log.since(0))) == ("b", 2, 1, [(2, "b")])
        with pytest.raises(IndexError, match=r"^operation 1 has been dropped: no group needs it any longer$"):
            log[1]
        for number in (0, 3):
            with pytest.raises(IndexError, match=f"^operation {number} is not committed; the last one is 2$"):
                log[number]

    def test_replaced_operation_keeps_its_place(self) -> None:
        """A smaller operation takes the number of the one it replaces; one that is gone does not come back."""
        log: OperationLog[str] = OperationLog()
        for name in "abc":
            log.append(name)
        log.append("d", replaces={2: "smaller", 1: None})
        log.append("e", replaces={1: "back"})

        assert list(log.since(0)) == [(2, "smaller"), (3, "c"), (4, "d"), (5, "e")]

    def test_commit_that_an_exception_cuts_off_is_completed_by_the_next_access(self) -> None:
        """Cut off after the one store that commits it, an operation drops what it replaces all the same."""

        class Cut(OperationLog[str]):
            cuts = 0

            def finish(self) -> None:
                if self._unfinished is not None and self._unfinished.number <= self._committed and self.cuts:
                    self.cuts -= 1
                    raise KeyboardInterrupt
                super().finish()

        class Owing:
            owed: OrderedDict[int, None] = OrderedDict()

        log = Cut()
        log.append("a")
        log.append("b")
        debtor: Debtor = Owing()
        log.cuts = 1
        with pytest.raises(KeyboardInterrupt):
            log.append("c", replaces={1: None}, owed_to=[debtor])

        assert log.committed == 3
        assert log.next(debtor, 2) == (3, "c")
        log.paid(debtor, 3)
        assert (len(log), list(log.since(0))) == (1, [(2, "b")])

    def test_attempt_that_never_committed_leaves_nothing(self) -> None:
        """An append that was cut off before its commit is overwritten by the next one."""
        log: OperationLog[str] = OperationLog()
        log._operations[1] = "attempt"
        assert list(log.since(0)) == []

        assert log.append("a", owed_to=[]) == 1
        assert (len(log), log.committed) == (0, 1)


class TestCompaction:
    """What members of every kind replay."""

    def test_what_an_operation_leaves_is_made_by_those_it_is_not_owed_to(self) -> None:
        """Of a state that changes with each emptying, an absent member makes the last one, and a new one too; once each."""
        program = Slots(counts=True)
        absent = Member(program.rendezvous)
        for _ in range(50):
            program.change("a", 1)
            present = Member(program.rendezvous, "present")
            present.replica.synchronize()
            program.change("a", None)
            present.replica.synchronize()
            assert present.table == program.table
            program.rendezvous.leave(present.replica)

        assert len(program.rendezvous.log) == 1
        for member in (absent, Member(program.rendezvous)):
            member.replica.synchronize()
            assert (member.table, member.made) == ({"emptied": 50}, [100])

    def test_absent_member_skips_what_was_filled_and_emptied_meanwhile(self) -> None:
        """A member that missed both neither fills nor empties; one that had filled empties; a new one does nothing."""
        program = Slots()
        absent, present = Member(program.rendezvous), Member(program.rendezvous)
        program.change("a", 1)
        present.replica.synchronize()
        program.change("a", None)
        program.change("b", 2)
        new = Member(program.rendezvous)

        for member in (absent, present, new):
            member.replica.synchronize()
            assert member.table == {"b": 2}
            assert member.replica.sequence == 3
        assert (absent.made, present.made, new.made) == ([3], [1, 2, 3], [3])
        assert program.rendezvous.statistics().log_entries == 1

    def test_member_that_has_an_older_filling_empties_too(self) -> None:
        """Emptying matters to a member that has made any filling since the slot was empty, not only the last."""
        program = Slots()
        older = Member(program.rendezvous)
        program.change("a", 1)
        older.replica.synchronize()
        program.change("a", 2)
        program.change("a", None)

        assert program.rendezvous.statistics().log_entries == 1
        older.replica.synchronize()
        assert (older.made, older.table) == ([1, 3], {})
        assert program.rendezvous.statistics().log_entries == 0

    def test_filling_anew_replaces_an_emptying_that_is_still_owed(self) -> None:
        """A member that is owed an emptying makes the new filling alone if that one replaces the emptying."""
        program = Slots()
        member = Member(program.rendezvous)
        program.change("a", 1)
        member.replica.synchronize()
        emptied = program.change("a", None)
        with program.rendezvous.instigate(None):
            program.rendezvous.commit(None, ("a", 3), replaces={emptied: None})

        member.replica.synchronize()
        assert (member.made, member.table, dict(member.replica.owed)) == ([1, 3], {"a": 3}, {})

    def test_owed_operation_can_be_replaced_by_a_smaller_one(self) -> None:
        """A member is given the replacement of what it is owed."""
        program = Slots()
        member = Member(program.rendezvous)
        program.change("a", 1)
        program.change("b", 1)
        member.replica.synchronize()
        emptied = program.change("a", None)
        assert program.rendezvous.log[emptied] == ("a", None)
        with program.rendezvous.instigate(None):
            program.rendezvous.commit(None, ("c", 1), replaces={emptied: ("a", 9)})

        member.replica.synchronize()
        assert member.table == {"a": 9, "b": 1, "c": 1}

    def test_member_that_leaves_owes_nothing(self) -> None:
        """What only a member that left would have had to undo is dropped with it."""
        program = Slots()
        member = Member(program.rendezvous)
        for slot in range(10):
            program.change(slot, 1)
        member.replica.synchronize()
        for slot in range(10):
            program.change(slot, None)
        assert program.rendezvous.statistics().log_entries == 10

        program.rendezvous.leave(member.replica)

        assert program.rendezvous.statistics().log_entries == 0

    def test_instigator_owes_nothing_for_what_it_commits(self) -> None:
        """A group that empties a slot itself has made that, and is not given it again."""
        program = RealProgram()
        group = program.group()
        program.commit("fill", group)
        program.commit("empty", group, replaces={1: None}, only_after=1)

        group.replica.synchronize()
        assert group.made == ["fill", "empty"]
        assert program.rendezvous.statistics().log_entries == 0

    def test_join_from_a_number_whose_undoing_is_gone_is_refused(self) -> None:
        """A group may start from nothing or from a recent number, but not from before something that was undone since."""
        program = Slots()
        original = Member(program.rendezvous)
        program.change("a", 1)
        original.replica.synchronize()
        program.change("a", None)
        program.change("b", 1)

        with pytest.raises(ProtocolError, match="continue from 0, or from 2 on"):
            Member(program.rendezvous, like=original)
        original.replica.synchronize()
        copy = Member(program.rendezvous, like=original)
        copy.replica.synchronize()
        assert copy.table == {"b": 1}

    @pytest.mark.parametrize("numbers", [{"replaces": {2: None}}, {"replaces": {0: None}}, {"only_after": 2}])
    def test_commit_that_refers_to_no_earlier_operation_is_refused(self, numbers: dict[str, Any]) -> None:
        """Numbers of operations that are not committed are refused before the gate closes."""
        program = RealProgram()
        program.commit("a")

        with pytest.raises(ProtocolError, match="an operation refers to operation"):
            program.commit("b", **numbers)
        assert program.rendezvous.statistics().barriers == 1

    def test_hundred_thousand_pairs_leave_the_log_short_and_all_tables_alike(self) -> None:
        """With members that run, lag and are absent throughout, the log stays flat and a late group has what all have."""
        generator = random.Random(5)
        program = Slots()
        running, lagging, absent = (
            Member(program.rendezvous, name) for name in ("running", "lagging", "absent")
        )
        program.change("kept", 1)
        absent.replica.synchronize()
        longest = 0
        for number in range(100_000):
            slot = generator.randrange(50)
            program.change(slot, number)
            if number % 3 == 0:
                running.replica.synchronize()
            program.change(slot, None)
            if number % 100 == 0:
                lagging.replica.synchronize()
                longest = max(longest, len(program.rendezvous.log), len(program.rendezvous.log._numbers))
        program.change("last", 1)

        assert longest < 150
        assert program.rendezvous.committed == 200_002
        assert absent.replica.owed == {}
        late = Member(program.rendezvous, "late")
        for member in (running, lagging, absent, late):
            member.replica.synchronize()
            assert member.table == {"kept": 1, "last": 1}
        assert late.made == [1, 200_002]
        assert absent.made == [1, 200_002]
        assert program.rendezvous.statistics().log_entries == 2


class Compaction(RuleBasedStateMachine):
    """Members at any place in the log, some of them in the middle of a replay, against a plain table."""

    def __init__(self) -> None:
        super().__init__()
        self.program = Slots(counts=True)
        self.members: list[Member] = []
        self.replaying: dict[int, tuple[int, Any]] = {}

    @rule(slot=st.integers(0, 3), value=st.integers(1, 5))
    def fill(self, slot: int, value: int) -> None:
        self.program.change(slot, value)

    @rule(data=st.data())
    @precondition(lambda self: self.program.filling)
    def empty(self, data: st.DataObject) -> None:
        self.program.change(data.draw(st.sampled_from(sorted(self.program.filling))), None)

    @rule()
    @precondition(lambda self: len(self.members) < 5)
    def join(self) -> None:
        self.members.append(Member(self.program.rendezvous, str(len(self.members))))

    @rule(data=st.data())
    @precondition(lambda self: self.members)
    def step(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.members) - 1))
        member = self.members[index]
        replays = self.program.rendezvous.replays
        if index in self.replaying:
            member.apply(*self.replaying.pop(index))
            replays.end(member.replica, made=True)
        else:
            following = replays.begin(member.replica, first=True)
            if following is None:
                assert member.table == self.program.table
            else:
                self.replaying[index] = following

    @rule(data=st.data())
    @precondition(lambda self: self.members)
    def leave(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.members) - 1))
        if index not in self.replaying:
            self.program.rendezvous.leave(self.members[index].replica)
            self.members[index] = Member(self.program.rendezvous, f"another {index}")

    @invariant()
    def log_is_short(self) -> None:
        log = self.program.rendezvous.log
        filled, left = len(self.program.filling), int(self.program.counted > 0)
        assert filled + left <= len(list(log.since(0))) <= 2 * filled + left
        owed = {number for member in self.members for number in member.replica.owed}
        assert set(log._owed) == owed
        assert len(log) == len(list(log.since(0))) + len(owed)
        assert len(log._numbers) <= 2 * len(log._operations) + 32
        for member in self.members:
            assert list(member.replica.owed) == sorted(member.replica.owed)

    def teardown(self) -> None:
        for index, (sequence, operation) in self.replaying.items():
            self.members[index].apply(sequence, operation)
            self.program.rendezvous.replays.end(self.members[index].replica, made=True)
        for member in self.members:
            member.replica.synchronize()
            assert member.table == self.program.table


TestCompactionModel = Compaction.TestCase
TestCompactionModel.settings = settings(max_examples=100, stateful_step_count=50)
