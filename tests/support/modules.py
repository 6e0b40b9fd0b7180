"""Small WebAssembly modules, written as text where they are used, with a dylink section in front.

Fields may come in any order: imports are moved to the front, where the text format wants them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import wasmtime

import dl
from dl.wasm.encode import name_bytes, section, unsigned, vector

MEMORY = '(import "env" "memory" (memory 0))'
SHARED_MEMORY = '(import "env" "memory" (memory 0 65536 shared))'
TABLE = '(import "env" "__indirect_function_table" (table 0 funcref))'
MEMORY_BASE = '(import "env" "__memory_base" (global $memory_base i32))'
TABLE_BASE = '(import "env" "__table_base" (global $table_base i32))'
STACK_POINTER = '(import "env" "__stack_pointer" (global $sp (mut i32)))'

WEAK_UNDEFINED, TLS = 0x11, 0x100


def subsection(kind: int, payload: bytes) -> bytes:
    """One subsection of `dylink.0`."""
    return bytes([kind]) + unsigned(len(payload)) + payload


def dylink(
    *,
    memory_size: int = 0,
    memory_align: int = 0,
    table_size: int = 0,
    table_align: int = 0,
    needed: Sequence[str] = (),
    weak: Sequence[str] = (),
    tls: Sequence[str] = (),
    run_path: Sequence[str] = (),
    flags: Mapping[str, int] | None = None,
) -> bytes:
    """A `dylink.0` section; sizes and alignment exponents as they are, so that they may lie."""
    sizes = (memory_size, memory_align, table_size, table_align)
    body = subsection(1, b"".join(unsigned(n) for n in sizes))
    if needed:
        body += subsection(2, vector([name_bytes(name) for name in needed]))
    exports = dict.fromkeys(tls, TLS) | dict(flags or {})
    if exports:
        body += subsection(3, vector([name_bytes(n) + unsigned(f) for n, f in exports.items()]))
    if weak:
        infos = [name_bytes("env") + name_bytes(name) + unsigned(WEAK_UNDEFINED) for name in weak]
        body += subsection(4, vector(infos))
    if run_path:
        body += subsection(5, vector([name_bytes(entry) for entry in run_path]))
    return section(0, name_bytes("dylink.0") + body)


def module(*fields: str, name: str = "") -> bytes:
    """An ordinary module."""
    ordered = sorted((f.strip() for f in fields), key=lambda f: not f.startswith("(import"))
    return bytes(wasmtime.wat2wasm(f"(module {name} {' '.join(ordered)})"))


def library(*fields: str, **info: object) -> bytes:
    """A module with a `dylink.0` section; see `dylink` for what it may say."""
    wasm = module(*fields)
    return wasm[:8] + dylink(**info) + wasm[8:]  # type: ignore[arg-type]


def pie(*fields: str, shared: bool = False, **info: object) -> bytes:
    """A position-independent main module: imports memory, table, bases and stack pointer."""
    memory = SHARED_MEMORY if shared else MEMORY
    return library(memory, TABLE, STACK_POINTER, MEMORY_BASE, TABLE_BASE, *fields, **info)


def static(*fields: str, memory: str = '(memory (export "memory") 2)', table: str | None = None) -> bytes:
    """An ordinary main module that libraries can be linked to."""
    if table is None:
        table = '(table (export "__indirect_function_table") 4 funcref)'
    return module(memory, table, *fields)


def returns(name: str, value: int) -> str:
    """A function that is exported and returns a number."""
    return f'(func (export "{name}") (result i32) i32.const {value})'


def imports(name: str, kind: str = "(result i32)", namespace: str = "env") -> str:
    """Import a function under its own name."""
    return f'(import "{namespace}" "{name}" (func ${name} {kind}))'


def calls(name: str, imported: str) -> str:
    """A function that is exported and returns what another returns."""
    return f'(func (export "{name}") (result i32) call ${imported})'


def got(name: str, kind: str) -> str:
    """Import a GOT entry; kind is `func` or `mem`."""
    return f'(import "GOT.{kind}" "{name}" (global $got_{kind}_{name} (mut i32)))'


def reads(name: str, variable: str) -> str:
    """A function that is exported and returns a global."""
    return f'(func (export "{name}") (result i32) global.get ${variable})'


def data(name: str, offset: int) -> str:
    """Export data of the module: a global that holds the offset from its memory base."""
    return f'(global (export "{name}") i32 (i32.const {offset}))'


def constructor(*body: str, name: str = "__wasm_call_ctors") -> str:
    """A constructor."""
    return f'(func (export "{name}") {" ".join(body)})'


def wat_bytes(data_bytes: bytes) -> str:
    """Bytes as a string of the text format."""
    return '"' + "".join(f"\\{b:02x}" for b in data_bytes) + '"'


CALL_POINTER = (
    '(func (export "call_pointer") (param i32) (result i32) local.get 0 call_indirect (result i32))'
)
"""A function that calls the one at a table index; for modules that have `TABLE`."""


def linker(libraries: dict[str, bytes], **options: Any) -> dl.Linker:
    """Return a linker without a main module that knows some libraries."""
    return dl.Linker(None, libraries=libraries, **options)
