"""`call_dynamic` and `reflect_signature`: calls by table index with values from memory, and the types of functions."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import dl
from tests.support.engines import fresh_engine, need
from tests.support.modules import MEMORY, SHARED_MEMORY, TABLE, TABLE_BASE, library

pytestmark = pytest.mark.timeout(120)

TYPES = ("i32", "i64", "f32", "f64", "v128")
SIZES = {"i32": 4, "i64": 8, "f32": 4, "f64": 8, "v128": 16}
SUCCESS, INVALID, NOT_SUPPORTED, OVERFLOW, MEMORY_VIOLATION = 0, 28, 58, 61, 78

IMPORTS = [
    f'(import "wasix_32v1" "{name}" (func ${name} (param i32 i32 i32 i32 i32 i32) (result i32)))'
    for name in ("call_dynamic", "reflect_signature")
]
EXPORTS = (
    '(export "call_dynamic" (func $call_dynamic)) (export "reflect_signature" (func $reflect_signature))'
)


@pytest.fixture(name="linker", params=[True, False], ids=["shared", "unshared"])
def _linker(request: pytest.FixtureRequest) -> Iterator[dl.Linker]:
    with dl.Linker(None, memory=dl.MemoryType(2, 1000, shared=request.param)) as linker:
        yield linker


def memory_of(linker: dl.Linker) -> str:
    return SHARED_MEMORY if linker.program.shares_memory else MEMORY


class Guest:
    """The two system calls, a library's functions, and memory to work in."""

    def __init__(self, linker: dl.Linker, *fields: str, **info: Any) -> None:
        self.linker = linker
        self.group = linker.main_group
        wasm = library(memory_of(linker), TABLE, *IMPORTS, EXPORTS, *fields, **info)
        self.handle = self.group.dlopen(wasm, name="functions.so")
        self.memory = linker.memory
        self.scratch = linker.grow_memory(4) * 65536

    def __getattr__(self, name: str) -> Any:
        return self.group.dlsym(self.handle, name)

    def address(self, name: Any) -> Any:
        return self.group.dlsym(self.handle, name).address


def identity(params: list[str], results: list[str]) -> str:
    """A function that returns arguments of the same types where there are any, and zeros elsewhere."""
    body = []
    left = list(enumerate(params))
    for kind in results:
        found = next((entry for entry in left if entry[1] == kind), None)
        if found:
            left.remove(found)
            body.append(f"local.get {found[0]}")
        else:
            body.append("v128.const i64x2 0 0" if kind == "v128" else f"{kind}.const 0")
    listed = " ".join([*params]), " ".join([*results])
    return f'(func (export "f") (param {listed[0]}) (result {listed[1]}) {" ".join(body)})'


def returned(params: list[str], results: list[str], values: list[bytes]) -> list[bytes]:
    """What that function returns for packed values, one bytes object each."""
    left, out = list(zip(params, values, strict=True)), []
    for kind in results:
        found = next((i for i, entry in enumerate(left) if entry[0] == kind), None)
        out.append(bytes(SIZES[kind]) if found is None else left.pop(found)[1])
    return out


def lenient_values(params: list[str], buffer: bytes) -> list[bytes]:
    """The arguments that a buffer gives: one that does not fit in what is left is 0 and takes nothing."""
    at, values = 0, []
    for kind in params:
        size = SIZES[kind]
        if at + size <= len(buffer):
            values.append(buffer[at : at + size])
            at += size
        else:
            values.append(bytes(size))
    return values


def fitting_results(results: list[bytes], room: int) -> bytes:
    """Results as they lie in a buffer with that much room."""
    out = b""
    for value in results:
        if len(out) + len(value) <= room:
            out += value
    return out


kinds = st.lists(st.sampled_from(TYPES), max_size=5)


