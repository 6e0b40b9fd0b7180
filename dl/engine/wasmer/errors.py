"""What failures of the library become: exceptions of host functions, traps, errors."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from dl.engine.native.pending import take_pending
from dl.engine.native.traps import TRAPS, Names
from dl.engine.wasmer import c
from dl.errors import EngineError, InstantiationError, TrapError
from memory import Uncopied

_NO_WAIT = 12
"""A wait on a memory that is not shared: Wasmer gives it the number of an interruption by the host, which we do not use."""

_CODES = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6, 7: 7, 8: 8, 9: 9, 10: 2, 12: 13, 14: _NO_WAIT, 15: 4}
"""Wasmer's numbers of traps (`wasmer_types::TrapCode`) to ours."""


class Handle(Uncopied):
    """A native object that is freed with this one.

    Attributes:
        pointer: the native object.
    """

    __slots__ = ("_delete", "pointer")

    def __init__(self, pointer: int, delete: Callable[[int], object]) -> None:
        self.pointer = pointer
        self._delete = delete

    def __del__(self) -> None:
        self._delete(self.pointer)


def made(make: Callable[..., int | None], *arguments: Any) -> int:
    """Call a native function that makes something, or puts a failure at the address that is its last argument.

    Raises:
        EngineError: with the failure's text.
    """
    failure = ctypes.c_void_p()
    pointer = make(*arguments, ctypes.addressof(failure))
    if pointer is None:
        raise error_of(failure.value)
    return pointer


def check(failure: int | None, module: str = "a module") -> None:
    """Raise a failure, if there is one.

    Args:
        failure: the native failure.
        module: what is instantiated.

    Raises:
        EngineError: with the failure's text.
        InstantiationError: with the text, if it is about an import.
    """
    if failure is not None:
        raise error_of(failure, None, module)


def error_of(
    failure: int | None, names: Names[Handle] | None = None, module: str = "a module"
) -> BaseException:
    """Return the exception that a failure stands for, and free the failure.

    Args:
        failure: the native failure.
        names: what the linker calls the store's modules and tags.
        module: what is instantiated.
    """
    names = names or Names()
    view = c.FailureView()
    c.failure_read(failure, ctypes.addressof(view))
    try:
        pending = take_pending()
        return _described(failure, view, names, module) if pending is None else pending
    finally:
        c.failure_delete(failure)


def _described(failure: int | None, view: c.FailureView, names: Names[Handle], module: str) -> BaseException:
    text = " ".join(_text(view.text, view.text_bytes).split())
    if view.kind == c.FAILED_LINK:
        return InstantiationError(module, text)
    if view.kind == c.FAILED_EXCEPTION:
        tag = next((name for name, tag in names.tags if c.failure_has_tag(failure, tag.pointer)), None)
        value = view.value if view.value >= 0 else None
        return names.uncaught(tag, value, _frames(view, names))
    if view.kind == c.FAILED_TRAP:
        code = _CODES.get(view.code)
        return TrapError(text if code is None else TRAPS[code], code, _frames(view, names))
    return EngineError(text or "the engine gives no reason")


def _frames(view: c.FailureView, names: Names[Handle]) -> tuple[str, ...]:
    frames = []
    for line in _text(view.frames, view.frames_bytes).split("\n")[:-1]:
        module, index, function = line.split("\0")
        frames.append(f"{names.modules.get(module, module) or '?'}!{function or f'function {index}'}")
    return tuple(frames)


def _text(address: int, size: int) -> str:
    return ctypes.string_at(address, size).decode(errors="replace") if size else ""
