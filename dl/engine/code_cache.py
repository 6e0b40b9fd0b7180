"""Compiled code by content: the one place where modules are compiled.

Code is known by the engine that made it and by the SHA-256 digest of the bytes that were compiled. Nothing else takes part: no
name, no path, no module handle. So a library that is opened again, under another name or by another program of the process, is
compiled once, and what a digest stands for never changes.

Two layers hold it. `EngineCode` is the memory of the process: all code that is in use (weak references find it), and beyond
that the code used last, up to a number of bytes. Under it there may be a `CodeStore` that outlives the process. `Compiler` is
what a program holds: its engine, and the layers it uses.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from dl.digests import sha256
from dl.engine.prelink import Entry, Plan
from dl.errors import EngineError, InvalidModuleError
from dl.forks import in_forked_child, renew
from dl.limits import Limits
from dl.logs import logger
from threads import found_in, recording

if TYPE_CHECKING:
    from dl.engine.protocol import CompiledModule, Engine

log = logger("dl.cache")

_LEAST_WEIGHT = 16 << 10
"""Bytes that a module counts for at least: small ones cost memory maps, two each, of which a process has 65,530."""

MOST_BYTES = 128 << 20
"""Bytes of code that the process keeps for each engine although no program uses it: some thousand small libraries."""


def content_digest(wasm: bytes) -> bytes:
    """Return the digest by which a module's compiled code is known: SHA-256 of its bytes, 32 bytes."""
    return sha256(wasm)


class CodeStore(Protocol):
    """Compiled code that outlives the process. Never fails: what it cannot read or write is not there."""

    def load(self, engine: Engine, digest: bytes) -> CompiledModule | None:
        """Return the code of the module with a digest, or None."""

    def save(self, engine: Engine, digest: bytes, module: CompiledModule) -> None:
        """Keep the code of the module with a digest, unless it is known to be kept already."""


class _Making:
    """Code that one thread is making and others may wait for."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.done = threading.Event()
        self.module: CompiledModule | None = None
        self.error: EngineError | None = None


class EngineCode:
    """The code of one engine in memory, by digest.

    Concurrency: any thread. Threads that ask for the same code at the same time make it once: one makes it, the others wait
    without holding the lock. `_lock` guards the other fields and is a leaf.

    Args:
        most_bytes: bytes of code to keep although nobody uses it.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._in_use: weakref.WeakValueDictionary[bytes, CompiledModule] = weakref.WeakValueDictionary()
        self._recent: OrderedDict[bytes, CompiledModule] = OrderedDict()
        self._recent_bytes = 0
        self._under_way: dict[bytes, _Making] = {}

    def find(self, digest: bytes) -> CompiledModule | None:
        """Return the code of the module with a digest, if it is in memory."""
        with self._lock:
            return self._find(digest)

    def get(self, digest: bytes, make: Callable[[], CompiledModule]) -> CompiledModule:
        """Return the code of the module with a digest; if there is none, make it.

        Raises:
            EngineError: `make` raised it, here or in the thread that this one waited for. Other exceptions of `make` are raised
                in its thread only: a thread that waited tries by itself.
        """
        own = _Making()
        while True:
            try:
                with self._lock:
                    known = self._find(digest)
                    if known is not None:
                        return known
                    making = self._under_way.setdefault(digest, own)
                # A signal handler may want the code that its own thread is compiling; it cannot wait for that.
                if making is own or making.thread == own.thread:
                    return self._make(digest, make, own)
            finally:
                self._end(digest, own)
            making.done.wait()
            if making.module is not None:
                return making.module
            if making.error is not None:
                raise EngineError(*making.error.args) from making.error

    def _find(self, digest: bytes) -> CompiledModule | None:
        module = found_in(self._recent, digest)
        if module is not None:
            self._recent.move_to_end(digest)
            return module
        module = self._in_use.get(digest)
        if module is not None:
            self._keep(digest, module)
        return module

    def _keep(self, digest: bytes, module: CompiledModule) -> None:
        self._in_use[digest] = module
        if digest in self._recent:
            return
        self._recent[digest] = module
        self._recent_bytes += _weight(module)
        while self._recent_bytes > self._most_bytes:
            _, dropped = self._recent.popitem(last=False)
            self._recent_bytes -= _weight(dropped)

    def _make(self, digest: bytes, make: Callable[[], CompiledModule], own: _Making) -> CompiledModule:
        try:
            module = make()
        except EngineError as error:
            own.error = error
            raise
        with self._lock:
            self._keep(digest, module)
        own.module = module
        return module

    def _end(self, digest: bytes, own: _Making) -> None:
        with self._lock:
            if found_in(self._under_way, digest) is own:
                del self._under_way[digest]
                own.done.set()

    def clear(self) -> None:
        """Forget all code that nobody uses."""
        with self._lock:
            self._recent.clear()
            self._recent_bytes = 0


def _weight(module: CompiledModule) -> int:
    return max(module.code_bytes, _LEAST_WEIGHT)


class CodeCache:
    """Code in memory, of any number of engines; that of an engine goes with it. `_lock` guards `_engines`; a leaf.

    Args:
        most_bytes: bytes of code to keep, for each engine, although nobody uses it.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._engines: weakref.WeakKeyDictionary[Engine, EngineCode] = weakref.WeakKeyDictionary()

    def forked(self) -> None:
        """Begin anew in a forked child, whose parent's threads may hold the lock."""
        renew(self._lock)
        self._engines = weakref.WeakKeyDictionary()

    def of(self, engine: Engine) -> EngineCode:
        """Return the code of an engine."""
        with self._lock:
            code = self._engines.get(engine)
            if code is None:
                code = self._engines[engine] = EngineCode(self._most_bytes)
            return code


