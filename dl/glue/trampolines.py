"""Small modules whose one function goes into a table index at run time: closures, callbacks of the host, dynamic calls.

Each is compiled once per signature. Two closures of a signature differ in their backing function and environment only. These
are mutable globals of the instance, set by its export `place`, which also puts the function into the table. So a new closure
costs an instance and a call, not a compilation, and preparing one again with the same signature costs a call alone.

Values lie packed in memory, little-endian and without padding (WASIX ABI, `call_dynamic` and `closure_prepare`).
"""

from __future__ import annotations

from dl.glue.names import (
    ANOTHER_TYPE,
    ANY_TABLE,
    BASE_NAMESPACE,
    HOST_NAMESPACE,
    STACK_POINTER_TYPE,
    TableAndStack,
)
from dl.wasm.encode import (
    ModuleBuilder,
    call,
    call_indirect,
    global_get,
    global_set,
    i32_const,
    i64_const,
    local_get,
    local_set,
    local_tee,
    memory_access,
    ref_func,
    ref_test,
    table_get,
    table_set,
    unsigned,
)
from dl.wasm.opcodes import (
    ELSE,
    END,
    I32_AND,
    I32_EQZ,
    I32_LT_U,
    I32_NE,
    I32_OR,
    I32_SUB,
    I32_WRAP_I64,
    I64_ADD,
    I64_EQ,
    I64_EXTEND_I32_U,
    I64_GT_U,
    I64_LE_U,
    I64_NE,
    I64_SHL,
    IF_I32,
    IF_VOID,
    LOADS,
    MEMORY_SIZE,
    RETURN,
    STORES,
    TABLE_SIZE,
)  # fmt: skip
from dl.wasm.types import FuncType, GlobalType, MemoryType
from memory import PAGE_BYTES

TRAMPOLINE = "trampoline"
"""What stack traces call these modules."""

PLACE = "place"
PLACE_TYPE = FuncType(("i32", "i32", "i32"), ())
"""Export of every trampoline: table index, and the two numbers that the function keeps."""

FUNCTION = "function"
"""Export of every trampoline: the function itself."""

BACKING_TYPE = FuncType(("i32", "i32", "i32"), ())
"""A closure's backing function: addresses of the arguments, of the results, and of the environment."""

INVOKER_TYPE = FuncType(("i32",) * 6, ("i32",))
"""`call_dynamic`: table index, values and their length in bytes, results and their length, strict; to an errno."""

VALUE_BYTES = {"i32": 4, "i64": 8, "f32": 4, "f64": 8, "v128": 16}
"""Bytes of a value in memory; references cannot lie there."""

SUCCESS, INVALID, MEMORY_VIOLATION = 0, 28, 78

_PAGE_BYTES_LOG2 = PAGE_BYTES.bit_length() - 1

_MUTABLE = GlobalType("i32", mutable=True)


def packed_bytes(types: tuple[str, ...]) -> int:
    """Return how many bytes some values take."""
    return sum(VALUE_BYTES[t] for t in types)


def _load(kind: str, offset: int) -> bytes:
    return memory_access(LOADS[kind], 0, offset)


def _store(kind: str, offset: int) -> bytes:
    return memory_access(STORES[kind], 0, offset)


def _offsets(types: tuple[str, ...]) -> list[int]:
    offsets, at = [], 0
    for kind in types:
        offsets.append(at)
        at += VALUE_BYTES[kind]
    return offsets


def _round16(size: int) -> int:
    return (size + 15) & ~15


class _Trampoline:
    """A module with `place`, whose function may use two globals."""

    def __init__(self, places: TableAndStack) -> None:
        self.build = ModuleBuilder()
        self._places = places

    def import_table(self) -> None:
        self.build.import_(self._places.table.namespace, self._places.table.name, ANY_TABLE)

    def import_memory(self, kind: MemoryType) -> None:
        self.build.import_(BASE_NAMESPACE, "memory", kind)

    def import_stack_pointer(self) -> int:
        pointer = self._places.stack_pointer
        return self.build.import_(pointer.namespace, pointer.name, STACK_POINTER_TYPE)

    def numbers(self) -> tuple[int, int]:
        """Define the two globals."""
        return self.build.global_(_MUTABLE, 0), self.build.global_(_MUTABLE, 0)

    def finish(self, function: int, numbers: tuple[int, int]) -> bytes:
        first, second = numbers
        place = self.build.function(
            PLACE_TYPE,
            local_get(1)
            + global_set(first)
            + (local_get(2) + global_set(second))
            + (local_get(0) + ref_func(function) + table_set()),
        )
        self.build.export(FUNCTION, "func", function)
        self.build.export(PLACE, "func", place)
        return self.build.build()


