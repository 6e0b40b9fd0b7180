"""The guest's process: its directory, signals, files and terminal, which all its threads share.

There is one process, number 1, without a parent and without children.
"""

from __future__ import annotations

import errno
import posixpath
import threading
from typing import TYPE_CHECKING

from dl.logs import logger
from dl.modules.beneath import MAX_PATH_BYTES, NotOpenedError, check_directory, too_long
from dl.modules.guest_paths import GuestPaths
from dl.wasix.abi import Errno, ErrnoError
from dl.wasix.clocks import Clocks
from dl.wasix.dynamic_calls import Invokers
from dl.wasix.files.defaults import is_wasix
from dl.wasix.files.files import Files
from dl.wasix.files.streams import EventCounter, pipe
from dl.wasix.files.terminal import Terminal
from dl.wasix.linking import MAX_SYMBOL_BYTES
from dl.wasix.signals import Signals

if TYPE_CHECKING:
    from dl.wasix.system import System

log = logger("dl.wasix")

PROCESS_ID = 1
NO_PROCESS = 0
_CLOEXEC = 1
_SEMAPHORE = 1


_ERRNOS = {
    errno.EACCES: Errno.ACCES,
    errno.ENAMETOOLONG: Errno.NAMETOOLONG,
    errno.ENOTDIR: Errno.NOTDIR,
    errno.ELOOP: Errno.LOOP,
}
"""Errnos of a `chdir` that fails; `ENOENT` for all others, also for what is outside of the open directories."""


