"""What the guest's system interface asks of the linker: the one file of this room that knows what the linker is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dl.dlfcn import AddressKind, DlFlags, ModuleHandle
from dl.errors import DlError, LibraryNotFoundError
from dl.groups.entry import Group
from dl.groups.guest_threads import GuestThread, GuestThreads
from dl.groups.registry import MAIN_THREAD_ID, Groups
from dl.limits import Limits
from dl.link.finalizers import Finalizers
from dl.link.lookup import look_up, look_up_for_code
from dl.link.open import open_library
from dl.link.plan import LoadRequest
from dl.modules.guest_paths import GuestPaths
from dl.modules.linked_module import LinkedModule
from dl.modules.locate import Requester, SearchPolicy, requester_of
from dl.modules.symbols import Symbol
from dl.program.wasi import WasiCalls
from dl.records import replace
from memory import LinearMemory, round_up
from threads import FutexTable, Nudger, Waits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from dl.engine.protocol import Slots
    from dl.engine.values import WasiOptions
    from dl.glue.resolution import FromNamespace
    from dl.link.addresses import Location
    from dl.link.slots import SlotOperations
    from dl.wasix.process import Process

FIRST_THREAD = MAIN_THREAD_ID
"""Number of the program's first thread."""

LIBC_FIRST_THREAD = 0x3FFFFFFF
"""The number by which wasix-libc calls the first thread: its `struct pthread` has it before anybody asks for a number."""

_BLOCK_ALIGN_LOG2 = 4


