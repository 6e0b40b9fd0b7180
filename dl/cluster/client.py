"""The side of a cluster's user: a program is given to all workers once, and then functions are run with it."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections import Counter
from collections.abc import Callable, Iterable
from threading import Lock
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

from distributed import Client, Future, get_client
from typing_extensions import Self

from dl.assembly import new_locator
from dl.cluster.worker import HeldModule, HeldProgram, Run
from dl.description.spec import Spec
from dl.errors import LinkerUsageError
from dl.link.ahead import compile_ahead
from dl.modules.image import image_from_bytes

_LEAST_MODULE_BYTES = 1024
"""Smaller ones go with the description: a module of its own costs a message for each worker."""


_NO_CODE: tuple[str, dict[bytes, bytes]] = ("", {})


class _Pickler(pickle.Pickler):
    """Leaves out modules, which are sent by themselves.

    Attributes:
        modules: those that were left out, by digest.
    """

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.modules: dict[str, bytes] = {}

    def persistent_id(self, value: Any) -> str | None:
        """Return what stands for a value that is left out."""
        if not isinstance(value, bytes) or len(value) < _LEAST_MODULE_BYTES:
            return None
        digest = hashlib.sha256(value).hexdigest()
        self.modules[digest] = value
        return digest


def _compiled(spec: Spec) -> tuple[str, dict[bytes, bytes]]:
    """Return the code of a packed description's modules by digest, and for which engine it is, from the cache or compiled."""
    if not isinstance(spec.main, bytes):
        return _NO_CODE
    name = spec.name or "main"
    libraries = {name: bytes(source) for name, source in spec.libraries.items() if isinstance(source, bytes)}
    images = [image_from_bytes(data, name, f"<memory>/{name}") for name, data in libraries.items()]
    main = image_from_bytes(spec.main, name, f"<memory>/{name}")
    fingerprint, codes = "", dict[bytes, bytes]()
    made = compile_ahead(
        main,
        images,
        new_locator((), libraries, spec.limits),
        engine=spec.engine,
        interrupts=spec.interrupts,
    )
    for compiled in made:
        fingerprint = compiled.engine.fingerprint
        codes.update(compiled.codes)
    return fingerprint, codes


class Program:
    """A program on all workers of a cluster, those that come later included.

    Its description is packed here, so that workers need none of its files; they need `wasix-dl`, and the functions that it
    names. Modules are sent to each worker once, by their content. Each thread of a worker builds the program when it first
    runs a function with it, and keeps it. In a `with`, the workers forget it at the end of the block.

    Args:
        spec: the program.
        client: of the cluster; None for the present one.
        send_code: whether to send compiled code, for workers on machines like this one. See docs/cluster.md on trust.

    Attributes:
        client: of the cluster.
        spec: the packed description.
        digest: what the program is known by on the workers.

    Raises:
        DlError: the description cannot be packed.
        LinkerUsageError: the client is asynchronous.
    """

    def __init__(self, spec: Spec, client: Client | None = None, *, send_code: bool = True) -> None:
        self.client = client or get_client()
        if self.client.asynchronous:
            raise LinkerUsageError("dl.cluster needs a client that is not asynchronous")
        self.spec = spec.packed()
        fingerprint, codes = _NO_CODE
        if send_code and spec.cache is not False:
            fingerprint, codes = _compiled(self.spec)
        file = io.BytesIO()
        pickler = _Pickler(file)
        pickler.dump((self.spec, fingerprint, codes))
        described = file.getvalue()
        self.digest = hashlib.sha256(described).hexdigest()
        self._held: list[HeldModule | HeldProgram] = [
            *(HeldModule(digest, module) for digest, module in pickler.modules.items()),
            HeldProgram(self.digest, described),  # the last, since it asks for the others
        ]
        _hold(self.client, self._held)

    def map(
        self,
        function: Callable[..., Any],
        *items: Iterable[Any],
        timeout: float | None = None,
        **options: Any,
    ) -> list[Future[Any]]:
        """Run `function(group, *item)` on the workers, for each item, or for the items of several lists at a time.

        Args:
            function: gets the main group of the program in the worker's thread. Pickled as Dask does.
            items: what it gets beside.
            timeout: seconds that guest code may take for each; None for no bound. The description needs `interrupts`.
            options: those of `distributed.Client.map`, such as `retries`, `workers` and `key`. Unlike there, functions are
                taken for impure: nothing is left out because it was done before.

        Returns:
            The futures of Dask. Exceptions arrive as they were raised: traps with their frames.
        """
        run = Run(self.digest, function, timeout)
        lists = [list(one) for one in items]
        futures: list[Future[Any]] = self.client.map(run, *lists, **{"pure": False, **options})
        return futures

    def submit(
        self, function: Callable[..., Any], *args: Any, timeout: float | None = None, **options: Any
    ) -> Future[Any]:
        """Run `function(group, *args)` on a worker; see `map`. The options are those of `distributed.Client.submit`."""
        run = Run(self.digest, function, timeout)
        return self.client.submit(run, *args, **{"pure": False, **options})

    def forget(self) -> None:
        """Have the workers close the program and forget it, and its modules where no other program has them; idempotent."""
        held, self._held = self._held, []
        _let_go(self.client, held)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.forget()

    def __repr__(self) -> str:
        return f"<dl.cluster.Program {self.spec.name} on {self.client!r}>"


