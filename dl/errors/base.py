"""The base of all errors of the linker, faults that are the linker's own, and exceptions that come from other processes."""

from __future__ import annotations

from typing import Any


class DlError(Exception):
    """Base of all errors of the linker.

    They can be pickled, so that they arrive from another process as they are: with their type, attributes and text, and with
    the `DlError` that caused them.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        """Say how to make the error again: from its attributes, since constructors take other things than they keep."""
        state = {name: _sendable(value) for name, value in self.__dict__.items()}
        if isinstance(self.__cause__, DlError):
            state["__cause__"] = self.__cause__
        return _made_again, (type(self), tuple(map(_sendable, self.args))), state


def _made_again(kind: type[DlError], args: tuple[Any, ...]) -> DlError:
    error = kind.__new__(kind)
    error.args = args
    return error


class InternalError(DlError):
    """The linker broke a rule of its own: a fault in it, to be reported with the whole traceback."""


class RemoteError(DlError):
    """Stands for an exception of another process that cannot be made again here: it cannot be pickled.

    Attributes:
        kind: its class, as `module.qualname`.
        message: its text.
        traceback: where it was raised, as Python prints it; may be empty.
    """

    def __init__(self, kind: str, message: str, traceback: str = "") -> None:
        super().__init__(kind, message, traceback)
        self.kind = kind
        self.message = message
        self.traceback = traceback

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


def sendable(error: BaseException) -> BaseException:
    """Return an exception that another process can make again: the same, or a `RemoteError` that stands for it."""
    import pickle  # noqa: PLC0415  only for errors that go to another process
    import traceback  # noqa: PLC0415

    try:
        again = pickle.loads(pickle.dumps(error))  # noqa: S301  our own bytes
    except Exception:  # noqa: BLE001  pickling calls whatever the exception's class has
        again = None
    if type(again) is type(error):
        return error
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    return RemoteError(kind, str(error), "".join(traceback.format_exception(error)))


def _sendable(value: Any) -> Any:
    return sendable(value) if isinstance(value, BaseException) else value
