"""The process's table of descriptors: what each number that the guest uses means.

WASI has a table too, but without pipes, events, duplicates or close-on-exec flags, and it chooses its numbers itself. So the
guest's numbers are looked up here first. An entry refers to an *open file*, as in POSIX: duplicates share it and its
position, and it is closed with the last of them.
"""

from __future__ import annotations

import heapq

from dl.records import dataclass, field
from dl.wasix.abi import Errno, ErrnoError
from dl.wasix.files.host_files import HostDirectory, HostFile
from dl.wasix.files.streams import Stream

MAX_DESCRIPTORS = 1 << 16
"""Numbers are less than this."""
FIRST_PREOPEN = 3


@dataclass(eq=False)
class OpenFile:
    """What one or more descriptors refer to.

    Attributes:
        wasi: WASI's number for it; None for what WASI has not open.
        stream: a stream of ours; None for a file.
        host: a regular file that the host has open for the guest; None for all else.
        host_input: the host's descriptor that it reads, when reading may wait: standard input, if the program
            has the host's.
        preopen: the guest's name of a directory that was open from the start.
        directory: that directory as the host holds it, to open files in; None if it does not.
        nonblocking: whether reading and writing never wait.
        references: how many descriptors there are, and calls under way.
    """

    wasi: int | None = None
    stream: Stream | None = None
    host: HostFile | None = None
    host_input: int | None = None
    preopen: str | None = None
    directory: HostDirectory | None = None
    nonblocking: bool = False
    references: int = 0


@dataclass
class Descriptor:
    """One number's entry.

    Attributes:
        file: what it refers to.
        cloexec: whether a program that replaces this one would not get it.
    """

    file: OpenFile
    cloexec: bool = False


@dataclass
class DescriptorTable:
    """Descriptors by number; not safe for threads by itself.

    Attributes:
        entries: number to descriptor.
        most: how many descriptors there may be.
    """

    entries: dict[int, Descriptor] = field(default_factory=dict)
    most: int = MAX_DESCRIPTORS
    _free: list[int] = field(default_factory=list)
    _listed: set[int] = field(default_factory=set)  # what is in `_free`, each number once
    _next: int = 0

    def file(self, number: int) -> OpenFile:
        """Return what a descriptor refers to.

        Raises:
            ErrnoError: BADF.
        """
        return self.descriptor(number).file

    def descriptor(self, number: int) -> Descriptor:
        """Return a descriptor.

        Raises:
            ErrnoError: BADF.
        """
        entry = self.entries.get(number)
        if entry is None:
            raise ErrnoError(Errno.BADF)
        return entry

    def check_room(self) -> None:
        """Check that there may be one more descriptor.

        Raises:
            ErrnoError: MFILE, there are as many as may be.
        """
        if len(self.entries) >= self.most:
            raise ErrnoError(Errno.MFILE)

    def add(self, file: OpenFile, *, least: int = 0, cloexec: bool = False) -> int:
        """Give an open file the lowest free number that is at least `least`.

        Raises:
            ErrnoError: MFILE, there are too many; INVAL, no number can be so high.
        """
        self.check_room()
        if not 0 <= least < MAX_DESCRIPTORS:
            raise ErrnoError(Errno.INVAL)
        number = self._lowest(least)
        if number >= MAX_DESCRIPTORS:
            raise ErrnoError(Errno.MFILE)
        self.put(number, file, cloexec=cloexec)
        return number

    def _lowest(self, least: int) -> int:
        if least:
            number = least
            while number in self.entries:
                number += 1
            return number
        # Every free number below `_next` is in the heap, which may also name taken ones and some above `_next`.
        while self._free and self._free[0] in self.entries:
            self._listed.discard(heapq.heappop(self._free))
        while self._next in self.entries:
            self._next += 1
        return min(self._free[0], self._next) if self._free else self._next

    def put(self, number: int, file: OpenFile, *, cloexec: bool = False) -> OpenFile | None:
        """Make a number refer to an open file; return the file it referred to before, if that has no reference left.

        Raises:
            ErrnoError: BADF, no number can be so high; MFILE, there are too many.
        """
        if not 0 <= number < MAX_DESCRIPTORS:
            raise ErrnoError(Errno.BADF)
        if number not in self.entries:
            self.check_room()
        file.references += 1
        former = self.entries.get(number)
        self.entries[number] = Descriptor(file, cloexec)
        return None if former is None else self.release(former.file)

    def remove(self, number: int) -> OpenFile | None:
        """Remove a number; return the file it referred to, if that has no reference left.

        Raises:
            ErrnoError: BADF.
        """
        file = self.descriptor(number).file
        del self.entries[number]
        if number not in self._listed:
            self._listed.add(number)
            heapq.heappush(self._free, number)
        return self.release(file)

    def release(self, file: OpenFile) -> OpenFile | None:
        """Drop one reference; return the file if it was the last: the caller must close it."""
        file.references -= 1
        return None if file.references else file
