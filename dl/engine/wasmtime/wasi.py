"""What a WASI program sees of the host, as wasmtime's own configuration object."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dl.engine.native.entry import entry
from dl.engine.wasmtime import c
from dl.errors import EngineError

if TYPE_CHECKING:
    from dl.engine.values import WasiOptions


def wasi_config(wasi: WasiOptions, defer: Callable[[BaseException], None]) -> tuple[int, list[Any]]:
    """Return a native WASI configuration, which the caller owns, and the Python objects it points to.

    Args:
        wasi: what to configure.
        defer: raises an exception of an output callable in the program, once the callable has returned.

    Raises:
        EngineError: a text cannot be passed to the program, or a file or directory cannot be opened.
    """
    config: int = c.wasi_new()
    kept: list[Any] = []
    try:
        _set_texts(config, wasi)
        _set_input(config, wasi.stdin)
        _set_output("stdout", wasi.stdout, config, kept, defer)
        _set_output("stderr", wasi.stderr, config, kept, defer)
        for guest, host in wasi.preopens:
            if not c.wasi_preopen(config, _encoded(host), _encoded(guest), True):
                raise EngineError(f"cannot open directory {host} for the program's {guest}")
    except BaseException:
        c.wasi_delete(config)
        raise
    return config, kept


def _encoded(text: str) -> bytes:
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        raise EngineError(f"{text!r} is not Unicode text and cannot be passed to the program") from None
    if b"\0" in encoded:
        raise EngineError(f"a NUL byte in {text!r} cannot be passed to the program")
    return encoded


def _string_array(texts: Sequence[str]) -> Any:
    return (ctypes.c_char_p * max(len(texts), 1))(*(_encoded(text) for text in texts))


def _set_texts(config: int, wasi: WasiOptions) -> None:
    arguments = _string_array(wasi.args)
    names, values = (_string_array([pair[i] for pair in wasi.env]) for i in (0, 1))
    if not c.wasi_argv(config, len(wasi.args), ctypes.addressof(arguments)):
        raise EngineError(f"the engine refuses the program's arguments {wasi.args!r}")
    if not c.wasi_env(config, len(wasi.env), ctypes.addressof(names), ctypes.addressof(values)):
        raise EngineError("the engine refuses the program's environment")


def _set_input(config: int, stdin: bytes | str | None) -> None:
    if stdin is None:
        c.wasi_stdin_inherit(config)
    elif isinstance(stdin, bytes):
        vec = c.ByteVec()
        c.byte_vec_new(ctypes.addressof(vec), len(stdin), stdin)
        c.wasi_stdin_bytes(config, ctypes.addressof(vec))
    elif not c.wasi_stdin_file(config, _encoded(str(stdin))):
        raise EngineError(f"cannot read standard input from {stdin}")


_OUTPUTS = {
    "stdout": (c.wasi_stdout_inherit, c.wasi_stdout_file, c.wasi_stdout_custom),
    "stderr": (c.wasi_stderr_inherit, c.wasi_stderr_file, c.wasi_stderr_custom),
}


def _set_output(
    name: str,
    target: Callable[[bytes], object] | str | None,
    config: int,
    kept: list[Any],
    defer: Callable[[BaseException], None],
) -> None:
    inherit, to_file, to_custom = _OUTPUTS[name]
    if target is None:
        inherit(config)
    elif callable(target):
        callback = _output_callback(target, defer)
        kept.append(callback)
        to_custom(config, ctypes.cast(callback, ctypes.c_void_p).value, None, None)
    elif not to_file(config, _encoded(str(target))):
        raise EngineError(f"cannot write {name} to {target}")


def _output_callback(write: Callable[[bytes], object], defer: Callable[[BaseException], None]) -> Any:
    @entry
    def received(_data: int, address: int, size: int) -> int:
        try:
            write(ctypes.string_at(address, size))
        except OSError as error:
            return -(error.errno or errno.EIO)
        except BaseException as error:  # noqa: BLE001  carried to the caller whose guest call it interrupts
            defer(error)
            return -errno.EIO
        return size

    return c.OUTPUT_CALLBACK(received)
