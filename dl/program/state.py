"""The linker state: what all instance groups of a program share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dl.dlfcn import MAIN_HANDLE, ModuleHandle
from dl.errors import ResourceLimitError
from dl.glue.names import Places
from dl.modules.image import ModuleImage
from dl.modules.linked_module import LinkedModule
from dl.program.side_memory import SideMemory
from dl.program.table import TableSpace
from dl.wasm.types import FuncType, MemoryType

MAX_MODULES = 10_000


@dataclass
class LinkerState:
    """Shared by all groups; guarded by the link lock, which whoever changes it holds.

    Readers that only look up what a committed load has published (`modules`, `symbols`) need no lock: entries are added
    whole and never changed, and dictionaries are copied before they are walked.

    Attributes:
        modules: by handle, the main module first.
        by_identity: handle of the module that a resolved path or a name of bytes stands for.
        next_handle: the next handle.
        global_scope: modules whose symbols all see, in search order.
        table: table indices.
        side_memory: linear memory for side modules.
        places: where table and stack pointer are.
        memory_type: type of the program's memory; None until a static main module has brought it.
        linker_addresses: addresses the linker defines itself, by symbol name, bytes.
        host_addresses: table indices of host functions whose address was taken.
        arriving: modules of the load under way, for what their start functions ask.
    """

    table: TableSpace
    places: Places
    side_memory: SideMemory | None = None
    memory_type: MemoryType | None = None
    modules: dict[ModuleHandle, LinkedModule] = field(default_factory=dict)
    by_identity: dict[str, ModuleHandle] = field(default_factory=dict)
    next_handle: int = MAIN_HANDLE + 1
    global_scope: list[LinkedModule] = field(default_factory=list)
    linker_addresses: dict[str, int] = field(default_factory=dict)
    host_addresses: dict[tuple[str, str, FuncType], int] = field(default_factory=dict)
    arriving: dict[ModuleHandle, LinkedModule] = field(default_factory=dict)

    def take_handle(self, module: str, coming: int = 0) -> ModuleHandle:
        """Return the next handle.

        Args:
            module: who gets it, for messages.
            coming: how many modules the load under way has given handles to.

        Raises:
            ResourceLimitError: there are `MAX_MODULES` modules.
        """
        if len(self.modules) + coming >= MAX_MODULES:
            raise ResourceLimitError(module, f"{MAX_MODULES} modules are loaded already")
        handle = ModuleHandle(self.next_handle)
        self.next_handle += 1
        return handle

    def remove(self, modules: Sequence[LinkedModule]) -> None:
        """Forget modules: their handles, names and places in the global scope."""
        for module in modules:
            self.modules.pop(module.handle, None)
        self.forget_names(modules)

    def forget_names(self, modules: Sequence[LinkedModule]) -> None:
        """Let nobody find modules any more, by path, name or global scope; their handles stay."""
        for module in modules:
            if self.by_identity.get(module.image.identity) == module.handle:
                del self.by_identity[module.image.identity]
        gone = {id(module) for module in modules}
        self.global_scope = [m for m in self.global_scope if id(m) not in gone]

    def module(self, handle: int) -> LinkedModule | None:
        """Return a module by its handle, also one that is being loaded."""
        return self.modules.get(ModuleHandle(handle)) or self.arriving.get(ModuleHandle(handle))

    def image(self, identity: str) -> ModuleImage | None:
        """Return the image of the loaded module that a path or a name stands for."""
        handle = self.by_identity.get(identity)
        module = None if handle is None else self.modules.get(handle)
        return None if module is None else module.image

    def named_images(self) -> list[ModuleImage]:
        """Return the images of the libraries that can be found by name, in the order they were loaded."""
        modules = (self.modules.get(h) for h in list(self.by_identity.values()) if h != MAIN_HANDLE)
        return [module.image for module in modules if module is not None]

    def base_names(self) -> list[tuple[str, str]]:
        """Return the name and the base name of every module."""
        return [(m.name, m.image.base_name) for m in list(self.modules.values())]

    def names(self, modules: Sequence[LinkedModule]) -> list[str]:
        """Return what messages call some modules."""
        return [module.name for module in modules]


@dataclass
class Undo:
    """What takes back the steps of an operation that fails, last step first."""

    steps: list[Callable[[], object]] = field(default_factory=list)

    def on_failure(self, step: Callable[[], object]) -> None:
        """Add the step that takes back what was just done."""
        self.steps.append(step)

    def run(self) -> None:
        """Take everything back."""
        while self.steps:
            self.steps.pop()()
