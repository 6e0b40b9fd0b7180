"""What goes wrong in the middle: faults at each step, calls from host functions, forks, interruptions."""

from __future__ import annotations

import threading
import time

import pytest

import dl
from tests.support.forks import in_child
from tests.support.modules import module, returns

SHARED = '(import "env" "own" (memory 1 4 shared))'


class Fault(Exception):
    """What the tests make go wrong."""


@pytest.mark.parametrize("step", ["instantiate", "commit"])
def test_a_fault_leaves_the_program_as_it_was(step: str) -> None:
    """A fault as an instance is made or committed reaches the caller; the next attempt works, in every thread."""
    with dl.Linker(
        None, cache=False, memory=dl.MemoryType(1, 512, shared=True), modules={"m": module(returns("f", 4))}
    ) as linker:
        wasm = module('(import "m" "f" (func $f (result i32)))', '(func (export "f") (result i32) call $f)')
        ready, go = threading.Barrier(2), threading.Event()

        def waits(_group: dl.InstanceGroup) -> int:
            ready.wait(20)
            assert go.wait(20)
            return int(made["f"]())

        thread = linker.spawn(waits)
        ready.wait(20)
        for number in (1, 2):  # of the dependency, then of the module itself
            left = number

            def fail(at: str, _group: str | None) -> None:
                nonlocal left
                if at == step:
                    left -= 1
                    if not left:
                        raise Fault

            linker.program.checkpoint = fail
            with pytest.raises(Fault):
                linker.instantiate(wasm)
            linker.program.checkpoint = lambda _step, _group: None
        made = linker.instantiate(wasm)
        go.set()
        assert (made["f"](), thread.join(30), linker.spawn(lambda _group: made["f"]()).join(30)) == (4, 4, 4)


def test_a_start_that_fails_in_another_thread_ends_that_one_only() -> None:
    """An instance whose start function traps in a later thread ends that thread, and says why; the others go on."""
    with dl.Linker(
        None, cache=False, memory=dl.MemoryType(1, 512, shared=True),
        imports={"env": {"bad": lambda: int(threading.current_thread() is not threading.main_thread())}},
    ) as linker:  # fmt: skip
        made = linker.instantiate(
            module(
                '(import "env" "bad" (func $bad (result i32)))', "(func $s (if (call $bad) (then unreachable)))", "(start $s)",
                returns("f", 2),
            )
        )  # fmt: skip
        with pytest.raises(dl.ReplayFailedError, match="unreachable"):
            linker.spawn(lambda _group: None).join(30)
        assert made["f"]() == 2


def test_a_host_function_instantiates_and_calls() -> None:
    """A Python function that a guest calls makes an instance, calls it, grows a memory and reads a table, and returns."""
    log: list[object] = []

    def work() -> int:
        inner = linker.instantiate(
            module('(memory (export "m") 1)', '(table (export "t") 1 funcref)', returns("f", 5))
        )
        log.append((inner["m"].grow(1), inner["m"].pages, inner["t"][0], len(inner["t"])))
        return int(inner["f"]()) + int(outer["f"]())

    with dl.Linker(None, cache=False, imports={"env": {"work": work}}) as linker:
        outer = linker.instantiate(
            module(
                '(import "env" "work" (func $w (result i32)))',
                '(func (export "run") (result i32) call $w)',
                returns("f", 1),
            )
        )
        assert outer["run"]() == 6
    assert log == [(1, 2, None, 1)]


def test_a_start_function_cannot_instantiate() -> None:
    """An instance cannot be made in the midst of another one's, by its start function: an error, and no harm."""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            linker.instantiate(module(returns("f", 1)))
        except dl.LinkerUsageError as error:
            errors.append(error)

    with dl.Linker(None, cache=False, imports={"env": {"work": work}}) as linker:
        made = linker.instantiate(module('(import "env" "work" (func $w))', "(start $w)", returns("f", 3)))
        assert made["f"]() == 3
        assert "in the midst" in str(errors[0])


def test_a_forked_child_is_told_so() -> None:
    """Objects of the parent's are refused in a child by a clear error, and still work in the parent."""
    with dl.Linker(None, cache=False) as linker:
        made = linker.instantiate(module('(memory (export "m") 1)', returns("f", 3)))
        uses = (
            made["f"],
            lambda: made["m"].pages,
            lambda: linker.new_global("i32", 1),
            lambda: made["m"].read(0, 1),
        )

        def check() -> None:
            for use in uses:
                with pytest.raises(dl.ProgramForkedError):
                    use()

        in_child(check)
        assert made["f"]() == 3


def test_threads_of_one_name_while_it_fails() -> None:
    """Threads that wait for an instance which another one fails to make try it themselves, until one has made it."""
    left = [2]
    lock = threading.Lock()

    def fails() -> int:
        with lock:
            left[0] -= 1
            now = left[0] >= 0
        time.sleep(0.02)
        return int(now)

    slow = module(
        '(import "env" "memory" (memory 0 65536 shared))', '(import "env" "fails" (func $fails (result i32)))',
        '(func (export "_initialize") (if (call $fails) (then unreachable)))', returns("f", 6),
    )  # fmt: skip
    top = module('(import "slow" "f" (func $f (result i32)))', '(func (export "f") (result i32) call $f)')
    memory = dl.MemoryType(1, 512, shared=True)
    with dl.Linker(
        None, cache=False, memory=memory, modules={"slow": slow}, imports={"env": {"fails": fails}}
    ) as linker:
        ready = threading.Barrier(4)

        def work(_group: dl.InstanceGroup) -> object:
            ready.wait(20)
            try:
                return linker.instantiate(top)["f"]()
            except dl.InitializationError:
                return "failed"

        done = [thread.join(60) for thread in [linker.spawn(work) for _ in range(4)]]
    assert sorted(done, key=str) == [6, 6, "failed", "failed"]
