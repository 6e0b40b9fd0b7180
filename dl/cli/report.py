"""What a module says about itself, as plain data: the JSON of `dlrun inspect --json`.

`docs/cli.md` documents every key. Keys are added, never renamed or given another meaning.
"""

from __future__ import annotations

from typing import Any

from dl.errors import DlError, MalformedModuleError
from dl.modules.kind import ModuleKind, kind_of
from dl.options import DEFAULT_STACK_BYTES
from dl.program.main_module import describe_main
from dl.wasm.const_expr import ConstExpr
from dl.wasm.dylink import LEGACY_SECTION_NAME, SECTION_NAME, DylinkInfo, SymbolFlags
from dl.wasm.framing import SECTION_NAMES
from dl.wasm.lines import LineTable
from dl.wasm.module import WasmModule
from dl.wasm.reader import Reader
from dl.wasm.records import Export
from dl.wasm.types import ExternType, FuncType, GlobalType, Limits, MemoryType, TableType

_WITH_IMMEDIATE = {"i32.const", "i64.const", "f32.const", "f64.const", "v128.const", "global.get", "ref.func"}


def describe(module: WasmModule, file: str) -> dict[str, Any]:
    """Return everything the module says, in JSON's types.

    Args:
        module: the parsed module.
        file: what to call it.
    """
    info = module.dylink
    known = info or DylinkInfo()
    kind = kind_of(module)
    side = kind is ModuleKind.SIDE
    refusal = None if side else _refusal(module)
    return {
        "file": file,
        "size": len(module.data),
        "kind": kind.value,
        "module_name": module.module_name,
        "takes_libraries": None if side else not refusal,
        "takes_no_libraries_because": refusal or None,
        "dylink": _dylink_section(module),
        "legacy": info.legacy if info else None,
        "memory_size": info.memory_size if info else None,
        "memory_alignment": info.memory_alignment if info else None,
        "table_size": info.table_size if info else None,
        "table_alignment": info.table_alignment if info else None,
        "needed": list(known.needed),
        "runtime_path": list(known.runtime_path),
        "export_info": [
            {"name": name, "flags": flag_names(flags), "value": int(flags)}
            for name, flags in known.exports.items()
        ],
        "import_info": [
            {"module": names[0], "name": names[1], "flags": flag_names(flags), "value": int(flags)}
            for names, flags in known.imports.items()
        ],
        "target_architecture": known.target_architecture,
        "notes": list(known.notes),
        "unknown_subsections": [
            {"type": one.type, "offset": one.offset, "size": len(one.data), "data": one.data.hex()}
            for one in known.unknown
        ],
        "imports": [
            {"module": e.module, "name": e.name, "kind": e.kind, **_type(e.type)} for e in module.imports
        ],
        "exports": [
            {"name": e.name, "kind": e.kind, "index": e.index, **_type(e.type), **_initial_value(module, e)}
            for e in module.exports.values()
        ],
        "memories": [
            {"imported": i < module.import_counts["memory"], **_type(t)}
            for i, t in enumerate(module.memories)
        ],
        "tables": [
            {"imported": i < module.import_counts["table"], **_type(t)} for i, t in enumerate(module.tables)
        ],
        "start": module.start,
        "functions": len(module.functions),
        "globals": len(module.globals),
        "tags": len(module.tags),
        "element_segments": [
            {
                "mode": s.mode,
                "table": s.table if s.mode == "active" else None,
                "offset": None if s.offset is None else constant_text(s.offset),
                "functions": len(s.functions),
            }
            for s in module.elements
        ],
        "data_segments": module.data_segments,
        "sections": [
            {
                "id": s.id,
                "name": s.name if s.id == 0 else SECTION_NAMES[s.id],
                "custom": s.id == 0,
                "offset": s.start,
                "size": s.end - s.start,
            }
            for s in module.sections
        ],
        "features": _features(module),
        "target_features": target_features(module),
        "debug_information": debug_information(module),
        "producers": producers(module),
    }


def flag_names(flags: int) -> list[str]:
    """Spell out symbol flags, lowest bit first; bits that have no name as `0x…`."""
    known = {flag: name.lower() for name, flag in vars(SymbolFlags).items() if name.isupper()}
    names = [name for flag, name in known.items() if flags & flag]
    unnamed = flags & ~sum(known)
    return [*names, hex(unnamed)] if unnamed else names


def target_features(module: WasmModule) -> list[str]:
    """Return what the `target_features` section lists, each with its sign: `+atomics` is used, `-atomics` forbidden."""
    features: list[str] = []
    for section in module.custom_sections("target_features"):
        reader = Reader(module.data, section.payload_start, section.end, module.name)
        try:
            count = reader.count("features", item_bytes=2)
            features += [chr(reader.byte("a sign")) + reader.name("a feature's name") for _ in range(count)]
        except MalformedModuleError:
            # A custom section that cannot be read counts as absent (core specification, section 2.5).
            continue
    return features


