"""Instance groups as the user holds them: one thread's instances of every linked module, and what can be called in them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from operator import index
from typing import TYPE_CHECKING, Literal, SupportsIndex

from dl.api.deadlines import bounded
from dl.api.option_checks import check_library, number_of
from dl.checks import flag, taken, whole
from dl.dlfcn import DlFlags, ModuleHandle
from dl.errors import LinkerUsageError
from dl.groups.entry import Group
from dl.groups.errors import raises_dl_errors
from dl.link.tracing import symbols_log
from dl.logs import DEBUG, Hearing
from dl.modules.symbols import FunctionSymbol
from dl.options import ModuleSource, flags_of
from dl.wasm.types import FuncType
from memory import Uncopied

if TYPE_CHECKING:
    from dl.api.guest import GuestData, GuestFunction
    from dl.api.library import Library
    from dl.api.loaded import AddressInfo
    from dl.linker import Linker


class InstanceGroup(Uncopied):
    """One thread's instances of every linked module.

    Owned by the thread that made it; only that thread calls into it.

    Attributes:
        linker: the program.
        own: the group itself, for the linker's own tools; see `dl.groups.entry.Group`.
    """

    def __init__(self, linker: Linker, group: Group) -> None:
        self.linker = linker
        self.own = group
        self._hearing = Hearing(symbols_log)

    @property
    def name(self) -> str:
        """The thread's name in messages."""
        return self.own.name

    @property
    def owner(self) -> int:
        """Identity of the owning thread, as `threading.get_ident` numbers it; 0 when closed, -1 while no thread has it."""
        return self.own.owner

    @raises_dl_errors
    def dlopen(
        self,
        library: ModuleSource | None,
        flags: int = DlFlags.NOW,
        *,
        name: str | None = None,
        library_path: Sequence[str | os.PathLike[str]] | None = None,
        load_needed: bool = True,
    ) -> ModuleHandle:
        """Load a shared library and all it needs into the program, or find it loaded.

        Args:
            library: its path or bare name, searched like ld.so does, or its bytes; None for the program itself, whose handle,
                `MAIN_HANDLE`, stands for the global scope.
            flags: `RTLD_NOW` or `RTLD_LAZY`, and others of `DlFlags`.
            name: for bytes, the name by which they are known: opening the same name again gives the same module, and
                the needed lists of other modules find it.
            library_path: directories to search before those of the linker.
            load_needed: whether what its needed list names is loaded with it; without, only what is defined otherwise is found.

        Returns:
            Its handle. Its constructors have run.

        Raises:
            DlError: it could not be loaded; the program is as before.
            LinkerUsageError: called from a thread that does not own the group.
        """
        self.own.check_owner()
        if type(library) is not str or library_path is not None or name is not None:
            check_library(library, library_path, name)
        taken(flag, load_needed, "load_needed")
        opened = self.linker.own.open(
            self.own, library, flags_of(flags), name=name, library_path=library_path, load_needed=load_needed
        )
        # The caller's own object: threads that use one together count their references to it.
        return ModuleHandle(opened)

    @raises_dl_errors
    def dlclose(self, handle: SupportsIndex) -> None:
        """Take back one `dlopen` of a library. The last one unloads it, unless other modules need it or are bound to it.

        Its destructors run before this returns, in this thread. `docs/unloading.md` says what is counted, and when memory
        and function pointers are used again.

        Args:
            handle: what `dlopen` returned; that of the main module is accepted, and nothing happens.

        Raises:
            InvalidHandleError: no module has this handle, it was closed, or is not open.
            FinalizationError: a destructor failed; the library is unloaded nevertheless.
            LinkerUsageError: called from a thread that does not own the group.
        """
        self.own.check_owner()
        self.linker.own.close_library(self.own, number_of(handle))

    def library(
        self,
        library: ModuleSource | None,
        flags: int = DlFlags.NOW,
        *,
        name: str | None = None,
        library_path: Sequence[str | os.PathLike[str]] | None = None,
    ) -> Library:
        """Open a library as an object whose functions are attributes; takes what `dlopen` takes, and raises the same.

        None is the program itself, with all that is in the global scope, its C library for one.

        Returns:
            The library. Close it by `close`, or by using it in a `with`.
        """
        from dl.api.library import Library  # noqa: PLC0415  a program that runs by itself needs none of it

        return Library(self, self.dlopen(library, flags, name=name, library_path=library_path))

    def dlsym(
        self, handle: SupportsIndex, name: str, *, caller: SupportsIndex | None = None
    ) -> GuestFunction | GuestData:
        """Find a symbol.

        Args:
            handle: a module or a `Library`, whose own symbols come first and then those of what it needs, breadth first;
                `RTLD_DEFAULT` or `MAIN_HANDLE` for the global scope; or `RTLD_NEXT` for what comes after the caller in the
                order of the dlopen that loaded it.
            name: the symbol.
            caller: handle of the module on whose behalf it is looked for; needed for `RTLD_NEXT`. With `RTLD_DEFAULT` the
                tree of a caller that was opened with `RTLD_LOCAL` is searched too, as if its own code had asked.

        Returns:
            A function, callable and with an address; or data, with an address.

        Raises:
            SymbolNotFoundError: there is no such symbol.
            InvalidHandleError: no module has this handle, or the caller's.
            LinkerUsageError: `RTLD_NEXT` without a caller.
        """
        group, kind = self.own, type(handle)
        # Reads nothing that other threads read too: without a GIL, that alone would make two threads slower than one.
        if caller is None and (kind is ModuleHandle or kind is int):
            try:
                known: GuestFunction | None = group.answers.get((index(handle), name))
            except TypeError:  # of a name that cannot be hashed, which is refused below
                known = None
            # Who listens is told of each.
            if known is not None and group.answers_stand() and not self._hearing.of(DEBUG):
                return known
        state = self.linker.program.state
        # Before it is looked up: what changes meanwhile makes the answer an old one.
        changes = state.changes.value
        if not isinstance(name, str):
            raise LinkerUsageError(f"name: a symbol's name is a text, not {name!r}")
        number, asking = number_of(handle), None if caller is None else number_of(caller)
        symbol = group.found(lambda: self.linker.own.look_up(number, name, asking))
        if not isinstance(symbol, FunctionSymbol):
            from dl.api.guest import GuestData  # noqa: PLC0415  as in `library`

            return GuestData(name, group.address_of(symbol), symbol.module, state)
        key = symbol.module, symbol.name
        function: GuestFunction | None = group.functions.get(key)
        if function is None:
            from dl.api.guest import GuestFunction  # noqa: PLC0415  as in `library`

            function = group.functions[key] = GuestFunction(self.linker, group, symbol)
        if asking is None:
            group.keep_answer(number, name, function, changes)
        return function

    def dladdr(
        self, pointer: SupportsIndex, kind: Literal["function", "data"] | None = None
    ) -> AddressInfo | None:
        """Return what is at an address, as this thread sees it: like `Linker.dladdr`, with its thread-local variables.

        Args:
            pointer: a `GuestFunction` or `GuestData`, or a number: the table index of a function, or bytes in linear memory.
            kind: what a number is; None for a function if one has this index, and else data.

        Returns:
            None if no module has anything there.

        Raises:
            LinkerUsageError: called from a thread that does not own the group, or `kind` is neither.
        """
        from dl.api.loaded import address_info  # noqa: PLC0415  as in `library`

        self.own.synchronize()
        return address_info(self.linker.program, pointer, kind, self.own)

    def synchronize(self) -> None:
        """Make all committed operations in this group now; by itself it does so before it next runs guest code.

        Raises:
            ReplayFailedError: one of them failed; the group has ended.
            GroupEndedError: the group has ended before.
            LinkerUsageError: called from another thread.
        """
        self.own.synchronize()

    def table_length(self) -> int:
        """Elements of this group's table."""
        return self.own.instances.table_length()

    def table(self) -> list[object]:
        """Return what the table holds: None, or a value that is equal for the same function in every group.

        Without the null elements at its end.

        Raises:
            LinkerUsageError: the engine cannot look into tables.
        """
        engine = self.linker.engine
        if not engine.capabilities.table_reflection:
            raise LinkerUsageError(f"engine {engine.name} lacks table reflection")
        self.own.synchronize()
        return self.own.instances.table()

    def function_type(self, address: int) -> FuncType | None:
        """Return the signature of the function that a table index holds now; None for null and beyond the table."""
        return self.own.instances.function_type(taken(whole, address, "address"))

    def run(self, *, timeout: float | None = None, cpu_time: float | None = None) -> int:
        """Run the program: call the main module's `_start`.

        Args:
            timeout: seconds after which the program is stopped, with all threads that it has started; None for no bound.
            cpu_time: seconds of processor time that the calling thread may use, likewise.

        Returns:
            Its exit code.

        Raises:
            LinkerUsageError: there is no main module, it is no command, or it has run already; or a bound is given and the
                program was made without `interrupts`.
            GuestTimeoutError: it ran longer than it may.
            TrapError: the program trapped.
        """
        with bounded(self.linker, self.own, self.linker.program.options.name, timeout, cpu_time):
            return self.linker.own.run(self.own)

    def close(self) -> None:
        """Free the group's instances, and its thread-local blocks; idempotent.

        Raises:
            LinkerUsageError: it is another thread's, or the calling thread is inside its guest code.
        """
        self.own.close()

    def __repr__(self) -> str:
        return f"<InstanceGroup {self.name} of {self.linker!r}>"