def closure_module(kind: FuncType, memory: MemoryType, places: TableAndStack) -> bytes:
    """Generate a closure of a signature; its numbers are the backing function's table index and the environment.

    The function stores its arguments on the shadow stack, calls the backing function, and loads the results: `results =
    sp - round16(bytes of results)`, `values = results - round16(bytes of arguments)`, `sp = values`; afterwards `sp` is
    as before, unless the backing function did not return.
    """
    module = _Trampoline(places)
    module.import_table()
    module.import_memory(memory)
    pointer = module.import_stack_pointer()
    backing, environment = numbers = module.numbers()
    count = len(kind.params)
    former, results, values = count, count + 1, count + 2
    body = (
        (global_get(pointer) + local_tee(former) + i32_const(_round16(packed_bytes(kind.results))) + I32_SUB)
        + (local_tee(results) + i32_const(_round16(packed_bytes(kind.params))) + I32_SUB)
        + (local_tee(values) + global_set(pointer))
    )
    for position, (value, offset) in enumerate(zip(kind.params, _offsets(kind.params), strict=True)):
        body += local_get(values) + local_get(position) + _store(value, offset)
    body += local_get(values) + local_get(results) + global_get(environment) + global_get(backing)
    body += call_indirect(module.build.type_index(BACKING_TYPE))
    for value, offset in zip(kind.results, _offsets(kind.results), strict=True):
        body += local_get(results) + _load(value, offset)
    body += local_get(former) + global_set(pointer)
    return module.finish(module.build.function(kind, body, ("i32", "i32", "i32")), numbers)


def callback_type(kind: FuncType) -> FuncType:
    """Signature of the host function that serves the callbacks of a signature: the callback's number comes last."""
    return FuncType((*kind.params, "i32"), kind.results)


def callback_module(kind: FuncType, dispatcher: str, places: TableAndStack) -> bytes:
    """Generate a function that passes its arguments, and its first number, to a function of the host."""
    module = _Trampoline(places)
    host = module.build.import_(HOST_NAMESPACE, dispatcher, callback_type(kind))
    module.import_table()
    number, _ = numbers = module.numbers()
    arguments = b"".join(local_get(i) for i in range(len(kind.params)))
    return module.finish(module.build.function(kind, arguments + global_get(number) + call(host)), numbers)


