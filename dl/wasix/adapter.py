"""Between a call from the guest and the Python function that serves it: the only place that converts arguments and errors.

A function is given by the namespace and name under which guests import it; its signature comes from `dl.wasix.abi`. It
takes its arguments as unsigned numbers of the widths that the signature states, and returns an errno or None for success.
Errors that are the guest's own become errnos here:

* `ErrnoError`: the number that it carries;
* an address outside linear memory: `memviolation`;
* bytes that are no UTF-8 where the interface wants text: `inval`.

Everything else unwinds the guest. Signals that are pending for the calling thread are delivered last, right before the guest
continues.

A function that runs guest code in turn (a constructor, a signal handler) does so inside `running_guest`: errors of the same
types that come out of that code, for instance from a host function of a user's, are not about the arguments of *this* call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from dl.program.host_symbols import SystemFunction
from dl.records import replace
from dl.wasix.abi import SIGNATURES, Errno, ErrnoError
from dl.wasm.types import FuncType
from memory import InvalidStringError, OutOfBoundsError

if TYPE_CHECKING:
    from dl.engine.protocol import RawFunction, Slots
    from dl.glue.resolution import FromNamespace
    from dl.wasix.signals import Signals

_MASKS = {"i32": 0xFFFFFFFF, "i64": 0xFFFFFFFFFFFFFFFF}
_I32 = _MASKS["i32"]


Functions = dict[str, SystemFunction]
"""Functions of one namespace, by name."""


class _GuestRaised(Exception):  # noqa: N818  not a fault of ours: it carries one past the conversion of errors
    """Carries an exception out of guest code that a system function has run."""

    def __init__(self, error: Exception) -> None:
        self.error = error


@contextlib.contextmanager
def running_guest() -> Iterator[None]:
    """Run guest code in a system function: what it raises passes the adapter unchanged."""
    try:
        yield
    except (OutOfBoundsError, InvalidStringError) as error:
        raise _GuestRaised(error) from None


def errno_of(error: Exception) -> Errno:
    """Return the errno that an error of the guest's arguments is."""
    if isinstance(error, ErrnoError):
        return error.errno
    return Errno.MEMVIOLATION if isinstance(error, OutOfBoundsError) else Errno.INVAL


def _taking_unsigned(
    function: Callable[..., int | None], types: tuple[str, ...]
) -> Callable[..., int | None]:
    """Return a function that makes its arguments unsigned for another one.

    The usual numbers of arguments are written out: a loop costs more than most of these functions.
    """
    masks = tuple(_MASKS[kind] for kind in types)
    if not masks:
        return function
    if len(masks) == 1:
        (m,) = masks
        return lambda a: function(a & m)
    if len(masks) == 2:
        m, n = masks
        return lambda a, b: function(a & m, b & n)
    if len(masks) == 3:
        m, n, o = masks
        return lambda a, b, c: function(a & m, b & n, c & o)
    if len(masks) == 4:
        m, n, o, p = masks
        return lambda a, b, c, d: function(a & m, b & n, c & o, d & p)
    return lambda *arguments: function(*[a & m for a, m in zip(arguments, masks, strict=True)])


class Adapter:
    """Makes the functions of one program callable by its guest.

    Args:
        signals: the program's signals.
    """

    def __init__(self, signals: Signals) -> None:
        self._signals = signals

    def function(
        self,
        namespace: str,
        name: str,
        function: Callable[..., int | None],
        *,
        blocking: bool = True,
        takes_caller: bool = False,
        kind: FuncType | None = None,
    ) -> SystemFunction:
        """Adapt a function that takes numbers.

        Args:
            namespace: a key of `abi.SIGNATURES`.
            name: its name there.
            function: takes unsigned numbers, returns an errno; None is success.
            blocking: whether it may wait, link or run guest code. One that may not is no safe point: no signal is delivered.
            takes_caller: whether it gets the handle of the module whose code calls before its arguments.
            kind: its signature, if it is another than there.
        """
        kind = kind or SIGNATURES[namespace][name]
        unsigned = _taking_unsigned(function, ("i32", *kind.params) if takes_caller else kind.params)
        deliver = self._signals.deliver_if_pending if blocking else None

        def call(*arguments: int) -> int:
            result: int | None
            raised: Exception | None = None
            try:
                result = unsigned(*arguments)
            except (ErrnoError, OutOfBoundsError, InvalidStringError) as error:
                result = errno_of(error)
            except _GuestRaised as carrier:
                raised = carrier.error
            if raised is not None:
                raise raised
            if deliver is not None:
                deliver()
            return 0 if result is None else result

        def silent(*arguments: int) -> None:
            call(*arguments)

        return SystemFunction(
            kind, function=call if kind.results else silent, blocking=blocking, takes_caller=takes_caller
        )

    def functions(
        self,
        namespace: str,
        table: Mapping[str, Callable[..., int | None]],
        *,
        blocking: bool = True,
        takes_caller: bool = False,
    ) -> Functions:
        """Adapt several functions of a namespace that take numbers."""
        return {
            name: self.function(namespace, name, function, blocking=blocking, takes_caller=takes_caller)
            for name, function in table.items()
        }

    def raw(self, namespace: str, name: str, function: RawFunction) -> SystemFunction:
        """Adapt a function that works on slots, whose first is its errno afterwards."""
        signals = self._signals

        def call(slots: Slots) -> None:
            try:
                function(slots)
            except (ErrnoError, OutOfBoundsError, InvalidStringError) as error:
                slots.set_32(0, errno_of(error))
            signals.deliver_if_pending()

        return SystemFunction(SIGNATURES[namespace][name], raw=call)


def with_split_arguments(function: SystemFunction, make_slots: Callable[[int], Slots]) -> SystemFunction:
    """Return a function that can also be imported with each 64-bit argument as two of 32 bits, the lower half first.

    Emscripten lowers functions in this way with `-sWASM_BIGINT=0`. A function without 64-bit arguments, or that is not
    implemented in Python, is returned unchanged.

    Args:
        function: the function.
        make_slots: makes slots for a number of arguments.
    """
    kind = function.type
    if "i64" not in kind.params or (function.function is None and function.raw is None):
        return function
    split = FuncType(
        tuple(p for q in kind.params for p in (("i32", "i32") if q == "i64" else (q,))), kind.results
    )

    def joined(values: Iterator[int]) -> list[int]:
        return [
            next(values) & _I32 | (next(values) & _I32) << 32 if p == "i64" else next(values)
            for p in kind.params
        ]

    typed, raw = function.function, function.raw
    if typed is not None:
        alternative = SystemFunction(
            split, function=lambda *arguments: typed(*joined(iter(arguments))), blocking=function.blocking
        )
    else:
        assert raw is not None

        def call(slots: Slots) -> None:
            whole = make_slots(
                len(kind.params)
            )  # of this call alone: other threads make theirs at the same time
            values = joined(slots.u32(position) for position in range(len(split.params)))
            for position, (value, param) in enumerate(zip(values, kind.params, strict=True)):
                (whole.set_64 if param == "i64" else whole.set_32)(position, value)
            raw(whole)
            slots.set_32(0, whole.u32(0))

        alternative = SystemFunction(split, raw=call)
    return replace(function, alternatives=(*function.alternatives, alternative))


def bound(namespace: str, name: str, binding: FromNamespace) -> SystemFunction:
    """Return a function of an interface that is one of WebAssembly, not of Python."""
    return SystemFunction(SIGNATURES[namespace][name], binding=binding)
