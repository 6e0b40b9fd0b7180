"""Nothing that exists once is copied or pickled: a half-made copy would free what the real one still uses."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from dl.engine import known_engines
from dl.engine.native.engine import NativeEngine
from dl.engine.native.store import NativeStore
from memory import Uncopied
from tests.support.modules import SHARED_MEMORY, library
from tests.support.paths import ROOT

pytestmark = pytest.mark.timeout(60)

LIB = library(
    SHARED_MEMORY,
    '(func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))',
    '(global (export "data") i32 (i32.const 0))',
)

SCRIPT = f"""
import copy, gc, pickle, sys
import dl
from dl.engine import engine_named
from dl.wasm.types import Limits, MemoryType

wasm = bytes.fromhex({LIB.hex()!r})
with dl.Linker(None, memory=dl.MemoryType(2, 1000, shared=True), engine=engine_named(sys.argv[1])) as linker:
    group = linker.main_group
    lib = group.library(wasm, name="l.so")
    executor = linker.executor(1)
    assert executor.submit(lambda group: group.name).result(30)
    thread = linker.spawn(lambda group: None)
    thread.join(30)
    store = group.own.instances._store
    held = dict(
        linker=linker, group=group, library=lib, function=lib.add, typed=lib.function("add", int), data=lib["data"],
        callback=linker.callback("(i32) -> i32", lambda number: number), block=linker.allocate(16), executor=executor,
        thread=thread, tasks=dl.AsyncLinker(linker, None), memory=linker.memory, engine=linker.engine, store=store,
        instances=group.own, module=linker.engine.compile(wasm), shared=linker.engine.shared_memory(
            MemoryType(Limits(1, 2, shared=True, is64=False))), parts=[linker], named={{"lib": lib}},
    )
    for name, thing in held.items():
        for how in (copy.copy, copy.deepcopy, pickle.dumps):
            if how is copy.copy and name in ("parts", "named"):
                continue  # lists and dictionaries are the user's own
            try:
                how(thing)
            except TypeError as error:
                assert "cannot be copied" in str(error) or "cannot be pickled" in str(error), (name, how, error)
            else:
                print(name, how)
    gc.collect()
    assert lib.add(2, 3) == 5
    lib.close()
    for how in (copy.copy, copy.deepcopy):
        try:
            how(lib)
        except TypeError:
            pass
        else:
            print("the closed library", how)
print("used and closed")
"""


@pytest.mark.parametrize("engine", known_engines())
def test_what_users_hold_refuses_to_be_copied_and_works_afterwards(engine: str) -> None:
    """Copying or pickling it raises TypeError, and the linker is used and closed after that."""
    process = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", SCRIPT, engine],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert process.stdout == "used and closed\n", process.stderr
    assert process.returncode == 0, process.stderr


def owners() -> Iterator[tuple[str, set[str]]]:
    """Yield each class whose objects free something at their end, and what it derives from."""
    for package in ("dl", "memory", "threads"):
        for path in sorted((ROOT / package).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if "def __del__" not in text:
                continue
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ClassDef) and any(
                    isinstance(part, ast.FunctionDef) and part.name == "__del__" for part in node.body
                ):
                    yield f"{path.name}: {node.name}", {ast.unparse(base) for base in node.bases}


def test_all_that_frees_something_at_its_end_refuses_to_be_copied() -> None:
    """Every class with a `__del__` derives from the one that refuses, or from a base of all engines that does."""
    assert issubclass(NativeEngine, Uncopied)
    assert issubclass(NativeStore, Uncopied)
    refusing = {"Uncopied", "NativeEngine", "NativeStore"}
    found = list(owners())
    assert len(found) > 8
    assert [name for name, bases in found if not bases & refusing] == []
