"""How a call into wasmtime ends: exceptions of host functions on their way through the guest, traps, exits, errors.

The binding keeps a host function's exception in one process-wide variable, so under threads it reaches the wrong caller.
Here it waits under the raising thread's identity, and the innermost call into the guest of that thread, the one it
interrupts, takes it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from threading import get_ident

from dl.engine import wasmtime_c as c
from dl.errors import EngineError, InstantiationError, ProgramExited, TrapError

_PENDING: dict[int, BaseException] = {}
"""Exception of a host function on its way to the caller it interrupts, by thread identity.

A thread only ever touches its own entry, so there is no lock. Invariant: an entry exists only between a host
function's return with a trap and the return of the innermost guest call of the same thread.
"""


def interrupt_guest(error: BaseException, message: bytes) -> int:
    """Set an exception on its way to the calling thread's innermost guest call; return the trap that unwinds the guest."""
    _PENDING[get_ident()] = error
    trap: int = c.trap_new(message, len(message))
    return trap


def interrupt_guest_by_error(error: BaseException) -> int:
    """Do the same from an epoch callback, which returns an error instead of a trap."""
    _PENDING[get_ident()] = error
    failed: int = c.error_new(b"interrupted")
    return failed


def check(error: int | None) -> None:
    """Raise what the engine reports, if it does, and free it.

    Raises:
        EngineError: with the engine's text.
    """
    if error:
        raise EngineError(error_text(error))


def error_text(error: int) -> str:
    """Return an error's message and free the error."""
    text = _take_bytes(lambda out: c.error_message(error, out)).decode(errors="replace")
    c.error_delete(error)
    return text.strip()


def raise_ending(error: int | None, trap: int | None) -> None:
    """Turn the end of a guest call into the exception that its caller gets, and free the native objects.

    Raises:
        BaseException: what the host function that interrupted the call raised.
        ProgramExited: WASI's ``proc_exit`` was called.
        TrapError: the guest trapped.
    """
    pending = _PENDING.pop(get_ident(), None)
    if pending is not None:
        if error:
            c.error_delete(error)
        if trap:
            c.trap_delete(trap)
        raise pending
    if trap:
        raise _trap(trap)
    assert error
    status = ctypes.c_int()
    if c.error_exit_status(error, ctypes.addressof(status)):
        c.error_delete(error)
        raise ProgramExited(status.value)
    frames = _frames(lambda out: c.error_trace(error, out))
    raise TrapError(error_text(error).splitlines()[0], None, frames)


def raise_instantiation_ending(module: str, error: int | None, trap: int | None) -> None:
    """Like `raise_ending`, for an instantiation, which can also fail before any guest code runs.

    Raises:
        InstantiationError: an import is missing or of another type, or a limit was reached.
    """
    if error and get_ident() not in _PENDING and not _ran_guest_code(error):
        raise InstantiationError(module, error_text(error).splitlines()[0])
    raise_ending(error, trap)


def _trap(trap: int) -> TrapError:
    code = ctypes.c_uint8()
    known = c.trap_code(trap, ctypes.addressof(code))
    text = _take_bytes(lambda out: c.trap_message(trap, out)).decode(errors="replace").rstrip("\0")
    frames = _frames(lambda out: c.trap_trace(trap, out))
    c.trap_delete(trap)
    reason = c.TRAP_CODES.get(code.value, text.splitlines()[0] if text else "trap") if known else text
    return TrapError(reason, code.value if known else None, frames)


def _ran_guest_code(error: int) -> bool:
    status = ctypes.c_int()
    return bool(c.error_exit_status(error, ctypes.addressof(status))) or bool(
        _frames(lambda out: c.error_trace(error, out))
    )


def _frames(collect: Callable[[int], object]) -> tuple[str, ...]:
    vec = c.ByteVec()
    collect(ctypes.addressof(vec))
    pointers = ctypes.cast(vec.data, ctypes.POINTER(ctypes.c_void_p)) if vec.size else ()
    frames = []
    for i in range(vec.size):
        frame = pointers[i]
        function = _text_at(c.frame_function_name(frame)) or f"function {c.frame_function_index(frame)}"
        frames.append(f"{_text_at(c.frame_module_name(frame)) or '?'}!{function}")
    c.frame_vec_delete(ctypes.addressof(vec))
    return tuple(frames)


def _take_bytes(fill: Callable[[int], object]) -> bytes:
    vec = c.ByteVec()
    fill(ctypes.addressof(vec))
    data = ctypes.string_at(vec.data, vec.size) if vec.size else b""
    c.byte_vec_delete(ctypes.addressof(vec))
    return data


def _text_at(name_vec: int | None) -> str:
    if not name_vec:
        return ""
    vec = c.ByteVec.from_address(name_vec)
    return ctypes.string_at(vec.data, vec.size).decode(errors="replace") if vec.size else ""
