"""Roots and libraries of programs of WAMR's kind, small, as text."""

from __future__ import annotations

from tests.support.modules import MEMORY, MEMORY_BASE, TABLE, library, static, wat_bytes

DLFCN = (
    '(import "env" "dlopen" (func $dlopen (param i32 i32) (result i32)))',
    '(import "env" "dlsym" (func $dlsym (param i32 i32) (result i32)))',
    '(import "env" "dlclose" (func $dlclose (param i32) (result i32)))',
    '(import "env" "dlerror" (func $dlerror (result i32)))',
    '(func (export "dlopen") (param i32 i32) (result i32) (call $dlopen (local.get 0) (local.get 1)))',
    '(func (export "dlsym") (param i32 i32) (result i32) (call $dlsym (local.get 0) (local.get 1)))',
    '(func (export "dlclose") (param i32) (result i32) (call $dlclose (local.get 0)))',
    '(func (export "dlerror") (result i32) (call $dlerror))',
    '(func (export "call0") (param i32) (result i32) (call_indirect (result i32) (local.get 0)))',
    '(func (export "call1") (param i32 i32) (result i32)'
    " (call_indirect (param i32) (result i32) (local.get 1) (local.get 0)))",
)
"""A root's imports, and the same as exports, so that a test can be the program."""

LAZY, NOW, NOLOAD, GLOBAL, NODELETE = 1, 2, 4, 256, 4096
"""musl's flags."""

HEAP = (
    "(global $next (mut i32) (i32.const 70000))",
    "(global $calls (mut i32) (i32.const 0))",
    '(func (export "mallocs") (result i32) (global.get $calls))',
    '(func $malloc (export "malloc") (param i32) (result i32)'
    " (global.set $calls (i32.add (global.get $calls) (i32.const 1)))"
    " (global.get $next)"
    " (global.set $next (i32.and (i32.add (i32.add (global.get $next) (local.get 0)) (i32.const 15)) (i32.const -16))))",
    '(func (export "free") (param i32))',
    '(func (export "realloc") (param i32 i32) (result i32) (call $malloc (local.get 1)))',
)
"""An allocator that never gives anything back."""


def root(*fields: str, memory: str = '(memory (export "memory") 4)') -> bytes:
    """An ordinary root that can open libraries."""
    return static(*DLFCN, *fields, memory=memory)


def side(*fields: str, **info: object) -> bytes:
    """A library with the program's memory, its table, and 16 bytes of data, of which the first word is 42."""
    return library(
        MEMORY,
        TABLE,
        MEMORY_BASE,
        f"(data (global.get $memory_base) {wat_bytes(b'*' + bytes(15))})",
        '(func (export "get") (result i32) (i32.load (global.get $memory_base)))',
        '(func (export "add42") (param i32) (result i32) (i32.add (local.get 0) (i32.const 42)))',
        '(func (export "bump") (result i32)'
        " (i32.store (global.get $memory_base) (i32.add (i32.load (global.get $memory_base)) (i32.const 1)))"
        " (i32.load (global.get $memory_base)))",
        '(global (export "counter") i32 (i32.const 0))',
        *fields,
        memory_size=16,
        memory_align=2,
        **info,
    )
