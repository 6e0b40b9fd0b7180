"""A module that is linked into the program, as all instance groups share it."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import TYPE_CHECKING

from dl.dlfcn import RTLD_DEFAULT, ModuleHandle
from dl.engine.import_list import ImportList
from dl.glue.placement import ThreadLocalModule
from dl.glue.resolution import Binding
from dl.modules.construction import Construction
from dl.modules.image import ModuleImage
from dl.modules.symbols import NO_SYMBOLS, ModuleSymbols, functions_without_index
from dl.records import dataclass, field
from dl.wasm.dylink import DylinkInfo
from dl.wasm.module import WasmModule
from memory import Block, Region

if TYPE_CHECKING:
    from dl.engine.protocol import CompiledModule


@dataclass(frozen=True, slots=True)
class StubTarget:
    """What a stub was bound to at its first call.

    Attributes:
        address: the function's table index.
        provider: the module that defines it, or `HOST`.
    """

    address: int
    provider: ModuleHandle


@dataclass(eq=False, repr=False)
class LinkedModule:
    """One module of the program. Guarded by the link lock; what is set once is marked so.

    Attributes:
        image: where it came from (set once).
        construction: who constructs it, and who waits for it (set once).
        handle: its number (set once, after those of what it needs).
        seat: by which generated code names it; unlike its handle it is used again when the module is gone (set once).
        needed: the modules in its needed list, in that order (set once, when its tree is loaded).
        scope: modules whose symbols it sees: None for the global scope alone, else the tree of the dlopen that
            loaded it, breadth first.
        deep_bind: whether `scope` comes before the global scope.
        loaded_with: the module whose dlopen loaded it, which may be itself or be gone; the main module for what it needs (set
            once). RTLD_NEXT searches that one's tree.
        first_open: the number of the dlopen that opened it by name first, counted from 1; 0 if it was only needed so far.
        global_opens: how many dlopens have put it into the global scope; it is in that scope while there is one.
        opens: how many dlopens of it are not taken back by a dlclose.
        guest_opens: how many of these are the guest's own, and so the guest's to take back.
        stays: whether it is never unloaded: the main module and what it needs from the start, RTLD_NODELETE.
        constructed: how many modules were constructed before it ended its construction, from 1; 0 before.
        closing: whether its destructors run, or have run: it can be found no longer.
        memory_base: address of its data, bytes (set once).
        table_base: table index of its own elements (set once).
        block: the block of linear memory that holds its data; None for none.
        elements: its run of table indices; None for none.
        symbols: what it defines, by name (set once).
        bindings: what its imports mean, in import order: the resolution record (set once).
        providers: who provides what its imports are bound to, beside its stubs (set once).
        stub_targets: what its stubs were bound to at their first call, by import position (guarded by the linker state's
            `stub_lock`); every group gets these.
        looked_up: modules of which its code has a symbol by dlsym of RTLD_DEFAULT, each with the first such symbol (guarded by
            `stub_lock`).
        copy: which of the modules of equal content it is, from 0 (set once).
        code: its code with renamed imports, and that of its import module.
        told_handle: whether its import module must be told its handle.
        import_list: where a store finds each import by its position; None if it imports by name.
        copy: which copy of its content it is in the program, so that stack traces name the right one.
        thread_local: its thread-local storage; None for none.
        load_number: number of the operation that loads it, in the operation log; 0 before it is committed.
    """

    image: ModuleImage
    construction: Construction
    handle: ModuleHandle = RTLD_DEFAULT
    seat: int = 0
    needed: list[LinkedModule] = field(default_factory=list)
    scope: tuple[LinkedModule, ...] | None = None
    deep_bind: bool = False
    loaded_with: ModuleHandle = RTLD_DEFAULT
    first_open: int = 0
    global_opens: int = 0
    opens: int = 0
    guest_opens: int = 0
    stays: bool = False
    constructed: int = 0
    closing: bool = False
    memory_base: int = 0
    table_base: int = 0
    block: Block | None = None
    elements: Region | None = None
    symbols: ModuleSymbols = field(default_factory=lambda: NO_SYMBOLS)
    bindings: Sequence[Binding] = ()
    providers: frozenset[ModuleHandle] = frozenset()
    stub_targets: dict[int, StubTarget] = field(default_factory=dict)
    looked_up: dict[ModuleHandle, str] = field(default_factory=dict)
    copy: int = 0
    code: CompiledModule | None = None
    import_code: CompiledModule | None = None
    told_handle: bool = False
    import_list: ImportList | None = None
    thread_local: ThreadLocalModule | None = None
    load_number: int = 0

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

    @property
    def first_placed(self) -> int | None:
        """The table index of the first of the functions that the linker places for it; None if it places none."""
        return None if self.elements is None else self.elements.end - len(functions_without_index(self.wasm))

    def take_back_open(self, *, by_guest: bool) -> None:
        """Take back one dlopen; the host takes back its own first."""
        self.opens -= 1
        self.guest_opens = min(self.guest_opens - by_guest, self.opens)

    def uses(self, handles: Container[ModuleHandle]) -> bool:
        """Whether this module needs one of some modules, or is bound to one of them."""
        return any(module.handle in handles for module in self.needed) or any(
            handle in handles for handle in self.bound_to()
        )

    def bound_to(self) -> set[ModuleHandle]:
        """Return who provides what its imports, its stubs and its own look-ups mean; `HOST` and the like among them."""
        stubs = {target.provider for target in self.stub_targets.copy().values()}
        return {*self.providers, *stubs, *self.looked_up.copy()}


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
