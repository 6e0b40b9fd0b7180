"""Python functions as function pointers of the guest.

One function of the host serves all callbacks of a signature: the trampoline in the table index passes it the callback's
number. So making a callback defines nothing new in the engine, and closing it leaves nothing behind.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from dl.api.agreement import disagreement
from dl.api.values import checked_result
from dl.errors import LinkerUsageError
from dl.glue.names import HOST_NAMESPACE
from dl.glue.trampolines import callback_type
from dl.link.slots import SlotOperations
from dl.options import parse_signature
from dl.program.host_symbols import check_numbers
from dl.program.program import Program
from dl.wasm.types import FuncType
from memory import Uncopied
from threads import uninterrupted

if TYPE_CHECKING:
    from typing_extensions import Self


class Callback(Uncopied):
    """A Python function that the guest can call through a pointer; made by `Linker.callback`.

    Where an integer is asked for, such as an argument of a `GuestFunction`, the callback itself may be given for its address.

    Attributes:
        address: the pointer: a table index, the same in every instance group; 0 once it is closed.
        type: its signature.
        function: the Python function.
    """

    __slots__ = ("_callbacks", "_number", "address", "function", "type")

    def __init__(
        self, callbacks: Callbacks, number: int, address: int, kind: FuncType, function: Callable[..., Any]
    ) -> None:
        self._callbacks = callbacks
        self._number = number
        self.address = address
        self.type = kind
        self.function = function

    def close(self) -> None:
        """Take the pointer back; idempotent, from any thread.

        A call through it traps from then on, in every thread, until the index is handed out again. Calls under way go on.
        """
        self._callbacks.close(self, self._number)

    def __index__(self) -> int:
        if not self.address:
            raise LinkerUsageError(f"{self!r} is closed")
        return self.address

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        name = getattr(self.function, "__qualname__", repr(self.function))
        where = f"at table index {self.address}" if self.address else "(closed)"
        return f"<Callback {name} {self.type} {where}>"


class Callbacks:
    """The callbacks of one program.

    `_lock` guards `_dispatchers`, `_functions` and the claim of a callback that is being closed; a leaf but for the engine's
    own locks.
    """

    def __init__(self, program: Program, slots: SlotOperations) -> None:
        self._program = program
        self._slots = slots
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._functions: dict[int, Callable[..., Any]] = {}
        self._dispatchers: dict[FuncType, str] = {}

    def make(
        self, signature: FuncType | str, function: Callable[..., Any], shown: Callable[..., Any] | None = None
    ) -> Callback:
        """Make a callback; see `Linker.callback`.

        Args:
            signature: text or type.
            function: what is called.
            shown: the user's function, if that is another one.
        """
        if not callable(function):
            raise LinkerUsageError(f"a callback needs a function, not {function!r}")
        kind = signature if isinstance(signature, FuncType) else parse_signature(signature)
        check_numbers(kind)
        differs = disagreement(function, kind) if shown is None else None
        if differs is not None:
            raise LinkerUsageError(f"a callback of {kind}: {differs}")
        self._program.check_dynamic()
        slots = self._slots
        code = slots.pool.callback_code(kind, self._dispatcher(kind))
        number = next(self._numbers) & 0xFFFFFFFF
        with slots.allocation() as allocation:
            address = allocation.take()
            with self._lock:
                self._functions[number] = function
            try:
                slots.place(address, code, number)
            except BaseException:
                self._drop(number)
                raise
            return Callback(self, number, address, kind, shown or function)

    def make_kept(self, kind: FuncType, function: Callable[..., Any]) -> int:
        """Make a callback that stays as long as the program; return its address."""
        return self.make(kind, function).address

    def _dispatcher(self, kind: FuncType) -> str:
        """Return the name of the host function that serves a signature."""
        with self._lock:
            name = self._dispatchers.get(kind)
            if name is None:
                name = f"callback {kind}"
                self._program.functions.define(
                    HOST_NAMESPACE, name, callback_type(kind), partial(self._dispatch, kind)
                )
                self._dispatchers[kind] = name
            return name

    def _dispatch(self, kind: FuncType, *arguments: Any) -> Any:
        function = self._functions.get(arguments[-1] & 0xFFFFFFFF)
        if function is None:
            raise LinkerUsageError("the guest called a callback while it was being closed")
        return checked_result(kind, function(*arguments[:-1]), function)

    def _drop(self, number: int) -> None:
        with self._lock:
            self._functions.pop(number, None)

    def close(self, callback: Callback, number: int) -> None:
        """Close a callback; see `Callback.close`."""
        if not self._program.rendezvous.process.is_this_one():
            return  # it is the parent's
        with uninterrupted():  # or the index would be nobody's between the claim and its end
            with self._lock:
                address, callback.address = callback.address, 0
            if not address:
                return
            try:
                if self._program.ended is None:
                    self._slots.free(address)
            except BaseException:
                # A program that has ended calls nothing any longer.
                if self._program.ended is None:
                    callback.address = address
                raise
            finally:
                if not callback.address:
                    self._drop(number)
