"""`closure_allocate`, `closure_prepare` and `closure_free` of WASIX: function pointers made at run time, as libffi needs.

ABI: functions of `wasix_32v1`; the result is an errno. A closure has a signature, a backing function `(values, results,
environment)`, and an environment. Its arguments and results lie packed on the caller's shadow stack while the backing function
runs. It is a function of WebAssembly in every group, those of later threads included.

Where the ABI leaves it open: preparing an index that `closure_allocate` has not returned is refused with 28 (`inval`),
and so is a signature of more than 1,000 arguments or results, the most a function may have; a freed closure traps when
it is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dl.engine.preview1 import WASIX
from dl.errors import InvalidModuleError, NotDynamicError, ResourceLimitError
from dl.logs import logger
from dl.wasix.abi import Errno, ErrnoError
from dl.wasm.types import FuncType
from memory import OutOfBoundsError

if TYPE_CHECKING:
    from dl.wasix.adapter import Adapter, Functions
    from dl.wasix.system import System

VALUE_TYPES = ("i32", "i64", "f32", "f64", "v128")
"""Value types by their byte in lists of types."""

MAX_VALUES = 1000
"""Most arguments and most results that a function can have in current engines (WebAssembly JavaScript interface, limits)."""

log = logger("dl.link")


def closure_functions(system: System, adapter: Adapter) -> Functions:
    """Return the guest's interface to closures."""
    calls = _Closures(system)
    return adapter.functions(
        WASIX,
        {
            "closure_allocate": calls.allocate,
            "closure_prepare": calls.prepare,
            "closure_free": calls.free,
        },
    )


class _Closures:
    def __init__(self, system: System) -> None:
        self._system = system
        # Indices that the guest was given: the pool serves the host's callbacks too, which the guest must not free.
        # Each step on the set is atomic under the GIL; of two threads that free one index, the pool refuses the second.
        self._given: set[int] = set()

    def _check_dynamic(self) -> None:
        """Check that the program's table can take functions.

        Raises:
            ErrnoError: NOTSUP.
        """
        try:
            self._system.check_dynamic()
        except NotDynamicError:
            raise ErrnoError(Errno.NOTSUP) from None

    def allocate(self, out: int) -> int:
        """`closure_allocate`."""
        self._check_dynamic()
        try:
            with self._system.slots.allocation() as allocation:
                address = allocation.take()
                self._system.memory.write_u32(out, address)
                self._given.add(address)
        except ResourceLimitError as error:
            log.info("guest: closure_allocate: %s", error)
            return Errno.FAULT
        except OutOfBoundsError:
            pass  # the guest never learns the index, which is free again; by the ABI this is no error
        return Errno.SUCCESS

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
        """`closure_prepare`."""
        self._check_dynamic()
        params = self._types(arguments, argument_count)
        returned = self._types(results, result_count)
        if params is None or returned is None or closure not in self._given:
            return Errno.INVAL
        slots, kind = self._system.slots, FuncType(params, returned)
        try:
            code = slots.pool.closure_code(kind)
        except InvalidModuleError as error:
            log.info("guest: closure_prepare: %s", error)
            return Errno.INVAL
        except ResourceLimitError as error:
            log.info("guest: closure_prepare: %s", error)
            return Errno.NOMEM
        log.debug("guest: closure_prepare(%#x, %#x, %s, %#x)", backing, closure, kind, environment)
        return Errno.SUCCESS if slots.place(closure, code, backing, environment) else Errno.INVAL

    def _types(self, address: int, count: int) -> tuple[str, ...] | None:
        """Read a list of value types; None if it is not one.

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
        """`closure_free`; an index that is not allocated is no error."""
        self._check_dynamic()
        if closure in self._given:
            self._given.discard(closure)
            self._system.slots.free(closure)
        return Errno.SUCCESS