_lock = Lock()  # guards the two below; what is sent meanwhile is sent under it, so that it is sent once
_counts: WeakKeyDictionary[Client, Counter[str]] = WeakKeyDictionary()
"""For how many programs a client's cluster holds what has a name."""
_mapped: WeakKeyDictionary[Client, dict[tuple[Spec, bool], Program]] = WeakKeyDictionary()
"""The programs of `map`, by packed description and whether code was sent."""


def _hold(client: Client, held: list[HeldModule | HeldProgram]) -> None:
    counted: list[HeldModule | HeldProgram] = []
    try:
        with _lock:
            counts = _counts.setdefault(client, Counter())
            for one in held:
                counted.append(one)
                counts[one.name] += 1
                if counts[one.name] == 1:
                    client.register_plugin(one, name=one.name)
    except BaseException:
        _let_go(client, counted)
        raise


def _let_go(client: Client, held: list[HeldModule | HeldProgram]) -> None:
    with _lock:
        counts = _counts.get(client, Counter())
        for one in reversed(held):
            counts[one.name] -= 1
            if not counts[one.name] and client.status == "running":
                client.unregister_worker_plugin(one.name)  # type: ignore[no-untyped-call]


def map(  # noqa: A001  what it is called everywhere
    spec: Spec,
    function: Callable[..., Any],
    *items: Iterable[Any],
    client: Client | None = None,
    send_code: bool = True,
    timeout: float | None = None,
    **options: Any,
) -> list[Future[Any]]:
    """Run `function(group, item)` with a program on the workers of a cluster, for each item.

    The program is given to the workers at the first call with a description, and stays there until `forget`, or the end of the
    client.

    Args:
        spec: the program.
        function: gets the main group of the program in the worker's thread, and an item.
        items: the items; of several lists, one of each at a time.
        client: of the cluster; None for the present one.
        send_code: as for `Program`.
        timeout: as for `Program.map`.
        options: as for `Program.map`.

    Returns:
        The futures of Dask: `client.gather(futures)` waits for the results.

    Raises:
        DlError: the description cannot be packed.
    """
    client = client or get_client()
    key = spec.packed(), send_code
    with _lock:
        program = _mapped.setdefault(client, {}).get(key)
    if program is None:
        program = Program(spec, client, send_code=send_code)
        with _lock:
            present = _mapped[client].setdefault(key, program)
        if present is not program:  # another thread was first
            program.forget()
            program = present
    return program.map(function, *items, timeout=timeout, **options)


def forget(spec: Spec, client: Client | None = None) -> None:
    """Have the workers forget a program that was given to them by `map`; nothing happens if there is none.

    Args:
        spec: the program.
        client: of the cluster; None for the present one.
    """
    client = client or get_client()
    packed = spec.packed()
    with _lock:
        programs = _mapped.get(client, {})
        found = [programs.pop((packed, code)) for code in (True, False) if (packed, code) in programs]
    for program in found:
        program.forget()
