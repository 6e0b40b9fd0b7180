"""The base module of a program: what no module of the program defines, and functions that work on the table."""

from __future__ import annotations

from dl.glue.names import (
    ADDRESS_TO_NOTHING,
    ANOTHER_TYPE,
    ANY_TABLE,
    BASE_NAMESPACE,
    EXCEPTION_TAG,
    EXCEPTION_TAG_NAMES,
    HOST_NAMESPACE,
    STACK_POINTER_NAME,
    STACK_POINTER_TYPE,
    TABLE_NAME,
    TableAndStack,
)
from dl.wasm.encode import (
    ModuleBuilder,
    call,
    call_indirect,
    global_get,
    global_set,
    i32_const,
    local_get,
    local_set,
    local_tee,
    table_get,
    table_set,
    unsigned,
)
from dl.wasm.opcodes import (
    ELSE,
    END,
    I32_AND,
    I32_EQ,
    I32_EQZ,
    I32_GT_U,
    I32_LT_S,
    I32_NE,
    I32_SUB,
    IF_I32,
    IF_VOID,
    REF_IS_NULL,
    REF_NULL_FUNC,
    RETURN,
    TABLE_FILL,
    TABLE_GROW,
    TABLE_SIZE,
)
from dl.wasm.types import FuncType, Limits, TableType

GET_TABLE_SIZE, ENSURE_TABLE, CLEAR_TABLE, SET_STACK_POINTER, GET_STACK_POINTER = (
    "table_size",
    "ensure_table",
    "clear_table",
    "set_stack_pointer",
    "get_stack_pointer",
)
CALL_POINTER, CALL_POINTER_WITH = "call_pointer", "call_pointer_with"
CALL_POINTER_TYPE = ADDRESS_TO_NOTHING
CALL_POINTER_WITH_TYPE = FuncType(("i32", "i32"), ())
"""Table index of a function without parameters or results; of one with an i32, and that."""
CALL_DYNAMIC, FIND_INVOKER = "call_dynamic", "find_invoker"
_KNOWN = 16
"""Invokers that a group keeps at hand."""
CALL_DYNAMIC_TYPE = FuncType(("i32",) * 6, ("i32",))
FIND_INVOKER_TYPE = FuncType(("i32",), ("i32",))
"""Table index of a function, to that of the invoker for its signature, or minus an errno."""
GET_TABLE_SIZE_TYPE = FuncType((), ("i32",))
ENSURE_TABLE_TYPE = FuncType(("i32",), ("i32",))
CLEAR_TABLE_TYPE = FuncType(("i32", "i32"), ())
SET_STACK_POINTER_TYPE = ADDRESS_TO_NOTHING
GET_STACK_POINTER_TYPE = FuncType((), ("i32",))