class TestBuffers:
    @settings(max_examples=150)
    @given(kinds, kinds, st.binary(max_size=90), st.integers(0, 90), st.booleans())
    @example(
        ["f32", "f64"], ["f64", "f32"], b"\x45\x23\xa1\x7f" + b"\x01\0\0\0\0\0\xf4\x7f", 12, True
    )  # NaN bits
    @example(["i64", "i32"], ["i64", "i32"], b"\x01\0\0\0", 4, False)
    @example(["i64", "i32"], ["i64", "i32"], bytes(range(12)), 4, True)
    def test_every_buffer_is_read_and_written_as_the_interface_says(
        self, params: list[str], results: list[str], buffer: bytes, room: int, strict: bool
    ) -> None:
        """For all signatures, buffer lengths and both modes: the errno, the results, and every byte around them."""
        with dl.Linker(None) as linker:
            guest = Guest(linker, identity(params, results))
            memory = guest.memory
            memory.write(guest.scratch, buffer + b"\xdd" * 100)
            memory.fill(guest.scratch + 512, 0xEE, 200)
            total = sum(SIZES[k] for k in params), sum(SIZES[k] for k in results)

            error = guest.call_dynamic(
                guest.f.address, guest.scratch, len(buffer), guest.scratch + 512, room, strict
            )

            if strict and len(buffer) != total[0]:
                expected = INVALID, b""
            else:
                values = returned(params, results, lenient_values(params, buffer))
                expected = (
                    INVALID if strict and room != total[1] else SUCCESS,
                    fitting_results(values, room),
                )
            assert error == expected[0]
            written = expected[1]
            assert memory.read(guest.scratch + 512, 200) == written + b"\xee" * (200 - len(written))

    def test_exact_and_inexact_buffers_give_the_same_bits(self, linker: dl.Linker) -> None:
        """A buffer that fits exactly and one that is longer take two ways through the code, with equal results."""
        params = ["f32", "v128", "f64", "i32", "i64"]
        guest = Guest(linker, identity(params, params[::-1]))
        total = sum(SIZES[k] for k in params)
        values = (
            struct.pack("<I", 0x7FA12345)
            + b"\xff" * 16
            + struct.pack("<QiQ", 0xFFF0000000000001, -5, 1 << 63)
        )
        guest.memory.write(guest.scratch, values + b"\0" * 16)
        out = guest.scratch + 512

        assert guest.call_dynamic(guest.f.address, guest.scratch, total, out, total, 1) == SUCCESS
        exact = guest.memory.read(out, total)
        assert (
            guest.call_dynamic(guest.f.address, guest.scratch, total + 3, out + 100, total + 9, 0) == SUCCESS
        )
        inexact = guest.memory.read(out + 100, total)

        assert exact == inexact == returned_bytes(params, values)

    def test_pointers_of_empty_buffers_may_be_null_or_wild(self, linker: dl.Linker) -> None:
        """Nothing is read through the pointer of a buffer that no value lies in."""
        guest = Guest(linker, identity([], []))

        for pointer in (0, 0xFFFFFFFF):
            assert guest.call_dynamic(guest.f.address, pointer, 0, pointer, 0, 1) == SUCCESS
            assert guest.call_dynamic(guest.f.address, pointer, 8, pointer, 8, 0) == SUCCESS

    def test_buffers_outside_memory_are_memory_violations(self, linker: dl.Linker) -> None:
        """Bad values are found before the call, bad results after it; sums of pointer and length never wrap around."""
        guest = Guest(
            linker, identity(["i64"], ["i64"]),
            '(global $calls (mut i32) (i32.const 0)) (func (export "calls") (result i32) global.get $calls)'
            '(func (export "counts") (param i64) (result i64)'
            " (global.set $calls (i32.add (global.get $calls) (i32.const 1))) local.get 0)",
        )  # fmt: skip
        function, end = guest.counts.address, guest.memory.size

        for bad in (end - 7, end, 0xFFFFFFF8, 0xFFFFFFFF):
            for strict in (0, 1):
                calls = guest.calls()
                assert guest.call_dynamic(function, bad, 8, guest.scratch, 8, strict) == MEMORY_VIOLATION
                assert guest.calls() == calls
                assert guest.call_dynamic(function, guest.scratch, 8, bad, 8, strict) == MEMORY_VIOLATION
                assert guest.calls() == calls + 1
            assert guest.call_dynamic(function, bad, 7, guest.scratch, 8, 1) == INVALID
        assert guest.call_dynamic(function, end - 8, 8, end - 8, 8, 1) == SUCCESS
        assert (
            guest.call_dynamic(function, guest.scratch, 0xFFFFFFFF, guest.scratch, 0xFFFFFFFF, 0) == SUCCESS
        )


def returned_bytes(params: list[str], values: bytes) -> bytes:
    """Packed values in the opposite order."""
    at, parts = 0, []
    for kind in params:
        parts.append(values[at : at + SIZES[kind]])
        at += SIZES[kind]
    return b"".join(reversed(parts))


