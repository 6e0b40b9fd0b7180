"""Mutated modules, and every import with random arguments: errors and errnos, never a crash, a hang or a foreign exception.

The short form takes some seconds; with DL_SOAK_SECONDS each runs for that long. DL_SEED repeats a run; it is printed.
"""

from __future__ import annotations

import faulthandler
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dl
from dl.wasix.abi import NAMESPACES
from dl.wasm.module import parse_module
from dl.wasm.types import FuncType
from tests.support.groups import program
from tests.support.modules import pie
from tests.support.paths import FIXTURES

SECONDS = float(os.environ.get("DL_SOAK_SECONDS", "6"))
SEED = int(os.environ.get("DL_SEED", "20"))
pytestmark = [pytest.mark.soak, pytest.mark.timeout(int(SECONDS) + 60)]

PATIENCE_SECONDS = 0.1
"""How long a call may wait or compute before it is cancelled; then it must end."""
BOUND_SECONDS = 10
"""What no cancelled call takes."""


class Stop(Exception):
    """What calls are cancelled with that take too long."""


class Worker:
    """A thread of the host that calls functions, one after the other, and is cancelled in those that do not end."""

    def __init__(self, linker: dl.Linker) -> None:
        self._asked, self._answered = threading.Event(), threading.Event()
        self._call: Callable[[dl.InstanceGroup], Any] | None = None
        self._error: BaseException | None = None
        self._begun = threading.Event()
        self.thread = linker.spawn(self._run)
        # A thread that is cancelled before it has begun never runs anything, and so would never answer.
        assert self._begun.wait(BOUND_SECONDS)

    def _run(self, group: dl.InstanceGroup) -> None:
        self._begun.set()
        while True:
            self._asked.wait()
            self._asked.clear()
            if self._call is None:
                return
            self._error = None
            try:
                self._call(group)
            except BaseException as error:  # noqa: BLE001  looked at by the test
                self._error = error
            self._answered.set()

    def call(self, function: Callable[[dl.InstanceGroup], Any]) -> BaseException | None:
        """Call a function; return what it raised, if anything."""
        self._call = function
        self._asked.set()
        if not self._answered.wait(PATIENCE_SECONDS):
            self.thread.cancel(Stop())
            if not self._answered.wait(BOUND_SECONDS):
                faulthandler.dump_traceback(2)
                raise AssertionError("a cancelled call does not end")
        self._answered.clear()
        return self._error

    def __enter__(self) -> Worker:  # noqa: PYI034  `Self` needs 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self._call = None
        self._asked.set()


def mutated(choose: random.Random, wasm: bytes) -> bytes:
    """Change some bytes of a module: flip, insert, remove, repeat, cut; mostly few, so that much of it stays valid."""
    data = bytearray(wasm)
    for _ in range(choose.choice([1, 1, 1, 2, 3, 8])):
        at = choose.randrange(8, max(9, len(data) - 1))
        data += bytes(max(0, 12 - len(data)))
        match choose.randrange(6):
            case 0:
                data[at] ^= 1 << choose.randrange(8)
            case 1:
                data[at] = choose.choice([0, 1, 0x7F, 0x80, 0xFF, choose.randrange(256)])
            case 2:
                data[at:at] = bytes(choose.randrange(256) for _ in range(choose.randint(1, 6)))
            case 3:
                del data[at : at + choose.randint(1, 6)]
            case 4:
                data[at:at] = data[at : at + choose.randint(1, 40)]
            case _:
                del data[max(at, 9) :]
    return bytes(data)


def fixtures() -> list[bytes]:
    """Small libraries of the fixtures, for shared memory."""
    paths = sorted(FIXTURES.glob("*/shared/*.so"))
    return [path.read_bytes() for path in paths if path.stat().st_size < 60_000]


