"""Everything that the guest's system interface needs of the linker; no other file of `dl.wasix` imports it.

All system functions work with a `System`, so the linker can change without any of them being touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from dl.dlfcn import ModuleHandle
from dl.glue.names import BASE_NAMESPACE
from dl.program.main_module import MainKind
from dl.program.side_memory import GrownMemory
from dl.wasix.limits import SystemLimits
from memory import round_up

if TYPE_CHECKING:
    from dl.engine.protocol import CompiledModule, WasiOptions
    from dl.linker import Linker
    from dl.modules.linked_module import LinkedModule
    from dl.program.wasi import WasiCalls
    from dl.wasix.process import Process
    from dl.wasm.types import FuncType
    from memory import LinearMemory
    from threads import FutexTable, Replica, Waits
    from threads.waiter import Waiter

Source: TypeAlias = "Linker"
"""What a `System` is made from."""

FIRST_THREAD = 1
"""Number of the program's first thread."""

LIBC_FIRST_THREAD = 0x3FFFFFFF
"""The number by which wasix-libc calls the first thread: its `struct pthread` has it before anybody asks for a number."""

_BLOCK_ALIGN_LOG2 = 4


class Group(Protocol):
    """One thread's instances of the program, as far as the guest's system interface needs them.

    Attributes:
        name: the thread's name in messages.
        replica: its part in the protocol between threads: state, waiter.
    """

    @property
    def name(self) -> str: ...  # noqa: D102  an attribute

    @property
    def replica(self) -> Replica[Any]: ...  # noqa: D102  an attribute

    def call_export(self, module: LinkedModule, name: str, kind: FuncType, *arguments: Any) -> Any:
        """Call an exported function of a module; only in the group's own thread."""

    def call_invoker(self, code: CompiledModule, *arguments: int) -> int:
        """Call the invoker of a signature; see `System.slots`. Only in the group's own thread."""

    def function_type(self, address: int) -> FuncType | None:
        """Return the signature of the function at a table index; None for null and beyond the table."""

    def table_length(self) -> int:
        """Elements of the thread's table."""


class Ended(Protocol):
    """An event that a thread of the guest can wait for."""

    def wait(self, waiter: Waiter) -> Any:
        """Wait until it is set; can be interrupted through the waiter."""


class Thread(Protocol):
    """A thread that the guest started.

    Attributes:
        id: its number.
        ended: set when it no longer runs any of the program.
    """

    @property
    def id(self) -> int: ...  # noqa: D102  an attribute

    @property
    def ended(self) -> Ended: ...  # noqa: D102  an attribute


class Slots(Protocol):
    """Table indices whose functions are made at run time; see `dl.program.closure_slots.ClosureSlots`. From any thread."""

    def __contains__(self, address: int) -> bool:
        """Whether a table index belongs to the pool, in use or not."""

    def allocate(self) -> int:
        """Hand out an index.

        Raises:
            ResourceLimitError: the table cannot grow.
        """

    def place(self, address: int, code: CompiledModule, first: int, second: int = 0) -> bool:
        """Place a trampoline, which keeps two numbers, at an index in every group; False if the index is not in use.

        Raises:
            InstantiationError: the engine refuses an instance.
        """

    def free(self, address: int) -> bool:
        """Take an index back, in every group; False if it is not in use."""

    def closure_code(self, kind: FuncType) -> CompiledModule:
        """Return the trampoline of a closure of a signature.

        Raises:
            InvalidModuleError: the engine refuses the signature.
        """

    def invoker_code(self, kind: FuncType) -> CompiledModule | None:
        """Return the trampoline that calls functions of a signature dynamically; None without a memory to pass it values."""


