"""The placement module of a load: functions at their table indices, thread-local storage of a new thread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from dl.dlfcn import RTLD_DEFAULT, ModuleHandle
from dl.glue.imports import ONWARD_TABLE, address, import_bases, with_index
from dl.glue.names import (
    ADDRESS_TO_NOTHING,
    ANY_TABLE,
    HOST_NAMESPACE,
    RESOLVE_STUB,
    RESOLVE_STUB_TYPE,
    TableAndStack,
    glue_namespace,
    module_namespace,
)
from dl.glue.resolution import Place
from dl.records import dataclass, field
from dl.wasm.encode import (
    ModuleBuilder,
    call,
    call_indirect,
    global_get,
    global_set,
    i32_const,
    i64_const,
    local_get,
    unsigned,
)
from dl.wasm.opcodes import DROP, I32_ADD, I64_ADD, I64_EXTEND_I32_U, TABLE_COPY
from dl.wasm.types import FuncType, GlobalType, Limits, TableType


@dataclass(frozen=True, slots=True)
class PlacedFunction:
    """A function and the table index it gets in every group.

    Attributes:
        namespace: where each group has the function.
        name: its name there.
        type: its signature.
        address: the table index.
        lazy: whether nothing defines it yet: what is placed asks at each call, by the table index, which function it is.
    """

    namespace: str
    name: str
    type: FuncType
    address: int
    lazy: bool = False


@dataclass(frozen=True, slots=True)
class PlacedRun:
    """Exported functions of one module, which get table indices in a row.

    Attributes:
        namespace: the module.
        digest: of its content, which says what the functions are.
        first: the table index of the first: a number, or where it is in the module.
        functions: their names and types; not compared, because the digest says as much.
    """

    namespace: str
    digest: bytes
    first: int | Place
    functions: Sequence[tuple[str, FuncType]] = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ThreadLocalModule:
    """A module with thread-local storage.

    Attributes:
        handle: the module.
        seat: by which generated code names it.
        size: bytes of one thread's block.
        align_log2: its alignment.
        base_type: type of its exported `__tls_base`.
        initializer: the export that sets up a block, `__wasm_init_tls`, or `__wasix_init_tls`, which finds the block itself.
    """

    handle: ModuleHandle
    seat: int
    size: int
    align_log2: int
    base_type: GlobalType
    initializer: str


INIT_THREAD, BIND_THREAD_LOCALS = "init_thread", "bind_thread_locals"


def placement_module(
    functions: Iterable[PlacedFunction],
    thread_local: Sequence[ThreadLocalModule],
    addresses: Iterable[tuple[int, str, GlobalType, int, int]],
    places: TableAndStack,
    onward: Mapping[int, Sequence[FuncType]] | None = None,
    runs: Iterable[PlacedRun] = (),
) -> bytes:
    """Generate the module that places functions and sets up thread-local storage.

    Args:
        functions: what to place.
        thread_local: modules of this operation with thread-local storage; `init_thread` takes one block address each.
        addresses: GOT entries that depend on the thread: seat of the importing module, link name, type, seat of the module
            that defines the variable, and its offset in bytes.
        places: where the table is.
        onward: by seat of a module, what its import module calls through a private table; see `onward_calls`.
        runs: more functions to place.
    """
    placed = sorted(functions, key=lambda f: f.address)
    rows = [run for run in runs if run.functions]
    entries = list(addresses)
    build = ModuleBuilder()
    if placed or rows or onward:
        build.import_(places.table.namespace, places.table.name, ANY_TABLE)
    private = {seat: build.import_(glue_namespace(seat), ONWARD_TABLE, ANY_TABLE) for seat in onward or {}}
    resolver = None
    if any(f.lazy for f in placed):
        resolver = build.import_(HOST_NAMESPACE, RESOLVE_STUB, RESOLVE_STUB_TYPE)
    to_place = [-1 if f.lazy else build.import_(f.namespace, f.name, f.type) for f in placed]
    in_rows = [build.import_(row.namespace, name, kind) for row in rows for name, kind in row.functions]
    row_bases = import_bases(build, [row.first for row in rows if isinstance(row.first, Place)])
    initializers = [
        build.import_(
            module_namespace(m.seat),
            m.initializer,
            ADDRESS_TO_NOTHING if m.initializer == "__wasm_init_tls" else FuncType((), ("i32",)),
        )
        for m in thread_local
    ]
    kinds = {m.seat: m.base_type for m in thread_local}
    bases: dict[int, int] = {}
    for _, _, _, provider, _ in entries:
        if provider not in bases:
            kind = kinds.get(provider, GlobalType("i32", mutable=True))
            bases[provider] = build.import_(module_namespace(provider), "__tls_base", kind)
    settings = b""
    for importer, name, kind, provider, offset in entries:
        target = build.import_(glue_namespace(importer), name, kind)
        wide, const, add = (
            (b"", i32_const, I32_ADD) if kind.value == "i32" else (I64_EXTEND_I32_U, i64_const, I64_ADD)
        )
        settings += global_get(bases[provider]) + wide + const(offset) + add + global_set(target)
    body = b""
    for position, (module, initializer) in enumerate(zip(thread_local, initializers, strict=True)):
        if module.initializer == "__wasm_init_tls":
            body += local_get(position) + call(initializer)
        else:
            body += call(initializer) + DROP
    for seat, kinds_called in (onward or {}).items():
        functions_onward = [
            build.function(
                with_index(kind),
                b"".join(local_get(i) for i in range(len(kind.params) + 1))
                + call_indirect(build.type_index(kind)),
            )
            for kind in kinds_called
        ]
        build.elements(0, functions_onward, private[seat])
    if thread_local or entries:
        # Only then: compiling any function at all costs about half a millisecond.
        bind = build.function(FuncType((), ()), settings)
        init = build.function(FuncType(("i32",) * len(thread_local), ()), body + call(bind))
        build.export(BIND_THREAD_LOCALS, "func", bind)
        build.export(INIT_THREAD, "func", init)
    for position, function in enumerate(placed):
        if function.lazy:
            assert resolver is not None
            to_place[position] = _lazy_function(build, function, resolver)
    pieces = [(i32_const(start), count) for start, count in in_a_row([f.address for f in placed])]
    for row in rows:
        first = i32_const(row.first) if isinstance(row.first, int) else address(row_bases, row.first)
        pieces.append((first, len(row.functions)))
    if pieces:
        _place(build, pieces, [*to_place, *in_rows])
    return build.build()


def in_a_row(indices: Iterable[int]) -> list[tuple[int, int]]:
    """Return first and number of each run of table indices, which are in rising order."""
    runs: list[tuple[int, int]] = []
    for index in indices:
        if runs and index == sum(runs[-1]):
            runs[-1] = runs[-1][0], runs[-1][1] + 1
        else:
            runs.append((index, 1))
    return runs


def _lazy_function(build: ModuleBuilder, function: PlacedFunction, resolver: int) -> int:
    """Define what stands in for a function that nothing defines yet.

    Unlike the stub of an import it keeps no answer: its index outlives every module that took it, and whatever it was bound to.
    """
    arguments = b"".join(local_get(i) for i in range(len(function.type.params)))
    target = i32_const(RTLD_DEFAULT) + i32_const(function.address) + call(resolver)
    return build.function(function.type, arguments + target + call_indirect(build.type_index(function.type)))


def _place(build: ModuleBuilder, pieces: Sequence[tuple[bytes, int]], functions: Sequence[int]) -> None:
    """Place functions in table 0, which is imported, piece by piece: code that pushes the first index, and how many they are.

    They go through a table of the module's own. An engine fills that one from its segment when it compiles, and copies it in
    one step, while an active segment for an imported table becomes code for each element (wasmtime 50: 1.4 µs against 13 µs).
    """
    count = len(functions)
    own = build.table(TableType("funcref", Limits(count, count, shared=False, is64=False)))
    build.elements(0, functions, own)
    copies = b""
    position = 0
    for first, number in pieces:
        copies += first + i32_const(position) + i32_const(number) + TABLE_COPY + unsigned(0) + unsigned(own)
        position += number
    build.start(build.function(FuncType((), ()), copies))
