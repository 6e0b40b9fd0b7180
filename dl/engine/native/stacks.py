"""How much native stack threads have, for guest code that runs on the stack of the thread that calls it, and host functions."""

from __future__ import annotations

import ctypes
import os
import threading
from typing import Any

from dl.errors import EngineError

_PTHREAD_ATTR_BYTES = 256
"""Room for a `pthread_attr_t`: 56 to 64 bytes on the platforms we know."""

_MOST_STACK = 1 << 20
_LEAST_STACK = 64 << 10

HOST_RESERVE = 256 << 10
"""Bytes of a thread's stack that guest code leaves to Python."""

_known = threading.local()


def _libc_function(name: str, *arguments: Any) -> Any:
    function = getattr(ctypes.CDLL(None), name, None) if os.name == "posix" else None
    if function is not None:
        function.restype = ctypes.c_int
        function.argtypes = list(arguments)
    return function


_attr_init = _libc_function("pthread_attr_init", ctypes.c_void_p)
_attr_destroy = _libc_function("pthread_attr_destroy", ctypes.c_void_p)
_attr_getstacksize = _libc_function("pthread_attr_getstacksize", ctypes.c_void_p, ctypes.c_void_p)
_getattr_np = _libc_function("pthread_getattr_np", ctypes.c_void_p, ctypes.c_void_p)
"""Of glibc, musl and the BSDs; fills in the attributes of a running thread."""


def _stack_size(fill: Any, *thread: int) -> int | None:
    if fill is None or _attr_getstacksize is None:
        return None
    attributes, size = ctypes.create_string_buffer(_PTHREAD_ATTR_BYTES), ctypes.c_size_t()
    if fill(*thread, attributes):
        return None
    failed = _attr_getstacksize(attributes, ctypes.byref(size))
    _attr_destroy(attributes)
    return None if failed else size.value


def this_thread() -> int | None:
    """Return the size in bytes of the calling thread's stack; None if the platform does not tell."""
    size: int | None
    try:
        size = _known.size
    except AttributeError:
        size = _known.size = _stack_size(_getattr_np, threading.get_ident())
    return size


def new_threads() -> int | None:
    """Return the size in bytes of the stacks of threads that Python makes from now on; None if it is not known."""
    return threading.stack_size() or _stack_size(_attr_init)


def fitting() -> int:
    """Return how many bytes of stack guest code may use by default: 1 MiB, or what new threads have room for if it is less."""
    room = new_threads()
    return _MOST_STACK if room is None else max(min(_MOST_STACK, room - HOST_RESERVE), _LEAST_STACK)


def check_this_thread(max_stack: int) -> None:
    """Refuse threads whose stack guest code could overflow: that would end the process.

    Raises:
        EngineError: the calling thread's stack is too small for guest code that may use so many bytes of it.
    """
    size = this_thread()
    if size is not None and size < max_stack + HOST_RESERVE:
        raise EngineError(
            f"this thread's stack of {size} bytes is too small: guest code may use {max_stack} and Python needs "
            f"{HOST_RESERVE}; call threading.stack_size() before starting threads"
        )
