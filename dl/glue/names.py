"""The names that generated modules and the linker share: namespaces, exports, exception tags."""

from __future__ import annotations

from dl.glue.resolution import FromNamespace
from dl.records import dataclass
from dl.wasm.types import FuncType, GlobalType, Limits, TableType, TagType

BASE_NAMESPACE = "base"
"""The base module's exports: memory, table, stack pointer, tags."""

HOST_NAMESPACE = "host"
"""Host functions; a name is made of the import's namespace, name and signature."""

LINK_NAMESPACE = "link"
"""What the glue module made for the module under instantiation exports: exactly that module's imports."""


ANOTHER_TYPE = -1
"""What an invoker returns for a function that is of another type than its own, where the engine lets it find out."""


def module_namespace(seat: int) -> str:
    """Namespace under which a group's instance of a module is defined."""
    return f"m{int(seat)}"


def glue_namespace(seat: int) -> str:
    """Namespace under which a module's glue instance stays reachable, for thread-local addresses."""
    return f"g{int(seat)}"


def base_namespace(seat: int) -> str:
    """Namespace of the numbers that say where a group's module is: `MEMORY_BASE` and `TABLE_BASE`."""
    return f"b{int(seat)}"


MEMORY_BASE, TABLE_BASE = "memory", "table"
"""Where a module's data begins, bytes; and the first of its table indices."""

BASE_TYPE = GlobalType("i32", mutable=False)

TABLE_NAME = "__indirect_function_table"
STACK_POINTER_NAME = "__stack_pointer"
ANY_TABLE = TableType("funcref", Limits(0, None, shared=False, is64=False))
STACK_POINTER_TYPE = GlobalType("i32", mutable=True)
RESOLVE_STUB = "resolve_stub"
RESOLVE_STUB_TYPE = FuncType(("i32", "i32"), ("i32",))
"""Module handle and import position, to the table index of the function that the import now means."""

EXCEPTION_TAG = TagType(FuncType(("i32",), ()))
EXCEPTION_TAG_NAMES = ("__cpp_exception", "__c_longjmp")

_BASE_TABLE = FromNamespace(BASE_NAMESPACE, TABLE_NAME)
_BASE_STACK_POINTER = FromNamespace(BASE_NAMESPACE, STACK_POINTER_NAME)


@dataclass(frozen=True)
class TableAndStack:
    """Namespaces that hold the program's table and stack pointer: the base module's, or a static main module's."""

    table: FromNamespace = _BASE_TABLE
    stack_pointer: FromNamespace = _BASE_STACK_POINTER


ADDRESS_TO_NOTHING = FuncType(("i32",), ())
