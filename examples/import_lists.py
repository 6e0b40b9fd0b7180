"""Ordinary modules in one program: a memory and a table of the host's, and what two instances do with them."""

from __future__ import annotations

import argparse

import wasmtime

import dl

ADDER = """(module
  (import "env" "memory" (memory 3 5))
  (import "env" "table" (table 2 funcref))
  (func $add (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
  (func $sub (param i32 i32) (result i32) (i32.sub (local.get 0) (local.get 1)))
  (elem (i32.const 0) $add $sub)
  (func (export "grow") (result i32) (memory.grow (i32.const 1))))"""

CALLER = """(module
  (type $binary (func (param i32 i32) (result i32)))
  (import "env" "table" (table 2 funcref))
  (memory (export "memory") 1)
  (func (export "call") (param i32) (result i32)
    (call_indirect (type $binary) (i32.const 5) (i32.const 3) (local.get 0))))"""


def main() -> None:
    """Give two modules what the host has made."""
    with dl.Linker(None) as linker:
        memory, table = linker.new_memory(3, 5), linker.new_table("funcref", 2)
        adder = linker.instantiate(bytes(wasmtime.wat2wasm(ADDER)), [memory, table])
        caller = linker.instantiate(bytes(wasmtime.wat2wasm(CALLER)), {("env", "table"): table})
        print("grow returns", adder["grow"](), "and the memory has", memory.pages, "pages")
        print("through the table:", [caller["call"](i) for i in range(2)], "and from here:", table[0](20, 22))


if __name__ == "__main__":
    argparse.ArgumentParser(description="Give two modules a memory and a table of the host's.").parse_args()
    main()