class System:
    """The linker as one program's system interface sees it.

    Any thread may call any of it, except where a method names the calling thread.

    Args:
        groups: the program's groups, and the program.
        guest_threads: the threads that the guest has started.
        slots: returns the table indices whose functions are made at run time.
        finalizers: what libraries have registered to run at their end.

    Attributes:
        process: the program's process; set once, by `dl.wasix.system_interface`.
    """

    process: Process

    def __init__(
        self,
        groups: Groups,
        guest_threads: GuestThreads,
        slots: Callable[[], SlotOperations],
        finalizers: Finalizers,
    ) -> None:
        self._groups = groups
        self._finalizers = finalizers
        self._guest_threads = guest_threads
        self._program = groups.program
        self._slots = slots

    # memory

    @property
    def memory(self) -> LinearMemory:
        """The program's linear memory.

        Raises:
            LinkerUsageError: the program has none that the host can reach.
        """
        return self._program.memory

    def reserve(self, size: int, purpose: str) -> int | None:
        """Reserve zeroed linear memory until the program ends.

        Args:
            size: bytes, rounded up to a multiple of 16.
            purpose: what it is for, in messages.

        Returns:
            The address, a multiple of 16; None if it would have to come from the guest's own allocator, which must not be
            called in the middle of a function of the guest's.

        Raises:
            ResourceLimitError: the memory cannot grow.
        """
        source = self._program.side_memory
        if source is None or source.calls_guest:
            return None
        alignment = 1 << _BLOCK_ALIGN_LOG2
        return source.allocate(round_up(size, alignment), _BLOCK_ALIGN_LOG2, purpose).address

    # the program

    @property
    def main_module(self) -> LinkedModule | None:
        """The main module, also while it is being loaded; None without one."""
        return self._program.main_module

    @property
    def ended(self) -> BaseException | None:
        """What ended the program; None while it runs."""
        return self._program.ended

    def end(self, reason: BaseException) -> None:
        """End the program: every thread in it raises `reason` at its next safe point or wait; the first call counts."""
        self._program.end(reason)

    # WASI

    def monotonic_ns(self) -> int:
        """Return the guest's monotonic clock, nanoseconds."""
        return self._program.monotonic_ns()

    def answer_in_guest(self, host: Mapping[str, FromNamespace], resolutions: tuple[int, ...]) -> bool:
        """Have threads answer what they can of WASI by themselves; see `Program.answer_in_guest`."""
        return self._program.answer_in_guest(host, resolutions)

    @property
    def answers_in_guest(self) -> bool:
        """Whether threads of this program can answer calls of WASI by themselves."""
        return self._program.shares_memory and self._program.engine.capabilities.guest_wasi

    def provide_wasi(self, *, clock: bool) -> None:
        """Have the calling thread answer by itself from now on, if it can.

        Args:
            clock: the clocks, too.
        """
        group = self._groups.find()
        if group is not None and group.instances.wasi is not None:
            if clock:
                group.instances.wasi.provide_clock()
            else:
                group.instances.wasi.provide()

    @property
    def wasi(self) -> WasiCalls | None:
        """The engine's WASI; None until a main module that defines the memory is instantiated."""
        return self._program.wasi

    @property
    def wasi_options(self) -> WasiOptions:
        """Arguments, directories and standard streams that the host gave the program."""
        return self._program.options.wasi

    @property
    def default_files(self) -> bool:
        """Whether the program finds `/dev/null` and the like."""
        return self._program.options.default_files

    @property
    def limits(self) -> Limits:
        """What the program may take of the host."""
        return self._program.options.limits

    # threads

    @property
    def waits(self) -> Waits:
        """Every wait of the program's threads."""
        return self._program.waits

    @property
    def futexes(self) -> FutexTable:
        """Waits at addresses of linear memory."""
        return self._program.futexes

    def current_group(self) -> Group:
        """Return the calling thread's group.

        Raises:
            LinkerUsageError: it has none.
        """
        return self._groups.current()

    def find_group(self) -> Group | None:
        """Return the calling thread's group; None if it has none."""
        return self._groups.find()

    def group(self, number: int) -> Group | None:
        """Return the group of the thread that has a number; None if there is no such thread.

        Args:
            number: as `thread_id` returns it, or `LIBC_FIRST_THREAD`.
        """
        return self._groups.group(FIRST_THREAD if number == LIBC_FIRST_THREAD else number)

    def all_groups(self) -> list[Group]:
        """Return the groups that exist now."""
        return self._groups.all()

    def thread_id(self) -> int:
        """Return the calling thread's number; the first thread's is `FIRST_THREAD`."""
        return self._groups.thread_id()

    def guest(self, number: int) -> GuestThread | None:
        """Return a running thread that the guest started, by its number; None if there is no such thread."""
        return self._guest_threads.find(number)

    @property
    def shares_memory(self) -> bool:
        """Whether the program can have more than one thread."""
        return self._program.shares_memory

    def spawn_guest(self, start: int, *, stack_pointer: int, main_tls: int | None) -> int:
        """Start a thread for the guest; return its number when its group exists, before it runs any of the program.

        Args:
            start: address of what the thread's start function gets.
            stack_pointer: upper end of its shadow stack, bytes.
            main_tls: its block of the main module's thread-local storage, bytes; None to allocate one.

        Raises:
            LinkerUsageError: the program shares no memory, the main module exports no `wasi_thread_start`, or there are too
                many threads.
            DlError: the group could not be made.
            RuntimeError: the host cannot start a thread.
        """
        return self._guest_threads.spawn(start, stack_pointer=stack_pointer, main_tls=main_tls)

    def in_link_operation(self, group: Group) -> bool:
        """Whether the calling thread, which owns a group, is applying a link operation to it.

        Guest code that runs then (a start function) belongs to the operation: nothing else of the guest's may run in between.
        """
        return bool(group.replica.replaying) or group.applying

    def make_slots(self, count: int) -> Slots:
        """Make an argument area for a raw call, of a number of slots."""
        return self._program.engine.slots(count)

    # interruption

    @property
    def can_interrupt(self) -> bool:
        """Whether a thread that computes can be interrupted."""
        return self._program.engine.capabilities.interrupts

    @property
    def nudger(self) -> Nudger:
        """Interrupts threads that compute, until every thread that has to notice something has noticed."""
        return self._program.rendezvous.nudger

    # linking

    def check_dynamic(self) -> None:
        """Check that the program can take libraries.

        Raises:
            NotDynamicError: it cannot; says why.
        """
        self._program.check_dynamic()

    @property
    def guest_elf(self) -> bool:
        """Whether the functions of WASIX honour flags and scopes as ELF's do."""
        return self._program.options.guest_elf

    def open_library(
        self, name: str, search: str, flags: DlFlags | None = None, caller: int = 0
    ) -> ModuleHandle:
        """Load a library for the calling thread's guest; return its handle.

        Args:
            name: its path, as the guest sees it, or its bare name.
            search: the guest's LD_LIBRARY_PATH.
            flags: what is honoured; None for what every dlopen of WASIX does.
            caller: handle of the module that asks, whose run path is searched; 0 for none, as in WASIX.

        Raises:
            DlError: it could not be loaded.
        """
        program = self._program
        policy = SearchPolicy.of_guest(search, self.guest_paths(), name)
        asking = program.state.module(caller)
        # The message names what is missing, and not who asks: nothing needs it.
        requester = Requester() if asking is None else replace(requester_of(asking.image), name=None)
        with program.events.telling_failure(name):
            image = program.locator.find(name, requester, policy, program.state.image_by_base_name)
            if flags is None:
                request = LoadRequest(DlFlags.LAZY | DlFlags.GLOBAL, lenient=True, policy=policy)
            else:
                request = LoadRequest(flags, policy=policy)
            return open_library(self._groups, self._groups.current(), image, request)

    def guest_paths(self) -> GuestPaths:
        """Return the directories that the program may load from, and the guest's current one."""
        return replace(self.paths, current=self.process.directory)

    def close_library(self, handle: int) -> None:
        """Take back one dlopen of the guest's; see `dl.link.close`.

        Raises:
            InvalidHandleError: it has opened no such library.
            FinalizationError: a destructor failed; the library is gone.
        """
        from dl.link.close import close_library  # noqa: PLC0415  most programs close nothing

        close_library(self._groups, self._finalizers, self._groups.current(), handle, by_guest=True)

    @property
    def paths(self) -> GuestPaths:
        """The directories that the program may load from, as they were before any of its code ran."""
        return self._program.options.paths

    def text_for_guest(self, error: DlError, gone: Iterable[tuple[str, str]] = ()) -> str:
        """Return an error's message as the guest may read it: paths as the guest sees them, no others of the host.

        Args:
            error: the error.
            gone: names and base names of modules that it may name and that are no longer loaded.
        """
        text = error.for_guest if isinstance(error, LibraryNotFoundError) else str(error)
        return self.paths.as_guest_sees(text, (*gone, *self._program.state.base_names()))

    def module_names(self) -> list[tuple[str, str]]:
        """Return name and base name of every loaded module."""
        return self._program.state.base_names()

    def address_of_symbol(self, handle: int, name: str, caller: int | None = None) -> int:
        """Return a symbol's address for the calling thread's guest: a table index, or bytes in linear memory.

        Args:
            handle: the module to look in; 0 for the global scope.
            name: the symbol.
            caller: handle of the module that asks, for ELF's look-up; None for WASIX's, which looks in that module only.

        Raises:
            DlError: there is no such symbol or module.
        """
        group = self._groups.current()
        state = self._program.state

        def find() -> Symbol:
            if caller is None:
                return look_up(state, handle, name, tree=False)
            return look_up_for_code(state, handle, name, caller)

        return group.address_of(group.found(find))

    # what is loaded, as the guest may know it

    def loaded_modules(self, after: int, most: int) -> tuple[list[int], int, int]:
        """Return handles of loaded modules, how many were ever loaded, and how many of these are gone.

        Args:
            after: only handles greater than this one, in their order.
            most: how many at most.
        """
        state = self._program.state
        ever, present = state.loaded_ever, state.modules.copy()
        return sorted(int(h) for h in present if h > after)[:most], ever, max(ever - len(present), 0)

    def module(self, handle: int) -> LinkedModule | None:
        """Return a loaded module; None if there is none of this handle."""
        return self._program.state.modules.get(ModuleHandle(handle))

    def data_range(self, module: LinkedModule) -> tuple[int, int]:
        """Return where a module's data begins and ends in linear memory, bytes."""
        from dl.link.addresses import data_range  # noqa: PLC0415  few programs ask what is where

        return data_range(module)

    def thread_local_block(self, module: LinkedModule) -> int:
        """Return where the calling thread's thread-local storage of a module is, bytes; 0 if it has none."""
        from dl.link.addresses import thread_local_block  # noqa: PLC0415  as above

        return thread_local_block(module, self._groups.current())

    def path_for_guest(self, module: LinkedModule) -> str:
        """Return a module's path as the guest sees it; its base name if that is in none of the guest's directories."""
        path = module.image.path
        places = () if path is None else self.paths.places_of_host(str(path), "")
        return next((place.guest for place in places if place.guest), module.image.base_name)

    def location(self, address: int, kind: AddressKind | None) -> Location | None:
        """Return where an address belongs, for the calling thread; see `dl.link.addresses`.

        Args:
            address: a table index, or bytes.
            kind: which of these; None if that is not known.
        """
        from dl.link.addresses import data_at, function_at, location_of  # noqa: PLC0415  as above

        state, group = self._program.state, self._groups.current()
        if kind is AddressKind.FUNCTION:
            return function_at(state, address)
        return data_at(state, address, group) if kind else location_of(state, address, group)

    def is_side_module(self, handle: int) -> bool:
        """Whether a handle is that of a loaded library."""
        return self._program.state.is_side_module(handle)

    # functions made at run time

    @property
    def slots(self) -> SlotOperations:
        """The table indices whose functions are made at run time."""
        return self._slots()

    @property
    def base_comes_after_main(self) -> bool:
        """Whether the main module is instantiated before the base module, and so cannot import from it."""
        return not self._program.main.makes_table

    @property
    def reaches_table(self) -> bool:
        """Whether the table that the guest's pointers mean is one that the host can look into."""
        return self._program.engine.capabilities.table_reflection and self._program.main.reaches_table
