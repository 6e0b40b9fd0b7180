"""The first phase of a load: which modules it adds, and their handles."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from dl.dlfcn import MAIN_HANDLE, ModuleHandle
from dl.modules.image import ModuleImage, with_interruptible_waits, with_shared_tags
from dl.modules.kind import check_side_module
from dl.modules.linked_module import LinkedModule
from dl.modules.locate import Locator, SearchPolicy, loaded_by_base_name
from dl.program.state import LinkerState, Undo

log = logging.getLogger("dl.link")


@dataclass(kw_only=True)
class Tree:
    """A module and all it needs, as a load finds them; used under the link lock by its instigator.

    Attributes:
        state: the program's linker state.
        locator: finds needed libraries.
        policy: who asks for the load, and which files may be opened for it.
        wait_slots: table indices of what stands in for atomic waits.
        undo: takes the load back.
        new: the modules that this load adds, in handle order.
    """

    state: LinkerState
    locator: Locator
    policy: SearchPolicy = field(default_factory=SearchPolicy)
    wait_slots: Mapping[str, int] = field(default_factory=dict)
    undo: Undo = field(default_factory=Undo)
    new: list[LinkedModule] = field(default_factory=list)

    def find_main(self, image: ModuleImage) -> LinkedModule:
        """Take the main module without what it needs: side modules have no memory before it is instantiated."""
        top = self._module_for(image, main=True)
        self._number(top, MAIN_HANDLE)
        return top

    def find_tree(self, root: ModuleImage, *, main: bool = False) -> LinkedModule:
        """Find a module and all it needs; give the new ones handles, dependencies first.

        A cycle in the needed lists is cut where it closes. Iterative, so that the depth of a chain is bounded by memory.

        Raises:
            LinkError: a needed library is missing or broken.
            MalformedModuleError: one is not a valid module.
            NotDynamicError: one is not a shared library.
        """
        top = self._module_for(root, main=main)
        if top.handle:
            return top
        if main:
            self._number(top, MAIN_HANDLE)
        self.find_needed(top)
        return top

    def find_needed(self, top: LinkedModule) -> None:
        """Find all that a module needs; give what is new handles, dependencies first; and the module, if it has none."""
        first = self.state.next_handle
        self.undo.on_failure(lambda: setattr(self.state, "next_handle", first))
        open_: list[tuple[LinkedModule, Iterator[str]]] = [(top, _needed(top))]
        pending = {top.image.identity: top}
        while open_:
            module, names = open_[-1]
            name = next(names, None)
            if name is None:
                open_.pop()
                if not module.handle:
                    self._number(module, self.state.take_handle(module.name, len(self.new)))
                continue
            image = self._find(name, module, pending.values())
            needed = pending.get(image.identity) or self._module_for(image)
            module.needed.append(needed)
            if not needed.handle and image.identity not in pending:
                pending[image.identity] = needed
                open_.append((needed, _needed(needed)))
        self.new.sort(key=lambda m: m.handle)

    def _find(self, name: str, module: LinkedModule, pending: Iterable[LinkedModule]) -> ModuleImage:
        def known(name: str) -> ModuleImage | None:
            coming = (m.image for m in pending if m.handle != MAIN_HANDLE)
            return loaded_by_base_name(name, (*self.state.named_images(), *coming))

        return self.locator.find(name, module.requester(), self.policy, known)

    def _module_for(self, image: ModuleImage, *, main: bool = False) -> LinkedModule:
        handle = self.state.by_identity.get(image.identity)
        if handle is not None:
            return self.state.modules[handle]
        for module in self.new:
            if module.image.identity == image.identity:
                return module
        if not main:
            check_side_module(image.wasm)
            image = with_shared_tags(image)  # a main module's are the program's
        return LinkedModule(with_interruptible_waits(image, self.wait_slots))

    def _number(self, module: LinkedModule, handle: ModuleHandle) -> None:
        module.handle = handle
        self.new.append(module)
        log.debug("%s: handle %d", module.name, handle)


def _needed(module: LinkedModule) -> Iterator[str]:
    """Return the names of what a module needs, each once, in order."""
    return iter(dict.fromkeys(module.dylink.needed if module.dylink else ()))
