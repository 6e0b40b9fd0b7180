"""`call_dynamic` and `reflect_signature` of WASIX: calls of functions whose types the caller's code does not know.

`call_dynamic` is a function of WebAssembly, in the base module. It calls the invoker that it called last for a function of that
index, or one like it, which looks whether the callee is of its signature. If not, or where the engine cannot tell, it asks the
host for the invoker of the callee's signature, generated once, and calls it through the table. So no host frame lies between
caller and callee, and an exit, a trap, an exception or a longjmp in the callee passes as through any call.

A static main module is instantiated before the base module, which uses its table; it, and what is linked into its program, gets
`call_dynamic` as a host function: there an exception of the guest's does not pass from callee to caller.

Where the ABI leaves it open: signatures with references are refused with 28 (`inval`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dl.engine.preview1 import WASIX
from dl.errors import ResourceLimitError
from dl.glue.base import CALL_DYNAMIC
from dl.glue.names import ANOTHER_TYPE, BASE_NAMESPACE
from dl.glue.resolution import FromNamespace
from dl.wasix.abi import Errno
from dl.wasix.adapter import bound, running_guest
from dl.wasix.closures import VALUE_TYPES
from dl.wasm.types import FuncType

if TYPE_CHECKING:
    from dl.wasix.adapter import Adapter, Functions
    from dl.wasix.system import System

_INFO = "BxHH"
"""`cacheable`, padding, number of arguments, number of results."""


def dynamic_call_functions(system: System, adapter: Adapter) -> Functions:
    """Return the guest's interface to functions of unknown type."""
    calls = _DynamicCalls(system)
    functions = adapter.functions(WASIX, {"call_dynamic": calls.call, "reflect_signature": calls.reflect})
    if not system.base_comes_after_main:
        functions["call_dynamic"] = bound(WASIX, "call_dynamic", FromNamespace(BASE_NAMESPACE, CALL_DYNAMIC))
    return functions


class _DynamicCalls:
    def __init__(self, system: System) -> None:
        self._system = system

    def call(self, function: int, *arguments: int) -> int:
        """`call_dynamic` of programs whose base module comes after the main module."""
        group = self._system.current_group()
        if not self._system.reaches_table:
            return Errno.NOTSUP
        kind = group.instances.function_type(function)
        if kind is None or kind.references():
            return Errno.INVAL
        try:
            code = self._system.slots.pool.invoker_code(kind)
        except ResourceLimitError:
            return Errno.NOMEM
        if code is None:
            return Errno.NOTSUP
        with running_guest():
            errno = group.call_invoker(code, function, *arguments)
        return Errno.INVAL if errno == ANOTHER_TYPE else errno  # the function was exchanged meanwhile

    def reflect(
        self, function: int, arguments: int, arguments_size: int, results: int, results_size: int, out: int
    ) -> int:
        """`reflect_signature`; the sizes are numbers of 16 bits."""
        memory = self._system.memory
        if not out:
            return Errno.MEMVIOLATION
        group = self._system.current_group()
        if not self._system.reaches_table:
            memory.write_struct(_INFO, out, 0, 0, 0)
            return Errno.NOTSUP
        if function >= group.instances.table_length():
            memory.write_struct(_INFO, out, 0, 0, 0)
            return Errno.INVAL
        cacheable = function not in self._system.slots.pool
        kind = group.instances.function_type(function)
        if kind is None:
            memory.write_struct(_INFO, out, cacheable, 0, 0)
            return Errno.INVAL
        memory.write_struct(_INFO, out, cacheable, len(kind.params), len(kind.results))
        if len(kind.params) > arguments_size & 0xFFFF or len(kind.results) > results_size & 0xFFFF:
            return Errno.OVERFLOW
        if kind.references():
            return Errno.INVAL
        lists = [(types, at) for types, at in ((kind.params, arguments), (kind.results, results)) if types]
        for types, address in lists:
            memory.read(address, len(types))  # before anything is written
        for types, address in lists:
            memory.write(address, bytes(VALUE_TYPES.index(t) for t in types))
        return Errno.SUCCESS


class Invokers:
    """Table indices of the invokers, by signature; the host's side of the base module's `call_dynamic`.

    `_addresses` is written after the invoker is placed in every group; a reader finds only what every group has.
    """

    def __init__(self, system: System) -> None:
        self._system = system
        self._addresses: dict[FuncType, int] = {}

    def find(self, function: int) -> int:
        """Return the table index of the invoker for the function at a table index, or minus an errno.

        Args:
            function: signed or not: generated code calls this, not the guest.
        """
        if not self._system.reaches_table:
            return -Errno.NOTSUP
        kind = self._system.current_group().instances.function_type(function & 0xFFFFFFFF)
        if kind is None:
            return -Errno.INVAL
        return self._addresses.get(kind) or self._place(kind)

    def _place(self, kind: FuncType) -> int:
        slots = self._system.slots
        if kind.references():
            return -Errno.INVAL
        try:
            code = slots.pool.invoker_code(kind)
            if code is None:
                return -Errno.NOTSUP
            with slots.allocation() as allocation:
                address = allocation.take()
                slots.place(address, code, 0)
        except ResourceLimitError:
            return -Errno.NOMEM
        known = self._addresses.setdefault(kind, address)
        if known != address:
            slots.free(address)  # another thread was first
        return known
