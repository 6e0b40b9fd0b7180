"""Guest modules that call `dl_ext`, and the calls as C code makes them, with strings in the program's memory."""

from __future__ import annotations

from typing import Any

import dl
from tests.support.modules import imports

FUNCTIONS = {"dladdr": 5, "dlclose": 1, "dlerror": 3, "dlopen": 6, "dlsym": 4, "module": 4, "modules": 4}

UNKNOWN, NOENT, OVERFLOW, INVALID, MEMORY_VIOLATION = 79, 44, 61, 28, 78
FUNCTION, DATA, THREAD_LOCAL = 1, 2, 3


def asking(*names: str) -> tuple[str, ...]:
    """Fields by which a module calls functions of `dl_ext`: each is exported as `x_…`, with the module as the caller."""
    return passing("dl_ext", "x_", {name: FUNCTIONS[name] for name in names or FUNCTIONS})


def passing(namespace: str, prefix: str, functions: dict[str, int]) -> tuple[str, ...]:
    """Fields that import functions of so many numbers each, and export each under its name behind a prefix."""
    fields = []
    for name, count in functions.items():
        params = f"(param {'i32 ' * count}) (result i32)"
        arguments = " ".join(f"(local.get {i})" for i in range(count))
        fields += [
            imports(name, params, namespace),
            f'(func (export "{prefix}{name}") {params} (call ${name} {arguments}))',
        ]
    return tuple(fields)


class Caller:
    """One module's calls in one group.

    Args:
        group: whose instances.
        handle: the module, made with `asking()`.
        scratch: 4096 bytes of linear memory that nobody else uses.
    """

    def __init__(self, group: dl.InstanceGroup, handle: int, scratch: int) -> None:
        self.group = group
        self.handle = handle
        self.memory = group.linker.memory
        self.scratch = scratch
        self.out = scratch + 3072

    def call(self, name: str, *arguments: int) -> int:
        """Call one function raw, by the module's own export."""
        function = self.group.dlsym(self.handle, f"x_{name}")
        assert isinstance(function, dl.GuestFunction)
        assert function.module == self.handle
        return int(function(*arguments))

    def _put(self, text: str) -> tuple[int, int]:
        self.memory.write(self.scratch, text.encode())
        return self.scratch, len(text.encode())

    def error(self) -> str:
        """What dlerror says, which it then forgets."""
        text = self.take_error(3000)
        assert self.take_error(3000) == ""
        return text

    def take_error(self, size: int) -> str:
        """What dlerror writes into a buffer."""
        assert self.call("dlerror", self.scratch, size, self.out) == 0
        length = self.memory.read_u32(self.out)
        return self.memory.read_string(self.scratch, length) if size else "?" * length

    def dlopen(self, name: str | None, flags: int) -> int | str:
        """The handle, or dlerror's text."""
        errno = self.call("dlopen", *((0, 0) if name is None else self._put(name)), flags, 0, 0, self.out)
        assert errno in (0, UNKNOWN)
        return self.error() if errno else self.memory.read_u32(self.out)

    def dlsym(self, handle: int, name: str) -> int | str:
        """The address, or dlerror's text."""
        errno = self.call("dlsym", handle, *self._put(name), self.out)
        assert errno in (0, UNKNOWN)
        return self.error() if errno else self.memory.read_u32(self.out)

    def dlclose(self, handle: int) -> str:
        """dlerror's text, or nothing."""
        return self.error() if self.call("dlclose", handle) else ""

    def dladdr(self, address: int, kind: int = 0) -> tuple[int, int, str, str, int] | int:
        """Handle, kind, path, symbol and the symbol's start; or an errno."""
        errno = self.call("dladdr", address, kind, self.out, self.scratch, 3000)
        if errno:
            return errno
        handle, _, found, start, path, symbol = self.memory.read_struct("6I", self.out)
        texts = self.memory.read(self.scratch, path + symbol + 2).decode().split("\0")
        return handle, found, texts[0], texts[1], start

    def module(self, handle: int = 0) -> dict[str, Any] | int:
        """What a module is; or an errno."""
        errno = self.call("module", handle, self.out, self.scratch, 3000)
        if errno:
            return errno
        keys = ("handle", "flags", "base", "size", "table", "elements", "tls", "tls_at", "tls_size")
        *numbers, path, origin = self.memory.read_struct("11I", self.out)
        texts = self.memory.read(self.scratch, path + origin + 2).decode().split("\0")
        return dict(zip(keys, numbers, strict=True)) | {"path": texts[0], "origin": texts[1]}

    def modules(self, after: int = 0, capacity: int = 100) -> tuple[list[int], int, int]:
        """Handles, how many were loaded so far, and how many of these are gone."""
        assert self.call("modules", after, self.scratch, capacity, self.out) == 0
        count, ever, gone = self.memory.read_struct("3I", self.out)
        return list(self.memory.read_struct(f"{count}I", self.scratch)), ever, gone