_DEBUG_PREFIX = ".debug_"
_ELSEWHERE = ("external_debug_info", "sourceMappingURL")
"""Sections that name the file with the debugging information, or the source map."""


def debug_information(module: WasmModule) -> dict[str, Any] | None:
    """Return what there is for debuggers: DWARF's sections with bytes and versions, and files it may be in; or None."""
    dwarf = [s for s in module.sections if s.id == 0 and s.name.startswith(_DEBUG_PREFIX)]
    elsewhere = {}
    for name in _ELSEWHERE:
        for section in module.custom_sections(name):
            reader = Reader(module.data, section.payload_start, section.end, module.name)
            try:
                elsewhere[name] = reader.name("a file's name")
            except MalformedModuleError:
                continue
    if not dwarf and not elsewhere:
        return None
    lines = [module.data[s.payload_start : s.end] for s in dwarf if s.name == ".debug_line"]
    return {
        "sections": [section.name for section in dwarf],
        "size": sum(section.end - section.payload_start for section in dwarf),
        "line_versions": sorted({version for line in lines for version in LineTable(line).versions()}),
        "elsewhere": elsewhere,
    }


def producers(module: WasmModule) -> dict[str, list[dict[str, str]]]:
    """Return what the `producers` section says: for each field, such as `language` and `processed-by`, names and versions."""
    found: dict[str, list[dict[str, str]]] = {}
    for section in module.custom_sections("producers"):
        reader = Reader(module.data, section.payload_start, section.end, module.name)
        try:
            for _ in range(reader.count("fields", item_bytes=2)):
                field = found.setdefault(reader.name("a field's name"), [])
                field += [
                    {"name": reader.name("a producer's name"), "version": reader.name("its version")}
                    for _ in range(reader.count("producers", item_bytes=2))
                ]
        except MalformedModuleError:
            continue  # as for target_features
    return found


def _refusal(module: WasmModule) -> str:
    try:
        return describe_main(module, memory=None, stack_size=DEFAULT_STACK_BYTES).no_libraries
    except DlError as error:
        return str(error)


def _dylink_section(module: WasmModule) -> dict[str, Any] | None:
    for name in (SECTION_NAME, LEGACY_SECTION_NAME):
        for section in module.custom_sections(name):
            return {"section": name, "offset": section.start, "size": section.end - section.start}
    return None


def _type(kind: ExternType) -> dict[str, Any]:
    described: dict[str, Any] = {"type": str(kind)}
    if isinstance(kind, FuncType):
        described.update(params=list(kind.params), results=list(kind.results))
    elif isinstance(kind, GlobalType):
        described.update(value=kind.value, mutable=kind.mutable)
    elif isinstance(kind, MemoryType):
        described.update(_limits(kind.limits), shared=kind.limits.shared)
    elif isinstance(kind, TableType):
        described.update(_limits(kind.limits), element=kind.element)
    else:
        described.update(params=list(kind.type.params))
    return described


def _limits(limits: Limits) -> dict[str, Any]:
    return {"minimum": limits.minimum, "maximum": limits.maximum, "is64": limits.is64}


def constant_text(expression: ConstExpr) -> str:
    """Return a constant expression's instructions as text."""
    return " ".join(f"{name} {value}" if name in _WITH_IMMEDIATE else name for name, value in expression)


def _initial_value(module: WasmModule, export: Export) -> dict[str, str]:
    """Return what a defined global begins with: of a library's data, where it is from `__memory_base` on."""
    init = module.globals[export.index].init if export.kind == "global" else None
    return {} if init is None else {"init": constant_text(init)}


def _features(module: WasmModule) -> list[str]:
    """Name what is used beyond WebAssembly 1.0, as far as types and sections show it; code is not looked into."""
    functions = [kind for kind in module.types if kind is not None]
    values = {value for kind in functions for value in (*kind.params, *kind.results)}
    values.update(entry.type.value for entry in module.globals)
    limits = [memory.limits for memory in module.memories] + [table.limits for table in module.tables]
    outside = [entry.type for entry in module.imports] + [entry.type for entry in module.exports.values()]
    elements = {kind.element for kind in module.tables}
    seen = {
        "bulk-memory": module.section(12) is not None or any(s.mode != "active" for s in module.elements),
        "exceptions": bool(module.tags),
        "extended-const": any(g.init is not None and len(g.init) > 1 for g in module.globals),
        "gc": None in module.types,
        "memory64": any(one.is64 for one in limits),
        "multi-memory": len(module.memories) > 1,
        "multi-value": any(len(kind.results) > 1 for kind in functions),
        "mutable-globals": any(isinstance(kind, GlobalType) and kind.mutable for kind in outside),
        "reference-types": len(module.tables) > 1
        or any("ref" in v for v in values)
        or bool(elements - {"funcref"}),
        "shared-memory": any(one.shared for one in limits),
        "simd": "v128" in values,
    }
    return [name for name, used in seen.items() if used]
