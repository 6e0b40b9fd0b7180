"""`closure_allocate`, `closure_prepare` and `closure_free` of WASIX: function pointers made at run time, as libffi needs.

ABI: functions of `wasix_32v1`; the result is an errno. A closure has a signature, a backing function `(values, results,
environment)`, and an environment. Its arguments and results lie packed on the caller's shadow stack while the backing function
runs. It is a function of WebAssembly in every group, those of later threads included.

Where the ABI leaves it open: preparing an index that `closure_allocate` has not handed out is refused with 28 (`inval`),
and so is a signature of more than 1,000 arguments or results, the most a function may have; a freed closure traps when
it is called.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from dl.engine.preview1 import signature
from dl.errors import InvalidModuleError, NotDynamicError, ResourceLimitError
from dl.program.host_symbols import SystemFunction
from dl.wasm.types import FuncType
from memory import OutOfBoundsError

if TYPE_CHECKING:
    from dl.wasix.system import System

SUCCESS, FAULT, INVALID, NOT_SUPPORTED, MEMORY_VIOLATION = 0, 21, 28, 58, 78

VALUE_TYPES = ("i32", "i64", "f32", "f64", "v128")
"""Value types by their byte in lists of types."""

MAX_VALUES = 1000
"""Most arguments and most results that a function can have in current engines (WebAssembly JavaScript interface, limits)."""

_MASK = 0xFFFFFFFF

log = logging.getLogger("dl.link")


def closure_functions(system: System) -> dict[str, SystemFunction]:
    """Return the guest's interface to closures."""
    calls = _Closures(system)
    return {
        "closure_allocate": SystemFunction(signature("i:i"), function=calls.allocate),
        "closure_prepare": SystemFunction(signature("iiiiiii:i"), function=calls.prepare),
        "closure_free": SystemFunction(signature("i:i"), function=calls.free),
    }


class _Closures:
    def __init__(self, system: System) -> None:
        self._system = system
        # Indices that the guest was given: the pool serves the host's callbacks too, which are not the guest's to free.
        # Each step on the set is one under the GIL; two threads that free one index are settled by the pool.
        self._given: set[int] = set()

    def _refused(self) -> bool:
        try:
            self._system.check_dynamic()
        except NotDynamicError:
            return True
        return False

    def allocate(self, out: int) -> int:
        if self._refused():
            return NOT_SUPPORTED
        slots = self._system.slots
        try:
            address = slots.allocate()
        except ResourceLimitError as error:
            log.info("guest: closure_allocate: %s", error)
            return FAULT
        self._given.add(address)
        try:
            self._system.memory.write_u32(out & _MASK, address)
        except OutOfBoundsError:
            self.free(address)  # nobody learns of it; by the ABI this is no error
        return SUCCESS

    def prepare(
        self,
        backing: int,
        closure: int,
        arguments: int,
        argument_count: int,
        results: int,
        result_count: int,
        environment: int,
    ) -> int:
        if self._refused():
            return NOT_SUPPORTED
        try:
            params = self._types(arguments & _MASK, argument_count & _MASK)
            returned = self._types(results & _MASK, result_count & _MASK)
        except OutOfBoundsError:
            return MEMORY_VIOLATION
        if params is None or returned is None or closure & _MASK not in self._given:
            return INVALID
        slots, kind = self._system.slots, FuncType(params, returned)
        try:
            code = slots.closure_code(kind)
        except InvalidModuleError as error:
            log.info("guest: closure_prepare: %s", error)
            return INVALID
        log.debug(
            "guest: closure_prepare(%#x, %#x, %s, %#x)", backing & _MASK, closure & _MASK, kind, environment
        )
        return SUCCESS if slots.place(closure & _MASK, code, backing, environment) else INVALID

    def _types(self, address: int, count: int) -> tuple[str, ...] | None:
        """Read a list of types; None if it is none.

        Raises:
            OutOfBoundsError: it lies outside memory.
        """
        if not count:
            return ()
        memory = self._system.memory
        if count > MAX_VALUES:
            memory.read(address + count - 1, 1)
            return None
        octets = memory.read(address, count)
        if max(octets) >= len(VALUE_TYPES):
            return None
        return tuple(VALUE_TYPES[octet] for octet in octets)

    def free(self, closure: int) -> int:
        if self._refused():
            return NOT_SUPPORTED
        if closure & _MASK in self._given:
            self._given.discard(closure & _MASK)
            self._system.slots.free(closure & _MASK)
        return SUCCESS