class Process:
    """One program's process.

    `_lock` guards `directory`.

    Attributes:
        signals: its signals.
        files: its open files.
        terminal: its terminal.
        clocks: its clocks.
        invokers: what its dynamic calls go through.
        directory: its current directory, an absolute path of the guest's. The C library asks for it once and then
            makes all paths absolute itself; so it is used only for libraries that the guest opens by a relative path.
    """

    def __init__(self, system: System) -> None:
        self._system = system
        self._lock = threading.Lock()
        self._paths = GuestPaths(system.paths.preopens)
        self.signals = Signals(system)
        self.clocks = Clocks(system)
        self.files = Files(system, self.signals, self.clocks)
        self.invokers = Invokers(system)
        self.terminal = Terminal(system.wasi_options)
        self.directory = "/"
        self._is_wasix: bool | None = None  # until there is a main module

    def close(self) -> None:
        """Stop the alarms and restore the host's terminal."""
        self.signals.close()
        self.terminal.close()

    @property
    def is_wasix(self) -> bool:
        """Whether the program's C library is WASIX's, by what the main module imports, and not plain WASI's."""
        known = self._is_wasix
        if known is None:
            main = self._system.main_module
            if main is None:
                return False
            known = self._is_wasix = is_wasix(main.wasm)
        return known

    # current directory

    def getcwd(self, buffer: int, size: int) -> int:
        """`getcwd`: writes the path without a terminator, unless there is room, and its length in bytes."""
        memory = self._system.memory
        room = memory.read_u32(size)
        path = self.directory.encode()
        memory.write_u32(size, len(path))
        if len(path) > room:
            return Errno.RANGE
        if not buffer:
            return Errno.INVAL
        memory.write(buffer, path + b"\0" if len(path) < room else path)
        return Errno.SUCCESS

    def chdir(self, path: int, size: int) -> int:
        """`chdir`."""
        memory = self._system.memory
        if MAX_PATH_BYTES < size <= memory.size - path:
            return Errno.NAMETOOLONG
        name = memory.read_string(path, size)
        if not name or "\0" in name:
            return Errno.NOENT
        with self._lock:
            wanted = posixpath.normpath(posixpath.join(self.directory, name)).replace("//", "/")
            if too_long(wanted):
                return Errno.NAMETOOLONG
            error = self._check_directory(wanted)
            if not error:
                self.directory = wanted
        return error

    def _check_directory(self, path: str) -> Errno:
        place = next(iter(self._paths.places(path)), None)
        if place is not None:
            try:
                check_directory(place, self._paths.identities)
            except NotOpenedError as error:
                return _ERRNOS.get(error.errno, Errno.NOENT)
            return Errno.SUCCESS
        # What lies above an open directory exists, though it cannot be read.
        above = path if path.endswith("/") else path + "/"
        exists = path == "/" or any(directory.guest.startswith(above) for directory in self._paths.preopens)
        return Errno.SUCCESS if exists else Errno.NOENT

    # processes

    def proc_id(self, out: int) -> int:
        """`proc_id`."""
        self._system.memory.write_u32(out, PROCESS_ID)
        return Errno.SUCCESS

    def proc_parent(self, process: int, out: int) -> int:
        """`proc_parent`."""
        if process != PROCESS_ID:
            return Errno.BADF
        self._system.memory.write_u32(out, NO_PROCESS)
        return Errno.SUCCESS

    def proc_join(self, _process: int, _flags: int, _status: int) -> int:
        """`proc_join`: there never is a child."""
        return Errno.CHILD

    # signals

    def callback_signal(self, name: int, size: int) -> None:
        """`callback_signal`; a name that is longer than any symbol's changes nothing."""
        if size > MAX_SYMBOL_BYTES:
            raise ErrnoError(Errno.NAMETOOLONG)
        self.signals.register(self._system.memory.read_string(name, size, errors="replace"))

    def proc_raise(self, signal: int) -> int:
        """`proc_raise`: to the calling thread, whose handler has run when this returns."""
        return self.signals.send(self._system.thread_id(), signal)

    def proc_signal(self, process: int, signal: int) -> int:
        """`proc_signal`: `kill`; to itself, like `proc_raise`."""
        return self.proc_raise(signal) if process in (NO_PROCESS, PROCESS_ID) else Errno.SRCH

    def thread_signal(self, thread: int, signal: int) -> int:
        """`thread_signal`."""
        return self.signals.send(thread, signal)

    def proc_signals_sizes_get(self, out: int) -> int:
        """`proc_signals_sizes_get`: no signal has another disposition than its default from the start."""
        self._system.memory.write_u32(out, 0)
        return Errno.SUCCESS

    def proc_signals_get(self, _buffer: int) -> int:
        """`proc_signals_get`: writes as many as there are, none."""
        return Errno.SUCCESS

    def proc_raise_interval(self, signal: int, nanoseconds: int, repeat: int) -> int:
        """`proc_raise_interval`; each signal has one alarm, so there are 64 at most."""
        if not 0 < signal <= 64:
            return Errno.INVAL
        try:
            self.signals.alarms.set(signal, nanoseconds, repeat=bool(repeat & 0xFF))
        except RuntimeError as error:  # the host has no thread for it
            log.info("proc_raise_interval: %s", error)
            return Errno.AGAIN
        return Errno.SUCCESS

    # descriptors

    def fd_dup(self, number: int, out: int) -> int:
        """`fd_dup`."""
        self._system.memory.read(out, 4)
        self._system.memory.write_u32(out, self.files.duplicate(number))
        return Errno.SUCCESS

    def fd_dup2(self, number: int, least: int, cloexec: int, out: int) -> int:
        """`fd_dup2`: the lowest free number from `least` on (`F_DUPFD`)."""
        self._system.memory.read(out, 4)
        duplicate = self.files.duplicate(number, least=least, cloexec=bool(cloexec & 0xFF))
        self._system.memory.write_u32(out, duplicate)
        return Errno.SUCCESS

    def fd_event(self, value: int, flags: int, out: int) -> int:
        """`fd_event`."""
        self._system.memory.read(out, 4)
        counter = EventCounter(self.files.changes, value, semaphore=bool(flags & _SEMAPHORE))
        self._system.memory.write_u32(out, self.files.add_streams(counter)[0])
        return Errno.SUCCESS

    def fd_pipe(self, out_read: int, out_write: int) -> int:
        """`fd_pipe`: the end to read, then the end to write, as C's `pipe` has them."""
        memory = self._system.memory
        memory.read(out_read, 4)
        memory.read(out_write, 4)
        reader, writer = pipe(self.files.changes, self.files.pipe_budget)
        numbers = self.files.add_streams(reader, writer)
        memory.write_u32(out_read, numbers[0])
        memory.write_u32(out_write, numbers[1])
        return Errno.SUCCESS

    def fd_fdflags_get(self, number: int, out: int) -> int:
        """`fd_fdflags_get`."""
        flags = _CLOEXEC if self.files.table.descriptor(number).cloexec else 0
        self._system.memory.write_u16(out, flags)
        return Errno.SUCCESS

    def fd_fdflags_set(self, number: int, flags: int) -> int:
        """`fd_fdflags_set`."""
        self.files.table.descriptor(number).cloexec = bool(flags & _CLOEXEC)
        return Errno.SUCCESS

    # the rest

    def clock_time_set(self, _clock: int, _time: int) -> int:
        """`clock_time_set`: the host's clocks are not the guest's to set."""
        return Errno.PERM

    def tty_get(self, out: int) -> int:
        """`tty_get`."""
        return self.terminal.get(self._system.memory, out)

    def tty_set(self, state: int) -> int:
        """`tty_set`."""
        return self.terminal.set(self._system.memory, state)
