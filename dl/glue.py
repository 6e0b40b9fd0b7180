"""The link plan, compiled: small WebAssembly modules in which the outcome of linking is written down.

For each load operation the linker generates

* one *import module* per linked module, which exports exactly what that module imports: pass-through functions, GOT
  globals with their values, stubs;
* one *placement module* for the operation, which puts every exported function at its table index and can set up the
  thread-local storage of a new thread.

Every instance group instantiates the same compiled code, so a thread's share of a link is native work: no resolution,
no Python per symbol. The *base module*, one per program, defines what no module of the program does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dl.bindings import (
    BASE_NAMESPACE,
    HOST_NAMESPACE,
    LINK_NAMESPACE,
    Binding,
    Constant,
    FromNamespace,
    LazyStub,
    ThreadLocalAddress,
    ThroughTable,
    glue_namespace,
    module_namespace,
)
from dl.handles import ModuleHandle
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
    return_call_indirect,
    unsigned,
)
from dl.wasm.module import Import
from dl.wasm.types import FuncType, GlobalType, Limits, TableType, TagType

TABLE_NAME = "__indirect_function_table"
STACK_POINTER_NAME = "__stack_pointer"
ANY_TABLE = TableType("funcref", Limits(0, None, shared=False, is64=False))
STACK_POINTER_TYPE = GlobalType("i32", mutable=True)
RESOLVE_STUB = "resolve_stub"
RESOLVE_STUB_TYPE = FuncType(("i32", "i32"), ("i32",))
"""Module handle and import position, to the table index of the function that the import now means."""

EXCEPTION_TAG = TagType(FuncType(("i32",), ()))
EXCEPTION_TAG_NAMES = ("__cpp_exception", "__c_longjmp")

_ADDRESS_TO_NOTHING = FuncType(("i32",), ())
_IF_VOID, _END, _EQZ = b"\x04\x40", b"\x0b", b"\x45"
_TABLE_COPY = b"\xfc\x0e"


_BASE_TABLE = FromNamespace(BASE_NAMESPACE, TABLE_NAME)
_BASE_STACK_POINTER = FromNamespace(BASE_NAMESPACE, STACK_POINTER_NAME)


@dataclass(frozen=True)
class Places:
    """Namespaces that hold the program's table and stack pointer: the base module's, or a static main module's."""

    table: FromNamespace = _BASE_TABLE
    stack_pointer: FromNamespace = _BASE_STACK_POINTER


def link_names(imports: Sequence[Import]) -> list[str]:
    """Return a unique name for each import of a module, the same for every plan, so that compiled code can be cached."""
    repeated: dict[str, int] = {}
    names: dict[str, None] = {}
    for entry in imports:
        plain = name = f"{entry.module}.{entry.name}"
        while name in names:
            repeated[plain] = repeated.get(plain, 0) + 1
            name = f"{plain}#{repeated[plain]}"
        names[name] = None
    return list(names)


def import_places(imports: Sequence[Import]) -> list[tuple[str, str]]:
    """Return namespace and name under which a module finds each import: its import module's exports, in order.

    All but a memory, which every module takes from the base namespace itself: an engine may own a memory once for each
    instance that it is passed through.
    """
    return [
        (BASE_NAMESPACE, "memory") if entry.kind == "memory" else (LINK_NAMESPACE, name)
        for entry, name in zip(imports, link_names(imports), strict=True)
    ]


