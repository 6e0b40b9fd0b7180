"""The functions of files and process, as the tables of host functions want them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dl.engine.preview1 import PREVIEW1, UNSTABLE, WASIX
from dl.program.host_symbols import SystemFunction
from dl.wasix.abi import NAMESPACES, PROCESS, Errno
from dl.wasix.files.descriptors import DescriptorError
from dl.wasix.files.files import LOOKED_UP
from dl.wasix.files.poll import PREVIEW1_LAYOUT, SNAPSHOT0_LAYOUT, Poll
from dl.wasix.files.snapshot0 import snapshot0_functions
from dl.wasix.files.transfers import Transfers
from dl.wasix.process import Process
from memory import InvalidStringError, OutOfBoundsError

if TYPE_CHECKING:
    from dl.engine.protocol import RawFunction, Slots

_CLOEXEC = 1
_MASKS = {"i32": 0xFFFFFFFF, "i64": 0xFFFFFFFFFFFFFFFF}

Functions = dict[str, dict[str, SystemFunction]]


def process_functions(process: Process) -> Functions:
    """Return, by namespace, the functions for descriptors, directory, signals and terminal of a process."""
    files = process.files
    transfers = Transfers(files)
    preview1 = NAMESPACES[PREVIEW1]

    def renumber(number: int, to: int) -> int:
        return files.renumber(number, to, copies=process.is_wasix)

    typed: dict[str, Callable[..., int]] = {
        "fd_close": files.close,
        "fd_fdstat_get": files.fdstat_get,
        "fd_fdstat_set_flags": files.fdstat_set_flags,
        "fd_filestat_get": files.filestat_get,
        "fd_read": transfers.read,
        "fd_renumber": renumber,
        "fd_write": transfers.write,
        "poll_oneoff": Poll(files, PREVIEW1_LAYOUT),
        "proc_raise": process.proc_raise,
    }
    common = {name: _answering(process, PREVIEW1, name, function) for name, function in typed.items()}
    common |= {name: SystemFunction(preview1[name], raw=files.raw(name)) for name in LOOKED_UP}
    common["path_open"] = SystemFunction(preview1["path_open"], raw=files.answering(files.path_open))

    wasix = {
        name: _answering(process, WASIX, name, getattr(process, name))
        for name in PROCESS
        if name != "path_open2"
    }
    wasix["path_open2"] = SystemFunction(PROCESS["path_open2"], raw=files.answering(_path_open2(process)))
    wasix["thread_signal"] = _answering(process, WASIX, "thread_signal", process.thread_signal)

    unstable = {name: function for name, function in common.items() if name in NAMESPACES[UNSTABLE]}
    for name, function in snapshot0_functions(files).items():
        unstable[name] = _answering(process, UNSTABLE, name, function)
    unstable["poll_oneoff"] = _answering(process, UNSTABLE, "poll_oneoff", Poll(files, SNAPSHOT0_LAYOUT))
    return {PREVIEW1: common, WASIX: common | wasix, UNSTABLE: unstable}


def _path_open2(process: Process) -> RawFunction:
    """`path_open2`: `path_open` with the descriptor's flags before the pointer to the new descriptor."""

    def call(slots: Slots) -> None:
        cloexec = bool(slots.u32(8) & _CLOEXEC)
        slots.set_32(8, slots.u32(9))
        process.files.path_open(slots, cloexec=cloexec)

    return call


def _answering(
    process: Process, namespace: str, name: str, function: Callable[..., int | None]
) -> SystemFunction:
    """Let a function take its arguments unsigned, answer with errnos, and handle signals at its end."""
    kind = NAMESPACES[namespace][name]
    masks = tuple(_MASKS[p] for p in kind.params)
    signals = process.signals

    def call(*arguments: int) -> int:
        result: int | None
        try:
            result = function(*(a & m for a, m in zip(arguments, masks, strict=True)))
        except DescriptorError as error:
            result = error.errno
        except OutOfBoundsError:
            result = Errno.MEMVIOLATION
        except InvalidStringError:
            result = Errno.INVAL
        signals.deliver_if_pending()
        return int(result or 0)

    def silent(*arguments: int) -> None:
        call(*arguments)

    return SystemFunction(kind, function=call if kind.results else silent)
