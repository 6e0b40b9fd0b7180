"""What the tests of the command line share: programs to name, and small libraries to look at."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from dl.wasm.encode import ModuleBuilder, i32_const, name_bytes, section, unsigned
from dl.wasm.types import FuncType, GlobalType, Limits, MemoryType
from tests.support.paths import FIXTURES, ROOT

HELLO = str(FIXTURES / "hello/shared/main.wasm")
GREET = str(FIXTURES / "hello/shared/libgreet.so")
PLUGINS = str(FIXTURES / "plugins/shared/main.wasm")
TRAPS = str(FIXTURES / "traps/shared/main.wasm")
WASI = str(FIXTURES / "wasi/unshared/main.wasm")
UNDEFINED = str(FIXTURES / "undefined/shared/main.wasm")

MEMORY = MemoryType(Limits(1, 100, shared=False, is64=False))

DlRun = Callable[..., subprocess.CompletedProcess[str]]
"""Run `python -m dl` with some words."""


def library(*subsections: bytes, imports: bool = False) -> bytes:
    """Return a library with the given dylink subsections."""
    build = ModuleBuilder()
    build.import_("env", "memory", MEMORY)
    if imports:
        build.import_("env", "missing_one", FuncType(("i32", "f64"), ()))
    build.export("seven", "func", build.function(FuncType((), ("i32",)), i32_const(7)))
    build.export("here", "global", build.global_(GlobalType("i32", mutable=False), 16))
    dylink = section(0, name_bytes("dylink.0") + b"".join(subsections))
    wasm = build.build()
    return wasm[:8] + dylink + wasm[8:]


def subsection(kind: int, payload: bytes) -> bytes:
    return bytes([kind]) + unsigned(len(payload)) + payload


MEM_INFO = subsection(1, unsigned(4096) + unsigned(4) + unsigned(3) + unsigned(1))


def needed(*names: str) -> bytes:
    return subsection(2, unsigned(len(names)) + b"".join(map(name_bytes, names)))


def seen_after_hello(modules: str, seen: str) -> str:
    """Return what `print` shows of an expression in a new process that has run a program by a command line.

    Args:
        modules: what it imports first.
        seen: the expression.
    """
    code = (
        f"import {modules}; from dl.cli import main; main([sys.argv[1]]); sys.stdout.flush(); print({seen})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, HELLO], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.splitlines()[-1]
