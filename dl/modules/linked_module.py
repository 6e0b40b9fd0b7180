"""A module that is linked into the program, as all instance groups share it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dl.dlfcn import RTLD_DEFAULT, ModuleHandle
from dl.engine.protocol import CompiledModule
from dl.glue.names import module_namespace
from dl.glue.placement import ThreadLocalModule
from dl.glue.resolution import Binding, Constant, FromNamespace, ThreadLocalAddress, ThroughTable
from dl.modules.construction import Construction, Residence
from dl.modules.image import ModuleImage
from dl.modules.locate import Requester
from dl.modules.symbols import Symbol
from dl.wasm.dylink import DylinkInfo
from dl.wasm.module import WasmModule

if TYPE_CHECKING:
    from dl.program.side_memory import Block
    from memory import Region


@dataclass(eq=False, repr=False)
class LinkedModule:
    """One module of the program. Guarded by the link lock; what is set once is marked so.

    Attributes:
        image: where it came from (set once).
        handle: its number (set once, after those of what it needs).
        needed: the modules in its needed list, in that order (set once, when its tree is loaded).
        scope: modules whose symbols it sees: None for the global scope alone, else the tree of the dlopen that
            loaded it, breadth first.
        deep_bind: whether `scope` comes before the global scope.
        memory_base: address of its data, bytes (set once).
        table_base: table index of its own elements (set once).
        block: its data in linear memory; None for none.
        elements: its run of table indices; None for none.
        symbols: what it defines, by name (set once).
        bindings: what its imports mean, in import order: the resolution record.
        late: table indices that its stubs were given at their first call, by import position; every group gets these.
        code: its code with renamed imports, and that of its import module.
        thread_local: its thread-local storage; None for none.
        construction: who constructs it, and who waits for it.
        residence: whether groups may instantiate it.
    """

    image: ModuleImage
    handle: ModuleHandle = RTLD_DEFAULT
    needed: list[LinkedModule] = field(default_factory=list)
    scope: tuple[LinkedModule, ...] | None = None
    deep_bind: bool = False
    memory_base: int = 0
    table_base: int = 0
    block: Block | None = None
    elements: Region | None = None
    symbols: Mapping[str, Symbol] = field(default_factory=dict)
    bindings: tuple[Binding, ...] = ()
    late: dict[int, int] = field(default_factory=dict)
    code: CompiledModule | None = None
    import_code: CompiledModule | None = None
    thread_local: ThreadLocalModule | None = None
    construction: Construction = field(default_factory=Construction)
    residence: Residence = field(default_factory=Residence)

    def __repr__(self) -> str:
        return f"<LinkedModule {self.name}, handle {int(self.handle)}>"

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.image.name

    @property
    def wasm(self) -> WasmModule:
        """The parsed module."""
        return self.image.wasm

    @property
    def dylink(self) -> DylinkInfo | None:
        """Its dylink section."""
        return self.image.wasm.dylink

    def uses(self, others: Sequence[LinkedModule]) -> bool:
        """Whether this module needs one of some others, or one of its imports is bound to one of them."""
        handles = {module.handle for module in others}
        if any(module.handle in handles for module in self.needed):
            return True
        namespaces = {module_namespace(handle) for handle in handles}
        tables = [range(m.elements.address, m.elements.end) for m in others if m.elements is not None]
        blocks = [
            range(m.block.address, m.block.address + m.block.size) for m in others if m.block is not None
        ]
        if any(address in run for address in self.late.values() for run in tables):
            return True
        for entry, binding in zip(self.wasm.imports, self.bindings, strict=True):
            if isinstance(binding, FromNamespace):
                used = binding.namespace in namespaces
            elif isinstance(binding, ThreadLocalAddress):
                used = binding.module in handles
            elif isinstance(binding, ThroughTable):
                used = any(binding.address in run for run in tables)
            elif isinstance(binding, Constant) and entry.module in ("GOT.mem", "GOT.func"):
                used = any(binding.value in run for run in (tables if entry.module == "GOT.func" else blocks))
            else:
                used = False
            if used:
                return True
        return False

    def requester(self) -> Requester:
        """Who asks when this module's needed libraries, or its dlopen, look for files."""
        origin: Path | None = self.image.path.parent if self.image.path else None
        run_path = self.dylink.runtime_path if self.dylink else ()
        return Requester(self.name, origin, run_path, self.image.guest_written)


def breadth_first(roots: Iterable[LinkedModule]) -> list[LinkedModule]:
    """Return modules and all they need, breadth first, each once: the order in which ELF searches a tree."""
    order: list[LinkedModule] = []
    seen: set[int] = set()
    level = list(roots)
    while level:
        following: list[LinkedModule] = []
        for module in level:
            if id(module) not in seen:
                seen.add(id(module))
                order.append(module)
                following += module.needed
        level = following
    return order
