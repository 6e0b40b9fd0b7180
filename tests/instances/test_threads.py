"""Instances in programs with several threads: what every thread gets, and what is refused since threads would not share it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

import dl
from tests.support.modules import module, returns

SHARED = '(import "env" "memory" (memory 1 64 shared))'


@pytest.fixture(name="linker")
def _linker() -> Iterator[dl.Linker]:
    memory = dl.MemoryType(1, 512, shared=True)
    with dl.Linker(None, cache=False, memory=memory, modules={"inc": INC}) as linker:
        yield linker


INC = module(
    '(import "env" "own" (memory 1 4 shared))',
    '(func (export "inc") (param i32) (result i32) (i32.atomic.rmw.add (local.get 0) (i32.const 1)))',
)  # fmt: skip


def test_every_thread_has_the_instances_of_a_program(linker: dl.Linker) -> None:
    """Instances, externals of the host's and constants are there in threads that come before and after; the memory is one."""
    memory = linker.new_memory(1, 4, shared=True)
    rounds, ready, go = 500, threading.Barrier(3), threading.Event()
    log: list[int] = []
    holder: dict[str, dl.Instance] = {}

    def early(_group: dl.InstanceGroup) -> int:
        ready.wait(20)
        assert go.wait(20)
        return work(_group)

    def work(_group: dl.InstanceGroup) -> int:
        for _ in range(rounds):
            holder["user"]["run"](8)
        memory.write(64, b"x")
        return int(holder["user"]["constant"].value)

    threads = [linker.spawn(early) for _ in range(2)]
    ready.wait(20)
    holder["inc"] = linker.instantiate(INC, [memory])
    holder["user"] = linker.instantiate(
        module(
            '(import "a" "inc" (func $inc (param i32) (result i32)))', '(import "a" "log" (func $log (param i32)))',
            '(import "a" "c" (global $c i32))', '(export "constant" (global $c))',
            '(func (export "run") (param i32) (if (i32.eqz (call $inc (local.get 0))) (then (call $log (i32.const 1)))))',
        ),
        {"a": {"inc": holder["inc"]["inc"], "log": log.append, "c": 41}},
    )  # fmt: skip
    go.set()
    threads.append(linker.spawn(work))
    assert [thread.join(60) for thread in threads] == [41] * 3
    assert memory.data.read_u32(8) == 3 * rounds
    assert (log, holder["user"]["run"](8), memory.read(64, 1)) == ([1], None, b"x")


def test_named_modules_are_one_instance_of_each_in_every_thread() -> None:
    """Threads that link the same names at the same moment get the same instance, and its `_initialize` has run once."""
    log: list[int] = []
    modules = {
        "base": module(
            SHARED, '(import "env" "log" (func $log (param i32)))', '(func (export "_initialize") (call $log (i32.const 5)))',
            '(export "memory" (memory 0))', returns("f", 3),
        ),
        "mid": module('(import "base" "f" (func $f (result i32)))', '(func (export "f") (result i32) call $f)'),
    }  # fmt: skip
    top = module('(import "mid" "f" (func $f (result i32)))', '(func (export "f") (result i32) call $f)')
    memory = dl.MemoryType(1, 64, shared=True)
    options = {
        "modules": modules,
        "imports": {"env": {"log": log.append}},
        "memory": memory,
        "stack_size": 1024,
    }
    with dl.Linker(None, cache=False, thread_stack_size=1024, **options) as linker:  # type: ignore[arg-type]
        ready = threading.Barrier(4)

        def work(_group: dl.InstanceGroup) -> tuple[int, dl.Instance]:
            ready.wait(20)
            instance = linker.instantiate(top)
            return instance["f"](), instance.dependencies["mid"]

        done = [thread.join(60) for thread in [linker.spawn(work) for _ in range(4)]]
    assert [value for value, _ in done] == [3] * 4
    assert len({id(instance) for _, instance in done}) == 1
    assert log == [5]


REFUSED = [
    (["(memory 1)"], "defines a memory, not shared"),
    (["(memory 1 2 shared)"], "defines a memory, shared"),
    (['(import "a" "t" (table 1 funcref))'], "imports the table a.t"),
    (['(import "a" "g" (global (mut i32)))'], "imports the global a.g"),
    ([SHARED, '(data (i32.const 0) "x")'], "active data segments"),
]


@pytest.mark.parametrize(("fields", "reason"), REFUSED)
def test_what_threads_would_not_share_is_refused(linker: dl.Linker, fields: list[str], reason: str) -> None:
    """A module whose state would be another one in each thread is refused, and the error says which state."""
    with pytest.raises(dl.UnsupportedModuleError, match=reason):
        linker.instantiate(module(*fields), name="m")


def test_what_the_host_cannot_make_for_threads(linker: dl.Linker) -> None:
    """Unshared memories, tables and globals that change belong to one thread; constants, functions and tags do not."""
    for refused in (
        lambda: linker.new_memory(1),
        lambda: linker.new_table("funcref", 1),
        lambda: linker.new_global("i32", 1, mutable=True),
        lambda: linker.new_global("externref", object()),
        linker.spectest_imports,
    ):
        with pytest.raises(dl.LinkerUsageError, match="several threads"):
            refused()
    linker.new_global("externref", None)
    linker.new_tag("(i32) -> ()")
    six = linker.new_function("() -> i32", lambda: 6)
    assert linker.spawn(lambda _group: six()).join(20) == 6


def test_wasi_of_a_program_with_threads_works_on_its_memory(linker: dl.Linker) -> None:
    """A module on the program's memory has WASI; one on another memory is told why not."""
    wasi = '(import "wasi_snapshot_preview1" "random_get" (func $r (param i32 i32) (result i32)))'
    run = '(func (export "f") (result i32) (call $r (i32.const 1024) (i32.const 4)))'
    own = '(import "env" "memory" (memory 1 65536 shared))'
    instance = linker.instantiate(module(own, wasi, run))
    assert linker.spawn(lambda _group: instance["f"]()).join(20) == 0
    with pytest.raises(dl.UnsupportedModuleError, match="not the program's"):
        linker.instantiate(
            module(SHARED, wasi, run), {("env", "memory"): linker.new_memory(1, 64, shared=True)}
        )


def test_a_thread_without_a_group_is_told_so(linker: dl.Linker) -> None:
    """Another thread of the host must be attached before it calls an instance's function."""
    instance = linker.instantiate(module(returns("f", 1)))
    found: list[BaseException] = []

    def call() -> None:
        try:
            instance["f"]()
        except dl.DlError as error:
            found.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(20)
    assert isinstance(found[0], dl.LinkerUsageError)
    assert "attach" in str(found[0])