class TestCallees:
    def test_indices_without_a_function_are_invalid(self, linker: dl.Linker) -> None:
        """Null, the linker's own free indices, and everything beyond the table answer 28."""
        guest = Guest(linker, identity([], []))
        length = linker.main_group.table_length()

        for index in (0, 15, length, length + 1000, 0x7FFFFFFF, 0xFFFFFFFF):
            for strict in (0, 1):
                assert guest.call_dynamic(index, 0, 0, 0, 0, strict) == INVALID

    def test_functions_that_only_an_element_segment_names_can_be_called(self, linker: dl.Linker) -> None:
        """A static function, placed by its module's own element segment, is as good as an exported one."""
        guest = Guest(
            linker, TABLE_BASE,
            "(func $hidden (param i32) (result i32) (i32.mul (local.get 0) (i32.const 3)))"
            "(elem (global.get $table_base) $hidden)"
            '(func (export "where") (result i32) global.get $table_base)', table_size=1,
        )  # fmt: skip
        guest.memory.write_u32(guest.scratch, 14)

        assert guest.call_dynamic(guest.where(), guest.scratch, 4, guest.scratch, 4, 1) == SUCCESS
        assert guest.memory.read_u32(guest.scratch) == 42

    @pytest.mark.parametrize("type_tests", [True, False])
    @pytest.mark.parametrize("shared", [True, False])
    def test_a_signature_is_asked_for_once(self, shared: bool, type_tests: bool) -> None:
        """Functions that come again do not reach the host; whatever comes into an index is called by its own signature."""
        if type_tests:
            need("type_tests")
        engine = fresh_engine() if type_tests else fresh_engine("type_tests")
        memory = dl.MemoryType(2, 1000, shared=shared)
        with dl.Linker(None, memory=memory, engine=engine) as linker:
            guest = Guest(
                linker,
                TABLE_BASE,
                *(
                    f"(func $f{n} (param {k}) (result {k}) (local.get 0))"
                    for n, k in enumerate(("i32", "i64", "f32"))
                ),
                "(elem (global.get $table_base) $f0 $f1 $f2)",
                '(func (export "where") (result i32) global.get $table_base)',
                """(func (export "swap") (param i32 i32) (local funcref)
                  (local.set 2 (table.get (local.get 0)))
                  (table.set (local.get 0) (table.get (local.get 1))) (table.set (local.get 1) (local.get 2)))""",
                table_size=3,
            )
            asked: list[int] = []
            first = guest.where()
            kinds = linker.main_group.own.instances.function_type

            def noting(address: int) -> dl.FuncType | None:
                asked.append(address)
                return kinds(address)

            linker.main_group.own.instances.function_type = noting  # type: ignore[method-assign]
            for swapped in range(4):
                for number in range(60):
                    place = (number + swapped) % 3
                    size = 8 if kinds(first + place).params == ("i64",) else 4
                    guest.memory.write(guest.scratch, bytes(range(1, 9)) + b"\xdd" * 8)
                    assert (
                        guest.call_dynamic(first + place, guest.scratch, size, guest.scratch + 8, size, 1)
                        == SUCCESS
                    )
                    assert guest.memory.read(guest.scratch + 8, size) == bytes(range(1, 1 + size))
                    assert (
                        guest.call_dynamic(first + place, guest.scratch, size + 1, guest.scratch, 8, 1)
                        == INVALID
                    )
                guest.swap(first + swapped % 3, first + (swapped + 1) % 3)
            assert guest.call_dynamic(0, 0, 0, 0, 0, 1) == INVALID
            assert len(asked) < 20 if type_tests else len(asked) == 481

    def test_references_in_a_signature_are_refused(self, linker: dl.Linker) -> None:
        """What cannot lie in memory cannot be passed; nothing breaks."""
        guest = Guest(
            linker,
            '(func (export "takes") (param funcref)) (func (export "gives") (result externref) ref.null extern)',
        )

        for name in ("takes", "gives"):
            assert guest.call_dynamic(address_of(guest, name), 0, 0, guest.scratch, 64, 0) == INVALID

    def test_a_host_function_can_be_called(self, linker: dl.Linker) -> None:
        """A callback of the host has a signature like any function."""
        guest = Guest(linker, identity([], []))
        guest.memory.write(guest.scratch, struct.pack("<id", 3, 0.5))

        with linker.callback("(i32, f64) -> f64", lambda a, b: a + b) as callback:
            error = guest.call_dynamic(callback.address, guest.scratch, 12, guest.scratch, 8, 1)

        assert error == SUCCESS
        assert guest.memory.read_f64(guest.scratch) == 3.5

    def test_a_trap_in_the_callee_reaches_the_caller(self, linker: dl.Linker) -> None:
        """It ends the guest's call, not the linker."""
        guest = Guest(linker, '(func (export "bad") unreachable)', identity([], []))

        with pytest.raises(dl.TrapError, match="unreachable"):
            guest.call_dynamic(guest.bad.address, 0, 0, 0, 0, 1)
        assert guest.call_dynamic(guest.f.address, 0, 0, 0, 0, 1) == SUCCESS

    def test_an_exception_of_the_callee_can_be_caught_by_the_caller(self, linker: dl.Linker) -> None:
        """Nothing of the host lies between the two, so a C++ exception or a longjmp passes through a dynamic call."""
        guest = Guest(
            linker, '(import "env" "__cpp_exception" (tag $cpp (param i32)))',
            '(func $throws (export "throws") (param i32) (throw $cpp (local.get 0)))',
            """(func (export "catches") (param $function i32) (param $values i32) (result i32)
              (block $caught (result i32)
                (try_table (catch $cpp $caught)
                  (drop (call $call_dynamic (local.get $function) (local.get $values) (i32.const 4)
                                            (i32.const 0) (i32.const 0) (i32.const 1))))
                (i32.const -1)))""",
        )  # fmt: skip
        guest.memory.write_u32(guest.scratch, 77)

        assert guest.catches(guest.throws.address, guest.scratch) == 77

    def test_a_dynamic_call_of_call_dynamic_works(self, linker: dl.Linker) -> None:
        """A callee may call dynamically in turn, to any depth that fits the stack."""
        guest = Guest(
            linker,
            """(func $down (export "down") (param $n i32) (param $buffer i32) (result i32)
              (if (i32.eqz (local.get $n)) (then (return (i32.const 0))))
              (i32.store (local.get $buffer) (i32.sub (local.get $n) (i32.const 1)))
              (i32.store offset=4 (local.get $buffer) (i32.add (local.get $buffer) (i32.const 8)))
              (drop (call $call_dynamic (global.get $self) (local.get $buffer) (i32.const 8)
                                        (local.get $buffer) (i32.const 4) (i32.const 1)))
              (i32.add (i32.load (local.get $buffer)) (local.get $n)))""",
            '(global $self (mut i32) (i32.const 0)) (func (export "set") (param i32) (global.set $self (local.get 0)))',
        )
        guest.set(guest.down.address)

        assert guest.down(300, guest.scratch) == 300 * 301 // 2


