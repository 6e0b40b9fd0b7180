"""`--trace`: what the linker does, by category, as it says it to the loggers below `dl`; as `LD_DEBUG` does for ld.so."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from dl.cli.console import messages, shown

if TYPE_CHECKING:
    from dl.linker import Linker

CATEGORIES = {
    "files": "modules: where each is looked for, found, placed, constructed and unloaded; compiled code on disk",
    "symbols": "where each symbol is looked for, for imports and for dlsym",
    "bindings": "what each import is bound to, by which rule, and why not to other definitions",
    "threads": "threads of the guest that start and end, deadlocks",
    "system": "signals, and functions of the system interface that the program calls and that are not there",
    "statistics": "at the end: what is loaded, and how the link operations went",
}
"""What can be asked for, and what each shows."""

_LOGGERS = {
    "dl.link": "files",
    "dl.cache": "files",
    "dl.link.symbols": "symbols",
    "dl.link.bindings": "bindings",
    "dl.threads": "threads",
    "dl.wasix": "system",
    "dl.statistics": "statistics",
}
"""The category of each logger. What others say, such as `dl.events` of a listener that fails, is always shown."""

_STATISTICS = logging.getLogger("dl.statistics")

FORMATS = ("text", "json")

_BEGAN = time.time()
"""When dlrun began, nearly: seconds since the epoch."""


class _Text(logging.Formatter):
    """A record as one line that is safe to print."""

    def head(self, record: logging.LogRecord) -> str:
        """Return when it was and in which thread."""
        return f"dlrun: {record.created - _BEGAN:.6f} [{shown(record.threadName or '?')}]"

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return f"{self.head(record)} {_category(record)}: {shown(record.getMessage())}"


class _Json(_Text):
    """A record as an object: `time` (seconds since the epoch), `elapsed` (since dlrun began), and more: docs/cli.md."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object."""
        import json  # noqa: PLC0415  seldom asked for

        about = {
            "time": record.created,
            "elapsed": round(record.created - _BEGAN, 6),
            "process": record.process,
            "thread": record.threadName,
            "thread_id": record.thread,
            "category": _category(record),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        return json.dumps(about | getattr(record, "fields", {}))


class _Terminal(logging.Handler):
    """Lines in colours, beside whatever else is shown on the terminal."""

    def __init__(self, text: _Text) -> None:
        super().__init__()
        self._text = text
        self._console = messages()

    def emit(self, record: logging.LogRecord) -> None:
        """Print the line."""
        from rich.text import Text  # noqa: PLC0415  only for terminals

        line = Text(self._text.head(record), style="dim")
        line.append(f" {_category(record)}", style="not dim cyan")
        line.append(f": {shown(record.getMessage())}", style="not dim")
        self._console.print(line)


def _category(record: logging.LogRecord) -> str:
    return _LOGGERS.get(record.name, record.name.removeprefix("dl."))


@contextmanager
def statistics_at_end(linker: Linker) -> Iterator[None]:
    """Tell the logger of statistics at the end of the block what a program has taken, and how its link operations went."""
    try:
        yield
    finally:
        if _STATISTICS.isEnabledFor(logging.INFO):
            _trace_statistics(linker)


def _trace_statistics(linker: Linker) -> None:
    log = _STATISTICS
    found = linker.statistics()
    modules = linker.program.state.modules.copy().values()
    by_kind: dict[str, int] = {}
    for module in modules:
        for binding in module.bindings:
            by_kind[type(binding).__name__] = by_kind.get(type(binding).__name__, 0) + 1
    stubs = sum(len(module.stub_targets) for module in modules)
    late = by_kind.pop("LazyStub", 0)
    log.info(
        "%d modules; %d imports bound, %d functions found at their first call, %d never called",
        found.modules,
        sum(by_kind.values()),
        stubs,
        late - stubs,
    )
    log.info(
        "%d table indices in use of %d; %d bytes of linear memory for modules, stacks and thread-local blocks, of %d",
        found.table_elements,
        found.table_length,
        found.side_bytes,
        found.memory_bytes,
    )
    protocol = found.protocol
    milliseconds = sorted(1e3 * seconds for seconds in protocol.barrier_seconds) or [0.0]
    log.info(
        "%d link operations, %d barriers, median %.3f ms, longest %.3f ms; caught up with %d times; %d interrupts",
        protocol.committed,
        protocol.barriers,
        milliseconds[len(milliseconds) // 2],
        milliseconds[-1],
        protocol.catch_ups,
        protocol.interrupts,
    )


@contextmanager
def tracing(
    categories: frozenset[str] | None, form: str = "text", output: str | None = None
) -> Iterator[None]:
    """Write what the loggers of some categories are told while the block runs.

    Args:
        categories: some of `CATEGORIES`; None for none, unless a file is given: then all.
        form: `text` or `json`.
        output: the file to write to, in which `%p` stands for the number of the process; None for standard error.

    Raises:
        OSError: the file cannot be written.
    """
    if categories is None:
        if output is None:
            yield
            return
        categories = frozenset(CATEGORIES)
    with ExitStack() as undo:
        handler = _handler(form, output)
        undo.callback(handler.close)
        _listen(handler, [name for name, category in _LOGGERS.items() if category in categories], undo)
        yield


def _handler(form: str, output: str | None) -> logging.Handler:
    formatter = _Json() if form == "json" else _Text()
    handler: logging.Handler
    if output is not None:
        handler = logging.FileHandler(output.replace("%p", str(os.getpid())), "w", encoding="utf-8")
    elif form == "text" and sys.stderr.isatty():
        return _Terminal(formatter)
    else:
        handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    return handler


def _listen(handler: logging.Handler, wanted: Sequence[str], undo: ExitStack) -> None:
    """Give the handler what the wanted loggers are told, and warnings of all; nobody else makes up their texts."""
    top = logging.getLogger("dl")
    top.addHandler(handler)
    undo.callback(top.removeHandler, handler)
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        undo.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.DEBUG if name in wanted else logging.WARNING)
