"""What all parts of a linker's public side build on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from dl.assembly import Parts
from dl.checks import at_least, taken
from dl.dlfcn import DlFlags, ModuleHandle
from dl.errors import LinkerClosedError
from dl.group import InstanceGroup
from dl.groups.entry import Group
from dl.groups.errors import check_process
from dl.groups.run import run_program
from dl.link.host_libraries import open_for_host
from dl.link.lookup import look_up
from dl.modules.symbols import Symbol
from dl.options import ModuleSource
from dl.program.program import Program
from memory import LinearMemory, Uncopied

if TYPE_CHECKING:
    from dl.engine.protocol import Engine
    from dl.linker import Linker


class LinkerActions:
    """What instance groups and other parts of the linker do with it, apart from what users see; a linker's `own`."""

    def __init__(self, linker: LinkerBase, check_open: Callable[[], None]) -> None:
        self._linker = linker
        self._check_open = check_open

    def view(self, group: Group) -> InstanceGroup:
        """Return a group as the user holds it: the same object each time."""
        if group.view is None:
            group.view = InstanceGroup(cast("Linker", self._linker), group)  # the only class made of that one
        view: InstanceGroup = group.view
        return view

    def viewing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that calls another one with a group as the user holds it."""
        return lambda group, *arguments: function(self.view(group), *arguments)

    def open(
        self, group: Group, library: ModuleSource | None, flags: DlFlags, **options: Any
    ) -> ModuleHandle:
        """Load a library for a group; see `InstanceGroup.dlopen`."""
        self._check_open()
        return open_for_host(self._linker.parts.groups, group, library, flags, **options)

    def close_library(self, group: Group, handle: int) -> None:
        """Close a library for a group; see `InstanceGroup.dlclose`."""
        from dl.link.close import close_library  # noqa: PLC0415  most programs close nothing

        self._check_open()
        close_library(self._linker.parts.groups, self._linker.parts.finalizers, group, handle)

    def look_up(self, handle: int, name: str, caller: int | None = None) -> Symbol:
        """Find a symbol; see `InstanceGroup.dlsym`."""
        self._check_open()
        return look_up(self._linker.program.state, handle, name, caller=caller)

    def run(self, group: Group) -> int:
        """Run the program in a group; see `InstanceGroup.run`."""
        self._check_open()
        return run_program(self._linker.program, self._linker.parts.guest_threads, group)


class LinkerBase(Uncopied):
    """A program and its state; `Linker` is made of classes that derive from this one, each with one kind of methods.

    Attributes:
        engine: the engine.
        parts: what the program is made of, for tools; see `dl.assembly.Parts`.
        program: memory, table and linker state, the part that all groups share.
        own: what instance groups do with it, for the linker's own tools.
    """

    engine: Engine
    parts: Parts
    program: Program
    own: LinkerActions
    _closed: bool

    def _check_open(self) -> None:
        check_process(self.program.rendezvous.process)
        if self._closed:
            raise LinkerClosedError("the linker is closed")

    @property
    def memory(self) -> LinearMemory:
        """The program's linear memory.

        Raises:
            LinkerUsageError: the program has none that the host can reach.
        """
        self._check_open()
        return self.program.memory

    def grow_memory(self, pages: int) -> int | None:
        """Grow linear memory by a number of 64 KiB pages; return its former size in pages, or None when refused."""
        self._check_open()
        return self.program.grow_memory(taken(at_least(0), pages, "pages"))
