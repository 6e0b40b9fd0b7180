"""Modules that are linked by the names that they import from: from a folder, from a finder, and from Python."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import wasmtime

import dl

TEXTS = {
    "mA": '(module (func (export "A1") (result i32) i32.const 11))',
    "mB": """(module (import "mA" "A1" (func $a1 (result i32))) (func (export "B1") (result i32) i32.const 21)
      (export "B2" (func $a1)))""",
    "mC": """(module
      (import "mA" "A1" (func $a1 (result i32))) (import "mB" "B1" (func $b1 (result i32)))
      (import "mB" "B2" (func $b2 (result i32))) (import "host" "log" (func $log (param i32)))
      (func (export "C1") (result i32) i32.const 31) (func (export "C2") (result i32) call $b1)
      (func (export "C3") (result i32) (call $log (call $a1)) (call $a1)) (func (export "C4") (result i32) call $b2))""",
}


@contextlib.contextmanager
def finder_of_b(name: str) -> Iterator[bytes]:
    """Read a module, and say when it is released."""
    print("read", name)
    yield bytes(wasmtime.wat2wasm(TEXTS[name]))
    print("released", name)


def main() -> None:
    """Link three modules."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("mA", "mC"):
            Path(folder, f"{name}.wasm").write_bytes(bytes(wasmtime.wat2wasm(TEXTS[name])))
        with dl.Linker(
            None,
            module_path=[folder],
            finder=lambda name: finder_of_b(name) if name == "mB" else None,
            imports={"host": {"log": lambda value: print("log", value)}},
        ) as linker:
            instance = linker.instantiate(Path(folder, "mC.wasm"), name="mC")
            print([instance[f"C{number}"]() for number in range(1, 5)], instance.lookup("$mB$B1")())
            for source in instance.sources:
                print(f"{source.module}.{source.name}: {source.origin} {source.provider}".rstrip())


if __name__ == "__main__":
    argparse.ArgumentParser(description="Link three modules by the names that they import from.").parse_args()
    main()
