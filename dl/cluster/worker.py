"""The side of a cluster's worker: modules and programs that it holds, and functions that it runs with them."""

from __future__ import annotations

import io
import logging
import os
import pickle
import shutil
import tempfile
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from distributed.diagnostics.plugin import WorkerPlugin

from dl.api.deadlines import bounded
from dl.description.spec import Spec
from dl.engine.disk_cache import open_cache
from dl.errors import LinkerUsageError, sendable
from dl.pool.worker import Builder

if TYPE_CHECKING:
    from distributed import Worker

log = logging.getLogger("dl.cluster")

_lock = threading.Lock()  # guards the two below; several workers of one process share them
_modules: dict[str, tuple[bytes, int]] = {}
"""Modules by digest, and how many workers of this process hold each."""
_programs: dict[str, _Program] = {}
"""Programs by digest."""


class _Unpickler(pickle.Unpickler):
    """Puts modules back that `dl.cluster.client` has left out."""

    def persistent_load(self, digest: Any) -> bytes:
        """Return the module with a digest."""
        with _lock:
            held = _modules.get(digest)
        if held is None:
            raise LinkerUsageError(f"this worker does not hold the module {digest}, which its program needs")
        return held[0]


class _Program:
    """A program on this worker, built for each thread that runs functions with it.

    `_lock` guards `_builders`; a leaf.

    Args:
        described: its description without the modules.
        directory: where compiled code may be kept that came with it.
    """

    def __init__(self, described: bytes, directory: str) -> None:
        spec, fingerprint, codes = _Unpickler(io.BytesIO(described)).load()
        self._spec: Spec = spec
        self._lock = threading.Lock()
        self._builders: dict[int, Builder] = {}
        self._closed = False
        self.holders = 0
        self._options: dict[str, Any] = {}
        self._code: str | None = None
        if codes:
            self._code = place = tempfile.mkdtemp(prefix="wasix-dl-code-", dir=directory)
            cache = open_cache(place)
            if cache is not None:
                for digest, code in codes.items():
                    cache.put(fingerprint, digest, code)
                self._options = {"cache": place}

    def builder(self) -> Builder:
        """Return what builds the program of the calling thread."""
        with self._lock:
            if self._closed:
                raise LinkerUsageError("this worker has been told to forget the program")
            return self._builders.setdefault(threading.get_ident(), Builder(self._spec, **self._options))

    def close(self) -> None:
        """End the programs of all threads, and remove the code that came along."""
        with self._lock:
            self._closed = True
            builders = list(self._builders.values())
            self._builders.clear()
        for builder in builders:
            builder.close()
        if self._code is not None:
            shutil.rmtree(self._code, ignore_errors=True)


class HeldModule(WorkerPlugin):
    """A module that a worker holds.

    Attributes:
        name: by which the scheduler knows it: a second one of this name is not sent.
    """

    idempotent = True

    def __init__(self, digest: str, module: bytes) -> None:
        self.name = f"wasix-dl module {digest}"
        self._digest = digest
        self._module = module

    def setup(self, worker: Worker) -> None:  # noqa: ARG002  the protocol's
        """Hold it."""
        with _lock:
            module, holders = _modules.get(self._digest, (self._module, 0))
            _modules[self._digest] = module, holders + 1

    def teardown(self, worker: Worker) -> None:  # noqa: ARG002  the protocol's
        """Let it go."""
        with _lock:
            module, holders = _modules.pop(self._digest)
            if holders > 1:
                _modules[self._digest] = module, holders - 1


class HeldProgram(WorkerPlugin):
    """A program that a worker holds; nothing of it runs yet.

    Attributes:
        name: by which the scheduler knows it.
    """

    idempotent = True

    def __init__(self, digest: str, described: bytes) -> None:
        self.name = f"wasix-dl program {digest}"
        self._digest = digest
        self._described = described
        self._is_set_up = False  # on the worker that this copy is of

    def setup(self, worker: Worker) -> None:
        """Hold it."""
        made = _Program(self._described, worker.local_directory)
        with _lock:
            program = _programs.setdefault(self._digest, made)
            program.holders += 1
            self._is_set_up = True
        if program is not made:  # another worker of this process was first
            made.close()

    def teardown(self, worker: Worker) -> None:  # noqa: ARG002  the protocol's
        """Close it, if it could be set up."""
        if not self._is_set_up:
            return
        with _lock:
            program = _programs[self._digest]
            program.holders -= 1
            if program.holders:
                return
            del _programs[self._digest]
        program.close()


class Run:
    """A task: a function that is run with a program of the worker.

    Args:
        digest: the program's.
        function: it.
        timeout: seconds that guest code may take; None for no bound.
    """

    def __init__(self, digest: str, function: Callable[..., Any], timeout: float | None) -> None:
        self._digest = digest
        self._function = function
        self._timeout = timeout
        self.__name__ = getattr(function, "__name__", "run")  # Dask names tasks by it

    def __call__(self, *args: Any) -> Any:
        """Run it in the calling thread of the worker."""
        with _lock:
            program = _programs.get(self._digest)
        if program is None:
            raise LinkerUsageError(
                f"worker process {os.getpid()} does not hold the program {self._digest}: it was forgotten"
            )
        try:
            group = program.builder().group()
            with bounded(group.linker, group.own, self.__name__, self._timeout, None):
                return self._function(group, *args)
        except Exception as error:
            _make_chain_sendable(error)
            arrives = sendable(error)
            if arrives is error:
                raise
        raise arrives  # here, where what it stands for is not its context: that goes along


def _make_chain_sendable(error: BaseException) -> None:
    """Replace what an exception was caused by where that cannot be pickled: Dask sends the whole chain, or nothing of it."""
    for name in ("__cause__", "__context__"):
        linked = getattr(error, name)
        if linked is not None:
            _make_chain_sendable(linked)
            arrives = sendable(linked)
            if arrives is not linked:
                setattr(error, name, arrives)
