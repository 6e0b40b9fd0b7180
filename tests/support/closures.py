"""Guests that make closures: a library with the system calls, and what tests say to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dl
from tests.support.modules import SHARED_MEMORY, STACK_POINTER, TABLE, library, reads

TYPES = ("i32", "i64", "f32", "f64", "v128")


SIZES = {"i32": 4, "i64": 8, "f32": 4, "f64": 8, "v128": 16}


SUCCESS, FAULT, INVALID, NOT_SUPPORTED, MEMORY_VIOLATION = 0, 21, 28, 58, 78

SYSTEM_CALLS = {"closure_allocate": 1, "closure_prepare": 7, "closure_free": 1, "call_dynamic": 6}


WASIX = [
    f'(import "wasix_32v1" "{name}" (func ${name} (param{" i32" * count}) (result i32)))'
    f'(export "{name}" (func ${name}))'
    for name, count in SYSTEM_CALLS.items()
]


ADD = """(func (export "add") (param $values i32) (param $results i32) (param $environment i32)
  (i32.store (local.get $results)
    (i32.add (i32.load (local.get $values)) (i32.load (local.get $environment)))))
(func (export "twice") (param $values i32) (param $results i32) (param $environment i32)
  (i32.store (local.get $results) (i32.mul (i32.load (local.get $values)) (i32.const 2))))
(func (export "fail") (param i32 i32 i32) unreachable)"""


CALL = """(func (export "call") (param i32 i32) (result i32)
  (call_indirect (param i32) (result i32) (local.get 1) (local.get 0)))"""


SPIN = """(func (export "spin") (param $pointer i32) (param $until i32) (result i32) (local $last i32)
  (loop $again
    (local.set $last (call_indirect (param i32) (result i32) (i32.const 1) (local.get $pointer)))
    (br_if $again (i32.ne (local.get $last) (local.get $until))))
  (local.get $last))"""


INT = b"\0"


def functions(memory: str) -> bytes:
    """A library with the system calls, backing functions, and ways to call a pointer."""
    return library(memory, TABLE, STACK_POINTER, *WASIX, ADD, CALL, SPIN, reads("sp", "sp"))


class Guest:
    """A program without a main module, and the functions of the library above in one group."""

    def __init__(self, linker: dl.Linker, group: dl.InstanceGroup | None = None) -> None:
        self.linker = linker
        self.group = group or linker.main_group
        if group is None:
            self.handle = linker.main_group.dlopen(functions(SHARED_MEMORY), name="functions.so")
            self.scratch = linker.grow_memory(4) * 65536
        else:
            self.handle = linker.modules[0].handle

    def __getattr__(self, name: str) -> Any:
        return self.group.dlsym(self.handle, name)

    def address(self, name: str) -> int:
        """The pointer of a backing function."""
        return self.group.dlsym(self.handle, name).address

    def allocate(self) -> Any:
        """`closure_allocate`."""
        assert self.closure_allocate(self.scratch) == SUCCESS
        return self.linker.memory.read_u32(self.scratch)

    def prepare(
        self, closure: int, backing: int, arguments: bytes = INT, results: bytes = INT, environment: int = 0
    ) -> Any:
        """`closure_prepare`, with lists of types as bytes; returns the errno."""
        memory = self.linker.memory
        memory.write(self.scratch + 1024, arguments)
        memory.write(self.scratch + 4096, results)
        return self.closure_prepare(
            backing,
            closure,
            self.scratch + 1024,
            len(arguments),
            self.scratch + 4096,
            len(results),
            environment,
        )

    def adder(self, number: int) -> int:
        """A closure that adds a number of its own."""
        closure = self.allocate()
        environment = self.scratch + 8192 + 4 * closure
        self.linker.memory.write_u32(environment, number)
        assert self.prepare(closure, self.address("add"), environment=environment) == SUCCESS
        return closure


def in_thread(linker: dl.Linker, function: Callable[..., Any]) -> Any:
    """Run a function of a `Guest` in a thread that is made for it."""
    main = linker.modules[0].handle

    def body(group: dl.InstanceGroup) -> Any:
        guest = Guest.__new__(Guest)
        guest.linker, guest.group, guest.handle = linker, group, main
        return function(guest)

    return linker.spawn(body).join(timeout=60)
