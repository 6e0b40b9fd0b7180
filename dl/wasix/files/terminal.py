"""The terminal, if the program has the host's: `tty_get` and `tty_set`.

ABI: `__wasi_tty_t` of `api_wasix.h`: columns, rows, width and height in pixels (u32 each), then flags of one byte: whether
standard input, output and error are terminals, whether input is echoed, and whether it comes in lines. 24 bytes.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, Any

from dl.wasix.abi import Errno
from memory import LinearMemory

if TYPE_CHECKING:
    from dl.engine.values import WasiOptions

LAYOUT = "IIIIBBBBB3x"
_COLUMNS, _ROWS = 80, 25
_PIXELS_PER_COLUMN, _PIXELS_PER_ROW = 10, 20
_LOCAL_FLAGS = 3


class Terminal:
    """The terminal of one program.

    `_lock` guards `_former`.
    """

    def __init__(self, options: WasiOptions) -> None:
        self._inherited = (options.stdin is None, options.stdout is None, options.stderr is None)
        self._lock = threading.Lock()
        self._former: list[Any] | None = None

    def get(self, memory: LinearMemory, out: int) -> int:
        """`tty_get`. Without a terminal: 80 columns, 25 rows, input echoed and by lines."""
        are_terminals = [inherited and _is_terminal(n) for n, inherited in enumerate(self._inherited)]
        columns, rows = _COLUMNS, _ROWS
        for number, is_terminal in enumerate(are_terminals):
            if is_terminal:
                with contextlib.suppress(OSError):
                    size = os.get_terminal_size(number)
                    columns, rows = size.columns or _COLUMNS, size.lines or _ROWS
                    break
        echo = by_lines = True
        termios = _termios() if are_terminals[0] else None
        if termios is not None:
            with contextlib.suppress(termios.error):
                local = termios.tcgetattr(0)[_LOCAL_FLAGS]
                echo, by_lines = bool(local & termios.ECHO), bool(local & termios.ICANON)
        width, height = columns * _PIXELS_PER_COLUMN, rows * _PIXELS_PER_ROW
        memory.write_struct(LAYOUT, out, columns, rows, width, height, *are_terminals, echo, by_lines)
        return Errno.SUCCESS

    def set(self, memory: LinearMemory, state: int) -> int:
        """`tty_set`: echo and lines of the host's terminal, until the program ends; all else is the terminal's own."""
        *_, echo, by_lines = memory.read_struct(LAYOUT, state)
        termios = _termios() if self._inherited[0] and _is_terminal(0) else None
        if termios is None:
            return Errno.SUCCESS if echo and by_lines else Errno.NOTTY
        try:
            with self._lock:
                attributes = termios.tcgetattr(0)
                if self._former is None:
                    self._former = list(attributes)
                local = attributes[_LOCAL_FLAGS] & ~(termios.ECHO | termios.ICANON)
                attributes[_LOCAL_FLAGS] = local | termios.ECHO * bool(echo) | termios.ICANON * bool(by_lines)
                termios.tcsetattr(0, termios.TCSANOW, attributes)
        except termios.error:
            return Errno.IO
        return Errno.SUCCESS

    def close(self) -> None:
        """Leave the host's terminal as it was."""
        with self._lock:
            former, self._former = self._former, None
        termios = None if former is None else _termios()
        if termios is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(0, termios.TCSANOW, former)


def _termios() -> Any:
    """Return the module that changes terminals; None on a system that is not POSIX, where nothing of one can be changed."""
    try:
        import termios  # noqa: PLC0415  few programs have the host's terminal and look at it
    except ImportError:
        return None
    return termios


def _is_terminal(number: int) -> bool:
    try:
        return os.isatty(number)
    except OSError:
        return False
