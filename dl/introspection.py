"""Looking into a linked program."""

from __future__ import annotations

from dl.errors import LinkerUsageError
from dl.groups.errors import check_process
from dl.linker_base import LinkerBase
from dl.modules.linked_module import LinkedModule
from dl.program.events import Events
from dl.program.statistics import LinkerStatistics, linker_statistics, unused_imports
from dl.wamr.dlfcn import WamrStatistics


class Introspection(LinkerBase):
    """The methods of `Linker` that show what is loaded and what it takes; nothing here changes the program."""

    def modules(self) -> list[LinkedModule]:
        """Return the loaded modules, in handle order."""
        check_process(self.program.rendezvous.process)
        return sorted(self.program.state.modules.copy().values(), key=lambda m: m.handle)

    @property
    def events(self) -> Events:
        """What happens to libraries: loads, closes and late bindings as they come, by function call or from a queue."""
        return self.program.events

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
