"""How a call into wasmtime ends: exceptions of host functions on their way through the guest, traps, exits, errors.

The binding keeps a host function's exception in one process-wide variable, so under threads it reaches the wrong caller:
see `dl.engine.native.pending`.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable

from dl.engine.native.pending import is_pending, take_pending
from dl.engine.native.traps import TRAPS, Names
from dl.engine.wasmtime import c
from dl.errors import EngineError, InstantiationError, ProgramExited, TrapError, UncaughtExceptionError
from dl.errors.frames import Frame

_TRAP_PREFIX = "wasm trap: "
_CAUSE_NUMBER = r"^ +[0-9]+: "


def check(error: int | None) -> None:
    """Raise what the engine reports, if it does, and free it.

    Raises:
        EngineError: with the engine's text.
    """
    if error:
        raise EngineError(error_text(error))


def error_text(error: int) -> str:
    """Return an error's message in one line, each cause after what it caused, and free the error."""
    text = take_bytes(lambda out: c.error_message(error, out)).decode(errors="replace")
    c.error_delete(error)
    return ": ".join(_lines(text)) or "the engine gives no reason"


def _lines(text: str) -> list[str]:
    """Return what wasmtime prints as "first line, Caused by:, 0: cause, 1: its cause", without what is not text."""
    lines = (re.sub(_CAUSE_NUMBER, "", line).strip() for line in text.rstrip("\0").splitlines())
    return [line for line in lines if line and line != "Caused by:"]


def free_ending(error: int | None, trap: int | None) -> None:
    """Free what a guest call ended with."""
    if error:
        c.error_delete(error)
    if trap:
        c.trap_delete(trap)


def raise_ending(context: int, error: int | None, trap: int | None, names: Names[c.Extern]) -> None:
    """Turn the end of a guest call into the exception that its caller gets, and free the native objects.

    Args:
        context: the store's.
        error: what the call left.
        trap: the other thing that it may have left.
        names: what the linker calls the store's modules and tags.

    Raises:
        BaseException: what the host function that interrupted the call raised.
        ProgramExited: WASI's ``proc_exit`` was called.
        UncaughtExceptionError: the guest threw an exception that it did not catch.
        TrapError: the guest trapped.
    """
    pending = take_pending()
    if pending is not None:
        if isinstance(pending, TrapError) and not pending.frames and error:
            pending.frames = _frames(lambda out: c.error_trace(error, out), names)
        free_ending(error, trap)
        raise pending
    if trap:
        raise _trap(context, trap, names)
    assert error
    status = ctypes.c_int()
    if c.error_exit_status(error, ctypes.addressof(status)):
        c.error_delete(error)
        raise ProgramExited(status.value)
    frames = _frames(lambda out: c.error_trace(error, out), names)
    if c.context_has_exception(context):
        c.error_delete(error)
        raise _take_exception(context, names, frames)
    reason = _last_cause(take_bytes(lambda out: c.error_message(error, out)))
    c.error_delete(error)
    raise TrapError(reason, None, frames)


def raise_instantiation_ending(
    module: str, context: int, error: int | None, trap: int | None, names: Names[c.Extern]
) -> None:
    """Like `raise_ending`, for an instantiation, which can also fail before any guest code runs.

    Raises:
        InstantiationError: an import is missing or of another type, or a limit was reached.
    """
    if error and not is_pending() and not _ran_guest_code(error):
        raise InstantiationError(module, error_text(error))
    raise_ending(context, error, trap, names)


def _ran_guest_code(error: int) -> bool:
    status = ctypes.c_int()
    return bool(c.error_exit_status(error, ctypes.addressof(status))) or bool(
        _frames(lambda out: c.error_trace(error, out), Names())
    )


def _trap(context: int, trap: int, names: Names[c.Extern]) -> TrapError:
    number = ctypes.c_uint8()
    code = number.value if c.trap_code(trap, ctypes.addressof(number)) else None
    frames = _frames(lambda out: c.trap_trace(trap, out), names)
    if c.context_has_exception(context):
        c.trap_delete(trap)
        return _take_exception(context, names, frames)
    if code is None or code not in TRAPS:
        reason = _last_cause(take_bytes(lambda out: c.trap_message(trap, out)))
    else:
        reason = TRAPS[code]
    c.trap_delete(trap)
    return TrapError(reason, code, frames)


def _last_cause(message: bytes) -> str:
    """Return the end of a message that begins with the engine's own stack trace."""
    lines = _lines(message.decode(errors="replace"))
    return lines[-1].removeprefix(_TRAP_PREFIX) if lines else "trap"


def _take_exception(
    context: int, names: Names[c.Extern], frames: tuple[Frame, ...]
) -> UncaughtExceptionError:
    """Take the exception that no guest code caught out of the store, where it would stay; describe it.

    What a tag means is between the program's modules. Where it carries a pointer first, as those of C++ exceptions and
    `longjmp` do, the error has it.
    """
    exception, value = c.Exception_(), c.Val()
    if not c.context_take_exception(context, ctypes.addressof(exception)):
        return names.uncaught(None, None, frames)
    first = None
    if c.exception_field_count(context, ctypes.addressof(exception)):
        error = c.exception_field(context, ctypes.addressof(exception), 0, ctypes.addressof(value))
        if error:
            c.error_delete(error)
        elif value.kind == c.VALUE_KINDS["i32"]:
            first = value.of.i32 & 0xFFFFFFFF
        else:
            c.val_unroot(ctypes.addressof(value))
    tag = _tag_name(context, exception, names)
    c.exception_unroot(ctypes.addressof(exception))
    return names.uncaught(tag, first, frames)


def _tag_name(context: int, exception: c.Exception_, names: Names[c.Extern]) -> str | None:
    thrown = c.Memory()
    error = c.exception_tag(context, ctypes.addressof(exception), ctypes.addressof(thrown))
    if error:
        c.error_delete(error)
        return None
    for name, known in names.tags:
        if c.tag_equal(context, ctypes.addressof(thrown), ctypes.addressof(known.of.tag)):
            return name
    return None


def _frames(collect: Callable[[int], object], names: Names[c.Extern]) -> tuple[Frame, ...]:
    vec = c.ByteVec()
    collect(ctypes.addressof(vec))
    pointers = ctypes.cast(vec.data, ctypes.POINTER(ctypes.c_void_p)) if vec.size else ()
    frames = []
    for i in range(vec.size):
        frame = pointers[i]
        index = c.frame_function_index(frame)
        function = _text_at(c.frame_function_name(frame)) or f"function {index}"
        module = _text_at(c.frame_module_name(frame))
        shown = names.modules.get(module, module) or "?"
        frames.append(Frame(shown, function, index, c.frame_function_offset(frame), names.lines.get(module)))
    c.frame_vec_delete(ctypes.addressof(vec))
    return tuple(frames)


def take_bytes(fill: Callable[[int], object]) -> bytes:
    """Return what a function of the engine puts into a byte vector, given its address; free the vector."""
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
