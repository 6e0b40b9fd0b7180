"""The import module of a linked module: it exports exactly what that module imports."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from dl.glue.names import (
    ADDRESS_TO_NOTHING,
    ANY_TABLE,
    BASE_NAMESPACE,
    BASE_TYPE,
    HOST_NAMESPACE,
    LINK_NAMESPACE,
    RESOLVE_STUB,
    RESOLVE_STUB_TYPE,
    TableAndStack,
    base_namespace,
    module_namespace,
)
from dl.glue.resolution import (
    Binding,
    Constant,
    FromNamespace,
    LazyStub,
    Place,
    ThreadLocalAddress,
    ThroughTable,
)
from dl.wasm.encode import (
    ModuleBuilder,
    call,
    call_indirect,
    global_get,
    global_set,
    i32_const,
    local_get,
    return_call_indirect,
)
from dl.wasm.opcodes import END, I32_ADD, I32_EQZ, IF_VOID
from dl.wasm.records import Import
from dl.wasm.types import FuncType, GlobalType, Limits, TableType


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
    seat: int,
    imports: Sequence[Import],
    bindings: Sequence[Binding],
    places: TableAndStack,
    where: Sequence[Place | None],
    *,
    tail_calls: bool = True,
    keeps_targets: bool = True,
    only: Collection[int] | None = None,
) -> bytes:
    """Generate the module that exports what one linked module imports.

    If it has stubs, or functions that pass on who calls, it exports `set_handle` too: these name the linked module by its
    handle, and the code does not know it, since it serves every load of the same library.

    Args:
        seat: that of the linked module.
        imports: its imports.
        bindings: what each of them is bound to.
        places: where table and stack pointer are.
        where: of each import that is bound to an address in a module: which, and in the place of the binding's number.
        tail_calls: whether the engine has tail calls.
        keeps_targets: whether a stub keeps the table index that it was bound to; else it asks for it at each call.
        only: the positions of the imports that it exports; None for all.
    """
    build = ModuleBuilder()
    rows = list(zip(range(len(imports)), imports, link_names(imports), bindings, where, strict=True))
    if only is not None:
        rows = [rows[position] for position in sorted(only)]
    resolver = None
    kinds = {type(binding) for _, _, _, binding, _ in rows}
    onward = onward_calls(seat, imports, bindings, places)
    if onward:
        private = TableType("funcref", Limits(len(onward), None, shared=False, is64=False))
        build.export(ONWARD_TABLE, "table", build.table(private))
    elif kinds & {LazyStub, ThroughTable}:
        build.import_(places.table.namespace, places.table.name, ANY_TABLE)
    if LazyStub in kinds:
        resolver = build.import_(HOST_NAMESPACE, RESOLVE_STUB, RESOLVE_STUB_TYPE)
    with_caller: list[tuple[str, FuncType, int]] = []
    for _, entry, name, binding, _ in rows:
        if isinstance(binding, FromNamespace) and entry.kind != "memory":
            if binding.takes_caller:
                assert isinstance(entry.type, FuncType)
                index = build.import_(binding.namespace, binding.name, taking_caller(entry.type))
                with_caller.append((name, entry.type, index))
                continue
            index = build.import_(binding.namespace, binding.name, entry.type)
            build.export(name, entry.kind, index)
    bases = import_bases(build, (place for _, _, _, _, place in rows))
    handle = None
    if needs_handle([binding for _, _, _, binding, _ in rows]):
        handle = build.global_(GlobalType("i32", mutable=True), 0)
        set_handle = build.function(ADDRESS_TO_NOTHING, local_get(0) + global_set(handle))
        build.export(SET_HANDLE, "func", set_handle)
    for name, kind, index in with_caller:
        assert handle is not None
        arguments = b"".join(local_get(i) for i in range(len(kind.params)))
        build.export(name, "func", build.function(kind, global_get(handle) + arguments + call(index)))
    forward = _Forwarding(build, private=bool(onward), tail_calls=tail_calls)
    settings = b""
    for position, entry, name, binding, place in rows:
        if isinstance(binding, Constant) and place is not None:
            assert isinstance(entry.type, GlobalType)
            if not entry.type.mutable:
                build.export(name, "global", bases[place.seat, place.space])
                continue
            index = build.global_(entry.type, 0)
            build.export(name, "global", index)
            settings += address(bases, place) + global_set(index)
        elif isinstance(binding, Constant):
            build.export(name, "global", _constant(build, entry, binding))
        elif isinstance(binding, ThreadLocalAddress):
            assert isinstance(entry.type, GlobalType)
            build.export(name, "global", build.global_(entry.type, 0))
        elif isinstance(binding, ThroughTable):
            assert isinstance(entry.type, FuncType)
            target = i32_const(binding.address) if place is None else address(bases, place)
            build.export(name, "func", forward.function(entry.type, b"", target))
        elif isinstance(binding, LazyStub):
            assert isinstance(entry.type, FuncType)
            assert resolver is not None
            assert handle is not None
            ask = global_get(handle) + i32_const(position) + call(resolver)
            if not keeps_targets:
                build.export(name, "func", forward.function(entry.type, b"", ask))
                continue
            known = build.global_(GlobalType("i32", mutable=True), 0)
            look_up = global_get(known) + I32_EQZ + IF_VOID + ask + global_set(known) + END
            build.export(name, "func", forward.function(entry.type, look_up, global_get(known)))
    if settings:
        build.start(build.function(FuncType((), ()), settings))
    return build.build()


def import_bases(build: ModuleBuilder, where: Iterable[Place | None]) -> dict[tuple[int, str], int]:
    """Import the bases of some places; return their global indices, by seat and space."""
    bases: dict[tuple[int, str], int] = {}
    for place in where:
        if place is not None and (place.seat, place.space) not in bases:
            bases[place.seat, place.space] = build.import_(base_namespace(place.seat), place.space, BASE_TYPE)
    return bases


def address(bases: Mapping[tuple[int, str], int], place: Place) -> bytes:
    """Push the address of a place."""
    base = global_get(bases[place.seat, place.space])
    return base + i32_const(place.offset) + I32_ADD if place.offset else base


def needs_handle(bindings: Iterable[Binding]) -> bool:
    """Whether an import module for these bindings must be told its module's handle, by `set_handle`."""
    return any(
        isinstance(binding, LazyStub) or (isinstance(binding, FromNamespace) and binding.takes_caller)
        for binding in bindings
    )


