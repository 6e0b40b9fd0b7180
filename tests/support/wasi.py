"""A program that lends every function of a system interface to a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dl
from dl.wasix.abi import NAMESPACES
from tests.support.modules import module, pie

TEXT, RESULT, BUFFER = 1024, 2048, 4096
READ_WRITE = 0x20004E
CREATE, DIRECTORY = 1, 2


class Calls:
    """A program that does nothing but call functions of one namespace for us."""

    def __init__(self, linker: dl.Linker) -> None:
        self.linker = linker
        self.memory = linker.memory

    def __getattr__(self, name: str) -> Callable[..., int]:
        function = self.linker.main_group.dlsym(self.linker.main, f"call_{name}")
        assert isinstance(function, dl.GuestFunction)
        return function

    def text(self, text: str, at: int = TEXT) -> tuple[int, int]:
        """Put a text into memory; return its address and size."""
        self.memory.write(at, text.encode())
        return at, len(text.encode())

    def open(self, directory: int, path: str, oflags: int = 0) -> tuple[int, int]:
        """Open a path; return errno and descriptor."""
        rights = 0 if oflags & DIRECTORY else READ_WRITE
        error = self.path_open(directory, 0, *self.text(path), oflags, rights, 0, 0, RESULT)
        return error, self.memory.read_u32(RESULT)

    def write(self, number: int, data: bytes) -> int:
        """Write bytes; return errno."""
        self.memory.write(BUFFER, data)
        self.memory.write_struct("II", RESULT, BUFFER, len(data))
        return self.fd_write(number, RESULT, 1, RESULT + 8)


@contextmanager
def calls(
    preopens: dict[str, Path],
    namespace: str = "wasi_snapshot_preview1",
    *,
    shared: bool = False,
    also: str = "",
    default_files: bool = True,
    **options: Any,
) -> Iterator[Calls]:
    """Make a program that lends every function of a namespace; the options are those of `dl.Linker`."""
    fields = []
    for name, kind in NAMESPACES[namespace].items():
        if kind.results and name != "thread-spawn":
            params = " ".join(f"(param {p})" for p in kind.params)
            arguments = " ".join(f"(local.get {i})" for i in range(len(kind.params)))
            fields += [
                f'(import "{namespace}" "{name}" (func ${name} {params} (result i32)))',
                f'(func (export "call_{name}") {params} (result i32) (call ${name} {arguments}))',
            ]
    if also:
        fields.append(f'(import "wasix_32v1" "{also}" (func (param i32 i32) (result i32)))')
    if shared:
        wasm = pie(*fields, shared=True, memory_size=65536, memory_align=4)
    else:
        wasm = module('(memory (export "memory") 2)', *fields)
    with dl.Linker(wasm, preopens=preopens, default_files=default_files, **options) as linker:
        yield Calls(linker)