def test_mutated_modules() -> None:
    """What comes of mutated libraries is an error of the linker, or a library; the program stays whole and can be used."""
    print(f"seed {SEED}")
    choose, sources = random.Random(SEED), fixtures()
    assert len(sources) > 20
    until, tried, loaded = time.monotonic() + SECONDS, 0, 0
    while time.monotonic() < until or tried <= 20:
        with program() as p, Worker(p.linker) as worker:
            for number in range(150):
                wasm = mutated(choose, choose.choice(sources))
                try:
                    parse_module(wasm, "mutated")
                except dl.DlError:
                    if choose.random() < 0.7:
                        continue  # what is refused so early tells little about the rest
                flags = choose.choice([dl.RTLD_NOW, dl.RTLD_LAZY]) | choose.choice([0, dl.RTLD_GLOBAL])

                def load(
                    group: dl.InstanceGroup,
                    wasm: bytes = wasm,
                    flags: int = flags,
                    name: str = f"m{number}.so",
                ) -> None:
                    group.dlopen(wasm, flags, name=name)

                error = worker.call(load)
                assert error is None or isinstance(error, (dl.DlError, Stop)), repr(error)
                assert not isinstance(error, dl.InternalError), repr(error)
                tried, loaded = tried + 1, loaded + (error is None)
                if p.linker.program.ended is not None or (time.monotonic() > until and tried > 20):
                    break
            else:
                assert p.main.table() is not None
    print(f"{tried} opened, {loaded} of them loaded")


def _imports() -> list[tuple[str, str, FuncType]]:
    return [(space, name, kind) for space, names in NAMESPACES.items() for name, kind in names.items()]


def caller() -> bytes:
    """A program that imports every function of the system interfaces and exports a call of each."""
    fields = ['(func (export "wasi_thread_start") (param i32 i32))', '(func (export "_start"))']
    for number, (space, name, kind) in enumerate(_imports()):
        shape = "".join(f" (param {param})" for param in kind.params)
        shape += "".join(f" (result {result})" for result in kind.results)
        arguments = " ".join(f"(local.get {n})" for n in range(len(kind.params)))
        fields.append(f'(import "{space}" "{name}" (func $f{number}{shape}))')
        fields.append(f'(func (export "c{number}"){shape} (call $f{number} {arguments}))')
    return pie(*fields, shared=True, memory_size=1 << 16, memory_align=4)


def argument(choose: random.Random, kind: str) -> int:
    """A number as arguments are: descriptors, addresses, lengths, flags, and what lies at their borders."""
    bits = 64 if kind == "i64" else 32
    match choose.randrange(8):
        case 0 | 1:
            value = choose.randrange(12)
        case 2 | 3:
            value = choose.randrange(1 << 16)
        case 4:
            value = choose.randrange(0, 1 << 16, 8)
        case 5:
            value = choose.choice(
                [0, 1, bits - 1, (1 << bits) - 1, 1 << (bits - 1), (1 << bits) - 8, (1 << 31) - 1]
            )
        case 6:
            value = 1 << choose.randrange(bits)
        case _:
            value = choose.getrandbits(bits)
    return value - (1 << bits) if value >> (bits - 1) else value


def test_imports_with_random_arguments(tmp_path: Path) -> None:
    """Every import answers random arguments with an errno or an error of the linker, or is cancelled in its wait."""
    print(f"seed {SEED}")
    choose, imports, wasm = random.Random(SEED), _imports(), caller()
    until, calls, seen = time.monotonic() + SECONDS, 0, set()
    order = list(range(len(imports)))
    while time.monotonic() < until or calls <= 100:
        directory = tmp_path / f"d{calls}"
        directory.mkdir()
        (directory / "file").write_bytes(b"content")
        with (
            dl.Linker(
                wasm,
                name="caller",
                preopens={"/d": directory},
                stdin=b"input",
                stdout=lambda _chunk: None,
                stderr=lambda _chunk: None,
                memory=dl.MemoryType(minimum=64, maximum=4096, shared=True),
            ) as linker,
            Worker(linker) as worker,
        ):
            linker.memory.write(2048, b"/d/file\0libx.so\0" * 64)
            choose.shuffle(order)
            for number in order:
                space, name, kind = imports[number]
                if name in ("proc_exit", "proc_exit2") and choose.random() < 0.9:
                    continue
                arguments = [argument(choose, param) for param in kind.params]
                shown = f"{space}.{name}{tuple(arguments)}"

                def call(group: dl.InstanceGroup, export: str = f"c{number}", with_: Any = arguments) -> None:
                    group.dlsym(dl.MAIN_HANDLE, export)(*with_)

                error = worker.call(call)
                assert error is None or isinstance(error, (dl.DlError, Stop)), f"{shown}: {error!r}"
                assert not isinstance(error, dl.InternalError), f"{shown}: {error!r}"
                calls += 1
                seen.add(name)
                if linker.program.ended is not None or (time.monotonic() > until and calls > 100):
                    break
    print(f"{calls} calls of {len(seen)} functions")
