"""A host of plug-ins with every type written down: passes `mypy --strict` without a cast.

python examples/typed_host.py
"""

from __future__ import annotations

import argparse
import ctypes
from concurrent.futures import Future
from pathlib import Path

import dl

PLUGINS = Path(__file__).resolve().parents[1] / "fixtures/plugins/shared"


class Point(ctypes.Structure):
    """As C code declares it."""

    _fields_ = [("x", ctypes.c_int32), ("y", ctypes.c_int32)]


@dl.host_function
def double(value: dl.I32) -> dl.I32:
    """Called by the guest."""
    return value * 2


def sums(linker: dl.Linker) -> list[int]:
    """Add numbers in several threads, each with its own instance of the library."""

    def add(group: dl.InstanceGroup, number: int) -> int:
        return group.library("libadd.so").function("add", int)(number, number)

    with linker.executor(2) as pool:
        futures: list[Future[int]] = [pool.submit(add, number) for number in range(4)]
        return [future.result() for future in futures]


def main() -> int:
    """Open a library, call it, look at it and at the guest's memory."""
    argparse.ArgumentParser(description="Open a library, call it, and look at what it has.").parse_args()
    memory = dl.MemoryType(shared=True, maximum=1024)
    with dl.Linker(
        None, memory=memory, library_path=[PLUGINS], imports={"env": {"double": double}}
    ) as linker:
        library: dl.Library = linker.main_group.library("libadd.so")
        add: dl.TypedFunction[dl.Pointer] = library.function("add", dl.Pointer)
        pointer: dl.Pointer = add(0x7FFFFFFF, 1)
        print(library.path, pointer, sorted(library))
        with linker.allocate(ctypes.sizeof(Point)) as block:
            point: Point = linker.memory.structure(Point, block.address)
            point.x, point.y = 3, 4
            view: memoryview = block.view()
            print(bytes(view))
        callback: dl.Callback = linker.callback(double)
        print(callback)
        for symbol in library.symbols():
            print(symbol.name, symbol.address)
        handle: dl.ModuleHandle = linker.main_group.dlopen("libadd.so", dl.RTLD_NOW)
        found: dl.GuestFunction | dl.GuestData = linker.main_group.dlsym(handle, "add")
        if isinstance(found, dl.GuestFunction):
            kind: dl.FuncType = found.type
            print(found(1, 2), kind)
        try:
            library.function("ad")
        except dl.SymbolNotFoundError as error:
            print(error.similar)
        print(sums(linker))
        return 0


if __name__ == "__main__":
    raise SystemExit(main())
