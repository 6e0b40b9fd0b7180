"""Calls into the guest: guest functions as Python callables.

A call is one foreign call on an argument area that belongs to the function object. The area may be shared by recursive
calls: the engine reads all arguments before the first guest instruction and writes all results after the last.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any

from dl.engine.native.arguments import address_argument, size_argument
from dl.engine.native.entry import need_room
from dl.engine.native.store import NativeStore
from dl.engine.native.values import SLOT_BYTES, marshaller, result_reader
from dl.wasm.types import FuncType

if TYPE_CHECKING:
    from dl.engine.protocol import RawFunction


def callable_function(
    store: NativeStore, call: Callable[..., Any], function: Sequence[int], keep: object, kind: FuncType
) -> Callable[..., Any]:
    """Return a Python callable on typed values for a function of a store.

    Args:
        store: the store.
        call: the engine's native call, which takes what `dl.engine.native.arguments` makes: the function, the address of the
            slots, their number, and the address where it puts an ending; it returns another ending, or None.
        function: the addresses by which the engine knows the function.
        keep: what must live as long as the callable.
        kind: the signature.

    Raises:
        ValueConversionError: the signature has values that Python code cannot hold.
    """
    convert = marshaller(kind)
    area = ctypes.create_string_buffer(convert.slots * SLOT_BYTES)
    pack, read = convert.arguments.pack_into, result_reader(kind, area)
    wrap, parameters, trap = convert.wrap, kind.params, store.trap
    addresses = map(address_argument, (*function, ctypes.addressof(area)))
    native = partial(call, *addresses, size_argument(convert.slots), address_argument(store.trap_address))
    checked = "v128" in parameters

    def invoke(*arguments: Any, _keep: object = keep) -> Any:
        if checked:
            arguments = wrap(parameters, arguments, "arguments")
        try:
            pack(area, 0, *arguments)
        except (struct.error, OverflowError, TypeError):
            pack(area, 0, *wrap(parameters, arguments, "arguments"))
        need_room()
        if get_ident() != store.thread:
            store.enter_thread()
        store.running += 1
        try:
            error = native()
        except BaseException as interruption:
            store.discard_ending(interruption)
            raise
        finally:
            store.running -= 1
        if error is not None or trap.value is not None:
            store.raise_ending(error)
        return read()

    return invoke


def raw_callable(
    store: NativeStore,
    call: Callable[..., Any],
    function: Sequence[int],
    keep: object,
    *,
    calls_back: bool = True,
) -> RawFunction:
    """Return a callable on slots for a function of a store; `calls_back` as in `EngineInstance.raw_function`.

    What surrounds the call is written out here as above: one more Python call would make each a tenth slower.
    """
    trap, trap_argument = store.trap, address_argument(store.trap_address)
    called = tuple(map(address_argument, function))

    def invoke(slots: Any, _keep: object = keep) -> None:
        if calls_back:
            need_room()
        if get_ident() != store.thread:
            store.enter_thread()
        store.running += 1
        try:
            error = call(*called, *slots.arguments, trap_argument)
        except BaseException as interruption:
            store.discard_ending(interruption)
            raise
        finally:
            store.running -= 1
        if error is not None or trap.value is not None:
            store.raise_ending(error)

    return invoke
