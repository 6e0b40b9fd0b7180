"""Errors that come from another process: what they say, and what they carry, is what was raised there."""

from __future__ import annotations

import copy
import copyreg
import pickle
import threading
from collections.abc import Iterator

import pytest

import dl
import memory.errors
import threads.errors
from dl import errors
from dl.errors import sendable
from dl.wasm.types import FuncType
from tests.support.modules import constructor, library, linker, module

CAUSE = dl.TrapError("unreachable", 11, ["lib.so!inner", "app!outer"])


def examples() -> Iterator[BaseException]:
    """An error of each class, with all its arguments."""
    missing = dl.MissingSymbol("lib.so", "env", "f", "(i32) -> ()", "g")
    yield dl.DlError("text")
    yield dl.InternalError("text")
    yield dl.RemoteError("app.Odd", "text", "Traceback ...")
    yield dl.MalformedModuleError("lib.so", 12, "bad")
    yield dl.DylinkError("lib.so", 12, "bad")
    yield dl.UnsupportedModuleError("lib.so", "it needs more")
    yield dl.LinkError("lib.so", "why")
    yield dl.LibraryNotFoundError("lib.so", [("/a", "no")], "app", guest_tried=[("/b", "no")])
    yield dl.NotDynamicError("lib.so", "why")
    yield dl.InvalidModuleError("lib.so", "why")
    yield dl.UnresolvedSymbolsError("lib.so", [missing], ["app"])
    yield dl.ImportTypeError("lib.so", "env.f", "i32", "f64", "app", 3, remedy="build it again")
    yield dl.ImportCycleError("a", ["a", "b", "a"])
    yield dl.InstantiationError("lib.so", "why")
    yield dl.InitializationError("lib.so", "__wasm_call_ctors", CAUSE)
    yield dl.ResourceLimitError("lib.so", "full", "memory_pages")
    yield dl.SymbolNotFoundError("f", ["app"], "hidden", "g")
    yield dl.InvalidHandleError(7, "closed")
    yield dl.FinalizationError("lib.so", "f", CAUSE)
    yield dl.UnresolvedCallError("lib.so", "env", "f")
    yield CAUSE
    yield dl.StalePointerError("lib.so", 3, 5, ["app!f"])
    yield dl.UncaughtExceptionError("__cpp_exception", 1024, 5, ["app!f"])
    yield dl.GuestTimeoutError("f", 1.5, "seconds")
    yield dl.ProgramExited(3)
    yield dl.ThreadExited()
    yield dl.GuestThreadError("thread 1", CAUSE)
    yield dl.ProgramDeadlockedError([("thread 1", "a futex")])
    yield dl.GroupEndedError("thread 1", "why")
    yield dl.ReplayFailedError("thread 1", CAUSE)
    yield dl.WorkerLostError("f", 123, -9)
    yield dl.PoolFullError(4, 2)
    yield dl.ValueConversionError(FuncType(("i32",), ()), "too large", "f")
    yield dl.BuildError("text")
    yield dl.PatchError("a.so", "why")
    yield dl.BundleError("a.zip", "why")
    yield dl.EngineError("text")
    yield dl.EngineNotFoundError("x", ["wasmtime"], "not installed")
    yield dl.LinkerUsageError("text")
    yield dl.LinkerClosedError("text")
    yield dl.ProgramForkedError("text")
    yield dl.SpecError("main", "why")
    yield memory.errors.MemoryLayoutError("text")
    yield memory.errors.LayoutExhaustedError(4, 2, 100, "full", 3)
    yield memory.errors.InvalidRequestError("size", -1, "be positive")
    yield memory.errors.InvalidRegionError(1024, 4)
    yield memory.errors.OutOfBoundsError(1024, 4, 512)
    yield memory.errors.InvalidStringError(1024, 4, "no zero byte")
    yield memory.errors.MemoryMovesError()
    yield memory.errors.MemoryClosedError()
    yield threads.errors.ThreadsError("text")
    yield threads.errors.ReplayError("replica", 3, CAUSE)
    yield threads.errors.ReplicaClosedError("replica", "left")
    yield threads.errors.BarrierTimeoutError(("a",), 1.5)
    yield threads.errors.Interrupted("why")
    yield threads.errors.DeadlockError((("a", "b"),))
    yield threads.errors.ForkedProcessError(1, 2)
    yield threads.errors.ProtocolError("text")
    yield threads.errors.InGuestCodeError("text")


EXAMPLES = list(examples())


def same(one: object, other: object) -> bool:
    """Compare values; exceptions by what they are and hold."""
    if isinstance(one, BaseException) and isinstance(other, BaseException):
        return (
            type(one) is type(other)
            and str(one) == str(other)
            and same(one.args, other.args)
            and same(vars(one), vars(other))
        )
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_there_is_an_example_of_every_class() -> None:
    """No error class is left out here."""
    classes = {
        value
        for room in (errors, memory.errors, threads.errors)
        for value in vars(room).values()
        if isinstance(value, type) and issubclass(value, Exception)
    }

    assert {type(example) for example in EXAMPLES} >= classes


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_survives_pickling(error: BaseException) -> None:
    """By each protocol, and copied, an error is of the same class, with the same text and attributes."""
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert same(pickle.loads(pickle.dumps(error, protocol)), error)
    assert same(copy.copy(error), error)
    assert sendable(error) is error


def test_what_caused_an_error_comes_along() -> None:
    """A constructor's trap is the cause of the load's failure on the other side, too, with its frames."""
    bad = library(constructor("unreachable"))
    with linker({"bad.so": bad}) as program, pytest.raises(dl.InitializationError) as caught:
        program.main_group.dlopen("bad.so")
    again = pickle.loads(pickle.dumps(caught.value))

    assert isinstance(again.__cause__, dl.TrapError)
    assert again.__cause__.frames == caught.value.__cause__.frames != ()
    assert str(again) == str(caught.value)


class Odd(Exception):
    """Cannot be made again from what it keeps."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")


class Unpicklable(Exception):
    """Holds something that cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("locked")
        self.lock = threading.Lock()


@pytest.mark.parametrize("cause", [Odd(1, 2), Unpicklable()], ids=lambda error: type(error).__name__)
def test_a_foreign_exception_that_cannot_be_pickled_is_told(
    cause: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host function's exception that does not survive is named, by itself and inside an error of the linker."""
    # A library that is loaded, such as Dask, may have taught pickle the classes that there were.
    for kind in (type(cause), dl.GuestThreadError):
        monkeypatch.delitem(copyreg.dispatch_table, kind, raising=False)
    again = pickle.loads(pickle.dumps(dl.GuestThreadError("thread 1", cause)))
    alone = sendable(cause)

    for told in (again.cause, alone):
        assert isinstance(told, dl.RemoteError)
        assert told.kind.endswith(f".{type(cause).__name__}")
        assert told.message == str(cause)
        assert type(cause).__name__ in told.traceback
    assert again.thread == "thread 1"


def test_a_refused_value_arrives_with_its_function() -> None:
    """The error of a call with a wrong argument can be pickled as it is raised."""
    with dl.Linker(module('(func (export "f") (param i32))'), default_files=False) as program:
        with pytest.raises(dl.ValueConversionError) as caught:
            program.main_group.library(None).f("x" * 3, 5)

    assert same(pickle.loads(pickle.dumps(caught.value)), caught.value)
