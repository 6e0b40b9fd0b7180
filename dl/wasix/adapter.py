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
import ctypes
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from dl.program.host_symbols import SystemFunction
from dl.wasix.abi import SIGNATURES, Errno, ErrnoError
from memory import InvalidStringError, OutOfBoundsError

if TYPE_CHECKING:
    from dl.engine.protocol import RawCall
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


class Adapter:
    """Makes the functions of one program callable by its guest.

    Args:
        signals: the program's signals.
    """

    def __init__(self, signals: Signals) -> None:
        self._signals = signals

    def function(
        self, namespace: str, name: str, function: Callable[..., int | None], *, blocking: bool = True
    ) -> SystemFunction:
        """Adapt a function that takes numbers.

        Args:
            namespace: a key of `abi.SIGNATURES`.
            name: its name there.
            function: takes unsigned numbers, returns an errno; None is success.
            blocking: whether it may wait, link or run guest code.
        """
        kind = SIGNATURES[namespace][name]
        masks = tuple(_MASKS[parameter] for parameter in kind.params)
        narrow = all(mask == _I32 for mask in masks)
        signals = self._signals

        def call(*arguments: int) -> int:
            result: int | None
            raised: Exception | None = None
            try:
                if narrow:
                    result = function(*[a & _I32 for a in arguments])
                else:
                    result = function(*[a & m for a, m in zip(arguments, masks, strict=True)])
            except (ErrnoError, OutOfBoundsError, InvalidStringError) as error:
                result = errno_of(error)
            except _GuestRaised as carrier:
                raised = carrier.error
            if raised is not None:
                raise raised
            signals.deliver_if_pending()
            return 0 if result is None else int(result)

        def silent(*arguments: int) -> None:
            call(*arguments)

        return SystemFunction(kind, function=call if kind.results else silent, blocking=blocking)

    def functions(self, namespace: str, table: Mapping[str, Callable[..., int | None]]) -> Functions:
        """Adapt several functions of a namespace that take numbers."""
        return {name: self.function(namespace, name, function) for name, function in table.items()}

    def raw(self, namespace: str, name: str, function: RawCall) -> SystemFunction:
        """Adapt a function that works on raw slots, whose first is its errno afterwards."""
        signals = self._signals

        def call(area: int, slots: int) -> None:
            try:
                function(area, slots)
            except (ErrnoError, OutOfBoundsError, InvalidStringError) as error:
                ctypes.c_uint32.from_address(area).value = errno_of(error)
            signals.deliver_if_pending()

        return SystemFunction(SIGNATURES[namespace][name], raw=call)


def bound(namespace: str, name: str, binding: FromNamespace) -> SystemFunction:
    """Return a function of an interface that is one of WebAssembly, not of Python."""
    return SystemFunction(SIGNATURES[namespace][name], binding=binding)
