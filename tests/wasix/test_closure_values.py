"""Closures and the values that they pass, for every signature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dl
from tests.support.closures import INVALID, SIZES, SUCCESS, TYPES, Guest

pytestmark = pytest.mark.timeout(120)


def values_of(kinds: list[str]) -> st.SearchStrategy[Any]:
    return st.tuples(*(st.binary(min_size=SIZES[k], max_size=SIZES[k]) for k in kinds)).map(b"".join)


@st.composite
def signatures(draw: Callable[..., Any]) -> Any:
    """Argument types, result types, and a value of each, packed."""
    kinds = st.lists(st.sampled_from(TYPES), max_size=6)
    arguments, results = draw(kinds), draw(kinds)
    return arguments, results, draw(values_of(arguments)), draw(values_of(results))


class TestValues:
    def test_every_signature_passes_values_packed_and_bit_for_bit(
        self, linker: dl.Linker, guest: Guest
    ) -> None:
        """Arguments and results of all types lie packed, 16-byte rounded, below the caller's stack, NaN bits and all."""
        memory = linker.memory
        seen: dict[str, Any] = {}

        def backing(values: int, results: int, environment: int) -> None:
            values, results, environment = (a & 0xFFFFFFFF for a in (values, results, environment))
            seen.update(at=(values, results), environment=environment, sp=guest.sp())
            seen["values"] = memory.read(values, seen["size"])
            memory.write(results, seen["results"])

        @settings(max_examples=80)
        @given(signatures())
        def check(signature: Any) -> None:
            arguments, results, values, returned = signature
            closure = guest.allocate()
            kinds, returns = (bytes(TYPES.index(t) for t in types) for types in (arguments, results))
            assert guest.prepare(closure, pointer.address, kinds, returns, environment=0x12345678) == SUCCESS
            seen.update(size=len(values), results=returned)
            before = guest.sp()
            memory.write(guest.scratch, values)
            memory.fill(guest.scratch + 512, 0xEE, len(returned) + 1)

            error = guest.call_dynamic(
                closure, guest.scratch, len(values), guest.scratch + 512, len(returned), 1
            )

            assert error == SUCCESS
            assert seen["values"] == values
            assert memory.read(guest.scratch + 512, len(returned) + 1) == returned + b"\xee"
            assert seen["environment"] == 0x12345678
            assert seen["at"][1] == before - (len(returned) + 15) // 16 * 16
            assert seen["at"][0] == seen["at"][1] - (len(values) + 15) // 16 * 16
            assert seen["sp"] == seen["at"][0]
            assert guest.sp() == before
            assert guest.closure_free(closure) == SUCCESS

        with linker.callback("(i32, i32, i32) -> ()", backing) as pointer:
            check()

    def test_a_thousand_arguments_and_results_pass(self, linker: dl.Linker, guest: Guest) -> None:
        """The most values that a function may have pass; more are refused."""
        memory, seen = linker.memory, []

        def backing(values: int, results: int, _environment: int) -> None:
            seen.append(memory.read(values & 0xFFFFFFFF, 8000))
            memory.write(results & 0xFFFFFFFF, seen[0][::-1])

        closure = guest.allocate()
        values = bytes(i * 7 % 251 for i in range(8000))
        memory.write(guest.scratch + 16384, values)
        with linker.callback("(i32, i32, i32) -> ()", backing) as pointer:
            assert guest.prepare(closure, pointer.address, b"\1" * 1000, b"\3" * 1000) == SUCCESS
            at = guest.scratch + 16384
            assert guest.call_dynamic(closure, at, 8000, at + 8000, 8000, 1) == SUCCESS

        assert seen == [values]
        assert memory.read(at + 8000, 8000) == values[::-1]
        assert guest.prepare(closure, pointer.address or 1, b"\1" * 1001, b"") == INVALID
        assert guest.prepare(closure, 1, b"", b"\1" * 1001) == INVALID

    def test_the_environment_is_read_when_the_closure_is_called(
        self, linker: dl.Linker, guest: Guest
    ) -> None:
        """What the environment points to may change between calls."""
        closure = guest.adder(5)
        environment = guest.scratch + 8192 + 4 * closure

        assert guest.call(closure, 1) == 6
        linker.memory.write_u32(environment, 100)
        assert guest.call(closure, 1) == 101

    def test_the_shadow_stack_is_right_after_a_backing_function_that_trapped(self, guest: Guest) -> None:
        """A trap in a backing function ends the call; the next one finds the stack where it was."""
        closure = guest.allocate()
        guest.prepare(closure, guest.address("fail"))
        before = guest.sp()

        with pytest.raises(dl.TrapError, match="unreachable"):
            guest.call(closure, 1)

        assert guest.sp() == before
