"""A child made by `os.fork`: the parent's linker is refused there and closed at once, and a new one works."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable

import pytest

import dl
from tests.support.forks import in_child
from tests.support.groups import SECONDS, Program, library, program
from tests.support.paths import FIXTURES

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system"),
    pytest.mark.timeout(30),
]


def busy(p: Program) -> None:
    """Have threads that compute, wait, and are in a constructor, and know what they use."""
    p.linker.spawn(lambda g: p.call(g, "spin", p.word(0)))
    p.linker.spawn(lambda g: p.call(g, "wait", p.word(1), 0, -1))
    inside, leave = threading.Event(), threading.Event()
    p.on_construct = lambda _addend: inside.set() or leave.wait(SECONDS)
    p.linker.spawn(lambda g: g.dlopen(library(7, constructor=True), name="slow.so"))
    assert inside.wait(SECONDS)
    p.until(1, "guest")
    p.until_waiting("futex")


class TestParentsLinker:
    def test_every_use_is_refused(self) -> None:
        """Each way to use the parent's linker in a child raises an error that says what to do, and none hangs."""
        with program() as p:
            busy(p)
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
        with program() as p:
            busy(p)

            def check() -> None:
                with dl.Linker(directory / "main.wasm", library_path=[directory], cache=False) as linker:
                    handle = linker.main_group.dlopen("libadd.so")
                    assert linker.main_group.dlsym(handle, "add")(1, 2) == 3
                    assert linker.spawn(lambda g: g.dlsym(handle, "add")(3, 4)).join(SECONDS) == 7

            in_child(check)
