"""Needed libraries are compiled side by side, and whatever goes wrong, as if they were not."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

import dl
from dl.engine import default_engine
from dl.link import compile as compiling
from dl.link.compile import being_compiled
from tests.support.modules import MEMORY, data, library, returns

COUNT = 6
INVALID = library('(func (export "f") (result i32) i32.const 1)')[:-1] + b"\x01"


@pytest.fixture(autouse=True)
def _several_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(compiling, "LEAST_BYTES", 0)


def libraries(broken: dict[int, bytes] | None = None) -> dict[str, bytes]:
    """Libraries whose code this process does not have, and one, `all.so`, that needs them."""
    seed = os.urandom(4).hex()
    made = {
        f"{n}.so": library(MEMORY, returns(f"f{n}_{seed}", n), data(f"d{n}", 0), memory_size=8)
        for n in range(COUNT)
    }
    made |= {f"{n}.so": wasm for n, wasm in (broken or {}).items()}
    return made | {"all.so": library(returns(f"all_{seed}", 9), needed=list(made))}


def helpers() -> list[threading.Thread]:
    """The threads that compile beside the one that loads."""
    return [thread for thread in threading.enumerate() if thread.name == "wasix-dl compiles"]


def watched(monkeypatch: pytest.MonkeyPatch, meet: Callable[[], None]) -> Any:
    """An engine whose `compile` meets a function first."""
    engine = default_engine()
    compile_before = engine.compile

    def compile_(wasm: bytes) -> Any:
        meet()
        return compile_before(wasm)

    monkeypatch.setattr(engine, "compile", compile_)
    return engine


def test_modules_of_a_load_are_compiled_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two modules are in the engine at once, each is there once, and afterwards nobody compiles."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    together = threading.Barrier(2)
    names: list[str] = []
    count = 0

    def meet() -> None:
        nonlocal count
        if loading:
            count += 1
            if len(names) < 2:  # the first two wait for each other, one alone in vain
                together.wait(timeout=30)
                names.extend(being_compiled())
                together.wait(timeout=30)

    loading = False
    engine = watched(monkeypatch, meet)
    with dl.Linker(None, libraries=libraries(), engine=engine, cache=False) as linker:
        loading = True
        linker.main_group.dlopen("all.so")
        assert helpers() == []
        assert len(linker.modules) == COUNT + 1

    assert len(set(names)) == 2
    assert count >= COUNT + 1
    assert being_compiled() == []


def test_what_is_known_needs_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second program with the same libraries starts none for them."""
    made, start = libraries(), threading.Thread.start
    started: list[str] = []

    def starting(thread: threading.Thread) -> None:
        started.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", starting)
    counts = []
    for _ in range(2):
        with dl.Linker(None, libraries=made, cache=False) as linker:
            started.clear()
            linker.main_group.dlopen("all.so")
            counts.append(len(started))

    assert counts == [3, 0]


@pytest.mark.parametrize(
    ("broken", "limits"),
    [((5, 1), {}), ((0, 3, 4), {}), ((), {"code_modules": 3}), ((4,), {"code_modules": 5})],
)
def test_a_load_fails_as_if_alone(
    broken: tuple[int, ...], limits: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On several processors the error is that of one: of the first module that cannot be compiled; then other loads succeed."""
    errors = set()
    for processors in (4, 1):
        monkeypatch.setattr(os, "cpu_count", lambda: processors)  # noqa: B023
        made = libraries(dict.fromkeys(broken, INVALID))
        with dl.Linker(None, libraries=made, cache=False, limits=dl.Limits(**limits)) as linker:
            with pytest.raises(dl.DlError) as caught:
                linker.main_group.dlopen("all.so")
            errors.add((type(caught.value), str(caught.value)))
            assert helpers() == []
            assert list(linker.modules) == []
            if not limits:
                linker.main_group.dlopen("3.so" if 3 not in broken else "2.so")

    assert len(errors) == 1


def test_what_is_interrupted_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the midst of compiling ends the load, once the other threads are done with their modules."""
    main, pressed = threading.get_ident(), False
    others = threading.Event()

    def meet() -> None:
        nonlocal pressed
        if not loading or pressed:
            return
        if threading.get_ident() == main:
            others.wait(30)
            pressed = True
            raise KeyboardInterrupt
        others.set()

    loading = False
    engine = watched(monkeypatch, meet)
    with dl.Linker(None, libraries=libraries(), engine=engine, cache=False) as linker:
        loading = True
        with pytest.raises(KeyboardInterrupt):
            linker.main_group.dlopen("all.so")
        assert helpers() == []
        assert list(linker.modules) == []
        linker.main_group.dlopen("all.so")
        assert len(linker.modules) == COUNT + 1
