"""What calls through function pointers that the linker makes cost, against a plain `call_indirect`, in one run.

    python benchmarks/closures.py

One guest loop calls a pointer of type `(i32, i32) -> i32` again and again; only the pointer differs. The functions add
two numbers, so nearly all of the time is the call. The program has shared memory and can be interrupted, as programs with
threads are.

* *call_indirect*: a function of another module, at its table index.
* *stub*: no pointer, but an import that nothing defined when its module was loaded, after its first call.
* *import*: the same with an import that was defined.
* *closure*: a trampoline that puts the arguments on the shadow stack for a backing function of the guest.
* *call_dynamic*: the system call, with the same arguments in memory.
* *callback*: a Python function.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import click
from common import BINARY, engine_option, library, report, spread, take_turns
from rich.table import Table

import dl
from dl.glue.names import ANY_TABLE
from dl.wasm.encode import (
    ModuleBuilder,
    call,
    call_indirect,
    i32_const,
    local_get,
    local_set,
)
from dl.wasm.types import FuncType, Limits, MemoryType

MEMORY = MemoryType(Limits(0, 65536, shared=True, is64=False))
LOOP = FuncType(("i32", "i32"), ("i32",))
"""Rounds and pointer, to the last sum."""

ADD, SUBTRACT, TEE, BRANCH_IF, BLOCK_LOOP, END = b"\x6a", b"\x6b", b"\x22", b"\x0d\x00", b"\x03\x40", b"\x0b"
LOAD, STORE = b"\x28\x02", b"\x36\x02"
SYSTEM_CALLS = {"closure_allocate": 1, "closure_prepare": 7, "call_dynamic": 6}
LIMITS = {"closure": 3.0, "stub": 1.5}


def repeat(body: bytes) -> bytes:
    """Instructions that compute a number from the last one (local 2), as often as parameter 0 says."""
    again = local_get(0) + i32_const(1) + SUBTRACT + TEE + b"\x00" + BRANCH_IF
    return BLOCK_LOOP + body + local_set(2) + again + END + local_get(2)


def callers() -> bytes:
    """The loops, and the system calls, as a library."""
    build = ModuleBuilder()
    system = {
        name: build.import_("wasix_32v1", name, FuncType(("i32",) * count, ("i32",)))
        for name, count in SYSTEM_CALLS.items()
    }
    build.import_("env", "__indirect_function_table", ANY_TABLE)
    build.import_("env", "memory", MEMORY)
    for name, index in system.items():
        build.export(name, "func", index)
    indirect = local_get(2) + i32_const(1) + local_get(1) + call_indirect(build.type_index(BINARY))
    build.export("loop", "func", build.function(LOOP, repeat(indirect), ("i32",)))
    at = i32_const(1024)
    dynamic = (
        (at + local_get(2) + STORE + b"\x00" + at + i32_const(1) + STORE + b"\x04")
        + (local_get(1) + at + i32_const(8) + at + i32_const(4) + i32_const(1) + call(system["call_dynamic"]))
        + (b"\x1a" + at + LOAD + b"\x00")
    )
    build.export("loop_dynamic", "func", build.function(LOOP, repeat(dynamic), ("i32",)))
    return library(build)


def adders() -> bytes:
    """What is called, as a library."""
    build = ModuleBuilder()
    build.import_("env", "memory", MEMORY)
    build.export("add", "func", build.function(BINARY, local_get(0) + local_get(1) + ADD))
    values = local_get(0) + LOAD + b"\x00" + local_get(0) + LOAD + b"\x04" + ADD
    backing = local_get(1) + values + STORE + b"\x00"
    build.export("add_packed", "func", build.function(FuncType(("i32",) * 3, ()), backing))
    return library(build)


def importing(imported: str, exported: str) -> bytes:
    """A library with a loop that calls an import."""
    build = ModuleBuilder()
    other = build.import_("env", imported, BINARY)
    body = repeat(local_get(2) + i32_const(1) + call(other))
    build.export(exported, "func", build.function(LOOP, body, ("i32",)))
    return library(build, nonce=imported.encode())


def make_ways(linker: dl.Linker) -> dict[str, tuple[dl.GuestFunction, int, int]]:
    """Return for each way to call its loop, the pointer, and by how much fewer calls a turn has."""
    group = linker.main_group
    flags = dl.RTLD_LAZY | dl.RTLD_GLOBAL

    def function(name: str) -> dl.GuestFunction:
        found = group.dlsym(dl.RTLD_DEFAULT, name)
        assert isinstance(found, dl.GuestFunction)
        return found

    group.dlopen(importing("late_add", "loop_stub"), flags, name="stub.so")
    group.dlopen(adders(), flags, name="adders.so")
    group.dlopen(importing("add", "loop_import"), flags, name="import.so")
    late = ModuleBuilder()
    late.export("late_add", "func", late.function(BINARY, local_get(0) + local_get(1) + ADD))
    group.dlopen(library(late), flags, name="late.so")
    group.dlopen(callers(), flags, name="callers.so")
    scratch = 2048
    assert function("closure_allocate")(scratch) == 0
    closure = linker.memory.read_u32(scratch)
    linker.memory.write(scratch, bytes(2))
    prepare = function("closure_prepare")
    assert prepare(function("add_packed").address, closure, scratch, 2, scratch, 1, 0) == 0
    add = function("add").address
    return {
        "call_indirect": (function("loop"), add, 1),
        "import": (function("loop_import"), 0, 1),
        "stub": (function("loop_stub"), 0, 1),
        "closure": (function("loop"), closure, 1),
        "call_dynamic": (function("loop_dynamic"), add, 100),
        "callback": (function("loop"), linker.callback("(i32, i32) -> i32", lambda a, b: a + b).address, 100),
    }


def timed(function: dl.GuestFunction, pointer: int, count: int) -> Callable[[], float]:
    """Return a function that times one turn and returns the nanoseconds of a call."""

    def turn() -> float:
        start = time.perf_counter_ns()
        result = function(count, pointer)
        elapsed = time.perf_counter_ns() - start
        assert result == count
        return elapsed / count

    return turn


@click.command()
@engine_option
@click.option("--rounds", default=40, show_default=True, help="how often all take their turn")
@click.option("--calls", default=200_000, show_default=True, help="calls in one turn, of the fast ones")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
def main(rounds: int, calls: int, json_file: Path | None) -> None:
    """Time calls through the function pointers that the linker makes."""
    with dl.Linker(None, memory=dl.MemoryType(2, 1000, shared=True)) as linker:
        ways = {
            name: timed(function, pointer, calls // fewer)
            for name, (function, pointer, fewer) in make_ways(linker).items()
        }
        samples = take_turns(ways, rounds)

    table = Table("call", "ns", "times a call_indirect", "limit", title="a call through a function pointer")
    ratios = {}
    for name, times in samples.items():
        # The shortest turns: what else the machine does can only add.
        ratios[name] = min(times) / min(samples["call_indirect"])
        limit = f"{LIMITS[name]:.1f}" if name in LIMITS else ""
        table.add_row(name, spread(times), f"{ratios[name]:.2f}", limit)
    report([table], {"nanoseconds": samples, "ratios": ratios, "limits": LIMITS}, json_file)
    missed = [name for name, limit in LIMITS.items() if ratios[name] > limit]
    if missed:
        raise SystemExit(f"over the limit: {', '.join(missed)}")


if __name__ == "__main__":
    main()
