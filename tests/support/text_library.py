"""A library of the guest with functions of text, structures, numbers and loops."""

from __future__ import annotations

import ctypes

from tests.support.modules import MEMORY_BASE, TABLE, data, library

TEXT = """
(func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
(func (export "close") (result i32) (i32.const 77))
(func (export "length") (param $text i32) (result i32) (local $end i32)
  (local.set $end (local.get $text))
  (block $done (loop $again
    (br_if $done (i32.eqz (i32.load8_u (local.get $end))))
    (local.set $end (i32.add (local.get $end) (i32.const 1)))
    (br $again)))
  (i32.sub (local.get $end) (local.get $text)))
(func (export "greeting") (result i32) (global.get $memory_base))
(func (export "nothing") (result i32) (i32.const 0))
(func (export "same") (param i32) (result i32) (local.get 0))
(func (export "double") (param f64) (result f64) (f64.add (local.get 0) (local.get 0)))
(func (export "half") (param f32) (result f32) (f32.mul (local.get 0) (f32.const 0.5)))
(func (export "swap") (param $pair i32) (local $first i32)
  (local.set $first (i32.load (local.get $pair)))
  (i32.store (local.get $pair) (i32.load offset=4 (local.get $pair)))
  (i32.store offset=4 (local.get $pair) (local.get $first)))
(func (export "spin") (loop $again (br $again)))
(func (export "apply") (param $f i32) (param i32) (result i32)
  (call_indirect (param i32) (result i32) (local.get 1) (local.get $f)))
(func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
(data (global.get $memory_base) "caf\\c3\\a9\\00")
"""


def text_library(memory: str) -> bytes:
    return library(memory, TABLE, MEMORY_BASE, TEXT, data("word", 0), memory_size=16, memory_align=2)


class Pair(ctypes.Structure):
    _fields_ = [("first", ctypes.c_int32), ("second", ctypes.c_int32)]