PROCESS_CODE = CodeCache()
"""The process's code: programs share it."""

in_forked_child(PROCESS_CODE.forked)


class Compiler:
    """What turns modules into code for one program.

    Args:
        engine: the engine.
        store: code that outlives the process; None for none. An engine that cannot serialize code has no use for it.
        memory: the code in memory.
        limits: the program's; None for the defaults.
        plan: what was generated for the program in a former process; None for none.

    `_counted` holds the program's code, by digest. Each step on it is atomic under the GIL; threads that compile at the same
    time at the limit may pass it by as many as they are.
    """

    def __init__(
        self,
        engine: Engine,
        store: CodeStore | None = None,
        memory: CodeCache = PROCESS_CODE,
        limits: Limits | None = None,
        plan: Plan | None = None,
    ) -> None:
        self.engine = engine
        self.plan = plan
        self._limits = limits or Limits()
        self._counted: weakref.WeakValueDictionary[bytes, CompiledModule] = weakref.WeakValueDictionary()
        self._store = store if engine.capabilities.serialization else None
        self._memory = memory.of(engine)

    def compile(
        self,
        wasm: bytes,
        name: str,
        digest: bytes | None = None,
        made_before: Callable[[bytes], CompiledModule | None] | None = None,
        starting: Callable[[], None] | None = None,
    ) -> CompiledModule:
        """Return the code of a module.

        Args:
            wasm: the module's bytes.
            name: what to call it if the engine refuses it.
            digest: that of the bytes, if the caller has it already.
            made_before: returns code that lies elsewhere, by digest; asked before the store.
            starting: called before the engine compiles it, which it need not if the code is known.

        Raises:
            InvalidModuleError: the engine refuses the module; the text says why.
            ResourceLimitError: the program uses `Limits.code_modules` modules.
        """
        digest = digest or content_digest(wasm)
        self._check_room(digest, name)

        elsewhere = False

        def make() -> CompiledModule:
            nonlocal elsewhere
            with recording.span("load", "take compiled code", name):
                found = None if made_before is None else made_before(digest)
                if found is not None:
                    elsewhere = True
                    return found
                stored = None if self._store is None else self._store.load(self.engine, digest)
            if stored is not None:
                return stored
            if starting is not None:
                starting()
            with recording.span("load", "compile", name, bytes=len(wasm)):
                return self.engine.compile(wasm)

        try:
            module = self._memory.get(digest, make)
        except EngineError as error:
            raise InvalidModuleError(name, str(error)) from error
        self._counted[digest] = module
        if self._store is not None and not elsewhere:
            with recording.span("load", "keep compiled code", name):
                self._store.save(self.engine, digest, module)
        return module

    @property
    def room(self) -> int:
        """How many more compiled modules the program may use."""
        return max(self._limits.code_modules - len(self._counted), 0)

    def find(self, digest: bytes) -> CompiledModule | None:
        """Return the code of the module with a digest, if it is known without the module's bytes.

        Raises:
            ResourceLimitError: the program uses `Limits.code_modules` modules.
        """
        self._check_room(digest, "a module")
        known = self._find(digest)
        if known is not None:
            self._counted[digest] = known
        return known

    def planned(
        self,
        entry: Entry,
        name: str,
        made_before: Callable[[bytes], CompiledModule | None] | None = None,
    ) -> CompiledModule | None:
        """Return the code that a plan has, or whose digest it has; None if there is none.

        Args:
            entry: what the plan says.
            name: what to call the module in a log.
            made_before: as for `compile`.

        Raises:
            ResourceLimitError: the program uses `Limits.code_modules` modules.
        """
        self._check_room(entry.digest, name)
        module = self._memory.find(entry.digest)
        with recording.span("load", "take compiled code", name):
            if module is None and entry.code:
                try:
                    code = entry.code
                    module = self._memory.get(entry.digest, lambda: self.engine.deserialize(code))
                except EngineError as error:
                    log.info("plan: code of %s not used: %s", name, error)
            made = None if module is not None or made_before is None else made_before(entry.digest)
            if made is not None:
                module = self._memory.get(entry.digest, lambda: made)
            if module is None:
                return self.find(entry.digest)
        self._counted[entry.digest] = module
        return module

    def _check_room(self, digest: bytes, name: str) -> None:
        most = self._limits.code_modules
        if len(self._counted) < most or digest in self._counted:
            return
        self._memory.clear()  # what the program has used once may only be kept in case it comes again
        if len(self._counted) >= most:
            gc.collect()  # failed loads end in tracebacks, which refer to each other; without a GIL those are found late
        if len(self._counted) >= most:
            raise self._limits.refusal(
                "code_modules", name, f"{most} compiled modules are in use, or were in threads that still run"
            )

    def _find(self, digest: bytes) -> CompiledModule | None:
        known = self._memory.find(digest)
        if self._store is None:
            return known
        if known is None:
            stored = self._store.load(self.engine, digest)
            return None if stored is None else self._memory.get(digest, lambda: stored)
        self._store.save(self.engine, digest, known)
        return known
