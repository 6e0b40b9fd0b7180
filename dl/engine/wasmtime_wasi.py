"""What a WASI program sees of the host, as wasmtime's own configuration object."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

from dl.engine import wasmtime_c as c
from dl.engine.protocol import WasiOptions
from dl.errors import EngineError


def _string_array(texts: Sequence[str]) -> Any:
    return (ctypes.c_char_p * max(len(texts), 1))(*(text.encode() for text in texts))


def wasi_config(wasi: WasiOptions) -> tuple[int, list[Any]]:
    """Return a native WASI configuration and the Python objects it points to."""
    config: int = c.wasi_new()
    kept: list[Any] = []
    for text in (*wasi.args, *(part for pair in wasi.env for part in pair)):
        if "\0" in text:
            raise EngineError(f"a NUL byte in {text!r} cannot be passed to the program")
    arguments = _string_array(wasi.args)
    names, values = (_string_array([pair[i] for pair in wasi.env]) for i in (0, 1))
    c.wasi_argv(config, len(wasi.args), ctypes.addressof(arguments))
    c.wasi_env(config, len(wasi.env), ctypes.addressof(names), ctypes.addressof(values))
    if wasi.stdin is None:
        c.wasi_stdin_inherit(config)
    elif isinstance(wasi.stdin, bytes):
        vec = c.ByteVec()
        c.byte_vec_new(ctypes.addressof(vec), len(wasi.stdin), wasi.stdin)
        c.wasi_stdin_bytes(config, ctypes.addressof(vec))
    elif not c.wasi_stdin_file(config, str(wasi.stdin).encode()):
        raise EngineError(f"cannot read standard input from {wasi.stdin}")
    outputs = (
        ("stdout", wasi.stdout, c.wasi_stdout_inherit, c.wasi_stdout_file, c.wasi_stdout_custom),
        ("stderr", wasi.stderr, c.wasi_stderr_inherit, c.wasi_stderr_file, c.wasi_stderr_custom),
    )
    for name, target, inherit, to_file, to_custom in outputs:
        if target is None:
            inherit(config)
        elif callable(target):
            callback = _output_callback(target)
            kept.append(callback)
            to_custom(config, ctypes.cast(callback, ctypes.c_void_p).value, None, None)
        elif not to_file(config, str(target).encode()):
            raise EngineError(f"cannot write {name} to {target}")
    for guest, host in wasi.preopens:
        if not c.wasi_preopen(config, host.encode(), guest.encode(), True):
            raise EngineError(f"cannot open directory {host} for the program's {guest}")
    return config, kept


def _output_callback(write: Callable[[bytes], object]) -> Any:
    def received(_data: int, address: int, size: int) -> int:
        try:
            write(ctypes.string_at(address, size))
        except Exception as error:  # noqa: BLE001  WASI reports it to the program as an errno
            return -(getattr(error, "errno", None) or 5)
        return size

    return c.OUTPUT_CALLBACK(received)
