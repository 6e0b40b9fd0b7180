"""The functions for descriptors, directory, signals and terminal of a process, by namespace."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from dl.engine.preview1 import PREVIEW1, UNSTABLE, WASIX
from dl.wasix.abi import NAMESPACES, PROCESS
from dl.wasix.adapter import with_split_arguments
from dl.wasix.files.files import LOOKED_UP
from dl.wasix.files.forwarding import closing
from dl.wasix.files.opening import path_open
from dl.wasix.files.poll import PREVIEW1_LAYOUT, SNAPSHOT0_LAYOUT, Poll
from dl.wasix.files.snapshot0 import snapshot0_functions
from dl.wasix.files.transfers import Transfers

if TYPE_CHECKING:
    from dl.engine.protocol import RawFunction, Slots
    from dl.wasix.adapter import Adapter, Functions
    from dl.wasix.process import Process

_CLOEXEC = 1


def process_functions(
    process: Process, adapter: Adapter, make_slots: Callable[[int], Slots]
) -> dict[str, Functions]:
    """Return the functions of a process, by namespace; `make_slots` makes an argument area of a number of slots."""
    files = process.files
    transfers = Transfers(files)

    def renumber(number: int, to: int) -> int:
        return files.renumber(number, to, copies=process.is_wasix)

    typed: dict[str, Callable[..., int]] = {
        "clock_res_get": process.clocks.clock_res_get,
        "clock_time_get": process.clocks.clock_time_get,
        "fd_fdstat_get": files.fdstat_get,
        "fd_fdstat_set_flags": files.fdstat_set_flags,
        "fd_filestat_get": files.filestat_get,
        "fd_read": transfers.read,
        "fd_renumber": renumber,
        "fd_write": transfers.write,
        "poll_oneoff": Poll(files, PREVIEW1_LAYOUT),
        "proc_raise": process.proc_raise,
    }
    common = adapter.functions(PREVIEW1, typed)
    common |= {name: adapter.raw(PREVIEW1, name, files.raw(name)) for name in LOOKED_UP}
    common["fd_close"] = adapter.raw(PREVIEW1, "fd_close", closing(files, lambda: process.is_wasix))
    common["path_open"] = adapter.raw(PREVIEW1, "path_open", partial(path_open, files))

    own = {name: getattr(process, name) for name in PROCESS if name != "path_open2"}
    wasix = adapter.functions(WASIX, own | {"thread_signal": process.thread_signal})
    wasix["path_open2"] = adapter.raw(WASIX, "path_open2", _path_open2(process))

    unstable = {name: function for name, function in common.items() if name in NAMESPACES[UNSTABLE]}
    unstable |= adapter.functions(UNSTABLE, snapshot0_functions(files))
    unstable["poll_oneoff"] = adapter.function(UNSTABLE, "poll_oneoff", Poll(files, SNAPSHOT0_LAYOUT))
    split = {name: with_split_arguments(function, make_slots) for name, function in common.items()}
    return {PREVIEW1: split, WASIX: common | wasix, UNSTABLE: unstable}


def _path_open2(process: Process) -> RawFunction:
    """`path_open2`: `path_open` with the descriptor's flags before the pointer to the new descriptor."""

    def call(slots: Slots) -> None:
        cloexec = bool(slots.u32(8) & _CLOEXEC)
        slots.set_32(8, slots.u32(9))
        path_open(process.files, slots, cloexec=cloexec)

    return call
