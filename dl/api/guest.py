"""Functions and data of the guest, as Python holds them."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from operator import index
from threading import get_ident
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dl.api.blocks import lent_arguments
from dl.api.deadlines import bounded
from dl.api.values import meaning, reads_address
from dl.dlfcn import ModuleHandle
from dl.errors import InvalidHandleError, LinkerUsageError, ValueConversionError
from dl.groups.entry import Group
from dl.groups.errors import dl_error
from dl.modules.symbols import FunctionSymbol
from dl.program.state import LinkerState
from dl.wasm.types import FuncType
from memory import InvalidStringError, OutOfBoundsError, Uncopied
from threads import DETACHED, ThreadsError, recording

if TYPE_CHECKING:
    import inspect

    from dl.linker import Linker

R = TypeVar("R")

_PYTHON_TYPES = {"i32": int, "i64": int, "f32": float, "f64": float, "v128": bytes}


class GuestFunction(Uncopied):
    """A function of the guest, callable from the thread that its instance group belongs to.

    Arguments and results are int (i32, i64; results signed), float (f32, f64) and 16 bytes (v128). No result is None,
    several are a tuple. Where the function takes a pointer, text and bytes may be given: they are copied into the guest, with
    a zero byte behind them, for the time of the call. So may anything with the buffer protocol, such as a `bytearray`, a
    structure of ctypes or an array of NumPy; if it can be written, it has afterwards what the guest has made of it.

    Attributes:
        name: its symbol.
        type: its signature.
        address: its table index: the function pointer, the same in every group.
        module: the module that defines it.
    """

    __slots__ = ("_group", "_invoke", "_linker", "_replica", "address", "module", "name", "type")

    def __init__(self, linker: Linker, group: Group, symbol: FunctionSymbol) -> None:
        self._linker = linker
        self._group = group
        self.name = symbol.name
        self.type = symbol.type
        self.address = symbol.address
        self.module = symbol.module
        self._invoke: Callable[..., Any] = self._invoke_first
        self._replica = group.replica

    def __call__(self, *arguments: Any, timeout: float | None = None, cpu_time: float | None = None) -> Any:
        """Call the function.

        Args:
            arguments: one for each parameter.
            timeout: seconds after which the call ends with an error; None for no bound. Costs a thread each time.
            cpu_time: seconds of processor time that the calling thread may use in the call; None for no bound.

        Raises:
            ValueConversionError: an argument does not fit the signature.
            TrapError: the guest trapped.
            GuestTimeoutError: it ran longer than it may.
            ProgramExited: the guest ended the program.
            GroupEndedError: the group could not follow the other threads, or was closed.
            ProgramDeadlockedError: it waits, and so does every other thread of the program.
            LinkerUsageError: called from a thread that does not own the group; or a bound is given and the program was made
                without `interrupts`.
        """
        if timeout is not None or cpu_time is not None:
            with bounded(self._linker, self._group, self.name, timeout, cpu_time):
                return self(*arguments)
        # The steps of `Group.in_guest`, written out: one more Python call makes each guest call a tenth slower.
        group = self._group
        if group.owner != get_ident():
            group.check_owner()
        replica = self._replica
        began = monotonic_ns() if recording.recorders else 0
        try:
            previous = replica.enter_guest()
            try:
                if previous == DETACHED:
                    group.visits += 1
                    stack_pointer = None
                else:
                    stack_pointer = group.instances.stack_pointer()
                try:
                    return self._invoke(*arguments)
                except BaseException:
                    group.unwound(stack_pointer)
                    raise
            finally:
                replica.leave_guest(previous)
                if began:
                    recording.since(began, "guest", "call", self.name)
        except ThreadsError as error:
            raise dl_error(error) from error.__cause__
        except ValueConversionError as error:
            refused = error
        return self._call_converted(arguments, refused)

    def _invoke_first(self, *arguments: Any) -> Any:
        """Get the engine's function and call it: many functions that are looked up are handed on and never called."""
        self._invoke = self._group.instances.function(self.module, self.name, self.type)
        return self._invoke(*arguments)

    def _call_converted(self, arguments: tuple[Any, ...], refused: ValueConversionError) -> Any:
        """Call again with what can be lent to the guest in its memory; such arguments are always refused before the call."""
        if refused.function or refused.kind != self.type:
            raise refused
        lendable = [
            position
            for position, (kind, value) in enumerate(zip(self.type.params, arguments, strict=False))
            if kind == "i32" and is_lendable(value)
        ]
        if not lendable or len(arguments) != len(self.type.params):
            raise ValueConversionError(refused.kind, refused.reason, self.name)
        with lent_arguments(self._linker, self.name, arguments, lendable) as addresses:
            return self(*addresses)

    def returning(self, result: type[R]) -> TypedFunction[R]:
        """Return the same function with another type of its result.

        Args:
            result: `int`, `bool` or `dl.Pointer` (unsigned) of an i32; `float`; `str`, `dl.CString` or `bytes` of a pointer to
                what ends with a zero byte; a structure of ctypes of a pointer to it, without a copy.

        Raises:
            LinkerUsageError: the function's result cannot be that.
        """
        return TypedFunction(self._linker, self, result)

    def close(self) -> None:
        """Refuse calls from now on: the library is unloaded. By the linker, when the group forgets the library."""

        def refuse(*_: Any) -> None:
            raise InvalidHandleError(self.module, f"{self.name} is gone: its library was closed")

        self._invoke = refuse

    def __index__(self) -> int:
        return self.address

    @property
    def __name__(self) -> str:
        return self.name

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        return f"{self.name}{self.type}, a function of the guest."

    @property
    def __signature__(self) -> inspect.Signature:
        return signature_of(self.type)

    def __repr__(self) -> str:
        return f"<GuestFunction {self.name}{self.type} at table index {self.address}>"


