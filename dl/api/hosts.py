"""Executors, as methods of the linker."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from dl.api.linker_base import LinkerBase
from dl.checks import taken, word
from dl.errors import LinkerUsageError

if TYPE_CHECKING:
    from dl.api.executor import GuestExecutor


class Hosts(LinkerBase):
    """The methods of `Linker` for hosts that have many threads."""

    _executors: weakref.WeakValueDictionary[int, GuestExecutor]

    def executor(self, workers: int, *, name: str = "worker") -> GuestExecutor:
        """Make an executor of `concurrent.futures` whose threads keep their instance groups.

        Args:
            workers: the most threads, at least 1; they count as the program's.
            name: what messages call them, with a number.

        Raises:
            LinkerUsageError: the program's memory is not shared; or there are to be no workers.
        """
        self._check_open()
        if not hasattr(workers, "__index__") or workers < 1:
            raise LinkerUsageError(f"workers: an executor needs at least one worker, not {workers!r}")
        taken(word, name, "name")
        if not self.program.shares_memory:
            raise LinkerUsageError(
                "threads need a program whose memory is shared: build it with -pthread, or without a program give "
                "memory=dl.MemoryType(shared=True)"
            )
        from dl.api.executor import GuestExecutor  # noqa: PLC0415  `concurrent.futures` is slow to import

        made = GuestExecutor(self, workers, name)
        self._executors[id(made)] = made
        return made

    def _stop_executors(self) -> None:
        """Take no more work; the program is about to end, which ends what runs."""
        for reference in self._executors.valuerefs():
            executor = reference()
            if executor is None:
                continue
            executor.shutdown(wait=False, cancel_futures=True)
