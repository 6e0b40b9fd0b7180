"""Instance groups: one thread's store, with an instance of every linked module."""

from __future__ import annotations

import os
from collections.abc import Callable
from threading import get_ident
from typing import TYPE_CHECKING, Any

from dl.dlfcn import MAIN_HANDLE, DlFlags, ModuleHandle
from dl.engine.protocol import CompiledModule, EngineInstance
from dl.errors import (
    InitializationError,
    InstantiationError,
    LinkerClosedError,
    LinkerUsageError,
    ResourceLimitError,
    SymbolNotFoundError,
    TrapError,
)
from dl.glue.base import (
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
from dl.glue.names import (
    BASE_NAMESPACE,
    EXCEPTION_TAG_NAMES,
    LINK_NAMESPACE,
    TABLE_NAME,
    glue_namespace,
    module_namespace,
)
from dl.glue.placement import BIND_THREAD_LOCALS, INIT_THREAD
from dl.groups.errors import raises_dl_errors
from dl.groups.slot_functions import SlotFunctions
from dl.groups.thread_locals import ThreadLocals
from dl.groups.threads import NO_THREAD
from dl.guest_values import GuestData, GuestFunction
from dl.modules.linked_module import LinkedModule
from dl.modules.symbols import DataSymbol, FunctionSymbol, Symbol, TagSymbol, TlsSymbol
from dl.options import ModuleSource
from dl.program.operations import DlOperation, GrowTable, LoadModules, SetSlot, UnloadModules
from dl.wasm.types import FuncType
from threads import DETACHED, Replica

if TYPE_CHECKING:
    from dl.linker import Linker

_RED_ZONE_BYTES = 128
"""What LLVM lets a function use below the stack pointer without moving it (WebAssemblyFrameLowering, RedZoneSize)."""


class InstanceGroup:
    """One thread's instances of every linked module.

    Owned by the thread that made it; only that thread calls into it. Its contents change only by operations, in the order
    of the operation log.

    Args:
        linker: the program.
        name: the thread's name in messages.
        stack_pointer: upper end of the thread's shadow stack, bytes; None for the main module's own.
        main_tls: where the main module's thread-local block of this thread is, bytes; None to allocate one.

    Attributes:
        replica: this group's part in the protocol.
        owner: identity of the owning thread; 0 when closed.
    """

    def __init__(
        self, linker: Linker, name: str, *, stack_pointer: int | None = None, main_tls: int | None = None
    ) -> None:
        self.linker = linker
        self.name = name
        self.owner = get_ident()
        self.replica: Replica[DlOperation] = Replica(name, self._replay)
        self._program = linker.program
        self._stack_pointer = stack_pointer
        self._first = False
        self._thread_locals = ThreadLocals(self._program, main_tls)
        self._instances: dict[ModuleHandle, EngineInstance] = {}
        self._base: EngineInstance | None = None
        self._functions: dict[int, GuestFunction] = {}
        self._store = self._program.new_store()
        self._slots = SlotFunctions(self._store)
        try:
            if not self._program.base_comes_after_main:
                self._define_base()
            # Not before: the replica has not joined, and an interrupt that is meant for other threads would end it here.
            if linker.engine.capabilities.interrupts:
                self._store.on_interrupt(self._interrupted)
        except BaseException:
            self._store.close()
            raise

    def _interrupted(self) -> None:
        """A safe point inside guest code: let operations be applied, and signals be handled.

        Raises:
            BaseException: the guest must be unwound.
        """
        self.replica.safe_point()
        signals = self.linker.process.signals
        if self._base is None or not signals.pending(self):
            return
        # The interrupted function may use the red zone below the stack pointer, if it calls nothing.
        pointer = self._base.function(GET_STACK_POINTER, GET_STACK_POINTER_TYPE)()
        self._set_stack_pointer(pointer - _RED_ZONE_BYTES)
        self.replica.enter_host()
        signals.deliver()
        self.replica.exit_host()
        self._set_stack_pointer(pointer)

    def refuse_entry(self) -> None:
        """Say why the calling thread may not enter this group's guest code.

        Raises:
            LinkerUsageError: always.
        """
        if not self.owner:
            raise LinkerClosedError(f"instance group {self.name!r} is closed")
        raise LinkerUsageError(
            f"instance group {self.name!r} belongs to another thread; use Linker.attach() to give this one its own"
        )

    def stack_pointer(self) -> int | None:
        """Return the shadow stack pointer, bytes; None while there is none."""
        return None if self._base is None else int(self._get_stack_pointer())

    def unwound(self, stack_pointer: int | None) -> None:
        """Set the shadow stack pointer right after a guest call that ended by an exception.

        Guest functions lower it at their start and raise it at their end, which an exception skips. A guest function
        around an inner call cannot be relied on to set its own: one without a frame does not.

        Args:
            stack_pointer: what it was before an inner call; None for the thread's outermost call, where it is known.
        """
        if stack_pointer is None:
            stack_pointer = self._stack_pointer
        if stack_pointer is not None and self.owner and self._base is not None:
            self._set_stack_pointer(stack_pointer)

    # what the program is made of

    def apply_first(self, operation: DlOperation) -> None:
        """Make an operation's change as its instigator, before any other group.

        Raises:
            InstantiationError: the engine refuses an instance.
            InitializationError: a start function or the set-up of thread-local storage trapped.
            ResourceLimitError: the table cannot grow.
        """
        previous = self.replica.enter_guest()
        self._first = True
        try:
            self._apply(operation)
        finally:
            self._first = False
            self.replica.leave_guest(previous)

    def _replay(self, _sequence: int, operation: DlOperation) -> None:
        if isinstance(operation, LoadModules):
            module = operation.modules[0]
            if not module.residence.enter():
                return  # unloaded since; its unload follows in the log
            try:
                self._apply(operation)
            finally:
                module.residence.leave()
        else:
            self._apply(operation)

    def _apply(self, operation: DlOperation) -> None:
        if isinstance(operation, LoadModules):
            self._load(operation)
        elif isinstance(operation, UnloadModules):
            self._unload(operation)
        elif isinstance(operation, GrowTable):
            self._grow_table(operation.table_length)
        elif not operation.superseded:
            self.set_slot(operation)

    def set_slot(self, operation: SetSlot) -> None:
        """Let a table index of this group hold what an operation says.

        Raises:
            InstantiationError: the engine refuses an instance.
        """
        if operation.code is None:
            self._clear_table(((operation.address, 1),))
            self._slots.forget(operation.address)
        else:
            self._slots.set(operation)

    def _define_base(self) -> None:
        """Instantiate the base module; the table and memory that it needs exist."""
        self._base = self._store.instantiate(self._program.base_code(), "base")
        self._store.define_instance(BASE_NAMESPACE, self._base)
        for name in EXCEPTION_TAG_NAMES if self._program.engine.capabilities.exceptions else ():
            self._store.name_tag(self._base, name)
        self._ensure_table = self._base.function(ENSURE_TABLE, ENSURE_TABLE_TYPE)
        self._table_size = self._base.function(GET_TABLE_SIZE, GET_TABLE_SIZE_TYPE)
        self._set_stack_pointer = self._base.function(SET_STACK_POINTER, SET_STACK_POINTER_TYPE)
        self._get_stack_pointer = self._base.function(GET_STACK_POINTER, GET_STACK_POINTER_TYPE)
        if self._stack_pointer is None:
            self._stack_pointer = self.stack_pointer()
        else:
            self._set_stack_pointer(self._stack_pointer)
        waits = self._program.waits_code()
        if waits is not None:
            self._grow_table(self._program.plan.table_length)
            self._store.instantiate(waits, "waits")

    def _load(self, operation: LoadModules) -> None:
        self.linker.threads.checkpoint(self, "table")
        if self._base is not None:
            self._grow_table(operation.table_length)
        for module in operation.modules:
            self.linker.threads.checkpoint(self, "instantiate")
            try:
                self._instantiate(module, keep_glue=module.handle in operation.keeps_glue)
            except TrapError as error:
                raise InitializationError(module.name, "instantiation", error) from error
            except InstantiationError as error:
                raise InstantiationError(module.name, error.reason) from error
            if module.handle == MAIN_HANDLE and self._program.plan.memory_export is not None:
                self._program.main_instantiated(self._store, self._instances[MAIN_HANDLE])
                if self._base is not None:
                    self._stack_pointer = self._program.side_stack_pointer()
                    self._base.function(SET_STACK_POINTER, SET_STACK_POINTER_TYPE)(self._stack_pointer)
            if module.handle == MAIN_HANDLE and self._base is None:
                self._define_base()
                self._grow_table(operation.table_length)
        self.linker.threads.checkpoint(self, "place")
        if operation.placement is not None:
            self._set_up_thread_locals(operation, self._store.instantiate(operation.placement, "placement"))

    def _instantiate(self, module: LinkedModule, *, keep_glue: bool) -> None:
        assert module.code is not None
        if module.import_code is not None:
            glue = self._store.instantiate(module.import_code, f"{module.name} (imports)")
            self._store.define_instance(LINK_NAMESPACE, glue)
            if keep_glue:
                self._store.define_instance(glue_namespace(module.handle), glue)
        instance = self._store.instantiate(module.code, module.name)
        self._store.define_instance(module_namespace(module.handle), instance)
        for name, symbol in module.symbols.items() if module.wasm.tags else ():
            if isinstance(symbol, TagSymbol):
                self._store.name_tag(instance, name)
        self._instances[module.handle] = instance

    def _set_up_thread_locals(self, operation: LoadModules, placement: EngineInstance) -> None:
        addresses = [
            self._thread_locals.block(module, self._instances[module.handle], first=self._first)
            for module in operation.thread_local
        ]
        if addresses:
            self.linker.threads.checkpoint(self, "thread-local")
            placement.function(INIT_THREAD, FuncType(("i32",) * len(addresses), ()))(*addresses)
        elif operation.binds_thread_locals:
            placement.function(BIND_THREAD_LOCALS, FuncType((), ()))()

    def _grow_table(self, length: int) -> None:
        if self._ensure_table(length):
            raise ResourceLimitError("the program", f"the engine refuses a table of {length} elements")

    def _unload(self, operation: UnloadModules) -> None:
        self.linker.threads.checkpoint(self, "clear")
        self._clear_table(operation.table_runs)
        self._drop(operation)

    def _drop(self, operation: UnloadModules) -> None:
        for module in operation.modules:
            self._instances.pop(module.handle, None)
            self._thread_locals.free(module.handle)
            for address in [a for a, f in self._functions.items() if f.module == module.handle]:
                del self._functions[address]

    def _clear_table(self, runs: tuple[tuple[int, int], ...]) -> None:
        """Set runs of table elements to null; what this group's table does not reach is null already."""
        if self._base is None:
            return
        clear = self._base.function(CLEAR_TABLE, CLEAR_TABLE_TYPE)
        length = self.table_length()
        for start, count in runs:
            if start < length:
                clear(start, min(count, length - start))

    def forget(self, modules: list[LinkedModule]) -> None:
        """Drop what a failed load has instantiated here; no other group has seen it."""
        runs = tuple((m.elements.address, m.elements.size) for m in modules if m.elements is not None)
        operation = UnloadModules(tuple(modules), runs)
        try:
            previous = self.replica.enter_guest()
        except BaseException:  # noqa: BLE001  the program has ended, so nobody runs what the table holds
            self._drop(operation)
            return
        try:
            self._unload(operation)
        finally:
            self.replica.leave_guest(previous)

    def table_length(self) -> int:
        """Elements of this group's table."""
        assert self._base is not None
        return int(self._table_size()) & 0xFFFFFFFF

    def call_invoker(self, code: CompiledModule, *arguments: int) -> int:
        """Call the invoker of a signature; see `dl.glue.trampolines.invoker_module`."""
        return int(self.in_guest(self._slots.invoker(code), *arguments))

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

        Raises:
            LinkerUsageError: the engine cannot look into tables.
        """
        engine = self._program.engine
        if not engine.capabilities.table_reflection:
            raise LinkerUsageError(f"engine {engine.name} lacks table reflection")
        self.synchronize()
        assert self._base is not None
        entries = [self._store.table_entry(self._base, TABLE_NAME, i) for i in range(self.table_length())]
        while entries and entries[-1] is None:
            entries.pop()
        return entries

    @raises_dl_errors
    def synchronize(self) -> None:
        """Make all committed operations in this group now; by itself it does so before it next runs guest code.

        Raises:
            ReplayFailedError: one of them failed; the group has ended.
            GroupEndedError: the group has ended before.
            LinkerUsageError: called from another thread.
        """
        if self.owner != get_ident():
            self.refuse_entry()
        self.replica.synchronize()

    def call_export(self, module: LinkedModule, name: str, kind: FuncType, *arguments: Any) -> Any:
        """Call an exported function of a module by name, symbol or not.

        Raises:
            SymbolNotFoundError: the module exports no such function of this signature.
        """
        export = module.wasm.exports.get(name)
        if export is None or export.type != kind:
            raise SymbolNotFoundError(name, [module.name])
        self.synchronize()
        function = self._instances[module.handle].function(name, kind)
        return self.in_guest(function, *arguments)

    @raises_dl_errors
    def in_guest(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function of this group's store, up to date; what every call into the guest does."""
        previous = self.replica.enter_guest()
        try:
            stack_pointer = None if previous == DETACHED else self.stack_pointer()
            try:
                return function(*arguments)
            except BaseException:
                self.unwound(stack_pointer)
                raise
        finally:
            self.replica.leave_guest(previous)

    # the API

    @raises_dl_errors
    def dlopen(
        self,
        library: ModuleSource,
        flags: int = DlFlags.NOW,
        *,
        name: str | None = None,
        library_path: list[str | os.PathLike[str]] | None = None,
    ) -> ModuleHandle:
        """Load a shared library and all it needs into the program, or find it loaded.

        Args:
            library: its path or bare name, searched like ld.so does, or its bytes.
            flags: `RTLD_NOW` or `RTLD_LAZY`, and others of `DlFlags`.
            name: for bytes, the name by which they are known: opening the same name again gives the same module, and
                the needed lists of other modules find it.
            library_path: directories to search before those of the linker.

        Returns:
            Its handle. Its constructors have run.

        Raises:
            DlError: it could not be loaded; the program is as before.
            LinkerUsageError: called from a thread that does not own the group.
        """
        if self.owner != get_ident():
            self.refuse_entry()
        return self.linker.open(self, library, DlFlags(flags), name=name, library_path=library_path)

    def dlsym(self, handle: int, name: str) -> GuestFunction | GuestData:
        """Find a symbol.

        Args:
            handle: a module, whose own symbols come first and then those of what it needs, breadth first; or `RTLD_DEFAULT`
                for the global scope.
            name: the symbol.

        Returns:
            A function, callable and with an address; or data, with an address.

        Raises:
            SymbolNotFoundError: there is no such symbol.
            InvalidHandleError: no module has this handle.
        """
        self.synchronize()
        symbol = self.linker.find_symbol(handle, name)
        if isinstance(symbol, FunctionSymbol):
            return self.function(symbol)
        return GuestData(name, self.address_of(symbol), symbol.module)

    def function(self, symbol: FunctionSymbol) -> GuestFunction:
        """Return a function symbol as this group's callable."""
        function = self._functions.get(symbol.address)
        if function is None or function.name != symbol.name or function.module != symbol.module:
            self.synchronize()
            invoke = self._instances[symbol.module].function(symbol.name, symbol.type)
            function = self._functions[symbol.address] = GuestFunction(self, symbol, invoke)
        return function

    def address_of(self, symbol: Symbol) -> int:
        """Return a symbol's address: a table index, or bytes in linear memory as this thread sees it.

        Raises:
            SymbolNotFoundError: it has none.
        """
        if isinstance(symbol, (FunctionSymbol, DataSymbol)):
            return symbol.address
        if isinstance(symbol, TlsSymbol):
            try:
                base = self._instances[symbol.module].global_value("__tls_base")
            except KeyError:
                raise SymbolNotFoundError(
                    symbol.name, (), "thread-local, but its module exports no __tls_base"
                ) from None
            return base + symbol.offset
        raise SymbolNotFoundError(symbol.name, (), "neither a function nor data")

    def run(self) -> int:
        """Run the program: call the main module's `_start`.

        Returns:
            Its exit code.

        Raises:
            LinkerUsageError: there is no main module, or it is no command.
            TrapError: the program trapped.
        """
        return self.linker.run(self)

    def close(self) -> None:
        """Free the group's instances, and its thread-local blocks; idempotent.

        Raises:
            LinkerUsageError: it is another thread's, or the calling thread is inside its guest code.
        """
        if not self.owner:
            return
        if self.owner not in (get_ident(), NO_THREAD) or self.replica.state != DETACHED:
            raise LinkerUsageError(
                f"instance group {self.name!r} is in use; its own thread closes it, outside guest code"
            )
        self.linker.rendezvous.leave(self.replica, "it was closed")
        self.owner = 0
        self._functions.clear()
        self._instances.clear()
        self._base = None
        self._store.close()
        self._thread_locals.free_all()

    def __repr__(self) -> str:
        return f"<InstanceGroup {self.name} of {self.linker!r}>"
