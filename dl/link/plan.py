"""The plan of one load: plain data that the phases of `dl.link.open` fill in, in their order."""

from __future__ import annotations

from collections.abc import Sequence

from dl.dlfcn import DlFlags, has_flag
from dl.glue.placement import PlacedFunction
from dl.link.perform import Change
from dl.modules.linked_module import LinkedModule
from dl.modules.locate import SearchPolicy
from dl.program.program import Program
from dl.records import dataclass, field


@dataclass(frozen=True)
class LoadRequest:
    """What a dlopen asks for, beside the library.

    Attributes:
        flags: those of dlopen.
        lenient: whether functions that nothing defines become stubs whatever the flags say, unless the program binds all now.
        continued: whether another load, which must not fail for what this one lacks, brings the libraries of this one.
        policy: who asks for the load, and which files may be opened for it.
        load_needed: whether what the modules' needed lists name is loaded with them.
    """

    flags: DlFlags = DlFlags.NOW
    lenient: bool = False
    continued: bool = False
    policy: SearchPolicy = field(default_factory=SearchPolicy)
    load_needed: bool = True


@dataclass
class LinkPlan:
    """One load under construction. Belongs to the thread that loads.

    Attributes:
        program: what it is loaded into.
        change: takes it back.
        request: what was asked for.
        ignored: modules that are being unloaded, and that the calling thread cannot wait for: it runs their destructors.
        root: the module that was opened (phase "number").
        new: the modules that this load adds, in handle order (phase "number").
        promoted: modules that this load puts into the global scope, those that are there already included (phase "scopes").
        published: whether the outcome is entered into the linker state.
        host_functions: host functions that get a table index with this load (phase "resolve").
        table_length: elements that the table needs for all indices that are taken (phase "resolve").
    """

    program: Program
    change: Change
    request: LoadRequest
    ignored: Sequence[LinkedModule] = ()
    root: LinkedModule | None = None
    new: list[LinkedModule] = field(default_factory=list)
    promoted: list[LinkedModule] = field(default_factory=list)
    host_functions: list[PlacedFunction] = field(default_factory=list)
    table_length: int = 0
    published: bool = False

    @property
    def demands_functions(self) -> bool:
        """Whether functions that nothing defines are errors."""
        request = self.request
        if self.program.options.bind_now:
            return not request.continued
        return not request.lenient and has_flag(request.flags, DlFlags.NOW)

    @property
    def opened(self) -> LinkedModule:
        """The module that was opened; known once modules are numbered."""
        assert self.root is not None
        return self.root
