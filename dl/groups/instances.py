"""One group's store, with an instance of every linked module, and how link operations change it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dl.dlfcn import MAIN_HANDLE, ModuleHandle
from dl.errors import (
    InitializationError,
    InstantiationError,
    ResourceLimitError,
    SymbolNotFoundError,
    TrapError,
)
from dl.glue.base import (
    CALL_POINTER,
    CALL_POINTER_TYPE,
    CALL_POINTER_WITH,
    CALL_POINTER_WITH_TYPE,
    CLEAR_TABLE,
    CLEAR_TABLE_TYPE,
    ENSURE_TABLE,
    ENSURE_TABLE_TYPE,
    GET_STACK_POINTER,
    GET_STACK_POINTER_TYPE,
    GET_TABLE_SIZE,
    GET_TABLE_SIZE_TYPE,
    SET_STACK_POINTER,
    SET_STACK_POINTER_TYPE,
)
from dl.glue.imports import SET_HANDLE
from dl.glue.names import (
    ADDRESS_TO_NOTHING,
    BASE_NAMESPACE,
    EXCEPTION_TAG_NAMES,
    LINK_NAMESPACE,
    MEMORY_BASE,
    TABLE_BASE,
    TABLE_NAME,
    base_namespace,
    glue_namespace,
    module_namespace,
)
from dl.glue.placement import BIND_THREAD_LOCALS, INIT_THREAD
from dl.glue.table_reader import READ_TABLE
from dl.groups.closed_functions import ClosedFunctions
from dl.groups.externals import GroupExternals
from dl.groups.slot_functions import SlotFunctions
from dl.groups.thread_locals import ThreadLocals
from dl.modules.linked_module import LinkedModule
from dl.modules.source_lines import source_lines
from dl.modules.symbols import (
    PLACE,
    DataSymbol,
    FunctionSymbol,
    Symbol,
    TlsSymbol,
    exported_tags,
    places_itself,
)
from dl.program.guest_wasi import StoreWasi
from dl.program.limbo import Subject, Visitor
from dl.program.operations import (
    HoldIndices,
    Instantiate,
    LoadModules,
    MakeGlobal,
    SetSlot,
    ShareMemory,
    UnloadModules,
)
from dl.program.program import Program
from dl.wasm.types import FuncType
from memory import Block

if TYPE_CHECKING:
    from dl.engine.protocol import CompiledModule, EngineInstance, StackProfiler
    from dl.groups.cxx_exceptions import CxxExceptions


class Instances:
    """The engine's side of one group. Used by the thread that owns the group.

    Its contents change only by operations, in the order of the operation log (see `dl.program.operations`).

    Args:
        program: what all groups share.
        name: the group's, for fault injection.
        visitor: its thread's presence in guest code.
        stack_pointer: upper end of the thread's shadow stack, bytes; None for the main module's own.
        main_tls: where the main module's thread-local block of this thread is, bytes; None to allocate one.

    Attributes:
        first: whether an operation is applied as its instigator does, before any other group.
        stack_top: upper end of the thread's shadow stack, bytes; None while it has none.
        externals: its instances and externals that are objects of the user's.
        wasi: what the thread answers of WASI by itself; None for nothing.
    """

    def __init__(
        self,
        program: Program,
        name: str,
        visitor: Visitor,
        *,
        stack_pointer: int | None,
        main_tls: int | None,
    ) -> None:
        self._program = program
        self._name = name
        self._visitor = visitor
        self.first = False
        self.stack_top = stack_pointer
        self._thread_locals = ThreadLocals(program, main_tls)
        self._by_handle: dict[ModuleHandle, EngineInstance] = {}
        # What was on the stack when it was forgotten, and its code.
        self._inside: dict[Subject, list[CompiledModule]] = {}
        self._base: EngineInstance | None = None
        # Made when they are first called: most threads' groups are never asked.
        self._table_size: Callable[[], int] | None = None
        self._get_stack_pointer: Callable[[], int] | None = None
        self._store = program.new_store()
        self._slots = SlotFunctions(self._store)
        self.externals = GroupExternals(self._store)
        self._closed_functions = ClosedFunctions(self._store)
        self._exceptions: CxxExceptions | None = None
        self.wasi: StoreWasi | None = None
        try:
            if program.guest_wasi is not None:
                self.wasi = program.guest_wasi.in_store(self._store)
            if program.main.makes_table:
                self._define_base()
        except BaseException:
            self._store.close()
            raise

    def on_interrupt(self, handler: Callable[[], None]) -> None:
        """Set what runs in guest code, in the group's thread, after the engine is interrupted."""
        self._store.on_interrupt(handler)

    def count_for_reserve(self) -> None:
        """Count the group for the reserve of thread-local blocks until it is closed; under the link lock."""
        self._thread_locals.count()

    def close(self) -> None:
        """Free the store and the thread-local blocks; idempotent. No call into the guest may be under way."""
        self._by_handle.clear()
        self._base = None
        self.externals = GroupExternals(self._store)
        if self.wasi is not None:
            self.wasi.close()
        self._store.close()
        self._thread_locals.free_all()

    # what operations do; see `OperatedInstances`

    def load(self, operation: LoadModules) -> None:
        """Instantiate modules and place their functions.

        Raises:
            InstantiationError: the engine refuses an instance.
            InitializationError: a start function or the set-up of thread-local storage trapped.
            ResourceLimitError: the table cannot grow.
        """
        checkpoint = self._program.checkpoint
        checkpoint("table", self._name)
        # Of libraries whose rest ended while this group was absent.
        self._clear_table(self._closed_functions.taken(operation.table_indices()))
        if self._base is not None:
            self.grow_table(operation.table_length)
        for module in operation.based:
            self._define_bases(module)
        for module in operation.modules:
            checkpoint("instantiate", self._name)
            if module.handle != MAIN_HANDLE and not self.stack_top:
                self._make_side_stack()
            try:
                self._instantiate(module, keep_glue=module.handle in operation.keeps_glue)
            except TrapError as error:
                raise InitializationError(module.name, "instantiation", error) from error
            except InstantiationError as error:
                raise InstantiationError(module.name, error.reason) from error
            if module.handle == MAIN_HANDLE:
                self._main_instantiated(operation)
            if module.first_placed is not None and places_itself(module.wasm):
                # Before the next module, whose imports may be taken from the table.
                self._by_handle[module.handle].function(PLACE, ADDRESS_TO_NOTHING)(module.first_placed)
        checkpoint("place", self._name)
        if operation.placement is not None:
            name = f"{operation.modules[-1].name if operation.modules else 'host'} (placement)"
            self._set_up_thread_locals(operation, self._store.instantiate(operation.placement, name))

    def unload(self, operation: UnloadModules) -> None:
        """Clear modules' table elements and forget their instances."""
        self._program.checkpoint("clear", self._name)
        self._clear_table(operation.table_runs)
        if self._visitor.is_outside_guest:
            inside = False
            self._inside.clear()
        else:
            code = [module.code for module in operation.modules if module.code is not None]
            inside = self._store.runs(code)
            if inside:
                self._inside[operation.subject] = code  # before it is forgotten: other threads ask
        self.forget(operation.modules, operation.subject, inside=inside)
        if operation.indices is not None:
            self.hold_indices(operation.indices)

    def hold_indices(self, operation: HoldIndices) -> None:
        """Place functions at the table indices of closed libraries, and null where such a function no longer stands.

        Raises:
            ResourceLimitError: the table cannot grow.
        """
        closed = self._closed_functions
        if closed.version == operation.version - 1:
            functions = list(operation.begun)
            cleared = closed.taken(
                index for start, count in operation.cleared for index in range(start, start + count)
            )
        else:
            # The group was absent at other closes, and may never have loaded the libraries.
            functions, cleared = closed.difference(operation.functions)
        self._clear_table(cleared)
        if functions:
            self.grow_table(max(library.end for library in functions))
            closed.place(functions)
        closed.version = operation.version

    def grow_table(self, length: int) -> None:
        """Make the table have at least this many elements.

        Raises:
            ResourceLimitError: the engine refuses.
        """
        if self._ensure_table(length):
            raise ResourceLimitError("the program", f"the engine refuses a table of {length} elements")

    def set_slot(self, operation: SetSlot) -> None:
        """Place a trampoline at a table index, or null.

        Raises:
            InstantiationError: the engine refuses an instance.
        """
        self._closed_functions.taken((operation.address,))
        if operation.code is None:
            self._clear_table(((operation.address, 1),))
            self._slots.forget(operation.address)
        else:
            self._slots.set(operation)

    def instantiate(self, operation: Instantiate) -> None:
        """Instantiate a module that is no library; see `GroupExternals.instantiate`."""
        self._program.checkpoint("instantiate", self._name)
        self.externals.instantiate(operation)

    def make_global(self, operation: MakeGlobal) -> None:
        """Make a global of the host's; see `GroupExternals.make_global`."""
        self.externals.make_global(operation)

    def share_memory(self, operation: ShareMemory) -> None:
        """Make a shared memory of the host's importable."""
        self.externals.share_memory(operation)

    def may_run(self, subject: Subject) -> bool:
        """Return whether code of some modules may be on this thread's stack; from any thread. See `dl.program.limbo`."""
        return subject in self._inside or any(handle in self._by_handle for handle in subject)

    def look_again(self, subject: Subject) -> None:
        """See whether modules that were on this thread's stack when it forgot them still are; in its own thread."""
        code = self._inside.get(subject)
        if code is not None and not self._store.runs(code):
            del self._inside[subject]

    def new_profiler(self) -> StackProfiler:
        """Return what takes samples of this thread's stack, in the modules that it has now.

        Raises:
            EngineError: the engine cannot.
        """
        return self._store.new_profiler()

    def forget(
        self, modules: tuple[LinkedModule, ...], subject: Subject | None = None, *, inside: bool = True
    ) -> None:
        """Drop the instances and thread-local blocks of modules, without touching the table.

        Args:
            modules: what goes.
            subject: what `may_run` knows them by; None if it does not.
            inside: whether a function of theirs may be on this thread's stack.
        """
        for module in modules:
            self._by_handle.pop(module.handle, None)
            release = self._thread_locals.take(module.handle)
            if release is not None:
                self._program.limbo.hold([self._visitor] if inside else [], release, subject)

    def _define_base(self) -> None:
        """Instantiate the base module; the table and memory that it needs exist."""
        self._base = self._store.instantiate(self._program.base_code(), "base")
        self._store.define_instance(BASE_NAMESPACE, self._base)
        for name in EXCEPTION_TAG_NAMES if self._program.engine.capabilities.exceptions else ():
            self._store.name_tag(self._base, name)
        self._store.describe_exceptions(self._described_exception)
        if self._program.engine.capabilities.import_lists:
            self._store.read_table_by(self._base, TABLE_NAME, None)
        self._ensure_table = self._base.function(ENSURE_TABLE, ENSURE_TABLE_TYPE)
        self._set_stack_pointer = self._base.function(SET_STACK_POINTER, SET_STACK_POINTER_TYPE)
        if self.stack_top is None:
            self.stack_top = self.stack_pointer()
        else:
            self._set_stack_pointer(self.stack_top)
        waits = self._program.waits_code()
        if waits is not None:
            self.grow_table(self._program.main.table_length)
            self._store.instantiate(waits, "waits")

    def _described_exception(self, tag: str | None, value: int | None) -> tuple[str, str | None] | None:
        if self._exceptions is None:
            from dl.groups.cxx_exceptions import CxxExceptions  # noqa: PLC0415  most programs end without

            self._exceptions = CxxExceptions(self._store, self._program)
        return self._exceptions.described(tag, value)

    def _define_bases(self, module: LinkedModule) -> None:
        """Say to generated code where a library is."""
        if module.handle == MAIN_HANDLE:
            return  # it is where it is
        namespace = base_namespace(module.seat)
        if module.block is not None:
            self._store.define_number(namespace, MEMORY_BASE, module.block.address)
        if module.elements is not None:
            self._store.define_number(namespace, TABLE_BASE, module.elements.address)

    def _instantiate(self, module: LinkedModule, *, keep_glue: bool) -> None:
        assert module.code is not None
        glue = None
        if module.import_code is not None:
            glue = self._store.instantiate(module.import_code, f"{module.name} (imports)")
            if module.import_list is None:
                self._store.define_instance(LINK_NAMESPACE, glue)
            if module.told_handle:
                glue.function(SET_HANDLE, ADDRESS_TO_NOTHING)(module.handle)
            if keep_glue:
                self._store.define_instance(glue_namespace(module.seat), glue)
        lines = source_lines(module.wasm)
        if lines is not None:
            self._store.find_lines(module.code, lines)
        if module.import_list is None:
            instance = self._store.instantiate(module.code, module.name)
        else:
            if self._store.lacks_reader(module.import_list):
                reader = self._store.instantiate(self._program.table_reader_code(), "table reader")
                self._store.read_table_by(reader, TABLE_NAME, READ_TABLE)
            instance = self._store.instantiate_listed(module.code, module.name, module.import_list, glue)
        self._store.offer_instance(module_namespace(module.seat), instance)
        for name in exported_tags(module.wasm):
            self._store.name_tag(instance, name)
        self._by_handle[module.handle] = instance

    def _main_instantiated(self, operation: LoadModules) -> None:
        """Take what the main module brings: its memory, and then its table, which the base module needs."""
        self._program.adopt_memory(self._store, self._by_handle[MAIN_HANDLE])
        if self._base is None:
            self._define_base()
            self.grow_table(operation.table_length)

    def _make_side_stack(self) -> None:
        """Give side modules a stack of their own, if the main module does not share its stack pointer.

        Raises:
            ResourceLimitError: there is no memory for it.
            LinkerUsageError: it would have to come from the main module's allocator.
        """
        if self._program.main.stack_size is not None and self._base is not None:
            self.stack_top = self._program.side_stack_pointer()
            self._set_stack_pointer(self.stack_top)

    def _set_up_thread_locals(self, operation: LoadModules, placement: EngineInstance) -> None:
        addresses = [
            self._thread_locals.block(module, self._by_handle[module.handle], first=self.first)
            for module in operation.thread_local
        ]
        if addresses:
            self._program.checkpoint("thread-local", self._name)
            placement.function(INIT_THREAD, FuncType(("i32",) * len(addresses), ()))(*addresses)
        elif operation.binds_thread_locals:
            placement.function(BIND_THREAD_LOCALS, FuncType((), ()))()

    def _clear_table(self, runs: Sequence[tuple[int, int]]) -> None:
        """Set runs of table elements to null; what this group's table does not reach is null already."""
        if self._base is None or not runs:
            return
        clear = self._base.function(CLEAR_TABLE, CLEAR_TABLE_TYPE)
        length = self.table_length()
        for start, count in runs:
            if start < length:
                clear(start, min(count, length - start))

    # what there is

    def thread_local_blocks(self) -> dict[ModuleHandle, Block]:
        """Return the thread-local blocks that the linker has given the group, by module. From any thread."""
        return self._thread_locals.blocks()

    def stack_pointer(self) -> int | None:
        """Return the shadow stack pointer, bytes; None while there is none."""
        if self._base is None:
            return None
        if self._get_stack_pointer is None:
            self._get_stack_pointer = self._base.function(GET_STACK_POINTER, GET_STACK_POINTER_TYPE)
        return int(self._get_stack_pointer())

    def set_stack_pointer(self, address: int | None) -> None:
        """Set the shadow stack pointer, bytes; None for the upper end of the stack."""
        if address is None:
            address = self.stack_top
        if address is not None and self._base is not None:
            self._set_stack_pointer(address)

    def holds(self, handle: ModuleHandle) -> bool:
        """Whether this group has an instance of a module."""
        return handle in self._by_handle

    def function(self, handle: ModuleHandle, name: str, kind: FuncType) -> Callable[..., Any]:
        """Return an exported function of a module, as a callable that does not bring the group up to date.

        Raises:
            KeyError: no such module is here, or it exports no such function.
        """
        return self._by_handle[handle].function(name, kind)

    def invoker(self, code: CompiledModule) -> Callable[..., int]:
        """Return the invoker of a signature; see `dl.glue.trampolines.invoker_module`."""
        return self._slots.invoker(code)

    def call_pointer(self, address: int, argument: int | None) -> None:
        """Call the function at a table index: of type `() -> ()`, or `(i32) -> ()` with an argument."""
        assert self._base is not None
        if argument is None:
            self._base.function(CALL_POINTER, CALL_POINTER_TYPE)(address)
        else:
            self._base.function(CALL_POINTER_WITH, CALL_POINTER_WITH_TYPE)(address, argument)

    def address_of(self, symbol: Symbol) -> int:
        """Return a symbol's address: a table index, or bytes in linear memory as this thread sees it.

        Raises:
            SymbolNotFoundError: it has none.
        """
        if isinstance(symbol, (FunctionSymbol, DataSymbol)):
            return symbol.address
        if isinstance(symbol, TlsSymbol):
            try:
                base = self._by_handle[symbol.module].global_value("__tls_base")
            except KeyError:
                raise SymbolNotFoundError(
                    symbol.name, (), "thread-local, but its module exports no __tls_base"
                ) from None
            return base + symbol.offset
        raise SymbolNotFoundError(symbol.name, (), "neither a function nor data")

    def table_length(self) -> int:
        """Elements of this group's table."""
        assert self._base is not None
        if self._table_size is None:
            self._table_size = self._base.function(GET_TABLE_SIZE, GET_TABLE_SIZE_TYPE)
        return int(self._table_size())

    def function_type(self, address: int) -> FuncType | None:
        """Return the signature of the function that a table index holds now; None for null and beyond the table.

        A type that is neither a number nor a vector is named by some text in parentheses.
        """
        assert self._base is not None
        return self._store.function_type(self._base, TABLE_NAME, address)

    def table(self) -> list[object]:
        """Return what the table holds: None, or a value that is equal for the same function in every group.

        Without the null elements at its end: a group that has undone a load of its own, or missed one that was undone,
        may have more of them or fewer.
        """
        assert self._base is not None
        entries = [self._store.table_entry(self._base, TABLE_NAME, i) for i in range(self.table_length())]
        while entries and entries[-1] is None:
            entries.pop()
        return entries
