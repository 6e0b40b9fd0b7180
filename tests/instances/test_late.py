"""Functions of libraries that were undefined when they were opened, and that an instance defines by their first call."""

from __future__ import annotations

import threading

import pytest

import dl
from tests.support.modules import MEMORY, SHARED_MEMORY, imports, library, module, returns

CALLS = imports("f", namespace="late"), '(func (export "g") (result i32) call $f)'


def test_a_stub_is_bound_to_an_instance_that_is_registered_later() -> None:
    """Before, the call fails and says what is missing; then it calls the function, as does a second library."""
    with dl.Linker(None, cache=False) as linker:
        group = linker.main_group
        g = group.dlsym(group.dlopen(library(MEMORY, *CALLS), dl.RTLD_LAZY), "g")
        with pytest.raises(dl.UnresolvedCallError, match=r"late\.f"):
            g()
        linker.register("late", linker.instantiate(module(returns("f", 6))))
        assert [g(), g()] == [6, 6]
        other = library(MEMORY, *CALLS, returns("h", 1))
        handle = group.dlopen(other, dl.RTLD_LAZY)
        assert group.dlsym(handle, "g")() == 6
        # What is bound stays so, as with libraries.
        linker.register("late", linker.instantiate(module(returns("f", 7))), replace=True)
        assert g() == 6


def test_another_type_is_said_and_binds_nothing() -> None:
    """A function of another type is refused at the call, with both types, and one that fits is bound then."""
    with dl.Linker(None, cache=False) as linker:
        group = linker.main_group
        g = group.dlsym(group.dlopen(library(MEMORY, *CALLS), dl.RTLD_LAZY), "g")
        linker.register(
            "late", linker.instantiate(module('(func (export "f") (result i64) i64.const 6)'), name="wrong")
        )
        with pytest.raises(dl.UnresolvedCallError, match=r"wrong.*i64|i64.*wrong"):
            g()
        linker.register("late", linker.instantiate(module(returns("f", 8))), replace=True)
        assert g() == 8


def test_all_threads_bind_it_at_once() -> None:
    """Threads that make the first call at the same moment get one binding, one table index, and the same function."""
    memory = dl.MemoryType(1, 512, shared=True)
    with dl.Linker(None, cache=False, memory=memory) as linker:
        group = linker.main_group
        handles = [
            group.dlopen(library(SHARED_MEMORY, *CALLS, returns("h", n)), dl.RTLD_LAZY) for n in range(3)
        ]
        ready = threading.Barrier(4)

        def work(own: dl.InstanceGroup) -> list[int]:
            ready.wait(20)
            return [own.dlsym(handle, "g")() for handle in handles]

        linker.register("late", linker.instantiate(module(returns("f", 9))))
        assert [t.join(30) for t in [linker.spawn(work) for _ in range(4)]] == [[9] * 3] * 4
        parts = linker.parts.program.state
        assert len([key for key in parts.host_addresses if key[1] == "f"]) == 1
        assert linker.spawn(lambda own: own.dlsym(handles[0], "g")()).join(20) == 9
