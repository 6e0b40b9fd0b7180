"""Values that the linker and an engine hand to each other."""

from __future__ import annotations

from collections.abc import Callable

from dl.records import dataclass
from dl.wasm.types import ValType


@dataclass(frozen=True)
class Reference:
    """A reference that Python cannot hold as a value, and which is not null: a struct, an array, an exception.

    Null is None, a function an `EngineFunction`, and an external reference the Python object that it was made of.

    Attributes:
        type: the top of its hierarchy, such as `anyref`.
    """

    type: ValType


@dataclass(frozen=True)
class WasiOptions:
    """What a WASI program sees of the host.

    Attributes:
        args: the program's arguments, the program's name first.
        env: environment variables.
        preopens: guest directory to host directory.
        stdin: None for the host's own, bytes, or the path of a file.
        stdout: None for the host's own, the path of a file, or a callable that gets chunks of bytes.
        stderr: like stdout.
    """

    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    preopens: tuple[tuple[str, str], ...] = ()
    stdin: bytes | str | None = None
    stdout: Callable[[bytes], object] | str | None = None
    stderr: Callable[[bytes], object] | str | None = None