def signature_of(kind: FuncType) -> inspect.Signature:
    """Return a signature of WebAssembly as Python shows signatures."""
    import inspect  # noqa: PLC0415  slow, and seldom needed

    parameters = [
        inspect.Parameter(
            f"arg{number}", inspect.Parameter.POSITIONAL_ONLY, annotation=_PYTHON_TYPES.get(name, object)
        )
        for number, name in enumerate(kind.params)
    ]
    results = [_PYTHON_TYPES.get(name, object) for name in kind.results]
    returned = None if not results else results[0] if len(results) == 1 else tuple
    return inspect.Signature(parameters, return_annotation=returned)


def is_lendable(value: Any) -> bool:
    """Whether a value can be put into the guest's memory for a call; what passes for an integer needs not."""
    try:
        index(value)
    except TypeError:
        pass
    else:
        return False
    if isinstance(value, (str, bytes, bytearray, memoryview, ctypes.Structure, ctypes.Union, ctypes.Array)):
        return True
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, (numpy.number, numpy.bool_)):
        return False  # a number, which has a buffer nonetheless
    try:
        memoryview(value).release()
    except TypeError:
        return False
    return True


class TypedFunction(Uncopied, Generic[R]):
    """A function of the guest whose result has a type; made by `GuestFunction.returning` and `Library.function`.

    Attributes:
        function: the function itself.
        result: the type.
    """

    def __init__(self, linker: Linker, function: GuestFunction, result: type[R]) -> None:
        self._linker = linker
        self.function = function
        self.result = result
        known = meaning(result)
        self._reads_address = known is not None and reads_address(result)
        if result is type(None):
            fits = not function.type.results
        else:
            fits = known is not None and function.type.results in (
                (known.kind,),
                *((("i64",),) if result is int else ()),
                *((("f32",),) if result is float else ()),
                *((("v128",),) if result is bytes else ()),
            )
        if not fits:
            raise LinkerUsageError(
                f"{function.name} is {function.type}: its result cannot be of type {getattr(result, '__name__', result)}"
            )
        self._read = known.read if known is not None and function.type.results != ("v128",) else None

    def __call__(self, *arguments: Any, timeout: float | None = None, cpu_time: float | None = None) -> R:
        """Call the function; see `GuestFunction`.

        Raises:
            ValueConversionError: it returned a null pointer where something was to be read, or an address where there is none:
                no UTF-8, or outside the memory. The latter is caused by the error of the memory.
        """
        value: Any
        if timeout is None and cpu_time is None:
            value = self.function(*arguments)
        else:
            value = self.function(*arguments, timeout=timeout, cpu_time=cpu_time)
        if self._read is None:
            return value  # type: ignore[no-any-return]
        if value == 0 and self._reads_address:
            raise ValueConversionError(
                self.function.type,
                f"it returned a null pointer, not a {self.result.__name__}; ask for dl.Pointer to see it",
                self.function.name,
            )
        try:
            return self._read(lambda: self._linker.memory, value)  # type: ignore[no-any-return]
        except (InvalidStringError, OutOfBoundsError) as error:
            raise ValueConversionError(
                self.function.type, f"its result is no {self.result.__name__}: {error}", self.function.name
            ) from error

    def __index__(self) -> int:
        return self.function.address

    def __repr__(self) -> str:
        return f"<TypedFunction {self.function.name}{self.function.type} returning {self.result.__name__}>"


class GuestData(Uncopied):
    """Data of the guest.

    Attributes:
        name: its symbol.
        module: the module that defines it.
    """

    __slots__ = ("_address", "_state", "module", "name")

    def __init__(self, name: str, address: int, module: ModuleHandle, state: LinkerState) -> None:
        self.name = name
        self._address = address
        self.module = module
        self._state = state

    @property
    def address(self) -> int:
        """Where it is in linear memory, bytes; of a thread-local variable, this thread's copy.

        Raises:
            InvalidHandleError: its library was closed.
        """
        if self.module not in self._state.modules:
            raise InvalidHandleError(self.module, f"{self.name} is gone: its library was closed")
        return self._address

    def __index__(self) -> int:
        return self.address

    def __repr__(self) -> str:
        return f"<GuestData {self.name} at {self._address:#x}>"