def import_module(
    handle: ModuleHandle, imports: Sequence[Import], bindings: Sequence[Binding], places: Places
) -> bytes:
    """Generate the module that exports what one linked module imports.

    Args:
        handle: the linked module, named by its stubs when they ask for their function.
        imports: its imports.
        bindings: what each of them is bound to.
        places: where table and stack pointer are.
    """
    build = ModuleBuilder()
    names = link_names(imports)
    resolver = None
    kinds = {type(binding) for binding in bindings}
    onward = onward_calls(handle, imports, bindings, places)
    if onward:
        private = TableType("funcref", Limits(len(onward), None, shared=False, is64=False))
        build.export(ONWARD_TABLE, "table", build.table(private))
    elif kinds & {LazyStub, ThroughTable}:
        build.import_(places.table.namespace, places.table.name, ANY_TABLE)
    if LazyStub in kinds:
        resolver = build.import_(HOST_NAMESPACE, RESOLVE_STUB, RESOLVE_STUB_TYPE)
    for entry, name, binding in zip(imports, names, bindings, strict=True):
        if isinstance(binding, FromNamespace) and entry.kind != "memory":
            index = build.import_(binding.namespace, binding.name, entry.type)
            build.export(name, entry.kind, index)
    forward = _Forwarding(build, private=bool(onward))
    for position, (entry, name, binding) in enumerate(zip(imports, names, bindings, strict=True)):
        if isinstance(binding, Constant):
            build.export(name, "global", _constant(build, entry, binding))
        elif isinstance(binding, ThreadLocalAddress):
            assert isinstance(entry.type, GlobalType)
            build.export(name, "global", build.global_(entry.type, 0))
        elif isinstance(binding, ThroughTable):
            assert isinstance(entry.type, FuncType)
            build.export(name, "func", forward.function(entry.type, b"", i32_const(binding.address)))
        elif isinstance(binding, LazyStub):
            assert isinstance(entry.type, FuncType)
            assert resolver is not None
            known = build.global_(GlobalType("i32", mutable=True), 0)
            look_up = (
                global_get(known)
                + _EQZ
                + _IF_VOID
                + i32_const(handle)
                + i32_const(position)
                + call(resolver)
                + global_set(known)
                + _END
            )
            build.export(name, "func", forward.function(entry.type, look_up, global_get(known)))
    return build.build()


def _constant(build: ModuleBuilder, entry: Import, binding: Constant) -> int:
    kind = entry.type
    assert isinstance(kind, GlobalType)
    if kind.value in ("i32", "i64"):
        return build.global_(kind, binding.value)
    raw = binding.value.to_bytes(4 if kind.value == "f32" else 8, "little")
    return build.float_global(kind, raw)


class _Forwarding:
    """Functions that pass their arguments on to the function at a table index.

    Args:
        private: whether the table is not there yet: then each goes through its slot of a private table, see `onward_calls`.
    """

    def __init__(self, build: ModuleBuilder, *, private: bool) -> None:
        self._build = build
        self._private = private
        self._slots = 0

    def function(self, kind: FuncType, before: bytes, target: bytes) -> int:
        """Define one; `target` pushes the index, after `before` has run."""
        arguments = b"".join(local_get(i) for i in range(len(kind.params)))
        if self._private:
            target += i32_const(self._slots)
            self._slots += 1
            called = _with_index(kind)
        else:
            called = kind
        # A tail call: measured, it takes a tenth off what a stub costs.
        indirect = return_call_indirect(self._build.type_index(called))
        return self._build.function(kind, before + arguments + target + indirect)


def _with_index(kind: FuncType) -> FuncType:
    return FuncType((*kind.params, "i32"), kind.results)


ONWARD_TABLE = "onward"
"""Export of an import module; no link name is so short of a dot."""


def onward_calls(
    handle: ModuleHandle, imports: Sequence[Import], bindings: Sequence[Binding], places: Places
) -> list[FuncType]:
    """Return the signatures that a module's import module calls through a private table, by slot.

    A static main module brings the program's table, so what it imports cannot import that table. Its stubs call
    through a private one, whose functions, which the placement module adds, take the index in the program's table as
    one more argument.
    """
    if places.table.namespace != module_namespace(handle):
        return []
    return [
        entry.type
        for entry, binding in zip(imports, bindings, strict=True)
        if isinstance(binding, (LazyStub, ThroughTable)) and isinstance(entry.type, FuncType)
    ]


@dataclass(frozen=True, slots=True)
class PlacedFunction:
    """A function and the table index it gets in every group."""

    namespace: str
    name: str
    type: FuncType
    address: int


@dataclass(frozen=True, slots=True)
class ThreadLocalModule:
    """A module with thread-local storage.

    Attributes:
        handle: the module.
        size: bytes of one thread's block.
        align_log2: its alignment.
        base_type: type of its exported `__tls_base`.
        initializer: the export that sets up a block, `__wasm_init_tls`, or `__wasix_init_tls`, which finds the block itself.
    """

    handle: ModuleHandle
    size: int
    align_log2: int
    base_type: GlobalType
    initializer: str


INIT_THREAD, BIND_THREAD_LOCALS = "init_thread", "bind_thread_locals"