def taking_caller(kind: FuncType) -> FuncType:
    """Return the type of a host's function that gets the calling module's handle before the parameters of another."""
    return FuncType(("i32", *kind.params), kind.results)


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
        tail_calls: whether to use tail calls: measured, one takes a tenth off what a stub costs.
    """

    def __init__(self, build: ModuleBuilder, *, private: bool, tail_calls: bool) -> None:
        self._build = build
        self._private = private
        self._call = return_call_indirect if tail_calls else call_indirect
        self._slots = 0

    def function(self, kind: FuncType, before: bytes, target: bytes) -> int:
        """Define one; `target` pushes the index, after `before` has run."""
        arguments = b"".join(local_get(i) for i in range(len(kind.params)))
        if self._private:
            target += i32_const(self._slots)
            self._slots += 1
            called = with_index(kind)
        else:
            called = kind
        indirect = self._call(self._build.type_index(called))
        return self._build.function(kind, before + arguments + target + indirect)


def with_index(kind: FuncType) -> FuncType:
    """Return the type of a function that takes a table index beside the parameters of another, the index last."""
    return FuncType((*kind.params, "i32"), kind.results)


SET_HANDLE = "set_handle"
ONWARD_TABLE = "onward"
"""Exports of an import module; no link name is so short of a dot."""


def onward_calls(
    seat: int, imports: Sequence[Import], bindings: Sequence[Binding], places: TableAndStack
) -> list[FuncType]:
    """Return the signatures that a module's import module calls through a private table, by slot.

    A static main module brings the program's table, so what it imports cannot import that table. Its stubs call
    through a private one, whose functions, which the placement module adds, take the index in the program's table as
    one more argument.
    """
    if places.table.namespace != module_namespace(seat):
        return []
    return [
        entry.type
        for entry, binding in zip(imports, bindings, strict=True)
        if isinstance(binding, (LazyStub, ThroughTable)) and isinstance(entry.type, FuncType)
    ]
