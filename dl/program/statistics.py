"""What a program holds: for monitoring, and for proving that a failed load leaves nothing behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dl.glue.resolution import LazyStub
from dl.logs import logger
from dl.program.program import Program
from dl.records import dataclass

if TYPE_CHECKING:
    from threads import RendezvousStatistics

log = logger("dl.link")


@dataclass(frozen=True)
class LinkerStatistics:
    """A snapshot of a linker.

    Attributes:
        modules: number of loaded modules.
        next_handle: the handle of the next module.
        global_scope: names of the modules in the global scope, in search order.
        table_elements: table indices in use by exported functions and side modules.
        table_length: elements of the table.
        side_bytes: bytes of linear memory in use by side modules, stacks and thread-local blocks.
        side_regions: how many regions they are.
        memory_bytes: size of linear memory.
        protocol: operations, barriers and states of the groups.
    """

    modules: int
    next_handle: int
    global_scope: tuple[str, ...]
    table_elements: int
    table_length: int
    side_bytes: int
    side_regions: int
    memory_bytes: int
    protocol: RendezvousStatistics


def linker_statistics(program: Program) -> LinkerStatistics:
    """Return a snapshot; each figure is right, but they may be moments apart."""
    program.limbo.drain()
    state, side = program.state, program.side_memory
    allocated = side.statistics() if side is not None else None
    return LinkerStatistics(
        modules=len(state.modules),
        next_handle=state.next_handle,
        global_scope=tuple(m.name for m in state.global_scope),
        table_elements=state.table.in_use(),
        table_length=state.table.length,
        side_bytes=allocated.bytes_in_use if allocated else 0,
        side_regions=allocated.regions if allocated else 0,
        memory_bytes=program.linear.size if program.linear else 0,
        protocol=program.rendezvous.statistics(),
    )


def unused_imports(program: Program) -> list[tuple[str, str]]:
    """Return what the user's imports gave and no loaded module imports: namespace and name."""
    if not any(program.host.user.values()):
        return []
    modules = program.state.modules.copy().values()
    return program.host.unused({(entry.module, entry.name) for m in modules for entry in m.wasm.imports})


def report_unused_imports(program: Program) -> None:
    """Tell of imports that neither the main module nor what it needs asks for: a misspelt name would go unnoticed.

    With a warning where something that is much like it is imported and has no definition yet; else with none, because a library
    that is opened later may import them.
    """
    unused = [f"{namespace}.{name}" for namespace, name in unused_imports(program)]
    if unused:
        for module in program.state.modules.copy().values():
            for entry, binding in zip(module.wasm.imports, module.bindings, strict=False):
                meant = (
                    program.host.similar(entry.module, entry.name) if isinstance(binding, LazyStub) else ""
                )
                if meant in unused:
                    asked = f"{entry.module}.{entry.name}"
                    log.warning(
                        "%s imports %s, which nothing defines; imports has %s", module.name, asked, meant
                    )
        more = f" and {len(unused) - 10} more" if len(unused) > 10 else ""
        log.info("%s: nothing imports %s%s yet", program.options.name, ", ".join(unused[:10]), more)