def invoker_module(
    kind: FuncType, memory: MemoryType, places: TableAndStack, *, type_tests: bool = False
) -> bytes:
    """Generate the function that calls any function of a signature with values from memory: `call_dynamic`'s body.

    No frame of the host lies between caller and callee, so exits, traps and exceptions pass as through any call.

    Not strict: an argument that does not fit into what is left of the values reads as 0 and leaves what is left alone;
    results likewise. Strict: too few or too many bytes of values is an error before the call, of results after it.

    Args:
        kind: the signature.
        memory: type of the program's memory.
        places: where the table is.
        type_tests: whether it looks first if the function is of its type; else another one traps.
    """
    module = _Trampoline(places)
    module.import_table()
    module.import_memory(memory)
    numbers = module.numbers()
    function, values, values_size, results, results_size, strict = range(6)
    count = len(kind.params)
    first_result = 6 + count
    at, end, memory_end, short = (first_result + len(kind.results) + i for i in range(4))
    cursor = _Cursor(at, end, memory_end, short, strict)

    body = b""
    if type_tests:
        mine = local_get(function) + table_get() + ref_test(module.build.type_index(kind))
        body += local_get(function) + TABLE_SIZE + unsigned(0) + I32_LT_U
        body += IF_I32 + mine + ELSE + i32_const(0) + END
        body += I32_EQZ + IF_VOID + i32_const(ANOTHER_TYPE) + RETURN + END
    body += cursor.begin(values, values_size)
    body += cursor.fits(packed_bytes(kind.params)) + IF_VOID
    for position, (value, offset) in enumerate(zip(kind.params, _offsets(kind.params), strict=True)):
        body += local_get(values) + _load(value, offset) + local_set(6 + position)
    body += ELSE
    for position, value in enumerate(kind.params):
        read = local_get(at) + I32_WRAP_I64 + _load(value, 0) + local_set(6 + position)
        body += cursor.step(VALUE_BYTES[value], read, demand=True)
    body += cursor.done() + END
    body += b"".join(local_get(6 + i) for i in range(count))
    body += local_get(function) + call_indirect(module.build.type_index(kind))
    body += b"".join(local_set(first_result + i) for i in reversed(range(len(kind.results))))
    body += cursor.begin(results, results_size)
    body += cursor.fits(packed_bytes(kind.results)) + IF_VOID
    for position, (value, offset) in enumerate(zip(kind.results, _offsets(kind.results), strict=True)):
        body += local_get(results) + local_get(first_result + position) + _store(value, offset)
    body += ELSE
    for position, value in enumerate(kind.results):
        body += cursor.step(
            VALUE_BYTES[value],
            local_get(at) + I32_WRAP_I64 + local_get(first_result + position) + _store(value, 0),
        )
    body += cursor.done() + END + i32_const(SUCCESS)
    local_types = (*kind.params, *kind.results, "i64", "i64", "i64", "i32")
    return module.finish(module.build.function(INVOKER_TYPE, body, local_types), numbers)


class _Cursor:
    """Code that walks through a buffer; positions are 64 bits wide, so that no sum wraps around.

    Args: local variables.
        at: position.
        end: the buffer's end.
        memory_end: the memory's end.
        short: whether some value did not fit.
        strict: whether that is an error.
    """

    def __init__(self, at: int, end: int, memory_end: int, short: int, strict: int) -> None:
        self._at = local_get(at)
        self._set_at = local_set(at)
        self._end = local_get(end)
        self._set_end = local_set(end)
        self._memory_end = local_get(memory_end)
        self._set_memory_end = local_set(memory_end)
        self._short = local_get(short)
        self._set_short = local_set(short)
        self._strict = local_get(strict)

    def begin(self, address: int, size: int) -> bytes:
        """Code that goes to the start of a buffer."""
        return (
            (local_get(address) + I64_EXTEND_I32_U + self._set_at)
            + (self._at + local_get(size) + I64_EXTEND_I32_U + I64_ADD + self._set_end)
            + (MEMORY_SIZE + I64_EXTEND_I32_U + i64_const(_PAGE_BYTES_LOG2) + I64_SHL + self._set_memory_end)
            + (i32_const(0) + self._set_short)
        )

    def fits(self, size: int) -> bytes:
        """Code for whether the buffer has exactly a size in bytes and lies inside memory."""
        exact = self._at + i64_const(size) + I64_ADD + self._end + I64_EQ
        return exact + self._end + self._memory_end + I64_LE_U + I32_AND

    def step(self, size: int, access: bytes, *, demand: bool = False) -> bytes:
        """Code that does one access if the buffer has room for it; if not, strictness may demand it at once."""
        after = self._at + i64_const(size) + I64_ADD
        return (
            (after + self._end + I64_LE_U + IF_VOID)
            + (after + self._memory_end + I64_GT_U + IF_VOID + i32_const(MEMORY_VIOLATION) + RETURN + END)
            + (access + after + self._set_at)
            + (ELSE + (self._demand() if demand else i32_const(1) + self._set_short) + END)
        )

    def _demand(self) -> bytes:
        return self._strict + IF_VOID + i32_const(INVALID) + RETURN + END

    def done(self) -> bytes:
        """Code that returns an error if strictness asks for one."""
        inexact = self._short + self._at + self._end + I64_NE + I32_OR
        strict = self._strict + i32_const(0) + I32_NE
        return inexact + strict + I32_AND + IF_VOID + i32_const(INVALID) + RETURN + END