def placement_module(
    functions: Iterable[PlacedFunction],
    thread_local: Sequence[ThreadLocalModule],
    addresses: Iterable[tuple[ModuleHandle, str, GlobalType, ThreadLocalAddress]],
    places: Places,
    onward: Mapping[ModuleHandle, Sequence[FuncType]] | None = None,
) -> bytes:
    """Generate the module that places functions and sets up thread-local storage.

    Args:
        functions: what to place.
        thread_local: modules of this operation with thread-local storage; `init_thread` takes one block address each.
        addresses: GOT entries that depend on the thread: importing module, link name, type, meaning.
        places: where the table is.
        onward: by module, what its import module calls through a private table; see `onward_calls`.
    """
    placed = sorted(functions, key=lambda f: f.address)
    entries = list(addresses)
    build = ModuleBuilder()
    if placed or onward:
        build.import_(places.table.namespace, places.table.name, ANY_TABLE)
    private = {
        handle: build.import_(glue_namespace(handle), ONWARD_TABLE, ANY_TABLE) for handle in onward or {}
    }
    imported = [build.import_(f.namespace, f.name, f.type) for f in placed]
    initializers = [
        build.import_(
            module_namespace(m.handle),
            m.initializer,
            _ADDRESS_TO_NOTHING if m.initializer == "__wasm_init_tls" else FuncType((), ("i32",)),
        )
        for m in thread_local
    ]
    kinds = {m.handle: m.base_type for m in thread_local}
    bases: dict[ModuleHandle, int] = {}
    for _, _, _, meaning in entries:
        if meaning.module not in bases:
            kind = kinds.get(meaning.module, GlobalType("i32", mutable=True))
            bases[meaning.module] = build.import_(module_namespace(meaning.module), "__tls_base", kind)
    settings = b""
    for importer, name, kind, meaning in entries:
        target = build.import_(glue_namespace(importer), name, kind)
        wide, const, add = (b"", i32_const, b"\x6a") if kind.value == "i32" else (b"\xad", i64_const, b"\x7c")
        settings += (
            global_get(bases[meaning.module]) + wide + const(meaning.offset) + add + global_set(target)
        )
    body = b""
    for position, (module, initializer) in enumerate(zip(thread_local, initializers, strict=True)):
        if module.initializer == "__wasm_init_tls":
            body += local_get(position) + call(initializer)
        else:
            body += call(initializer) + b"\x1a"
    for handle, kinds_called in (onward or {}).items():
        functions_onward = [
            build.function(
                _with_index(kind),
                b"".join(local_get(i) for i in range(len(kind.params) + 1))
                + call_indirect(build.type_index(kind)),
            )
            for kind in kinds_called
        ]
        build.elements(0, functions_onward, private[handle])
    if thread_local or entries:
        # Only then: compiling any function at all costs about half a millisecond.
        bind = build.function(FuncType((), ()), settings)
        init = build.function(FuncType(("i32",) * len(thread_local), ()), body + call(bind))
        build.export(BIND_THREAD_LOCALS, "func", bind)
        build.export(INIT_THREAD, "func", init)
    if placed:
        _place(build, [f.address for f in placed], imported)
    return build.build()


def _place(build: ModuleBuilder, addresses: Sequence[int], functions: Sequence[int]) -> None:
    """Have functions put into table 0, which is imported, at table indices in rising order.

    Through a table of the module's own: an engine fills that one from its segment when it compiles, and copies it in one step,
    while an active segment for an imported table becomes code for each element (wasmtime 50: 1.4 µs against 13 µs).
    """
    count = len(functions)
    own = build.table(TableType("funcref", Limits(count, count, shared=False, is64=False)))
    build.elements(0, functions, own)
    copies = b""
    first = 0
    for position in range(1, count + 1):
        if position == count or addresses[position] != addresses[position - 1] + 1:
            copies += i32_const(addresses[first]) + i32_const(first) + i32_const(position - first)
            copies += _TABLE_COPY + unsigned(0) + unsigned(own)
            first = position
    build.start(build.function(FuncType((), ()), copies))