def address_of(guest: Guest, name: str) -> int:
    """The table index of a function that Python cannot call."""
    return guest.linker.own.look_up(guest.handle, name).address


class TestReflection:
    def reflect(
        self, guest: Guest, function: int, room: tuple[int, int] = (8, 8)
    ) -> tuple[int, bytes, bytes, bytes]:
        """Returns the errno, the six bytes of the result, and the two lists with a byte beyond them."""
        at = guest.scratch
        guest.memory.fill(at, 0xEE, 64)
        error = guest.reflect_signature(function, at + 8, room[0], at + 24, room[1], at)
        return error, guest.memory.read(at, 6), guest.memory.read(at + 8, 9), guest.memory.read(at + 24, 9)

    @settings(max_examples=40)
    @given(kinds, kinds, st.tuples(st.integers(0, 8), st.integers(0, 8)))
    def test_every_signature_is_told_where_there_is_room(
        self, params: list[str], results: list[str], room: tuple[int, int]
    ) -> None:
        """Counts always; types only if both lists have room, and not a byte more."""
        with dl.Linker(None) as linker:
            guest = Guest(linker, identity(params, results))

            error, info, arguments, returned_types = self.reflect(guest, guest.f.address, room)

            assert info == struct.pack("<BBHH", 1, 0, len(params), len(results))
            if len(params) > room[0] or len(results) > room[1]:
                assert (error, arguments, returned_types) == (OVERFLOW, b"\xee" * 9, b"\xee" * 9)
            else:
                codes = [bytes(TYPES.index(k) for k in types) for types in (params, results)]
                assert error == SUCCESS
                assert (arguments, returned_types) == tuple(c.ljust(9, b"\xee") for c in codes)

    def test_indices_without_a_function_are_told_apart(self, linker: dl.Linker) -> None:
        """Null in the table is cacheable unless closures own it; beyond the table nothing is."""
        guest = Guest(linker, identity([], []))
        with linker.parts.slots().allocation() as allocation:
            closure = allocation.take()
        null = struct.pack("<BBHH", 1, 0, 0, 0)

        assert self.reflect(guest, 0)[:2] == (INVALID, null)
        assert self.reflect(guest, closure)[:2] == (INVALID, bytes(6))
        assert self.reflect(guest, closure + 1)[:2] == (INVALID, bytes(6))
        assert self.reflect(guest, linker.main_group.table_length())[:2] == (INVALID, bytes(6))
        assert self.reflect(guest, 0xFFFFFFFF)[:2] == (INVALID, bytes(6))
        assert self.reflect(guest, 0)[2:] == (b"\xee" * 9, b"\xee" * 9)

    def test_a_closure_is_not_cacheable(self, linker: dl.Linker) -> None:
        """Its signature may change, so it is never to be remembered."""
        guest = Guest(linker, identity([], []))
        with linker.callback("(v128, i32) -> f32", lambda *_: 0.0) as callback:
            error, info, arguments, results = self.reflect(guest, callback.address)

        assert (error, info) == (SUCCESS, struct.pack("<BBHH", 0, 0, 2, 1))
        assert (arguments[:2], results[:1]) == (b"\4\0", b"\2")

    def test_references_are_counted_but_not_told(self, linker: dl.Linker) -> None:
        """A signature with references answers 28 with its counts, and leaves the lists alone."""
        guest = Guest(linker, '(func (export "takes") (param i32 funcref))')

        error, info, arguments, results = self.reflect(guest, address_of(guest, "takes"))

        assert (error, info) == (INVALID, struct.pack("<BBHH", 1, 0, 2, 0))
        assert arguments == results == b"\xee" * 9
        assert self.reflect(guest, address_of(guest, "takes"), (1, 0))[0] == OVERFLOW

    def test_addresses_outside_memory_are_memory_violations(self, linker: dl.Linker) -> None:
        """The result may not be null; lists are not touched unless both can be written; empty lists may be anywhere."""
        guest = Guest(linker, identity(["i32"], ["i32"]), '(func (export "none"))')
        function, at = guest.f.address, guest.scratch
        guest.memory.fill(at, 0xEE, 64)

        for bad in (0, 0xFFFFFFFF, guest.memory.size - 5):
            assert guest.reflect_signature(function, at + 8, 8, at + 24, 8, bad) == MEMORY_VIOLATION
        assert guest.reflect_signature(function, 0xFFFFFFFF, 8, at + 24, 8, at) == MEMORY_VIOLATION
        assert guest.reflect_signature(function, at + 8, 8, 0xFFFFFFFF, 8, at) == MEMORY_VIOLATION
        assert guest.memory.read(at + 8, 32) == b"\xee" * 32
        assert guest.reflect_signature(guest.none.address, 0, 0, 0xFFFFFFFF, 8, at) == SUCCESS


