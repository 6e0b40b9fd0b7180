"""Values between Python and the guest: every type, at its edges, in both directions."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

import pytest
import wasmtime
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dl.engine.protocol import Engine
from dl.errors import ValueConversionError
from dl.wasm.types import FuncType
from tests.support.engines import NoBoundary

ECHO = """
(module
  (import "host" "i32" (func $i32 (param i32) (result i32)))
  (import "host" "i64" (func $i64 (param i64) (result i64)))
  (import "host" "f32" (func $f32 (param f32) (result f32)))
  (import "host" "f64" (func $f64 (param f64) (result f64)))
  (import "host" "v128" (func $v128 (param v128) (result v128)))
  (import "host" "many" (func $many (param i32 i64 f32 f64 v128) (result v128 f64 f32 i64 i32)))
  (import "host" "none" (func $none))
  (func (export "i32") (param i32) (result i32) (call $i32 (local.get 0)))
  (func (export "i64") (param i64) (result i64) (call $i64 (local.get 0)))
  (func (export "f32") (param f32) (result f32) (call $f32 (local.get 0)))
  (func (export "f64") (param f64) (result f64) (call $f64 (local.get 0)))
  (func (export "v128") (param v128) (result v128) (call $v128 (local.get 0)))
  (func (export "many") (param i32 i64 f32 f64 v128) (result v128 f64 f32 i64 i32)
    (call $many (local.get 0) (local.get 1) (local.get 2) (local.get 3) (local.get 4)))
  (func (export "none") (call $none))
)
"""

ALL = ("i32", "i64", "f32", "f64", "v128")
MANY = FuncType(ALL, tuple(reversed(ALL)))


class Guest:
    """A guest that gives each host function what it gets, and the host functions that the test sets."""

    def __init__(self, engine: Engine) -> None:
        host = engine.host_functions(NoBoundary())
        self.does: dict[str, Callable[..., Any]] = {}
        self.got: dict[str, tuple[Any, ...]] = {}
        self.types = {name: FuncType((name,), (name,)) for name in ALL}
        self.types |= {"many": MANY, "none": FuncType((), ())}
        for name, kind in self.types.items():
            host.define("host", name, kind, self._host(name))
        store = engine.new_store(host)
        instance = store.instantiate(engine.compile(bytes(wasmtime.wat2wasm(ECHO))), "echo")
        self.call = {name: instance.function(name, kind) for name, kind in self.types.items()}

    def _host(self, name: str) -> Callable[..., Any]:
        def called(*arguments: Any) -> Any:
            self.got[name] = arguments
            return self.does[name](*arguments)

        return called


@pytest.fixture(name="shared_guest", scope="module")
def _shared_guest(engine: Engine) -> Guest:
    return Guest(engine)


@pytest.fixture(name="guest")
def _guest(shared_guest: Guest) -> Guest:
    shared_guest.does = {name: lambda value: value for name in ALL}
    shared_guest.does |= {"many": lambda *values: tuple(reversed(values)), "none": lambda: None}
    return shared_guest


@pytest.mark.parametrize(
    ("kind", "given", "seen"),
    [
        ("i32", 0, 0),
        ("i32", 2**31 - 1, 2**31 - 1),
        ("i32", -(2**31), -(2**31)),
        ("i32", 2**31, -(2**31)),
        ("i32", 2**32 - 1, -1),
        ("i32", True, 1),
        ("i64", 2**63 - 1, 2**63 - 1),
        ("i64", -(2**63), -(2**63)),
        ("i64", 2**63, -(2**63)),
        ("i64", 2**64 - 1, -1),
        ("f32", 0.1, struct.unpack("<f", struct.pack("<f", 0.1))[0]),
        ("f32", 1e39, math.inf),
        ("f32", -1e300, -math.inf),
        ("f32", 1, 1.0),
        ("f32", 1e-46, 0.0),
        ("f64", 0.1, 0.1),
        ("f64", -math.inf, -math.inf),
        ("f64", 5e-324, 5e-324),
        ("f64", 7, 7.0),
        ("v128", bytes(range(16)), bytes(range(16))),
        ("v128", bytearray(b"\xff" * 16), b"\xff" * 16),
    ],
)
def test_values_arrive_as_webassembly_sees_them(guest: Guest, kind: str, given: object, seen: object) -> None:
    """A value goes to a guest function, on to a host function and back: integers signed, floats rounded."""
    assert guest.call[kind](given) == seen
    assert guest.got[kind] == (seen,)


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_nan_and_negative_zero_survive(guest: Guest, kind: str) -> None:
    """NaN stays NaN and the sign of zero is kept."""
    assert math.isnan(guest.call[kind](math.nan))
    assert math.copysign(1.0, guest.call[kind](-0.0)) == -1.0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    i32=st.integers(-(2**31), 2**31 - 1),
    i64=st.integers(-(2**63), 2**63 - 1),
    f32=st.floats(width=32, allow_nan=False),
    f64=st.floats(allow_nan=False),
    v128=st.binary(min_size=16, max_size=16),
)
def test_several_values_keep_their_places(
    guest: Guest, i32: int, i64: int, f32: float, f64: float, v128: bytes
) -> None:
    """Five arguments of five types come back as five results in the opposite order."""
    assert guest.call["many"](i32, i64, f32, f64, v128) == (v128, f64, f32, i64, i32)


def test_several_results_may_be_a_list(guest: Guest) -> None:
    """A host function with several results may return them as any tuple or list."""
    guest.does["many"] = lambda *values: list(reversed(values))

    assert guest.call["many"](1, 2, 3.0, 4.0, bytes(16)) == (bytes(16), 4.0, 3.0, 2, 1)


BAD_ARGUMENTS = [
    ("i32", (), "takes 1 arguments, got 0"),
    ("i32", (1, 2), "takes 1 arguments, got 2"),
    ("i32", (2**32,), "argument 0 does not fit in i32: 4294967296"),
    ("i32", (-(2**31) - 1,), "does not fit in i32"),
    ("i32", (1.0,), "argument 0 must be an integer, got 1.0"),
    ("i32", ("1",), "must be an integer"),
    ("i64", (2**64,), "does not fit in i64"),
    ("i64", (None,), "must be an integer, got None"),
    ("f32", ("x",), "must be a number, got 'x'"),
    ("f64", (None,), "must be a number, got None"),
    ("v128", (b"short",), "must be 16 bytes"),
    ("v128", (0,), "must be 16 bytes"),
    ("none", (1,), "takes 0 arguments, got 1"),
]


@pytest.mark.parametrize(("kind", "arguments", "text"), BAD_ARGUMENTS)
def test_unfit_arguments_are_refused(guest: Guest, kind: str, arguments: tuple[Any, ...], text: str) -> None:
    """Arguments of wrong number, type or range raise a TypeError that says so, and the next call works."""
    with pytest.raises(ValueConversionError, match=text) as caught:
        guest.call[kind](*arguments)

    assert isinstance(caught.value, TypeError)
    assert guest.call["i32"](7) == 7


BAD_RESULTS = [
    ("i32", None, "must be an integer, got None"),
    ("i32", (1, 2), "must be an integer"),
    ("i32", 2**32, "result 0 does not fit in i32"),
    ("i64", 1.5, "must be an integer"),
    ("f32", "x", "must be a number"),
    ("f64", None, "must be a number"),
    ("v128", b"", "must be 16 bytes"),
    ("none", 0, "has no result, but the host function returned 0"),
    ("many", (1, 2), "has 5 results, got 2"),
    ("many", 5, "has 5 results, got 1"),
]


@pytest.mark.parametrize(("kind", "result", "text"), BAD_RESULTS)
def test_unfit_results_unwind_the_guest(guest: Guest, kind: str, result: object, text: str) -> None:
    """A host function's result of wrong number, type or range raises in the caller; the store stays usable."""
    guest.does[kind] = lambda *_: result
    sample = {"none": (), "many": (1, 2, 3.0, 4.0, bytes(16)), "v128": (bytes(16),)}.get(kind, (1,))

    with pytest.raises(ValueConversionError, match=text):
        guest.call[kind](*sample)

    assert guest.call["i32" if kind != "i32" else "i64"](7) == 7


