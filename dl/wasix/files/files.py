"""Descriptors of the process: WASI's files under our numbers, and the streams that WASI does not have.

Every function that takes a descriptor comes here, from every namespace. For a file of WASI's the number is replaced and
the engine's function called, under the lock of `WasiCalls`; that lock also guards the table, so a descriptor cannot be
closed, and its number given to another file, between look-up and use. Nothing waits under it: standard input is
waited for outside, and pipes and events are not WASI's at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dl.program.side_memory import Block, GrownMemory
from dl.program.wasi import WasiCalls
from dl.wasix.abi import Errno
from dl.wasix.files.descriptors import FIRST_PREOPEN, DescriptorError, DescriptorTable, OpenFile
from dl.wasix.files.host_input import CAN_WAIT, HostInput
from dl.wasix.files.preopens import below_preopen
from dl.wasix.files.streams import Changes, Stream
from dl.wasix.signals import Signals
from memory import LinearMemory, OutOfBoundsError
from threads import Waits

if TYPE_CHECKING:
    from dl.engine.protocol import RawFunction, Slots, WasiOptions
    from dl.linker import Linker

_NONBLOCK = 4
_FILETYPE_UNKNOWN = 0
_RIGHT_READ, _RIGHT_SET_FLAGS, _RIGHT_WRITE, _RIGHT_FILESTAT, _RIGHT_POLL = (
    1 << 1,
    1 << 3,
    1 << 6,
    1 << 21,
    1 << 27,
)

_PATHS: dict[str, tuple[tuple[int, int | None], ...]] = {
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
"""What functions that only look up their descriptor answer for a stream of ours."""

LOOKED_UP = (*_STREAM_ANSWERS, *_PATHS)
"""Functions of preview 1 that are the engine's, once their descriptors are looked up."""


