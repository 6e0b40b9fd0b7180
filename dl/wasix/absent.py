"""Functions that every WASIX program imports and that are not supported: they link, and return an error.

The first call of each is logged by `dl.wasix`, once per program, so that `--trace` shows what a failing program lacks.
"""

from __future__ import annotations

from collections.abc import Callable

from dl.engine.preview1 import WASIX
from dl.errors import ProgramExited
from dl.logs import logger
from dl.program.host_symbols import SystemFunction
from dl.wasix.abi import ABSENT, CONTEXTS, Errno
from dl.wasm.types import FuncType

log = logger("dl.wasix")

# Contexts answer what a runtime does whose stacks cannot be put aside (context_create.rs: `Errno::Again`); a
# checkpoint what one does with a dynamically linked program.
_ERRORS = {
    "context_create": Errno.AGAIN,
    "context_destroy": Errno.AGAIN,
    "context_switch": Errno.AGAIN,
    "stack_checkpoint": Errno.NOTSUP,
    "proc_snapshot": Errno.NOTSUP,
}


def absent_functions(end: Callable[[BaseException], None]) -> dict[str, SystemFunction]:
    """Return the functions of `wasix_32v1` that are not supported.

    Args:
        end: ends the program.
    """
    table = {name: _refuses(name, kind, end) for name, kind in (ABSENT | CONTEXTS).items()}
    accept = ABSENT["sock_accept_v2"]
    return table | {"sock_accept": _refuses("sock_accept", accept, end)}


def _refuses(name: str, kind: FuncType, end: Callable[[BaseException], None]) -> SystemFunction:
    error = _ERRORS.get(name, Errno.NOSYS)
    reported: list[bool] = []

    def report(consequence: str) -> None:
        if not reported:
            reported.append(True)
            log.info("%s.%s is not supported: %s", WASIX, name, consequence)

    def answer(*_arguments: int) -> int:
        report(f"it answers {int(error)} ({error.name})")
        return int(error)

    def leave(*_arguments: int) -> None:
        # It cannot return an error, and its caller does not expect it to return at all.
        report("the program ends")
        ending = ProgramExited(int(Errno.NOEXEC))
        end(ending)
        raise ending

    if kind.results:
        # It returns at once: no safe point is due.
        return SystemFunction(kind, function=answer, blocking=False)
    return SystemFunction(kind, function=leave)