def test_results_are_converted_like_arguments(guest: Guest) -> None:
    """Unsigned integers and floats that are too large for single precision may be returned."""
    guest.does |= {"i32": lambda _: 2**32 - 1, "i64": lambda _: 2**64 - 1, "f32": lambda _: 1e300}

    assert [guest.call[kind](0) for kind in ("i32", "i64", "f32")] == [-1, -1, math.inf]


def test_objects_that_are_integers_pass(guest: Guest) -> None:
    """Anything with `__index__` is an integer, as everywhere in Python."""

    class Address:
        def __index__(self) -> int:
            return 2**31

    assert guest.call["i32"](Address()) == -(2**31)


def test_references_that_cannot_cross_are_refused_at_once(engine: Engine) -> None:
    """A signature with such a reference is refused when the function is defined, not when it is called."""
    kind = FuncType(("anyref" if engine.capabilities.references else "externref",), ())
    with pytest.raises(ValueConversionError, match="cannot cross into Python"):
        engine.host_functions(NoBoundary()).define("host", "f", kind, lambda _: None)


def test_recursive_calls_of_one_function_keep_their_values(guest: Guest) -> None:
    """A guest function that is called again from its own host function still returns its own values."""
    guest.does["i32"] = lambda n: n + guest.call["i32"](n - 1) if n else 0

    assert guest.call["i32"](20) == 210
