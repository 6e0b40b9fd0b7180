"""Which modules can be linked by name or instantiated, beyond what their types say: commands, reactors, and several threads.

Commands and reactors: WASI's application ABI (`design/application-abi.md`). A command exports `_start` and is run once; a
reactor exports `_initialize`, which is called once, before anything else of it. Both export their memory, for WASI to find it.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from dl.engine.preview1 import PREVIEW1, UNSTABLE, WASIX
from dl.errors import LinkError, UnsupportedModuleError
from dl.logs import logger
from dl.program.main_module import INITIALIZE, START
from dl.wasm.module import WasmModule
from dl.wasm.reader import Reader
from dl.wasm.records import SECTION_DATA, Import
from dl.wasm.types import FuncType, GlobalType

WASI_NAMESPACES = frozenset((PREVIEW1, UNSTABLE, WASIX))

_NOTHING = FuncType((), ())

POST_INSTANTIATE, CALL_CTORS = "__post_instantiate", "__wasm_call_ctors"
"""What Emscripten's older modules, and bare ones of wasm-ld, export to be called after instantiation."""

Initialize: TypeAlias = 'bool | Literal["wasi"]'
"""Which functions of a module are called when it is instantiated; see `initializers`."""

log = logger("dl.link")


def initializers(module: WasmModule, how: Initialize) -> list[str]:
    """Return the exports of a module that are called once it is instantiated, in order: after its start function.

    `_initialize` of a reactor; `__post_instantiate`; and `__wasm_call_ctors` of a module without WASI, unless `_start` or
    `_initialize` call it. The last two only count if they are functions of the module's own without parameters and results.

    Source: WAMR's `execute_post_instantiate_functions`, and WASI's application ABI.

    Args:
        module: the module.
        how: False for none; True; "wasi" for what WAMR does: `_initialize` only of a module that imports WASI, and
            `__wasm_call_ctors` of any that does not.
    """
    exports, wasi = module.exports, imports_wasi(module)

    def has(name: str) -> bool:
        export = exports.get(name)
        return (
            export is not None
            and export.type == _NOTHING
            and export.index >= module.import_counts["func"]
            and export.index != module.start
        )

    application = START in exports or INITIALIZE in exports
    wanted = {
        INITIALIZE: INITIALIZE in exports and START not in exports and (wasi or how is True),
        POST_INSTANTIATE: has(POST_INSTANTIATE),
        CALL_CTORS: has(CALL_CTORS) and not wasi and (how == "wasi" or not application),
    }
    return [name for name, called in wanted.items() if called and how]


def imports_wasi(module: WasmModule) -> bool:
    """Whether a module imports functions of WASI or WASIX."""
    return any(entry.module in WASI_NAMESPACES for entry in module.imports)


def check_application(module: WasmModule, name: str, *, on_programs_memory: bool) -> None:
    """Check what WASI asks of commands and reactors.

    Args:
        module: the module.
        name: what messages call it.
        on_programs_memory: whether its memory is the program's, which WASI knows.

    Raises:
        LinkError: `_start` or `_initialize` is of another type or imported, or the module does not export its memory.
    """
    marks = [mark for mark in (START, INITIALIZE) if mark in module.exports]
    if not marks and imports_wasi(module):
        log.warning(
            "%s imports WASI, but exports neither _start nor _initialize: it is no command or reactor", name
        )
    for mark in marks:
        export = module.exports[mark]
        if export.type != _NOTHING:
            raise LinkError(name, f"its {mark} is {export.type}, not () -> ()")
        if export.index < module.import_counts["func"]:
            raise LinkError(name, f"its {mark} is a function that it imports")
    if on_programs_memory or not (marks or imports_wasi(module)):
        return
    memory = module.exports.get("memory")
    if memory is None or memory.kind != "memory":
        why = "it is a command or reactor" if marks else "it imports WASI"
        raise LinkError(name, f"{why} and must export its memory as 'memory'")


def check_dependency(module: WasmModule, name: str, importer: str) -> None:
    """Check that a module can be what another one imports from.

    Raises:
        LinkError: it is a command.
    """
    if START in module.exports:
        raise LinkError(
            name, f"a command, with _start, cannot be a module that another ({importer}) imports from"
        )


def check_for_threads(module: WasmModule, name: str) -> None:
    """Check that every thread can have an instance of a module of its own, with all that is shared in shared memory.

    Raises:
        UnsupportedModuleError: it cannot: what threads would have to share is in each instance by itself.
    """
    imported = module.import_counts["memory"]
    if len(module.memories) > imported:
        what = "shared" if module.memories[imported].limits.shared else "not shared"
        raise UnsupportedModuleError(
            name,
            f"it defines a memory, {what}, in a program with several threads, each of which would have another; have it "
            "imported (wasm-ld --import-memory --shared-memory)",
        )
    for entry in module.imports:
        check_changes(entry, name)
    if imported and has_active_data(module):
        raise UnsupportedModuleError(
            name,
            "its active data segments would write to shared memory again in every thread; make them passive "
            "(wasm-ld --shared-memory does)",
        )


def check_changes(entry: Import, name: str) -> None:
    """Check that what a module imports in a program with several threads is the same in each.

    Raises:
        UnsupportedModuleError: it is a table, or a global that can change.
    """
    if entry.kind == "table" or (isinstance(entry.type, GlobalType) and entry.type.mutable):
        raise UnsupportedModuleError(
            name,
            f"it imports the {entry.kind} {entry.module}.{entry.name}, which changes, in a program with several threads: "
            "only shared memories are the same for all of them",
        )


def has_active_data(module: WasmModule) -> bool:
    """Whether instantiating a module writes to its memory."""
    section = module.section(SECTION_DATA)
    if section is None:
        return False
    reader = Reader(module.data, section.payload_start, section.end, module.name)
    return any(_skip_segment(reader) for _ in range(reader.count("data segments", item_bytes=2)))


def _skip_segment(reader: Reader) -> bool:
    """Take one data segment; return whether it is active and not empty."""
    flags = reader.u32("a data segment's flags")
    if flags == 2:
        reader.u32("a memory's index")
    if flags != 1:
        reader.const_expr()
    length = reader.count("bytes of a data segment", limit=reader.end)
    reader.skip(length, "a data segment")
    return flags != 1 and length > 0
