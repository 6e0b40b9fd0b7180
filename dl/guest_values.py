"""What dlsym returns: functions and data of the guest."""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident
from typing import TYPE_CHECKING, Any

from dl.dlfcn import ModuleHandle
from dl.groups.errors import dl_error
from dl.modules.symbols import FunctionSymbol
from threads import DETACHED, ThreadsError

if TYPE_CHECKING:
    from dl.group import InstanceGroup


class GuestFunction:
    """A function of the guest, callable from the thread that its instance group belongs to.

    Arguments and results are int (i32, i64; results signed), float (f32, f64) and 16 bytes (v128). No result is None,
    several are a tuple.

    Attributes:
        name: its symbol.
        type: its signature.
        address: its table index: the function pointer, the same in every group.
        module: the module that defines it.
    """

    __slots__ = ("_invoke", "_replica", "address", "group", "module", "name", "type")

    def __init__(self, group: InstanceGroup, symbol: FunctionSymbol, invoke: Callable[..., Any]) -> None:
        self.group = group
        self.name = symbol.name
        self.type = symbol.type
        self.address = symbol.address
        self.module = symbol.module
        self._invoke = invoke
        self._replica = group.replica

    def __call__(self, *arguments: Any) -> Any:
        """Call the function.

        Raises:
            ValueConversionError: an argument does not fit the signature.
            TrapError: the guest trapped.
            ProgramExited: the guest ended the program.
            GroupEndedError: the group could not follow the other threads, or was closed.
            ProgramDeadlockedError: it waits, and so does every other thread of the program.
            LinkerUsageError: called from a thread that does not own the group.
        """
        group = self.group
        if group.owner != get_ident():
            group.refuse_entry()
        replica = self._replica
        try:
            previous = replica.enter_guest()
            try:
                stack_pointer = None if previous == DETACHED else group.stack_pointer()
                try:
                    return self._invoke(*arguments)
                except BaseException:
                    group.unwound(stack_pointer)
                    raise
            finally:
                replica.leave_guest(previous)
        except ThreadsError as error:
            raise dl_error(error) from error.__cause__

    def __repr__(self) -> str:
        return f"<GuestFunction {self.name}{self.type} at table index {self.address}>"


class GuestData:
    """Data of the guest.

    Attributes:
        name: its symbol.
        address: where it is in linear memory, bytes; of a thread-local variable, this thread's copy.
        module: the module that defines it.
    """

    __slots__ = ("address", "module", "name")

    def __init__(self, name: str, address: int, module: ModuleHandle) -> None:
        self.name = name
        self.address = address
        self.module = module

    def __repr__(self) -> str:
        return f"<GuestData {self.name} at {self.address:#x}>"