class System:
    """The linker as one program's system interface sees it.

    Any thread may call any of it, except where a method names the calling thread.

    Args:
        linker: what it delegates to. Most of it is read only when it is asked for: the main module and its memory come later.

    Attributes:
        process: the program's process; set once, by `dl.wasix.system_interface`.
    """

    process: Process

    def __init__(self, linker: Source) -> None:
        self._linker = linker

    # memory

    @property
    def memory(self) -> LinearMemory:
        """The program's linear memory.

        Raises:
            LinkerUsageError: the program has none that the host can reach.
            LinkerClosedError: the linker is closed.
        """
        return self._linker.memory

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
        source = self._linker.program.side_memory
        if not isinstance(source, GrownMemory):
            return None
        alignment = 1 << _BLOCK_ALIGN_LOG2
        return source.allocate(round_up(size, alignment), _BLOCK_ALIGN_LOG2, purpose).address

    # the program

    @property
    def main_module(self) -> LinkedModule | None:
        """The main module, also while it is being loaded; None without one."""
        return self._linker.main_module

    @property
    def ended(self) -> BaseException | None:
        """What ended the program; None while it runs."""
        return self._linker.ended

    def end(self, reason: BaseException) -> None:
        """End the program: every thread in it raises `reason` at its next safe point or wait; the first call counts."""
        self._linker.end(reason)

    # WASI

    @property
    def wasi(self) -> WasiCalls | None:
        """The engine's WASI; None until a main module that defines the memory is instantiated."""
        return self._linker.program.wasi

    @property
    def wasi_options(self) -> WasiOptions:
        """Arguments, directories and standard streams that the host gave the program."""
        return self._linker.program.wasi_options

    @property
    def default_files(self) -> bool:
        """Whether the program finds `/dev/null` and the like."""
        return self._linker.default_files.wanted

    @property
    def limits(self) -> SystemLimits:
        """What the program may take of the host."""
        return SystemLimits()

    # threads

    @property
    def waits(self) -> Waits:
        """Every wait of the program's threads."""
        return self._linker.threads.waits

    @property
    def futexes(self) -> FutexTable:
        """Waits at addresses of linear memory."""
        return self._linker.threads.futexes

    def current_group(self) -> Group:
        """Return the calling thread's group.

        Raises:
            LinkerUsageError: it has none.
        """
        return self._linker.threads.current()

    def find_group(self) -> Group | None:
        """Return the calling thread's group; None if it has none."""
        return self._linker.threads.find()

    def group(self, number: int) -> Group | None:
        """Return the group of the thread that has a number; None if there is no such thread.

        Args:
            number: as `thread_id` returns it, or `LIBC_FIRST_THREAD`.
        """
        return self._linker.threads.group(FIRST_THREAD if number == LIBC_FIRST_THREAD else number)

    def all_groups(self) -> list[Group]:
        """Return the groups that exist now."""
        return [*self._linker.threads.all()]

    def thread_id(self) -> int:
        """Return the calling thread's number; the first thread's is `FIRST_THREAD`."""
        return self._linker.threads.thread_id()

    def guest(self, number: int) -> Thread | None:
        """Return a running thread that the guest started, by its number; None if there is no such thread."""
        return self._linker.threads.guest(number)

    @property
    def shares_memory(self) -> bool:
        """Whether the program can have more than one thread."""
        return self._linker.program.shares_memory

    def spawn_guest(self, start: int, *, stack_pointer: int, main_tls: int | None) -> Thread:
        """Start a thread for the guest; return when its group exists, before it runs any of the program.

        Args:
            start: address of what the thread's start function gets.
            stack_pointer: upper end of its shadow stack, bytes.
            main_tls: its block of the main module's thread-local storage, bytes; None to allocate one.

        Raises:
            LinkerUsageError: the main module exports no `wasi_thread_start`, or there are too many threads.
            DlError: the group could not be made.
            RuntimeError: the host cannot start a thread.
        """
        return self._linker.threads.spawn_guest(start, stack_pointer=stack_pointer, main_tls=main_tls)

    def in_link_operation(self, group: Group) -> bool:
        """Whether the calling thread, which owns a group, is applying a link operation to it.

        Guest code that runs then (a start function) belongs to the operation, whose locks may be held: nothing else of the
        guest's may run in between.
        """
        return group.replica.replaying or self._linker.rendezvous._turn.held_by_caller()  # noqa: SLF001

    # interruption

    @property
    def can_interrupt(self) -> bool:
        """Whether a thread that computes can be interrupted."""
        return self._linker.engine.capabilities.interrupts

    def interrupt(self) -> None:
        """Make every thread that computes look for what it was interrupted for, soon."""
        self._linker.engine.interrupt()

    # linking

    def check_dynamic(self) -> None:
        """Check that the program can take libraries.

        Raises:
            NotDynamicError: it cannot; says why.
        """
        self._linker.check_dynamic()

    def open_library(self, name: str, search: str) -> ModuleHandle:
        """Load a library for the calling thread's guest; return its handle.

        Args:
            name: its path, as the guest sees it, or its bare name.
            search: the guest's LD_LIBRARY_PATH.

        Raises:
            DlError: it could not be loaded.
        """
        return self._linker.open_for_guest(name, search)

    def address_of_symbol(self, handle: int, name: str) -> int:
        """Return a symbol's address for the calling thread's guest: a table index, or bytes in linear memory.

        Args:
            handle: the module to look in, and in no other; 0 for the global scope.
            name: the symbol.

        Raises:
            DlError: there is no such symbol or module.
        """
        return self._linker.address_for_guest(handle, name)

    def is_side_module(self, handle: int) -> bool:
        """Whether a handle is that of a loaded library."""
        return self._linker.is_side_module(handle)

    # functions made at run time

    @property
    def slots(self) -> Slots:
        """The table indices whose functions are made at run time."""
        return self._linker.closures

    @property
    def base_comes_after_main(self) -> bool:
        """Whether the main module is instantiated before the base module, and so cannot import from it."""
        return self._linker.program.base_comes_after_main

    @property
    def reaches_table(self) -> bool:
        """Whether the table that the guest's pointers mean is one that the host can look into."""
        plan, main = self._linker.program.plan, self._linker.main_module
        if plan.kind is not MainKind.STATIC or plan.places.table.namespace != BASE_NAMESPACE:
            return True
        return main is not None and any(entry.kind == "table" for entry in main.wasm.imports)
