"""`call_dynamic` and `reflect_signature` of WASIX: calls of functions whose types the caller's code does not know.

`call_dynamic` is a function of WebAssembly, in the base module: it asks the host for the invoker of the callee's signature,
generated once, and calls it through the table. So nothing of the host lies between caller and callee, and an exit, a trap,
an exception or a longjmp in the callee passes as through any call.

A static main module is instantiated before the base module, which uses its table; it, and what is linked into its program, gets
`call_dynamic` as a host function: there an exception of the guest's does not pass from callee to caller.

Where the ABI leaves it open: signatures with references are refused with 28 (`inval`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dl.engine.preview1 import signature
from dl.errors import ResourceLimitError
from dl.glue.base import CALL_DYNAMIC, CALL_DYNAMIC_TYPE
from dl.glue.names import BASE_NAMESPACE
from dl.glue.resolution import FromNamespace
from dl.glue.trampolines import is_packable
from dl.program.host_symbols import SystemFunction
from dl.program.main_module import MainKind
from dl.wasix.closures import VALUE_TYPES
from dl.wasm.types import FuncType
from memory import OutOfBoundsError

if TYPE_CHECKING:
    from dl.linker import Linker

SUCCESS, INVALID, NOMEM, NOT_SUPPORTED, OVERFLOW, MEMORY_VIOLATION = 0, 28, 48, 58, 61, 78

_MASK = 0xFFFFFFFF
_INFO = "BxHH"
"""`cacheable`, padding, number of arguments, number of results."""


def dynamic_call_functions(linker: Linker) -> dict[str, SystemFunction]:
    """Return the guest's interface to functions of unknown type."""
    calls = _DynamicCalls(linker)
    if linker.program.base_comes_after_main:
        call = SystemFunction(CALL_DYNAMIC_TYPE, function=calls.call)
    else:
        call = SystemFunction(CALL_DYNAMIC_TYPE, binding=FromNamespace(BASE_NAMESPACE, CALL_DYNAMIC))
    return {
        "call_dynamic": call,
        "reflect_signature": SystemFunction(signature("iiiiii:i"), function=calls.reflect),
    }


def reaches_table(linker: Linker) -> bool:
    """Whether the table that the guest's pointers mean is one that the linker can look into."""
    if not linker.engine.capabilities.table_reflection:
        return False
    plan, main = linker.program.plan, linker.main_module
    if plan.kind is not MainKind.STATIC or plan.places.table.namespace != BASE_NAMESPACE:
        return True
    return main is not None and any(entry.kind == "table" for entry in main.wasm.imports)


class _DynamicCalls:
    def __init__(self, linker: Linker) -> None:
        self._linker = linker

    def call(self, function: int, *arguments: int) -> int:
        """`call_dynamic` of programs whose base module comes after the main module."""
        group = self._linker.threads.current()
        if not reaches_table(self._linker):
            return NOT_SUPPORTED
        kind = group.function_type(function & _MASK)
        if kind is None or not is_packable(kind):
            return INVALID
        code = self._linker.closures.invoker_code(kind)
        return NOT_SUPPORTED if code is None else group.call_invoker(code, function, *arguments)

    def reflect(
        self, function: int, arguments: int, arguments_size: int, results: int, results_size: int, out: int
    ) -> int:
        try:
            return self._reflect(
                function & _MASK,
                (arguments & _MASK, arguments_size & 0xFFFF),
                (results & _MASK, results_size & 0xFFFF),
                out & _MASK,
            )
        except OutOfBoundsError:
            return MEMORY_VIOLATION

    def _reflect(self, function: int, arguments: tuple[int, int], results: tuple[int, int], out: int) -> int:
        memory = self._linker.memory
        if not out:
            return MEMORY_VIOLATION
        group = self._linker.threads.current()
        if not reaches_table(self._linker):
            memory.write_struct(_INFO, out, 0, 0, 0)
            return NOT_SUPPORTED
        if function >= group.table_length():
            memory.write_struct(_INFO, out, 0, 0, 0)
            return INVALID
        cacheable = function not in self._linker.closures
        kind = group.function_type(function)
        if kind is None:
            memory.write_struct(_INFO, out, cacheable, 0, 0)
            return INVALID
        memory.write_struct(_INFO, out, cacheable, len(kind.params), len(kind.results))
        if len(kind.params) > arguments[1] or len(kind.results) > results[1]:
            return OVERFLOW
        if not is_packable(kind):
            return INVALID
        for types, (address, _) in ((kind.params, arguments), (kind.results, results)):
            if types:
                memory.read(address, len(types))
        for types, (address, _) in ((kind.params, arguments), (kind.results, results)):
            if types:
                memory.write(address, bytes(VALUE_TYPES.index(t) for t in types))
        return SUCCESS


class Invokers:
    """Table indices of the invokers, by signature; the host's side of the base module's `call_dynamic`.

    `_addresses` is written in the link lock, after the commit; a reader finds only what every group has.
    """

    def __init__(self, linker: Linker) -> None:
        self._linker = linker
        self._addresses: dict[FuncType, int] = {}

    def find(self, function: int) -> int:
        """Return the table index of the invoker for the function at a table index, or minus an errno."""
        if not self._linker.engine.capabilities.table_reflection:
            return -NOT_SUPPORTED
        kind = self._linker.threads.current().function_type(function & _MASK)
        if kind is None:
            return -INVALID if reaches_table(self._linker) else -NOT_SUPPORTED
        return self._addresses.get(kind) or self._place(kind)

    def _place(self, kind: FuncType) -> int:
        linker = self._linker
        if not is_packable(kind):
            return -INVALID
        code = linker.closures.invoker_code(kind)
        if code is None:
            return -NOT_SUPPORTED
        try:
            address = linker.closures.allocate()
        except ResourceLimitError:
            return -NOMEM
        linker.closures.place(address, code, 0)
        known = self._addresses.setdefault(kind, address)
        if known != address:
            linker.closures.free(address)  # another thread was first
        return known
