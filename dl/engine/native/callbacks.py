"""Calls out of the guest: Python functions as native callbacks that get the address of their slots.

The engine calls `(environment, caller, address of the slots, number of slots)`; the callback returns None, or the native
ending that unwinds the guest.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dl.engine.native.entry import entry
from dl.engine.native.pending import interrupt_guest
from dl.engine.native.slots import views
from dl.engine.native.values import SLOT_BYTES, marshaller
from dl.wasm.types import FuncType

if TYPE_CHECKING:
    from dl.engine.protocol import Boundary, RawFunction

Callback = Callable[[int, int, int, int], "int | None"]


def typed_callback(
    kind: FuncType,
    function: Callable[..., Any],
    boundary: Boundary,
    make_ending: Callable[[], int],
    *,
    blocking: bool,
    name: str = "",
) -> Callback:
    """Return the callback of a function on typed Python values; see `dl.engine.protocol.HostFunctions.define`.

    Args:
        kind: its signature.
        function: what to call.
        boundary: what happens around it if it may block.
        make_ending: makes the native ending when it raises.
        blocking: whether it may block.
        name: what errors about its results call it, as host functions are named: `3:env.log (i32) -> ()` is `env.log`.

    Raises:
        ValueConversionError: the signature has values that Python code cannot hold.
    """
    convert = marshaller(kind)
    unpack, pack, pack_checked = (
        convert.arguments.unpack_from,
        convert.results.pack_into,
        convert.pack_results,
    )
    view = (ctypes.c_char * (convert.slots * SLOT_BYTES)).from_address
    single = len(kind.results) == 1 and kind.results[0] != "v128"
    enter = boundary.enter_host if blocking else None
    leave = boundary.exit_host
    label = name.partition(":")[2].partition(" (")[0] or name

    @entry
    def called(_env: int, _caller: int, arguments: int, _slots: int) -> int | None:
        try:
            token = enter() if enter else None
            area = view(arguments)
            value = function(*unpack(area))
            if single:
                try:
                    pack(area, 0, value)
                except (struct.error, OverflowError, TypeError):
                    pack_checked(area, value, label)
            else:
                pack_checked(area, value, label)
            if enter:
                leave(token)
        except BaseException as error:  # noqa: BLE001  carried to the caller whose guest call it interrupts
            return interrupt_guest(error, make_ending)
        return None

    return called


def raw_callback(
    kind: FuncType, function: RawFunction, boundary: Boundary, make_ending: Callable[[], int]
) -> Callback:
    """Return the callback of a function on slots, which may block."""
    enter, leave = boundary.enter_host, boundary.exit_host
    view = views(max(len(kind.params), len(kind.results), 1))

    @entry
    def called(_env: int, _caller: int, arguments: int, _slots: int) -> int | None:
        try:
            token = enter()
            function(view(arguments))
            leave(token)
        except BaseException as error:  # noqa: BLE001  carried to the caller whose guest call it interrupts
            return interrupt_guest(error, make_ending)
        return None

    return called
