"""How every change of the program is made: applied in the calling thread's group, committed at the barrier, or undone.

Loads, unloads and table slots all go this way:

1. Steps that reserve something register how to take it back (`on_failure`).
2. `apply` makes the operation in the calling thread's group, where everything that can fail does.
3. `commit` appends it to the log. That is the point of no return: what follows from it (`done`) runs even if the thread is
   interrupted in the same moment.
4. If the block ends with an exception before the commit, all steps are undone, last first.

An unload leaves 2 out, and its thread makes the operation right after the commit, with no lock held: see `dl.link.unload`.

Ctrl-C in the main thread ends 1 and 2 like any other failure, and what comes after waits until the change is undone, or
committed with all that follows from it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from dl.groups.entry import Group
from dl.program.operations import DlOperation
from dl.program.program import Program
from dl.program.state import Undo
from threads import protect, unwound_whole

if TYPE_CHECKING:
    from typing_extensions import Self


class Change:
    """One change of a program by one thread: a context manager, whose block takes the link lock where it needs it.

    Args:
        program: what is changed.
        group: the calling thread's; None for a thread that has none, which applies nothing itself.

    Attributes:
        committed: whether every other group will see it.
    """

    def __init__(self, program: Program, group: Group | None) -> None:
        self._program = program
        self._group = group
        self._undo = Undo()
        self._applied = Undo()
        self._resources = Undo()
        self._guard = unwound_whole()
        self.committed = False

    def __enter__(self) -> Self:
        # Not protected: a guard that is entered where an outer one holds signals back would hold them back throughout.
        self._guard.__enter__()
        return self

    @protect
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None and not self.committed:
                self._take_back()
        finally:
            self._guard.__exit__(kind, error, trace)

    def on_failure(self, step: Callable[[], object]) -> None:
        """Register how to take back what was just done to the linker state; runs under the link lock."""
        self._undo.on_failure(step)

    def give_back(self, step: Callable[[], object]) -> None:
        """Register how to give a resource back once everything is undone; runs with no lock held, as it may call guest code."""
        self._resources.on_failure(step)

    def apply(self, operation: DlOperation, take_back: Callable[[Group], object]) -> None:
        """Make an operation in the calling thread's group.

        Args:
            operation: the operation.
            take_back: undoes it there, also if it was made in part.

        Raises:
            DlError: it cannot be made.
        """
        group = self._group
        if group is None:
            return
        self._applied.on_failure(lambda: take_back(group))
        group.apply_first(operation)

    def commit(
        self,
        operation: DlOperation,
        done: Callable[[int], object],
        *,
        replaces: Mapping[int, DlOperation | None] | None = None,
        only_after: int | None = None,
        leaves: DlOperation | None = None,
    ) -> None:
        """Commit an operation that was applied; called under the link lock.

        Args:
            operation: the operation.
            done: enters its outcome into the linker state; gets its number. Cannot fail, and may be called twice.
            replaces: earlier operations that it makes obsolete; see `threads.Rendezvous.commit`.
            only_after: the earliest operation that it undoes; likewise.
            leaves: what groups that have not made that one make in its place; likewise.
        """
        rendezvous, group = self._program.rendezvous, self._group
        self._program.checkpoint("commit", None)
        before = rendezvous.committed
        try:
            rendezvous.commit(
                None if group is None else group.replica,
                operation,
                replaces=replaces or {},
                only_after=only_after,
                leaves=leaves,
            )
            self._conclude(before, done)
        except BaseException:
            self._conclude(before, done)
            raise

    @protect
    def _conclude(self, before: int, done: Callable[[int], object]) -> None:
        """Do what follows from the commit, if there was one; the second time, nothing."""
        committed = self._program.rendezvous.committed
        if committed != before and not self.committed:
            done(committed)
            self.committed = True

    def _take_back(self) -> None:
        group, program = self._group, self._program
        shield = contextlib.nullcontext() if group is None else group.replica.waiter.shielded()
        with shield:
            if group is not None and group.replica.closed is None:
                self._applied.run()
            if self._undo.steps:
                if program.ended is None:
                    with program.rendezvous.instigate(None):
                        self._undo.run()
                else:
                    self._undo.run()  # nobody takes the lock any longer, or looks at the state
            self._resources.run()
