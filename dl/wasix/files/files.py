"""Descriptors of the process: WASI's files under our numbers, and the streams that WASI does not have.

Every function that takes a descriptor is served here, for every namespace. For a file of WASI's the number is replaced and
the engine's function called, under the lock of `WasiCalls`; that lock also guards the table, so a descriptor cannot be
closed, and its number reused, between look-up and use. Nothing waits under it: waits for standard input are outside,
and pipes and events are not WASI's at all. Regular files of the host's are not either: see `regular.py`.
"""

from __future__ import annotations

import os
import posixpath
from typing import TYPE_CHECKING

from dl.modules.beneath import MAX_PATH_BYTES
from dl.modules.guest_paths import guest_root
from dl.program.wasi import WasiCalls
from dl.wasix.abi import Errno, ErrnoError
from dl.wasix.clocks import Clocks
from dl.wasix.files.descriptors import FIRST_PREOPEN, DescriptorTable, OpenFile
from dl.wasix.files.devices import CHARACTER_DEVICE, DEVICES, TERMINAL, TerminalDevice, terminal_output
from dl.wasix.files.devices import LONGEST as LONGEST_DEVICE
from dl.wasix.files.forwarding import by_descriptor, by_path
from dl.wasix.files.host_files import HostDirectory
from dl.wasix.files.host_input import CAN_WAIT, HostInput
from dl.wasix.files.preopens import below_preopen
from dl.wasix.files.regular import RegularFiles
from dl.wasix.files.streams import Changes, Stream
from dl.wasix.limits import Budget
from dl.wasix.signals import Signals
from memory import LinearMemory
from threads import Waits

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

    from dl.engine.protocol import RawFunction, Slots
    from dl.engine.values import WasiOptions
    from dl.wasix.system import System

_NONBLOCK = 4
_RIGHT_READ, _RIGHT_SET_FLAGS, _RIGHT_WRITE, _RIGHT_FILESTAT, _RIGHT_POLL = (
    1 << 1,
    1 << 3,
    1 << 6,
    1 << 21,
    1 << 27,
)
_RIGHT_SEEK, _RIGHT_TELL = 1 << 2, 1 << 5
_OPEN_DIRECTORY, _OPEN_EXCLUSIVE = 2, 4

_PATHS: dict[str, tuple[tuple[int, int], ...]] = {
    "path_create_directory": ((0, 1),),
    "path_filestat_get": ((0, 2),),
    "path_filestat_set_times": ((0, 2),),
    "path_link": ((0, 2), (4, 5)),
    "path_open": ((0, 2),),
    "path_readlink": ((0, 1),),
    "path_remove_directory": ((0, 1),),
    "path_rename": ((0, 1), (3, 4)),
    "path_symlink": ((2, 3),),
    "path_unlink_file": ((0, 1),),
}
_STREAM_ANSWERS = {
    "fd_advise": Errno.SPIPE,
    "fd_allocate": Errno.SPIPE,
    "fd_datasync": Errno.INVAL,
    "fd_fdstat_set_rights": Errno.SUCCESS,
    "fd_filestat_set_size": Errno.INVAL,
    "fd_filestat_set_times": Errno.INVAL,
    "fd_pread": Errno.SPIPE,
    "fd_prestat_dir_name": Errno.BADF,
    "fd_prestat_get": Errno.BADF,
    "fd_pwrite": Errno.SPIPE,
    "fd_readdir": Errno.NOTDIR,
    "fd_seek": Errno.SPIPE,
    "fd_sync": Errno.INVAL,
    "fd_tell": Errno.SPIPE,
    "sock_accept": Errno.NOTSOCK,
    "sock_recv": Errno.NOTSOCK,
    "sock_send": Errno.NOTSOCK,
    "sock_shutdown": Errno.NOTSOCK,
}
_POSITIONS = {"fd_seek": 3, "fd_tell": 1}
"""Functions that write a position, and which argument says where."""
"""What functions that only look up their descriptor answer for a stream of ours."""

LOOKED_UP = (*_STREAM_ANSWERS, *_PATHS)
"""Functions of preview 1 that are the engine's, once their descriptors are looked up."""


def _held(path: str) -> HostDirectory | None:
    """Hold a directory of the host's open; None where files in it are the engine's to open."""
    try:
        return HostDirectory(path)
    except OSError:
        return None


