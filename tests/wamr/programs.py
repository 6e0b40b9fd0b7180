"""Programs of WAMR's kind, and the calls of their guests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dl
from tests.wamr.roots import root


class Guest:
    """A program, called as its root would call itself.

    Attributes:
        linker: the program.
    """

    def __init__(self, linker: dl.Linker) -> None:
        self.linker = linker
        self._free = 1024  # below the data of nobody

    def call(self, name: str, *arguments: int) -> int:
        """Call a function of the root."""
        function = self.linker.main_group.dlsym(dl.MAIN_HANDLE, name)
        assert isinstance(function, dl.GuestFunction)
        result: int = function(*arguments)
        return result

    def text(self, text: str) -> int:
        """Write a string into the root's memory; return its address."""
        raw = text.encode() + b"\0"
        address, self._free = self._free, self._free + len(raw)
        self.linker.memory.write(address, raw)
        return address

    def open(self, name: str, flags: int = 0) -> int:
        """`dlopen`."""
        return self.call("dlopen", self.text(name), flags)

    def symbol(self, handle: int, name: str) -> int:
        """`dlsym`."""
        return self.call("dlsym", handle, self.text(name))

    def close(self, handle: int) -> int:
        """`dlclose`."""
        return self.call("dlclose", handle)

    def error(self) -> str | None:
        """`dlerror`, as text."""
        address = self.call("dlerror")
        return self.linker.memory.read_cstring(address) if address else None


@contextmanager
def program(
    libraries: dict[str, bytes], main: bytes | None = None, mode: dl.WamrMode | int = 0, **options: Any
) -> Iterator[Guest]:
    """A program in a mode, with libraries by name."""
    main = root() if main is None else main
    with dl.Linker(
        main, name="root.wasm", libraries=libraries, wamr=mode, stack_size=4096, **options
    ) as linker:
        yield Guest(linker)
