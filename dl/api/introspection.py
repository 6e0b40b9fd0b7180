"""Looking into a linked program; what a method needs for that is imported with its first call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, SupportsIndex

from dl.api.linker_base import LinkerBase
from dl.api.option_checks import number_of
from dl.checks import at_least, seconds, taken, word
from dl.dlfcn import ModuleHandle
from dl.errors import InvalidHandleError, LinkerUsageError
from dl.groups.errors import check_process
from dl.modules.linked_module import LinkedModule
from dl.program.events import Events
from dl.program.statistics import LinkerStatistics, linker_statistics, unused_imports

if TYPE_CHECKING:
    from dl.api.explain import Explanation
    from dl.api.loaded import AddressInfo, LoadedModule
    from dl.api.memory_map import MemoryMap
    from dl.api.profile import Profile
    from dl.wamr.dlfcn import WamrStatistics

DEFAULT_INTERVAL = 0.001
DEFAULT_PROFILE_SAMPLES = 1_000_000
"""4 bytes each, beside the stacks themselves, of which there are few."""


class Introspection(LinkerBase):
    """The methods of `Linker` that show what is loaded and what it takes; nothing here changes the program."""

    @property
    def modules(self) -> tuple[LoadedModule, ...]:
        """The loaded modules, in handle order: who they are, where they lie, and how they hang together."""
        from dl.api.loaded import LoadedModule  # noqa: PLC0415  few programs are looked into

        check_process(self.program.rendezvous.process)
        modules = self.program.state.modules.copy()
        return tuple(LoadedModule(self.program, modules[handle]) for handle in sorted(modules))

    def module(self, handle: SupportsIndex) -> LoadedModule:
        """Return the module of a handle, or of a library.

        Raises:
            InvalidHandleError: no module has this handle.
        """
        from dl.api.loaded import LoadedModule  # noqa: PLC0415  as above

        return LoadedModule(self.program, self._linked(handle))

    def _linked(self, handle: SupportsIndex) -> LinkedModule:
        check_process(self.program.rendezvous.process)
        number, state = number_of(handle), self.program.state
        module = state.modules.get(ModuleHandle(number))
        if module is None:
            raise InvalidHandleError(number, "it was closed" if 0 < number < state.next_handle else "")
        return module

    def profile(self, interval: float = DEFAULT_INTERVAL, limit: int = DEFAULT_PROFILE_SAMPLES) -> Profile:
        """Return what takes samples of the program's threads while a `with` lasts; see docs/looking.md.

        Args:
            interval: seconds between samples, 0.0001 to 10.
            limit: how many of each thread are kept.

        Raises:
            LinkerUsageError: the engine has no profiler, the program was made without interrupts, or a number is out of range.
        """
        from dl.api.profile import Profile  # noqa: PLC0415  as above

        check_process(self.program.rendezvous.process)
        taken(seconds, interval, "interval")
        taken(at_least(1), limit, "limit")
        return Profile(self.program, interval, limit)

    def explain(self, symbol: str, in_module: SupportsIndex) -> Explanation:
        """Return why the imports of a symbol in a module are bound where they are, and what else was there.

        Args:
            symbol: the imported name.
            in_module: handle of the module that imports it, the library, or one of `modules`.

        Raises:
            SymbolNotFoundError: the module does not import it.
            InvalidHandleError: no module has this handle.
        """
        from dl.api.explain import explain  # noqa: PLC0415  as above

        taken(word, symbol, "symbol")
        return explain(self.program, symbol, self._linked(in_module))

    def dladdr(
        self, pointer: SupportsIndex, kind: Literal["function", "data"] | None = None
    ) -> AddressInfo | None:
        """Return what is at an address: the module, and the symbol.

        From any thread; `InstanceGroup.dladdr` knows its thread's thread-local variables too.

        Args:
            pointer: a `GuestFunction` or `GuestData`, or a number: the table index of a function, or bytes in linear memory.
            kind: what a number is; None for a function if one has this index, and else data.

        Returns:
            None if no module has anything there. The functions of closed libraries, closures and callbacks belong to none.

        Raises:
            LinkerUsageError: `kind` is neither.
        """
        from dl.api.loaded import address_info  # noqa: PLC0415  as above

        check_process(self.program.rendezvous.process)
        return address_info(self.program, pointer, kind)

    def memory_map(self) -> MemoryMap:
        """Return what lies where in linear memory and in the table, now: data, stacks, heap, functions, closures, what is free.

        From any thread, while others run; each region is right, but they may be moments apart.
        """
        from dl.api.memory_map import memory_map  # noqa: PLC0415  as above

        check_process(self.program.rendezvous.process)
        return memory_map(self.program, self.parts.groups, self.parts.slots().pool)

    @property
    def events(self) -> Events:
        """What happens to libraries: loads, closes and late bindings as they come, by function call or from a queue."""
        return Events(self.program.events)

    def unused_imports(self) -> list[tuple[str, str]]:
        """Return what `imports` gave and no loaded module imports, by namespace and name; a library may come that does."""
        return unused_imports(self.program)

    def wamr_statistics(self) -> WamrStatistics:
        """Return what the caches of the program's mode have saved.

        Raises:
            LinkerUsageError: it has no mode: `wamr` was not given.
        """
        check_process(self.program.rendezvous.process)
        if self.parts.wamr is None:
            raise LinkerUsageError("the program has no mode of WAMR")
        return self.parts.wamr.statistics()

    def statistics(self) -> LinkerStatistics:
        """Return a snapshot of what the program holds."""
        check_process(self.program.rendezvous.process)
        return linker_statistics(self.program)