ENSURE_TABLE, CLEAR_TABLE, SET_STACK_POINTER, GET_STACK_POINTER = (
    "ensure_table",
    "clear_table",
    "set_stack_pointer",
    "get_stack_pointer",
)
CALL_DYNAMIC, FIND_INVOKER = "call_dynamic", "find_invoker"
CALL_DYNAMIC_TYPE = FuncType(("i32",) * 6, ("i32",))
FIND_INVOKER_TYPE = FuncType(("i32",), ("i32",))
"""Table index of a function, to that of the invoker for its signature, or minus an errno."""
ENSURE_TABLE_TYPE = FuncType(("i32",), ("i32",))
CLEAR_TABLE_TYPE = FuncType(("i32", "i32"), ())
SET_STACK_POINTER_TYPE = _ADDRESS_TO_NOTHING
GET_STACK_POINTER_TYPE = FuncType((), ("i32",))

_TABLE_SIZE, _TABLE_GROW, _TABLE_FILL = b"\xfc\x10", b"\xfc\x0f", b"\xfc\x11"
_NULL_FUNC = b"\xd0\x70"


def base_module(places: Places, table_length: int, stack_pointer: int) -> bytes:
    """Generate the module that defines what the main module does not, and the functions that work on the table.

    `ensure_table` grows the table to a length in elements and returns 0, or 1 if the engine refuses; `clear_table`
    sets a run of elements to null; `call_dynamic` passes its arguments on to the invoker for the function it shall call.

    Args:
        places: what names the base namespace is defined here; the rest is imported from there.
        table_length: elements of the table, if it is defined here.
        stack_pointer: initial value of the stack pointer, if it is defined here.
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
    for name in EXCEPTION_TAG_NAMES:
        build.export(name, "tag", build.tag(EXCEPTION_TAG))
    table_index = unsigned(0)
    ensure = build.function(
        ENSURE_TABLE_TYPE,
        local_get(0)
        + (_TABLE_SIZE + table_index)
        + b"\x4b"  # i32.gt_u
        + (b"\x04\x7f" + _NULL_FUNC + local_get(0) + _TABLE_SIZE + table_index + b"\x6b")
        + (_TABLE_GROW + table_index + i32_const(-1) + b"\x46")  # i32.eq
        + (b"\x05" + i32_const(0) + _END),
    )
    clear = build.function(
        CLEAR_TABLE_TYPE, local_get(0) + _NULL_FUNC + local_get(1) + _TABLE_FILL + table_index
    )
    build.export(ENSURE_TABLE, "func", ensure)
    build.export(CLEAR_TABLE, "func", clear)
    arguments = b"".join(local_get(i) for i in range(len(CALL_DYNAMIC_TYPE.params)))
    invoker = len(CALL_DYNAMIC_TYPE.params)
    call_dynamic = build.function(
        CALL_DYNAMIC_TYPE,
        (local_get(0) + call(find_invoker) + local_set(invoker))
        + (local_get(invoker) + i32_const(0) + b"\x48" + _IF_VOID)  # i32.lt_s
        + (i32_const(0) + local_get(invoker) + b"\x6b\x0f" + _END)  # i32.sub, return
        + (arguments + local_get(invoker) + call_indirect(build.type_index(CALL_DYNAMIC_TYPE))),
        ("i32",),
    )
    build.export(CALL_DYNAMIC, "func", call_dynamic)
    build.export(
        SET_STACK_POINTER, "func", build.function(SET_STACK_POINTER_TYPE, local_get(0) + global_set(pointer))
    )
    build.export(GET_STACK_POINTER, "func", build.function(GET_STACK_POINTER_TYPE, global_get(pointer)))
    return build.build()


def forwarder_module(functions: Iterable[tuple[str, FuncType]], memory: Import | None, source: str) -> bytes:
    """Generate a module through which functions see the program's memory as their caller's.

    An engine's WASI functions work on the memory that the calling instance exports as `memory`; programs that import
    their memory do not export it. This module imports it, exports it, and calls each function in their place.

    Args:
        functions: names and signatures.
        memory: an import of the memory, with its namespace, name and type.
        source: namespace of the functions.
    """
    build = ModuleBuilder()
    kinds = list(functions)
    imported = [build.import_(source, name, kind) for name, kind in kinds]
    if memory is not None:
        build.export("memory", "memory", build.import_(memory.module, memory.name, memory.type))
    for (name, kind), index in zip(kinds, imported, strict=True):
        arguments = b"".join(local_get(i) for i in range(len(kind.params)))
        build.export(name, "func", build.function(kind, arguments + call(index)))
    return build.build()