class Files:
    """The open files of one program.

    `wasi.lock` guards `table`.

    Attributes:
        table: the descriptors.
        changes: what waits for streams wait in.
        host_input: waits for standard input.
        signals: the program's signals; they end waits.
    """

    def __init__(self, linker: Linker, signals: Signals) -> None:
        self._linker = linker
        self.signals = signals
        self.table = DescriptorTable()
        self.changes = Changes(linker.threads.waits)
        self.host_input = HostInput(linker.threads.waits)
        self._dot_block: Block | None = None
        self._open_initial(linker.program.wasi_options)

    def _open_initial(self, options: WasiOptions) -> None:
        stdin = OpenFile(wasi=0, host_input=0 if options.stdin is None and CAN_WAIT else None)
        self.table.put(0, stdin)
        for number in (1, 2):
            self.table.put(number, OpenFile(wasi=number))
        for number, (guest, _) in enumerate(options.preopens, FIRST_PREOPEN):
            self.table.put(number, OpenFile(wasi=number, preopen=guest))

    @property
    def memory(self) -> LinearMemory:
        """The program's memory."""
        return self._linker.memory

    @property
    def waits(self) -> Waits:
        """The program's waits."""
        return self._linker.threads.waits

    @property
    def wasi(self) -> WasiCalls:
        """The program's WASI.

        Raises:
            DescriptorError: NOTSUP, a main module that defines the memory calls before it is instantiated.
        """
        calls = self._linker.program.wasi
        if calls is None:
            raise DescriptorError(Errno.NOTSUP)
        return calls

    # calls on slots

    def raw(self, name: str) -> RawFunction:
        """Return a function of preview 1 that looks up its descriptors and paths and leaves the rest to WASI."""
        if name in _PATHS:
            answer, places = Errno.NOTDIR, _PATHS[name]
        else:
            answer, places = _STREAM_ANSWERS[name], ((0, None),)

        def call(slots: Slots) -> None:
            self._forward(name, slots, places, answer)

        return self.answering(call)

    def answering(self, function: RawFunction) -> RawFunction:
        """Let a function answer with the errno of a `DescriptorError`, and handle signals at its end."""

        def call(slots: Slots) -> None:
            try:
                function(slots)
            except DescriptorError as error:
                slots.set_32(0, error.errno)
            except OutOfBoundsError:
                slots.set_32(0, Errno.MEMVIOLATION)
            self.signals.deliver_if_pending()

        return call

    def _forward(
        self, name: str, slots: Slots, places: tuple[tuple[int, int | None], ...], answer: Errno
    ) -> None:
        wasi = self.wasi
        with wasi.lock:
            for descriptor, path in places:
                file = self.table.file(slots.s32(descriptor))
                if path is not None:
                    file = self._place_path(file, slots, path)
                if file.wasi is None:
                    raise DescriptorError(answer)
                slots.set_32(descriptor, file.wasi)
            wasi.raw(name)(slots)

    def _place_path(self, file: OpenFile, slots: Slots, position: int) -> OpenFile:
        """Let an absolute path, which WASI refuses, begin at the open directory that it leads into."""
        address, size = slots.u32(position), slots.u32(position + 1)
        if not size or self.memory.read_u8(address) != ord("/"):
            return file
        path = self.memory.read(address, size)
        open_now = (entry.file for entry in self.table.entries.values() if entry.file.preopen is not None)
        found = below_preopen(path, open_now)
        if found is None:
            raise DescriptorError(Errno.NOENT)
        file, skipped = found
        if skipped == size:
            slots.set_32(position, self._dot())
            slots.set_32(position + 1, 1)
        else:
            slots.set_32(position, address + skipped)
            slots.set_32(position + 1, size - skipped)
        return file

    def _dot(self) -> int:
        """Return the address of a `.`, WASI's name for an open directory itself, which no part of its path is."""
        if self._dot_block is None:
            side_memory = self._linker.program.side_memory
            if not isinstance(side_memory, GrownMemory):
                raise DescriptorError(Errno.NOTCAPABLE)  # the guest's own allocator cannot be called here
            self._dot_block = side_memory.allocate(1, 0, "a path")
            self.memory.write(self._dot_block.address, b".")
        return self._dot_block.address

    def path_open(self, slots: Slots, *, cloexec: bool = False) -> None:
        """`path_open`: WASI's, and its number replaced by ours.

        Args:
            slots: the arguments of preview 1's `path_open`.
            cloexec: the new descriptor's flag.
        """
        place = slots.u32(8)
        self.memory.read(place, 4)
        wasi = self.wasi
        self._forward("path_open", slots, _PATHS["path_open"], Errno.NOTDIR)
        if slots.u32(0):
            return
        with wasi.lock:
            opened = self.memory.read_u32(place)
            try:
                number = self.table.add(OpenFile(wasi=opened), cloexec=cloexec)
            except DescriptorError:
                wasi.call("fd_close", opened)
                raise
        self.memory.write_u32(place, number)

    # calls on typed values: descriptors come signed, addresses unsigned

    def add_stream(self, stream: Stream) -> int:
        """Open a stream; return its descriptor."""
        return self.add(OpenFile(stream=stream))

    def add(self, file: OpenFile, *, least: int = 0, cloexec: bool = False) -> int:
        """Give an open file the lowest free number, from `least` on."""
        with self.wasi.lock:
            return self.table.add(file, least=least, cloexec=cloexec)

    def file(self, number: int) -> OpenFile:
        """Return what a descriptor refers to.

        Raises:
            DescriptorError: BADF.
        """
        return self.table.file(number)

    def close(self, number: int) -> int:
        """`fd_close`."""
        with self.wasi.lock:
            closed = self.table.remove(number)
        return self._close(closed)

    def _close(self, closed: OpenFile | None) -> int:
        if closed is None:
            return Errno.SUCCESS
        if closed.stream is not None:
            closed.stream.close()
            return Errno.SUCCESS
        wasi = self.wasi
        with wasi.lock:
            assert closed.wasi is not None
            return wasi.call("fd_close", closed.wasi)

    def renumber(self, number: int, to: int, *, copies: bool) -> int:
        """`fd_renumber`: let `to` mean what `number` means; unless it copies, `number` is closed.

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
        stream = file.stream
        assert stream is not None
        rights = _RIGHT_SET_FLAGS | _RIGHT_FILESTAT | _RIGHT_POLL
        rights |= _RIGHT_READ * stream.reads | _RIGHT_WRITE * stream.writes
        flags = _NONBLOCK if file.nonblocking else 0
        self.memory.write_struct("BxH4xQQ", out, _FILETYPE_UNKNOWN, flags, rights, rights)
        return Errno.SUCCESS

    def fdstat_set_flags(self, number: int, flags: int) -> int:
        """`fd_fdstat_set_flags`."""
        wasi = self.wasi
        with wasi.lock:
            file = self.table.file(number)
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
        assert file.stream is not None
        size = file.stream.available()
        self.memory.write_struct(
            "QQB7xQQQQQ", out, 0, number, _FILETYPE_UNKNOWN, 1, size, 0, 0, 0
        )  # device, inode, type, links, size, three times
        return Errno.SUCCESS

    def seek(self, number: int, offset: int, whence: int, out: int) -> int:
        """`fd_seek`."""
        wasi = self.wasi
        with wasi.lock:
            file = self.table.file(number)
            return Errno.SPIPE if file.wasi is None else wasi.call("fd_seek", file.wasi, offset, whence, out)

    def path_filestat_get(self, number: int, flags: int, path: int, size: int, out: int) -> int:
        """`path_filestat_get`, without absolute paths."""
        wasi = self.wasi
        with wasi.lock:
            file = self.table.file(number)
            if file.wasi is None:
                return Errno.NOTDIR
            return wasi.call("path_filestat_get", file.wasi, flags, path, size, out)

    def done_with(self, file: OpenFile) -> None:
        """Give back a reference that a call held."""
        with self.wasi.lock:
            closed = self.table.release(file)
        self._close(closed)
