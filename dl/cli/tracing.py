"""`--trace`: what the linker does, by category, as it says it to the loggers below `dl`; as `LD_DEBUG` does for ld.so."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

from dl.cli.console import messages, print_error, shown
from dl.cli.endings import failure_text

if TYPE_CHECKING:
    from dl.api.timeline import Timeline
    from dl.linker import Linker

CATEGORIES = {
    "files": "modules: where each is looked for, found, placed, constructed and unloaded; compiled code on disk",
    "symbols": "where each symbol is looked for, for imports and for dlsym",
    "bindings": "what each import is bound to, by which rule, and why not to other definitions",
    "threads": "threads that start and end, barriers with those that were waited for, waits, deadlocks",
    "system": "signals, and functions of the system interface that the program calls and that are not there",
    "statistics": "at the end: what is loaded, how the link operations went, time by phase",
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
_THREADS = logging.getLogger("dl.threads")

_NOISE_MS = 0.02
"""A lock that is free is taken in a microsecond."""

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


if TYPE_CHECKING:
    _StreamHandler = logging.StreamHandler[TextIO]
else:
    _StreamHandler = logging.StreamHandler  # cannot be subscripted before Python 3.11


class _Output(logging.Handler):
    """Where the trace goes; once it cannot be written it ends there, and the program goes on.

    Attributes:
        path: the file; None for standard error, of which nothing can be said where it cannot be written.
    """

    path: str | None = None
    _failed: OSError | None = None

    def handle(self, record: logging.LogRecord) -> Any:
        """Write a record, unless an earlier one could not be written."""
        return self._failed is None and super().handle(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  its name in `logging`
        """Keep why a record cannot be written; an error of ours is told as `logging` does."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        if self._failed is None:
            self._failed = error

    def tell(self, _kind: object, ending: BaseException | None, _traceback: object) -> None:
        """Say at the end that the trace is not whole: by an error, or by a line if the program ends by one of its own.

        Raises:
            OSError: the file could not be written, and nothing else went wrong.
        """
        if self._failed is None or self.path is None:
            return
        self._failed.filename = self.path
        if ending is None:
            raise self._failed
        print_error(failure_text(self._failed))


class _Stream(_Output, _StreamHandler):
    """Lines of text, into standard error or a file.

    Args:
        path: the file; None for standard error.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: str | None) -> None:
        self.path = path
        super().__init__(sys.stderr if path is None else open(path, "w", encoding="utf-8"))  # noqa: SIM115  closed by `close`

    def close(self) -> None:
        """Close the file."""
        if self.path is not None:
            with suppress(OSError):  # of what could not be written before; each record is flushed
                self.stream.close()
        super().close()


class _Terminal(_Output):
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
        try:
            self._console.print(line)
        except OSError:
            self.handleError(record)


def _category(record: logging.LogRecord) -> str:
    return _LOGGERS.get(record.name, record.name.removeprefix("dl."))


@contextmanager
def statistics_at_end(linker: Linker, recorded: Timeline | None) -> Iterator[None]:
    """Tell the logger of statistics at the end of the block what a program has taken, and how long its link operations took.

    Args:
        linker: the program.
        recorded: what `tracing` has given.
    """
    try:
        yield
    finally:
        if recorded is not None:
            _trace_statistics(linker)
            _trace_times(recorded)


def _trace_times(recorded: Timeline) -> None:
    totals = sorted(recorded.totals().items(), key=lambda item: (item[0][0], -item[1][1]))
    for (kind, phase), (count, seconds) in totals:
        _STATISTICS.info(
            "%s: %s: %d times, %.3f ms",
            kind,
            phase,
            count,
            1e3 * seconds,
            extra={"fields": {"kind": kind, "phase": phase, "count": count, "seconds": round(seconds, 6)}},
        )
    if recorded.lost:
        _STATISTICS.info("of the times, the first %d were not kept", recorded.lost)


class _ThreadTrace:
    """Tells the logger of threads how long they waited, and for whom; see `threads.recording.Recorder`."""

    def span(
        self, kind: str, phase: str, subject: str, begin_ns: int, end_ns: int, about: dict[str, Any]
    ) -> None:
        """Tell of something that took time, if it is between threads."""
        milliseconds = (end_ns - begin_ns) / 1e6
        if about.get("result") == "not_equal":
            return  # there was nothing to wait for
        if kind not in ("barrier", "wait") or (
            phase == "wait for the link lock" and milliseconds < _NOISE_MS
        ):
            return
        more = ""
        if phase == "barrier":
            more = f" of operation {about['operation']}, waited for {', '.join(about['awaited']) or 'nobody'}"
        elif "result" in about or "error" in about:
            more = f": {(about.get('result') or about['error']).replace('_', ' ')}"
        fields = {"phase": phase, "subject": subject, "milliseconds": round(milliseconds, 3)} | about
        _THREADS.debug(
            "%s%s%s: %.3f ms",
            phase,
            f" {subject}" if subject else "",
            more,
            milliseconds,
            extra={"fields": fields},
        )

    def moment(self, kind: str, what: str, about: dict[str, Any]) -> None:
        """Tell nothing: it comes with locks held, and who is waited for is told with the barrier."""

    def named(self, name: str) -> None:
        """Tell that a thread has its instances."""
        _THREADS.debug("has the instances of %s", name)


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
) -> Iterator[Timeline | None]:
    """Write what the loggers of some categories are told while the block runs; give what `statistics_at_end` takes.

    Args:
        categories: some of `CATEGORIES`; None for none, unless a file is given: then all.
        form: `text` or `json`.
        output: the file to write to, in which `%p` stands for the number of the process; None for standard error.

    Raises:
        OSError: the file cannot be written, from its beginning, or from some line on, which ends the trace and not the block.
    """
    if categories is None:
        if output is None:
            yield None
            return
        categories = frozenset(CATEGORIES)
    with ExitStack() as undo:
        handler = _handler(form, output)
        undo.push(handler.tell)
        undo.callback(handler.close)
        _listen(handler, [name for name, category in _LOGGERS.items() if category in categories], undo)
        from dl.api.timeline import Timeline  # noqa: PLC0415  running needs nothing of it
        from threads import recording  # noqa: PLC0415

        if "threads" in categories:
            between = _ThreadTrace()
            recording.add(between)
            undo.callback(recording.remove, between)
        yield undo.enter_context(Timeline()) if "statistics" in categories else None


def _handler(form: str, output: str | None) -> _Output:
    formatter = _Json() if form == "json" else _Text()
    if output is None and form == "text" and sys.stderr.isatty():
        return _Terminal(formatter)
    handler = _Stream(None if output is None else output.replace("%p", str(os.getpid())))
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