def base_module(
    places: TableAndStack,
    table_length: int,
    stack_pointer: int,
    *,
    exceptions: bool = True,
    type_tests: bool = False,
) -> bytes:
    """Generate the module that defines what the main module does not, and the functions that work on the table.

    `table_size` returns the table's length in elements; `ensure_table` grows it to a length and returns 0, or 1 if the engine
    refuses; `clear_table` sets a run of elements to null; `call_dynamic` calls the invoker for the function that its first
    argument points to.

    Args:
        places: what names the base namespace is defined here; the rest is imported from there.
        table_length: elements of the table, if it is defined here.
        stack_pointer: initial value of the stack pointer, if it is defined here.
        exceptions: whether the engine has exception tags, which are defined here.
        type_tests: whether invokers know their functions; then those that were called last are kept, and the host is not asked.
    """
    build = ModuleBuilder()
    find_invoker = build.import_(HOST_NAMESPACE, FIND_INVOKER, FIND_INVOKER_TYPE)
    own_table = places.table.namespace == BASE_NAMESPACE
    own_pointer = places.stack_pointer.namespace == BASE_NAMESPACE
    if not own_table:
        build.import_(places.table.namespace, places.table.name, ANY_TABLE)
    if not own_pointer:
        build.import_(places.stack_pointer.namespace, places.stack_pointer.name, STACK_POINTER_TYPE)
    if own_table:
        table = build.table(TableType("funcref", Limits(table_length, None, shared=False, is64=False)))
        build.export(TABLE_NAME, "table", table)
    else:
        build.export(TABLE_NAME, "table", 0)
    pointer = build.global_(STACK_POINTER_TYPE, stack_pointer) if own_pointer else 0
    build.export(STACK_POINTER_NAME, "global", pointer)
    for name in EXCEPTION_TAG_NAMES if exceptions else ():
        build.export(name, "tag", build.tag(EXCEPTION_TAG))
    table_index = unsigned(0)
    size = build.function(GET_TABLE_SIZE_TYPE, TABLE_SIZE + table_index)
    ensure = build.function(
        ENSURE_TABLE_TYPE,
        local_get(0)
        + (TABLE_SIZE + table_index)
        + I32_GT_U
        + (IF_I32 + REF_NULL_FUNC + local_get(0) + TABLE_SIZE + table_index + I32_SUB)
        + (TABLE_GROW + table_index + i32_const(-1) + I32_EQ)
        + (ELSE + i32_const(0) + END),
    )
    clear = build.function(
        CLEAR_TABLE_TYPE, local_get(0) + REF_NULL_FUNC + local_get(1) + TABLE_FILL + table_index
    )
    build.export(GET_TABLE_SIZE, "func", size)
    build.export(ENSURE_TABLE, "func", ensure)
    build.export(CLEAR_TABLE, "func", clear)
    arguments = b"".join(local_get(i) for i in range(len(CALL_DYNAMIC_TYPE.params)))
    invoker = len(CALL_DYNAMIC_TYPE.params)
    at_once = keep = b""
    if type_tests:
        # Those that were called last, by the last bits of the function's index. One of another type says so.
        known = build.table(TableType("funcref", Limits(_KNOWN, _KNOWN, shared=False, is64=False)))
        place = local_get(0) + i32_const(_KNOWN - 1) + I32_AND
        by_known = arguments + place + call_indirect(build.type_index(CALL_DYNAMIC_TYPE), known)
        at_once = (
            (place + table_get(known) + REF_IS_NULL + I32_EQZ + IF_VOID)
            + (by_known + local_tee(invoker) + i32_const(ANOTHER_TYPE) + I32_NE + IF_VOID)
            + (local_get(invoker) + RETURN + END + END)
        )
        keep = place + local_get(invoker) + table_get() + table_set(known)
    call_dynamic = build.function(
        CALL_DYNAMIC_TYPE,
        at_once
        + (local_get(0) + call(find_invoker) + local_set(invoker))
        + (local_get(invoker) + i32_const(0) + I32_LT_S + IF_VOID)
        + (i32_const(0) + local_get(invoker) + I32_SUB + RETURN + END)
        + keep
        + (arguments + local_get(invoker) + call_indirect(build.type_index(CALL_DYNAMIC_TYPE))),
        ("i32",),
    )
    build.export(CALL_DYNAMIC, "func", call_dynamic)
    pointer_call = local_get(0) + call_indirect(build.type_index(FuncType((), ())))
    build.export(CALL_POINTER, "func", build.function(CALL_POINTER_TYPE, pointer_call))
    pointer_call = local_get(1) + local_get(0) + call_indirect(build.type_index(ADDRESS_TO_NOTHING))
    build.export(CALL_POINTER_WITH, "func", build.function(CALL_POINTER_WITH_TYPE, pointer_call))
    build.export(
        SET_STACK_POINTER, "func", build.function(SET_STACK_POINTER_TYPE, local_get(0) + global_set(pointer))
    )
    build.export(GET_STACK_POINTER, "func", build.function(GET_STACK_POINTER_TYPE, global_get(pointer)))
    return build.build()
