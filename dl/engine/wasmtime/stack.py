"""What is on a thread's stack, by what the C API has for it: a sample of the engine's guest profiler.

A profiler records the frames of the modules that it is made for, and no others. So one that is made for some modules, and takes
one sample, says whether any of them is on the stack: in all calls into the store that are under way in the thread, one inside
the other. It takes 30 µs, and 0.1 µs more for each function of the modules (1.1 ms for 10,000).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

from dl.engine.wasmtime import c
from dl.engine.wasmtime.errors import check, take_bytes
from memory import Uncopied

_NAME = ctypes.create_string_buffer(b"module")
_NAME_VEC = c.ByteVec(len(_NAME.value), ctypes.addressof(_NAME))


def is_on_stack(engine: int, store: int, modules: Sequence[int]) -> bool:
    """Return whether code of a module is on the calling thread's stack in a store.

    Args:
        engine: the native engine.
        store: the native store, which the calling thread uses.
        modules: native modules.

    Raises:
        EngineError: the engine cannot write its sample down.
    """
    import json  # noqa: PLC0415  seldom needed

    name = ctypes.addressof(_NAME_VEC)
    profiled = (c.ProfiledModule * len(modules))(*(c.ProfiledModule(name, module) for module in modules))
    profiler = c.profiler_new(engine, name, 1, ctypes.addressof(profiled), len(modules))
    c.profiler_sample(profiler, store, 0)
    profile = json.loads(take_bytes(lambda out: check(c.profiler_finish(profiler, out))))
    return any(thread["frameTable"]["length"] for thread in profile["threads"])


class WasmtimeProfiler(Uncopied):
    """The engine's guest profiler for one store, with the modules that the store has when it is made.

    Args:
        engine: the native engine.
        store: the native store.
        modules: names and native modules.
        count: returns how many modules the store has.
    """

    def __init__(
        self, engine: int, store: int, modules: Sequence[tuple[str, int]], count: Callable[[], int]
    ) -> None:
        self._store = store
        self._count = count
        self._known = len(modules)
        texts = [ctypes.create_string_buffer(name.encode()) for name, _ in modules]
        vecs = [c.ByteVec(len(text) - 1, ctypes.addressof(text)) for text in texts]
        profiled = (c.ProfiledModule * len(modules))(
            *(
                c.ProfiledModule(ctypes.addressof(vec), module)
                for vec, (_, module) in zip(vecs, modules, strict=True)
            )
        )
        # The interval only scales the times in the profile, which nobody reads here.
        self._profiler: int = c.profiler_new(
            engine, ctypes.addressof(_NAME_VEC), 1_000_000, ctypes.addressof(profiled), len(modules)
        )

    @property
    def outdated(self) -> bool:
        return self._count() != self._known

    def sample(self) -> None:
        c.profiler_sample(self._profiler, self._store, 0)

    def finish(self) -> list[tuple[str, ...]]:
        import json  # noqa: PLC0415  seldom needed

        profiler, self._profiler = self._profiler, 0
        profile = json.loads(take_bytes(lambda out: check(c.profiler_finish(profiler, out))))
        return [stack for thread in profile["threads"] for stack in _stacks(thread)]

    def __del__(self, _delete: Callable[[int], None] = c.profiler_delete) -> None:
        if self.__dict__.get("_profiler"):
            _delete(self._profiler)


def _stacks(thread: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the samples of a thread in the format of Firefox's profiler, whose tables refer to each other by index."""
    strings, functions = thread["stringArray"], thread["funcTable"]
    resources = thread["resourceTable"]["name"]
    names = []
    for name, resource in zip(functions["name"], functions["resource"], strict=True):
        module = strings[resources[resource]] if 0 <= resource < len(resources) else "?"
        names.append(f"{module}!{strings[name]}")
    frames, stacks = thread["frameTable"]["func"], thread["stackTable"]
    known: list[tuple[str, ...]] = []
    for prefix, frame in zip(
        stacks["prefix"], stacks["frame"], strict=True
    ):  # a prefix comes before what it is one of
        known.append((*(() if prefix is None else known[prefix]), names[frames[frame]]))
    return [() if stack is None else known[stack] for stack in thread["samples"]["stack"]]