class Files:
    """The open files of one program.

    `wasi.lock` guards `table`.

    Attributes:
        table: the descriptors.
        pipe_budget: bytes that pipes may still hold.
        changes: the queue of threads that wait for a stream.
        host_input: waits for standard input.
        signals: the program's signals; they end waits.
        clocks: the program's clocks.
        regular: calls on the host's files.
    """

    def __init__(self, system: System, signals: Signals, clocks: Clocks) -> None:
        self._system = system
        self.signals = signals
        self.clocks = clocks
        self.table = DescriptorTable(most=system.limits.descriptors)
        self.pipe_budget = Budget(system.limits.pipe_bytes)
        self.changes = Changes(system.waits)
        self.host_input = HostInput(system.waits)
        self.regular = RegularFiles(self)
        self._has_devices = system.default_files
        self._dot_block: int | None = None
        self._lock: threading.RLock | None = None  # that of `wasi`
        self._open_initial(system.wasi_options)

    def _open_initial(self, options: WasiOptions) -> None:
        limits, wanted = self._system.limits, FIRST_PREOPEN + len(options.preopens)
        if wanted > limits.descriptors:
            raise limits.refusal(
                "descriptors", "the program", f"its streams and directories are {wanted} descriptors"
            )
        self._host_input = 0 if options.stdin is None and CAN_WAIT else None
        self.table.put(0, OpenFile(wasi=0, host_input=self._host_input))
        for number in (1, 2):
            self.table.put(number, OpenFile(wasi=number))
        for number, (guest, host) in enumerate(options.preopens, FIRST_PREOPEN):
            self.table.put(number, OpenFile(wasi=number, preopen=guest, directory=_held(host)))

    @property
    def memory(self) -> LinearMemory:
        """The program's memory."""
        return self._system.memory

    @property
    def waits(self) -> Waits:
        """The program's waits."""
        return self._system.waits

    @property
    def wasi(self) -> WasiCalls:
        """The program's WASI.

        Raises:
            ErrnoError: NOTSUP, a main module that defines the memory calls before it is instantiated.
        """
        calls = self._system.wasi
        if calls is None:
            raise ErrnoError(Errno.NOTSUP)
        return calls

    @property
    def wasi_lock(self) -> threading.RLock:
        """The lock around the program's WASI, which also guards `table`.

        Raises:
            ErrnoError: as `wasi`.
        """
        lock = self._lock
        if lock is None:
            lock = self._lock = self.wasi.lock
        return lock

    # calls on slots

    def raw(self, name: str) -> RawFunction:
        """Return a function of preview 1 that looks up its descriptors and paths and leaves the rest to WASI."""
        places = _PATHS.get(name)
        if places is None:
            return by_descriptor(self, name)
        ((descriptor, path), *more) = places
        if more:
            return lambda slots: self.forward(name, slots)
        return by_path(self, name, descriptor, path)

    def forward(self, name: str, slots: Slots) -> None:
        """Call a function of preview 1 that looks up its descriptors and paths and leaves the rest to WASI."""
        if name == "path_filestat_get":
            device = self.device(slots.s32(0), slots.u32(2), slots.u32(3))
            if device is not None:
                slots.set_32(0, self._device_stat(device, slots.u32(4)))
                return
        paths = _PATHS.get(name)
        if paths is None:
            places: Sequence[tuple[int, int | None]] = ((0, None),)
            answer = _STREAM_ANSWERS[name]
        else:
            places, answer = paths, Errno.NOTDIR
        wasi = self.wasi
        with wasi.lock:
            for descriptor, path in places:
                file = self.table.file(slots.s32(descriptor))
                if path is not None:
                    file = self._place_path(file, slots, path)
                if file.wasi is None:
                    if file.host is not None:
                        break
                    if name in _POSITIONS and file.stream is not None and file.stream.seeks:
                        self._tell_0(slots, _POSITIONS[name])
                        return
                    raise ErrnoError(answer)
                slots.set_32(descriptor, file.wasi)
            else:
                wasi.raw(name)(slots)
                return
        assert file.host is not None
        self.regular.call(name, file.host, slots)

    def _tell_0(self, slots: Slots, out: int) -> None:
        """Return 0 as the position."""
        self.memory.write_u64(slots.u32(out), 0)
        slots.set_32(0, Errno.SUCCESS)

    # devices

    def device(self, number: int, address: int, size: int) -> bytes | None:
        """Return the name of the device that a path leads to; None if it leads to none.

        Args:
            number: the directory that the path begins at.
            address: the path.
            size: its bytes.
        """
        if not self._has_devices or not 0 < size <= LONGEST_DEVICE:
            return None
        path = self.memory.read(address, size)
        directory = self.table.file(number).preopen
        if directory is not None:
            path = posixpath.join(guest_root(directory).encode(), path)
        name = posixpath.normpath(path)
        if name in DEVICES or name == TERMINAL:
            return name
        return None

    def open_device(self, name: bytes, oflags: int, *, cloexec: bool) -> int:
        """Open a device; return its descriptor.

        Raises:
            ErrnoError: NOTDIR, EXIST: what was asked for cannot be; NXIO, there is no terminal; MFILE.
        """
        if oflags & _OPEN_DIRECTORY:
            raise ErrnoError(Errno.NOTDIR)
        if oflags & _OPEN_EXCLUSIVE:
            raise ErrnoError(Errno.EXIST)
        if name != TERMINAL:
            return self.add(OpenFile(stream=DEVICES[name](self.changes)), cloexec=cloexec)
        output = terminal_output() if self._host_input is not None else None
        if output is None or not os.isatty(0):
            raise ErrnoError(Errno.NXIO)
        terminal = TerminalDevice(self.changes, output)
        return self.add(OpenFile(stream=terminal, host_input=self._host_input), cloexec=cloexec)

    def _device_stat(self, name: bytes, out: int) -> Errno:
        """Write a device's status, of the form of preview 1."""
        inode = 1 + sorted((*DEVICES, TERMINAL)).index(name)
        self.memory.write_struct("QQB7xQQQQQ", out, 0, inode, CHARACTER_DEVICE, 1, 0, 0, 0, 0)
        return Errno.SUCCESS

    def _place_path(self, file: OpenFile, slots: Slots, position: int) -> OpenFile:
        """Make an absolute path, which WASI refuses, relative to the open directory that contains it; return that directory."""
        address, size = slots.u32(position), slots.u32(position + 1)
        if not size or self.memory.read_u8(address) != ord("/"):
            return file
        if MAX_PATH_BYTES < size <= self.memory.size - address:
            raise ErrnoError(Errno.NAMETOOLONG)
        found = self.placed(self.memory.read(address, size))
        if found is None:
            raise ErrnoError(Errno.NOENT)
        file, skipped = found
        if skipped == size:
            slots.set_32(position, self._dot())
            slots.set_32(position + 1, 1)
        else:
            slots.set_32(position, address + skipped)
            slots.set_32(position + 1, size - skipped)
        return file

    def placed(self, path: bytes) -> tuple[OpenFile, int] | None:
        """Return the open directory that an absolute path leads into, and how many of its bytes to leave out."""
        entries = self.table.entries.copy().values()
        return below_preopen(path, (entry.file for entry in entries if entry.file.preopen is not None))

    def _dot(self) -> int:
        """Return the address of a `.`, WASI's name for an open directory itself, which no part of its path is."""
        if self._dot_block is None:
            # Whole words of 16 bytes: what the linker places after it must not land on an odd address.
            address = self._system.reserve(1, "a path")
            if address is None:
                raise ErrnoError(Errno.NOTCAPABLE)
            self.memory.write(address, b".")
            self._dot_block = address
        return self._dot_block

    # calls on typed values: descriptors come signed, addresses unsigned

    def add(self, file: OpenFile, *, cloexec: bool = False) -> int:
        """Give an open file the lowest free number.

        Raises:
            ErrnoError: MFILE.
        """
        with self.wasi.lock:
            return self.table.add(file, cloexec=cloexec)

    def add_streams(self, *streams: Stream) -> list[int]:
        """Open streams, all or none; return their descriptors, the lowest free numbers.

        Raises:
            ErrnoError: MFILE; all of the streams are closed.
        """
        numbers: list[int] = []
        try:
            with self.wasi.lock:
                for stream in streams:
                    numbers.append(self.table.add(OpenFile(stream=stream)))  # noqa: PERF401  kept if one fails
        except ErrnoError:
            with self.wasi.lock:
                for number in numbers:
                    self.table.remove(number)
            for stream in streams:
                stream.close()
            raise
        return numbers

    def file(self, number: int) -> OpenFile:
        """Return what a descriptor refers to.

        Raises:
            ErrnoError: BADF.
        """
        return self.table.file(number)

    def close(self, number: int, *, keeps_preopens: bool) -> int:
        """`fd_close`.

        Args:
            number: the descriptor.
            keeps_preopens: whether closing a directory that was open from the start does nothing. POSIX programs close all
                numbers from 3 on, of which they think that nobody uses them; the C library has its directories there, and
                would take for one whatever is opened next under the number.
        """
        with self.wasi_lock:
            if keeps_preopens and self.table.file(number).preopen is not None:
                return Errno.SUCCESS
            closed = self.table.remove(number)
            if closed is not None and closed.wasi is not None:
                return self.wasi.call("fd_close", closed.wasi)
        return self._close(closed)

    def _close(self, closed: OpenFile | None) -> int:
        if (
            closed is None or closed.host is not None
        ):  # whose last reference ends with a call that is under way
            return Errno.SUCCESS
        if closed.stream is not None:
            closed.stream.close()
            return Errno.SUCCESS
        wasi = self.wasi
        with wasi.lock:
            assert closed.wasi is not None
            return wasi.call("fd_close", closed.wasi)

    def renumber(self, number: int, to: int, *, copies: bool) -> int:
        """`fd_renumber`: make `to` refer to what `number` refers to; unless `copies`, `number` is closed.

        WASI moves. In WASIX it is what `dup2` is made of.
        """
        with self.wasi.lock:
            file = self.table.file(number)
            if number == to:
                return Errno.SUCCESS
            former = self.table.entries.get(to)
            if former is not None and former.file.preopen is not None:
                return Errno.NOTSUP  # the C library has its directories by number
            if former is None and not copies:
                return Errno.BADF
            closed = self.table.put(to, file)
            if not copies:
                self.table.remove(number)
        self._close(closed)
        return Errno.SUCCESS

    def duplicate(self, number: int, *, least: int = 0, cloexec: bool = False) -> int:
        """Return a new descriptor, at least `least`, for what another refers to."""
        with self.wasi.lock:
            return self.table.add(self.table.file(number), least=least, cloexec=cloexec)

    def fdstat_get(self, number: int, out: int) -> int:
        """`fd_fdstat_get`."""
        wasi = self.wasi
        with wasi.lock:
            file = self.table.file(number)
            if file.wasi is not None:
                error = wasi.call("fd_fdstat_get", file.wasi, out)
                if not error and file.host_input is not None and file.nonblocking:
                    self.memory.write_u16(out + 2, self.memory.read_u16(out + 2) | _NONBLOCK)
                return error
        if file.host is not None:
            return self.regular.fdstat_get(file.host, out)
        stream = file.stream
        assert stream is not None
        rights = _RIGHT_SET_FLAGS | _RIGHT_FILESTAT | _RIGHT_POLL
        rights |= _RIGHT_READ * stream.reads | _RIGHT_WRITE * stream.writes
        flags = _NONBLOCK if file.nonblocking else 0
        rights |= (_RIGHT_SEEK | _RIGHT_TELL) * stream.seeks
        self.memory.write_struct("BxH4xQQ", out, stream.filetype, flags, rights, rights)
        return Errno.SUCCESS

    def fdstat_set_flags(self, number: int, flags: int) -> int:
        """`fd_fdstat_set_flags`."""
        wasi = self.wasi
        with wasi.lock:
            file = self.table.file(number)
            if file.host is not None:
                return self.regular.fdstat_set_flags(file.host, flags)
            if file.wasi is not None and file.host_input is None:
                return wasi.call("fd_fdstat_set_flags", file.wasi, flags)
            file.nonblocking = bool(flags & _NONBLOCK)
        return Errno.SUCCESS

    def filestat_get(self, number: int, out: int) -> int:
        """`fd_filestat_get`."""
        wasi = self.wasi
        with wasi.lock:
            file = self.table.file(number)
            if file.wasi is not None:
                return wasi.call("fd_filestat_get", file.wasi, out)
        if file.host is not None:
            return self.regular.filestat_get(file.host, out)
        assert file.stream is not None
        size = 0 if file.stream.seeks else file.stream.available()
        self.memory.write_struct(
            "QQB7xQQQQQ", out, 0, number, file.stream.filetype, 1, size, 0, 0, 0
        )  # device, inode, type, links, size, three times
        return Errno.SUCCESS

    def seek(self, number: int, offset: int, whence: int, out: int) -> int:
        """`fd_seek`."""
        wasi = self.wasi
        with wasi.lock:
            file = self.table.file(number)
            if file.wasi is not None:
                return wasi.call("fd_seek", file.wasi, offset, whence, out)
        return Errno.SPIPE if file.host is None else self.regular.seek(file.host, offset, whence, out)

    def path_filestat_get(self, number: int, flags: int, path: int, size: int, out: int) -> int:
        """`path_filestat_get`, without absolute paths but for those of devices."""
        device = self.device(number, path, size)
        if device is not None:
            return self._device_stat(device, out)
        wasi = self.wasi
        with wasi.lock:
            file = self.table.file(number)
            if file.wasi is None:
                return Errno.NOTDIR if file.host is None else Errno.BADF
            return wasi.call("path_filestat_get", file.wasi, flags, path, size, out)

    def end(self) -> None:
        """Close the host's files, each once no call on it is under way; the program has ended."""
        self.table.entries.clear()

    def done_with(self, file: OpenFile) -> None:
        """Drop a reference that a call held."""
        with self.wasi.lock:
            closed = self.table.release(file)
        self._close(closed)
