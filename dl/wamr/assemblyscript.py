"""What a module of AssemblyScript imports from `env`, and what its strings look like in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dl.errors import TrapError
from dl.options import HostFunction
from memory import OutOfBoundsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dl.groups.registry import Groups

_MOST_BYTES: Final = 4096


class AssemblyScript:
    """The functions, for one program."""

    def connect(self, groups: Groups) -> None:
        """Set the program, once."""
        self._groups = groups

    def functions(self) -> Mapping[str, HostFunction]:
        """Return what modules import from `env`."""
        return {"abort": HostFunction(self.abort, ("i32", "i32", "i32", "i32"), ())}

    def abort(self, message: int, file: int, line: int, column: int) -> None:
        """End the guest's call as a trap does.

        Raises:
            TrapError: always; it says what the program says.
        """
        where = f"{self._string(file) or '?'}:{line}:{column}"
        raise TrapError(f"abort: {self._string(message) or 'no message'} at {where}")

    def _string(self, address: int) -> str:
        """Read a string: UTF-16, its length in bytes in the four bytes before it; empty for null and outside of memory."""
        address &= 0xFFFFFFFF
        memory = self._groups.program.memory
        try:
            size = min(memory.read_u32(address - 4), _MOST_BYTES) if address >= 4 else 0
            return memory.read(address, size & ~1).decode("utf-16-le", errors="replace")
        except OutOfBoundsError:
            return ""
