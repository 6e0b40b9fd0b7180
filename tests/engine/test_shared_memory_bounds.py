"""Accesses outside a shared memory that several modules of one store import.

The engine ends the process when it takes two owners for one memory, so each case runs in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys
import dl
from dl.wasm.encode import ModuleBuilder, i32_const, local_get, name_bytes, section, unsigned
from dl.wasm.types import FuncType, Limits, MemoryType

offset, address = int(sys.argv[1]), int(sys.argv[2])
build = ModuleBuilder()
build.import_("env", "memory", MemoryType(Limits(1, 65536, shared=True, is64=False)))
load = local_get(0) + bytes([0x28, 2]) + unsigned(offset)
build.export("load", "func", build.function(FuncType(("i32",), ("i32",)), load))
dylink = section(0, name_bytes("dylink.0") + bytes([1, 4, 0, 0, 0, 0]))
wasm = build.build()
wasm = wasm[:8] + dylink + wasm[8:]

with dl.Linker(None, memory=dl.MemoryType(1, 65536, shared=True), stack_size=1024) as linker:
    group = linker.main_group
    group.dlopen(wasm, name="one")
    two = group.dlopen(wasm, name="two")
    load = group.dlsym(two, "load")
    try:
        load(linker.memory.size + address)
    except dl.TrapError as trap:
        print(trap.reason)
    print(linker.memory.read_u32(0))
"""


@pytest.mark.parametrize(
    ("offset", "address"),
    [(0, 0), (0, -3), (0, -1), (4, -4), (1000, -1000), (4_000_000_000, -16), (0, 1 << 31)],
)
def test_access_outside_a_shared_memory_is_a_trap(offset: int, address: int) -> None:
    """An access outside a shared memory that several modules import is a trap, and the program can go on."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(offset), str(address)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stdout.splitlines()) == (0, ["out of bounds memory access", "0"]), (
        done.stderr
    )
