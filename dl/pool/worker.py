"""A worker process of a pool: it builds the program once, and runs functions with it until its pipe is closed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import shutil
import signal
import tempfile
import threading
import traceback
from multiprocessing.connection import Connection
from typing import Any

from dl.description.spec import Spec
from dl.errors import sendable
from dl.group import InstanceGroup
from dl.linker import Linker

READY = b"ready"
"""What a worker says when it has tried to build its program."""

PREPARE = b""
"""What asks a worker whether its program is built."""

ORPHANED = 70
"""Exit code of a worker whose pool's process is gone."""


class RemoteTraceback(Exception):  # noqa: N818  the place of an error, and not one
    """Where an exception was raised in another process: the text that Python prints for it."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class Builder:
    """The program of one process or thread, built when it is first needed, and again when it has ended.

    Args:
        spec: its description.
        options: what it does not say; see `Spec.linker`.
    """

    def __init__(self, spec: Spec, **options: Any) -> None:
        self._spec = spec
        self._options = options
        self._linker: Linker | None = None

    def group(self) -> InstanceGroup:
        """Return the main group of a program that runs.

        Raises:
            DlError: it could not be linked.
        """
        linker = self._linker
        if linker is not None and _has_ended(linker):
            self.close()
            linker = None
        if linker is None:
            linker = self._linker = self._spec.linker(**self._options)
        return linker.main_group

    def close(self) -> None:
        """End the program."""
        linker, self._linker = self._linker, None
        if linker is not None:
            linker.close()


def _has_ended(linker: Linker) -> bool:
    return linker.program.ended is not None or linker.main_group.own.replica.closed is not None


def serve(connection: Connection, spec: Spec, directory: str) -> None:
    """Be a worker: the body of its process.

    Args:
        connection: functions come in, and results go out.
        spec: the program.
        directory: for temporary files; the pool removes it.
    """
    # Ctrl-C in a terminal reaches the whole foreground group. What becomes of the work is the pool's decision.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TMPDIR"] = tempfile.tempdir = directory
    threading.Thread(target=_end_with_parent, args=(directory,), name="pool's process", daemon=True).start()
    builder = Builder(spec)
    # Whatever its constructors raise, the first function that asks for the program meets again, and tells.
    with contextlib.suppress(BaseException):
        builder.group()
    try:
        connection.send_bytes(READY)
        while True:
            connection.send_bytes(_done(builder, connection.recv_bytes()))
    except (EOFError, OSError):  # the pool has closed its end
        return
    finally:
        builder.close()


def _done(builder: Builder, work: bytes) -> bytes:
    """Run a pickled function; return the pickled outcome: its result, or its exception and where that was raised."""
    try:
        group = builder.group()
        if work == PREPARE:
            return pickle.dumps((None, None, ""))
        function, args, kwargs = pickle.loads(work)  # noqa: S301  from the pool, over a pipe of its own
        return pickle.dumps((function(group, *args, **kwargs), None, ""))
    except BaseException as error:  # noqa: BLE001  belongs to whoever asks for the result
        return pickle.dumps((None, sendable(error), "".join(traceback.format_exception(error))))


def outcome(answer: bytes) -> Any:
    """Return the result that a worker sent.

    Raises:
        BaseException: what its function raised, caused by a `RemoteTraceback` unless something of the linker's caused it.
    """
    result, error, where = pickle.loads(answer)  # noqa: S301  from a worker, over a pipe of its own
    if error is None:
        return result
    if error.__cause__ is None:
        error.__cause__ = RemoteTraceback(where)
    raise error


def _end_with_parent(directory: str) -> None:
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    parent.join()
    shutil.rmtree(directory, ignore_errors=True)
    os._exit(ORPHANED)
