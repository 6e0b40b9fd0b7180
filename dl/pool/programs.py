"""A pool of fresh programs, one for each request, prepared before it comes."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from typing_extensions import Self

from dl.api.deadlines import bounded
from dl.checks import at_least, instance, optional, seconds, taken
from dl.description.spec import Spec
from dl.errors import LinkerClosedError, PoolFullError, ProgramForkedError
from dl.group import InstanceGroup
from dl.linker import Linker
from dl.options import Output
from threads import Interrupted
from threads.async_host import run_interruptibly

if TYPE_CHECKING:
    from dl.engine.values import WasiOptions

T = TypeVar("T")

log = logging.getLogger("dl.pool")

_MOST_OUTPUT = 16 << 20


def _discard(_chunk: bytes) -> None:
    """What a program writes before its request is there."""


@dataclass(frozen=True)
class ProgramOutcome:
    """How a program ended that ran for a request.

    Attributes:
        code: its exit code.
        stdout: what it wrote to its standard output.
        stderr: likewise.
    """

    code: int
    stdout: bytes
    stderr: bytes


class _Collected:
    """Output of a program, up to a number of bytes; then it gets `ENOSPC`."""

    def __init__(self, most: int) -> None:
        self._left = most
        self._chunks: list[bytes] = []

    def __call__(self, chunk: bytes) -> None:
        if len(chunk) > self._left:
            raise OSError(errno.ENOSPC, "the program has written all that it may")
        self._left -= len(chunk)
        self._chunks.append(chunk)

    def __bytes__(self) -> bytes:
        return b"".join(self._chunks)


class ProgramPool:
    """Gives each request a program of its own, which nothing of another request has touched.

    Programs are linked before requests come: up to `ready` of them wait, and a thread links others in their place. A request
    that finds none links one itself. When it is done, the program is closed; only its compiled code is used again. What a
    request says (arguments, environment, input, where output goes) is given to the program that waits, just before it runs; if
    constructors of that program have opened files, it is given up, and another one is linked.

    Used from any thread, and from tasks of asyncio or trio. In a `with`, the pool is closed at the end of the block.

    `_changed` guards the fields below it.

    Args:
        spec: the program. Guest code can be interrupted, unless it says otherwise; standard input is empty, unless it says
            what it is.
        at_once: how many programs run at a time, at least 1; other requests wait.
        waiting: how many requests may wait, beside those that run; None for no bound.
        ready: how many programs wait for requests; None for `at_once`.
        timeout: seconds that a request may have its program; then guest code is stopped. None for no bound.
        cpu_time: seconds of processor time that it may take, likewise.

    Raises:
        LinkerUsageError: a number is too small.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        at_once: int = 4,
        waiting: int | None = None,
        ready: int | None = None,
        timeout: float | None = None,
        cpu_time: float | None = None,
    ) -> None:
        ready = at_once if ready is None else ready
        taken(instance(Spec), spec, "spec")
        taken(at_least(1), at_once, "at_once")
        taken(at_least(0), ready, "ready")
        taken(optional(at_least(0)), waiting, "waiting")
        taken(optional(seconds), timeout, "timeout")
        taken(optional(seconds), cpu_time, "cpu_time")
        self._spec = spec.replace(interrupts=True) if spec.interrupts is None else spec
        self._timeout, self._cpu_time = timeout, cpu_time
        self._at_once, self._waiting, self._wanted = at_once, waiting, ready
        self._creator = os.getpid()
        self._changed = threading.Condition()
        self._ready: deque[Linker] = deque()
        self._running = 0
        self._waiters = 0
        self._closed = False
        self._broken = False  # whether the last program could not be linked; a request will be told why
        self._thread: threading.Thread | None = None
        self._prepare_more()

    @contextmanager
    def program(
        self,
        *,
        args: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes | str | None = None,
        stdout: Output = None,
        stderr: Output = None,
    ) -> Iterator[InstanceGroup]:
        """Give the calling thread a fresh program for a `with`, within the pool's bounds.

        Args:
            args: its arguments, its name first; None for those of the description.
            env: its environment, likewise.
            stdin: bytes, or the path of a file, likewise.
            stdout: a callable that gets chunks of bytes, or the path of a file; None for what the description says, or
                else for nowhere.
            stderr: likewise.

        Yields:
            Its main group: `group.run()` runs it, `group.library(None)` has its functions.

        Raises:
            PoolFullError: as many requests wait as may.
            GuestTimeoutError: the block takes too long; guest code in it is stopped.
            LinkerClosedError: the pool is closed.
            DlError: the program cannot be linked.
        """
        with self._place(), self._fresh(args, env, stdin, stdout, stderr) as linker:
            group = linker.main_group
            with bounded(linker, group.own, group.name, self._timeout, self._cpu_time):
                yield group

    def run(
        self,
        *,
        args: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes | str | None = None,
        most_output: int = _MOST_OUTPUT,
    ) -> ProgramOutcome:
        """Run a fresh program to its end; see `program`.

        Args:
            args: as for `program`.
            env: as for `program`.
            stdin: as for `program`.
            most_output: bytes that it may write to its standard output, and as many to the other; beyond, its writes fail.

        Raises:
            DlError: as for `program`; or the program trapped.
        """
        return self._run(args, env, stdin, most_output, lambda _group: None)

    async def run_async(
        self,
        *,
        args: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes | str | None = None,
        most_output: int = _MOST_OUTPUT,
    ) -> ProgramOutcome:
        """Run a fresh program in a worker thread of asyncio or trio. A task that is cancelled stops it; else as `run`."""
        groups: list[InstanceGroup] = []
        reason = Interrupted("the task was cancelled")
        cancelled = False

        def begun(group: InstanceGroup) -> None:
            groups.append(group)
            if cancelled:
                group.own.replica.interrupt_with(reason)

        def interrupt() -> BaseException:
            nonlocal cancelled
            cancelled = True
            for group in groups:
                group.own.replica.interrupt_with(reason)
            with self._changed:
                self._changed.notify_all()
            return reason

        def work() -> ProgramOutcome:
            return self._run(args, env, stdin, most_output, begun, lambda: reason if cancelled else None)

        return await run_interruptibly(work, interrupt)

    def _run(
        self,
        args: Sequence[str] | None,
        env: Mapping[str, str] | None,
        stdin: bytes | str | None,
        most_output: int,
        begun: Callable[[InstanceGroup], None],
        given_up: Callable[[], BaseException | None] = lambda: None,
    ) -> ProgramOutcome:
        out, err = _Collected(most_output), _Collected(most_output)
        with self._place(given_up), self._fresh(args, env, stdin, out, err) as linker:
            group = linker.main_group
            begun(group)
            code = group.run(timeout=self._timeout, cpu_time=self._cpu_time)
        return ProgramOutcome(code, bytes(out), bytes(err))

    @contextmanager
    def _place(self, given_up: Callable[[], BaseException | None] = lambda: None) -> Iterator[None]:
        """Count a request among those that run, as soon as it may be one.

        Args:
            given_up: returns what ends the waiting, if something does; whoever makes it do so notifies `_changed`.
        """
        self._check()
        with self._changed:
            if (
                self._running >= self._at_once
                and self._waiting is not None
                and self._waiters >= self._waiting
            ):
                raise PoolFullError(self._at_once, self._waiting)
            self._waiters += 1
            try:
                self._changed.wait_for(
                    lambda: self._running < self._at_once or self._closed or given_up() is not None
                )
            finally:
                self._waiters -= 1
            self._check()
            reason = given_up()
            if reason is not None:
                raise reason
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    @contextmanager
    def _fresh(
        self,
        args: Sequence[str] | None,
        env: Mapping[str, str] | None,
        stdin: bytes | str | None,
        stdout: Output,
        stderr: Output,
    ) -> Iterator[Linker]:
        spec = self._spec
        given: dict[str, Any] = {
            "args": tuple(spec.args if args is None else args),
            "env": dict(spec.env if env is None else env),
            "stdin": (b"" if spec.stdin is None else spec.stdin) if stdin is None else stdin,
            "stdout": _target(stdout, spec.stdout),
            "stderr": _target(stderr, spec.stderr),
        }
        with self._prepared(given) or spec.linker(**given) as linker:
            yield linker

    def _prepared(self, given: Mapping[str, Any]) -> Linker | None:
        """Return a program that has waited, with what a request says; None if there is none, or it cannot be given that."""
        with self._changed:
            linker = self._ready.popleft() if self._ready else None
            self._broken = False
        self._prepare_more()
        if linker is None:
            return None
        fits = False
        try:
            fits = _given(linker, given)
        finally:
            if not fits:
                linker.close()
        return linker if fits else None

    def _prepare_more(self) -> None:
        with self._changed:
            if self._closed or self._broken or len(self._ready) >= self._wanted:
                return
            if self._thread is None:
                thread = threading.Thread(target=self._prepare, name="wasix-dl programs", daemon=True)
                thread.start()
                self._thread = thread
            self._changed.notify_all()

    def _prepare(self) -> None:
        """The body of the thread that links programs before they are needed."""
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closed or (len(self._ready) < self._wanted and not self._broken)
                )
                if self._closed:
                    return
            try:
                linker = self._spec.linker(**_NOTHING)
            except BaseException as error:  # noqa: BLE001  host functions that constructors call may raise anything
                # The next request links by itself, and gets the error; until then there is nothing to try again for.
                log.info("a program could not be prepared: %s", error)
                with self._changed:
                    self._broken = True
                    self._changed.notify_all()
                continue
            linker.parts.groups.park(linker.main_group.own)
            with self._changed:
                if not self._closed:
                    self._ready.append(linker)
                    self._changed.notify_all()
                    continue
            linker.close()

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait until as many programs wait as are to; return whether they do.

        Args:
            timeout: seconds; None for no bound.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: len(self._ready) >= self._wanted or self._broken or self._closed, timeout
            )
            return len(self._ready) >= self._wanted

    def close(self) -> None:
        """Take no more requests, wait for those that run, and free all programs; idempotent.

        In a child made by `os.fork` this does nothing.
        """
        if os.getpid() != self._creator:
            return
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        with self._changed:
            self._changed.wait_for(lambda: not self._running)
            ready = list(self._ready)
            self._ready.clear()
        for linker in ready:
            linker.close()

    def _check(self) -> None:
        if os.getpid() != self._creator:
            raise ProgramForkedError(
                f"the pool belongs to process {self._creator}: make another one in this one"
            )
        if self._closed:
            raise LinkerClosedError("the pool is closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._ready)} ready, {self._running} running"
        return f"<ProgramPool, {state}>"


def _target(asked: Output, described: Output) -> Callable[[bytes], object] | str:
    target = asked or described or _discard
    return target if callable(target) else os.fspath(target)


_NOTHING: Mapping[str, Any] = {"stdin": b"", "stdout": _discard, "stderr": _discard}
"""What a program sees that waits for its request."""


def _given(linker: Linker, given: Mapping[str, Any]) -> bool:
    """Give a program that has waited what its request says, and to the calling thread; return whether that can still be."""
    linker.parts.groups.take(linker.main_group.own)
    program = linker.program
    shown = program.options.wasi
    # Streams and directories, but nothing that a constructor of a library has opened.
    if len(linker.parts.process.files.table.entries) != 3 + len(shown.preopens):
        return False
    options: WasiOptions = dataclasses.replace(
        shown,
        args=given["args"] or shown.args,
        env=tuple(given["env"].items()),
        stdin=given["stdin"],
        stdout=given["stdout"],
        stderr=given["stderr"],
    )
    return program.renew_wasi(options)
