"""A child made by `os.fork`: the parent's linker is refused there and closed at once, and a new one works."""

from __future__ import annotations

import atexit
import contextlib
import gc
import multiprocessing
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest

import dl
from tests.support.forks import in_child
from tests.support.groups import SECONDS, Program, library, program
from tests.support.modules import library as module_of
from tests.support.modules import static
from tests.support.paths import FIXTURES

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system"),
    pytest.mark.timeout(30),
]


@contextlib.contextmanager
def busy(p: Program) -> Iterator[None]:
    """Have threads that compute, wait, and are in a constructor, for a `with`, and know what they use."""
    p.linker.spawn(lambda g: p.call(g, "spin", p.word(0)))
    p.linker.spawn(lambda g: p.call(g, "wait", p.word(1), 0, -1))
    inside, leave = threading.Event(), threading.Event()
    p.on_construct = lambda _addend: inside.set() or leave.wait(SECONDS)
    p.linker.spawn(lambda g: g.dlopen(library(7, constructor=True), name="slow.so"))
    assert inside.wait(SECONDS)
    p.until(1, "guest")
    p.until_waiting("futex")
    try:
        yield
    finally:
        leave.set()


class TestParentsLinker:
    def test_every_use_is_refused(self) -> None:
        """Each way to use the parent's linker in a child raises an error that says what to do, and none hangs."""
        with program() as p, busy(p):
            linker, group = p.linker, p.main
            handle = group.dlopen(library(1), name="lib.so")
            function = group.dlsym(handle, "value")
            assert isinstance(function, dl.GuestFunction)
            thread = linker.spawn(lambda g: p.call(g, "wait", p.word(2), 0, -1))
            uses: dict[str, Callable[[], object]] = {
                "dlopen": lambda: group.dlopen(library(2), name="other.so"),
                "dlopen of what is loaded": lambda: group.dlopen(library(1), name="lib.so"),
                "dlsym": lambda: group.dlsym(handle, "value"),
                "call": lambda: function(1),
                "synchronize": group.synchronize,
                "table": group.table,
                "run": group.run,
                "spawn": lambda: linker.spawn(lambda g: g.name),
                "attach": lambda: linker.attach().__enter__(),
                "callback": lambda: linker.callback("() -> ()", lambda: None),
                "memory": lambda: linker.memory,
                "grow_memory": lambda: linker.grow_memory(1),
                "main_group": lambda: linker.main_group,
                "statistics": linker.statistics,
                "modules": lambda: linker.modules,
                "join": thread.join,
            }

            def check() -> None:
                for name, use in uses.items():
                    print(name, file=sys.stderr)
                    with pytest.raises(dl.ProgramForkedError, match="make another one there"):
                        use()
                linker.close()
                linker.close()
                group.close()

            in_child(check)
            assert function(1) == 2

    def test_fork_in_a_host_function(self) -> None:
        """A child forked in a host function cannot go back to the guest."""
        with program() as p:
            parent = os.getpid()
            children: list[int] = []
            p.on_construct = lambda _addend: children.append(os.fork())
            status = 1
            try:
                p.main.dlopen(library(7, constructor=True), name="lib.so")
            except dl.ProgramForkedError:
                status = 0
            finally:
                if os.getpid() != parent:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0


class TestNewLinker:
    def test_works(self) -> None:
        """A child can link a program of its own, with threads, whatever the parent's threads were doing."""
        directory = FIXTURES / "plugins" / "shared"
        with program() as p, busy(p):

            def check() -> None:
                with dl.Linker(directory / "main.wasm", library_path=[directory], cache=False) as linker:
                    handle = linker.main_group.dlopen("libadd.so")
                    assert linker.main_group.dlsym(handle, "add")(1, 2) == 3
                    assert linker.spawn(lambda g: g.dlsym(handle, "add")(3, 4)).join(SECONDS) == 7

            in_child(check)

    @pytest.mark.parametrize("user", ["Process", "ProcessPoolExecutor"])
    def test_works_in_processes_that_multiprocessing_forks(self, user: str) -> None:
        """With threads of a guest running, a child by the method `fork` links and calls, and its parent goes on."""
        context = multiprocessing.get_context("fork")
        with program() as p, busy(p), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 and later warn of what is tested here
            if user == "Process":
                child = context.Process(target=added, args=(1, 2))
                child.start()
                child.join(SECONDS)
                assert child.exitcode == 0
            else:
                with ProcessPoolExecutor(1, mp_context=context) as pool:
                    assert pool.submit(added, 1, 2).result(SECONDS) == 3


ADDING = module_of(
    '(func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))',
)


def added(one: int, other: int) -> int:
    """Add in a program of this process, in a thread of it."""
    memory = dl.MemoryType(32, 64, shared=True)
    with dl.Linker(None, memory=memory, libraries={"libadd.so": ADDING}, cache=False) as linker:
        handle = linker.main_group.dlopen("libadd.so")
        thread = linker.spawn(lambda g: g.dlsym(handle, "add")(one, other))
        total: int = thread.join(SECONDS)
    assert total == one + other
    return total


class TestParentsThings:
    def test_an_executor_refuses_work(self) -> None:
        """The parent's executor, whose threads did not come along, refuses work in a child, and its end does not wait."""
        with program() as p, p.linker.executor(2) as executor:
            assert executor.submit(lambda group: 1).result(SECONDS) == 1

            def check() -> None:
                with pytest.raises(dl.ProgramForkedError):
                    executor.submit(lambda group: 1)
                executor.shutdown()

            in_child(check)
            assert executor.submit(lambda group: 2).result(SECONDS) == 2

    def test_a_child_that_ends_leaves_the_parents_files(self) -> None:
        """The temporary directory of a program stays when a child ends as a process of Python does."""
        main = static('(import "wasix_32v1" "proc_id" (func (param i32) (result i32)))')
        with dl.Linker(main, cache=False) as linker:
            places = list(linker.parts.default_files.preopens.values())
            assert places
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                child = os.fork()
            if child == 0:
                try:
                    linker.close()
                    del linker
                    atexit._run_exitfuncs()
                    gc.collect()
                finally:
                    os._exit(0)
            os.waitpid(child, 0)
            assert all(os.path.isdir(place) for place in places)