def test_threads_share_the_invoker_of_a_signature() -> None:
    """Eight threads call functions of the same and of different types at once; each signature takes one table index."""
    signatures = [("i32",) * n for n in range(1, 9)]
    with dl.Linker(None, memory=dl.MemoryType(2, 1000, shared=True)) as linker:
        fields = [
            f'(func (export "f{n}") (param {" ".join(kind)}) (result i32) (i32.add (local.get 0) (i32.const {n})))'
            for n, kind in enumerate(signatures)
        ]
        guest = Guest(linker, *fields)

        def calls(group: dl.InstanceGroup, thread: int) -> bool:
            call = group.dlsym(guest.handle, "call_dynamic")
            at = guest.scratch + 256 * thread
            results = []
            for n in range(len(signatures)):
                which = (n + thread) % len(signatures)
                linker.memory.write_u32(at, 100)
                function = group.dlsym(guest.handle, f"f{which}").address
                assert call(function, at, 4 * (which + 1), at + 64, 4, 1) == SUCCESS
                results.append(linker.memory.read_u32(at + 64) - 100 == which)
            return all(results)

        threads = [linker.spawn(calls, n) for n in range(8)]

        assert all(thread.join(timeout=60) for thread in threads)
        assert linker.parts.slots().pool.in_use() == len(signatures)
