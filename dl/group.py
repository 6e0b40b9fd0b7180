"""Instance groups: one thread's store, with an instance of every linked module."""

from __future__ import annotations

import os
from collections.abc import Callable
from threading import get_ident
from typing import TYPE_CHECKING, Any

from dl.bindings import BASE_NAMESPACE, LINK_NAMESPACE, glue_namespace, module_namespace
from dl.engine.protocol import EngineInstance, Store
from dl.errors import (
    InitializationError,
    InstantiationError,
    LinkerClosedError,
    LinkerUsageError,
    ProgramExited,
    ResourceLimitError,
    SymbolNotFoundError,
    TrapError,
)
from dl.glue import (
    BIND_THREAD_LOCALS,
    CLEAR_TABLE,
    CLEAR_TABLE_TYPE,
    ENSURE_TABLE,
    ENSURE_TABLE_TYPE,
    INIT_THREAD,
    SET_STACK_POINTER,
    SET_STACK_POINTER_TYPE,
    TABLE_NAME,
)
from dl.handles import MAIN_HANDLE, DlFlags, ModuleHandle
from dl.linked import LinkedModule
from dl.options import ModuleSource
from dl.state import DlOperation, LoadModules, UnloadModules
from dl.symbols import DataSymbol, FunctionSymbol, Symbol, TlsSymbol
from dl.wasm.types import FuncType

if TYPE_CHECKING:
    from dl.linker import Linker


class GuestFunction:
    """A function of the guest, callable from the thread that its instance group belongs to.

    Arguments and results are int (i32, i64; results signed), float (f32, f64) and 16 bytes (v128). No result is None,
    several are a tuple.

    Attributes:
        name: its symbol.
        type: its signature.
        address: its table index: the function pointer, the same in every group.
        module: the module that defines it.
    """

    __slots__ = ("_enter", "_invoke", "_leave", "address", "group", "module", "name", "type")

    def __init__(self, group: InstanceGroup, symbol: FunctionSymbol, invoke: Callable[..., Any]) -> None:
        self.group = group
        self.name = symbol.name
        self.type = symbol.type
        self.address = symbol.address
        self.module = symbol.module
        self._invoke = invoke
        self._enter, self._leave = group.enter_guest, group.leave_guest

    def __call__(self, *arguments: Any) -> Any:
        """Call the function.

        Raises:
            ValueConversionError: an argument does not fit the signature.
            TrapError: the guest trapped.
            ProgramExited: the guest ended the program.
            LinkerUsageError: called from a thread that does not own the group.
        """
        token = self._enter()
        try:
            return self._invoke(*arguments)
        finally:
            self._leave(token)

    def __repr__(self) -> str:
        return f"<GuestFunction {self.name}{self.type} at table index {self.address}>"


class GuestData:
    """Data of the guest.

    Attributes:
        name: its symbol.
        address: where it is in linear memory, bytes; of a thread-local variable, this thread's copy.
        module: the module that defines it.
    """

    __slots__ = ("address", "module", "name")

    def __init__(self, name: str, address: int, module: ModuleHandle) -> None:
        self.name = name
        self.address = address
        self.module = module

    def __repr__(self) -> str:
        return f"<GuestData {self.name} at {self.address:#x}>"


class InstanceGroup:
    """One thread's instances of every linked module.

    Owned by the thread that made it; only that thread calls into it. Its contents change only by `apply`, in the order
    of the operation log.
    """

    def __init__(self, linker: Linker, store: Store, name: str) -> None:
        self.linker = linker
        self.name = name
        self._store = store
        self._owner = get_ident()
        self._instances: dict[ModuleHandle, EngineInstance] = {}
        self._base: EngineInstance | None = None
        self._functions: dict[int, GuestFunction] = {}
        self._closed = False

    # entering guest code

    def enter_guest(self) -> None:
        """Go from host to guest code; every call into the guest does."""
        if self._owner != get_ident() or self._closed:
            self._refuse_entry()

    def leave_guest(self, _token: None) -> None:
        """Go back to host code."""

    def _refuse_entry(self) -> None:
        if self._closed:
            raise LinkerClosedError(f"instance group {self.name} is closed")
        raise LinkerUsageError(
            f"instance group {self.name} belongs to another thread; use Linker.attach() to give this thread its own"
        )

    # what the program is made of

    def apply(self, operation: DlOperation) -> None:
        """Make an operation's change in this group.

        Raises:
            InstantiationError: the engine refuses an instance.
            InitializationError: a start function or the set-up of thread-local storage trapped.
            ResourceLimitError: the table cannot grow.
        """
        if isinstance(operation, LoadModules):
            self._load(operation)
        else:
            self._unload(operation)

    def define_base(self) -> None:
        """Instantiate the base module; the table and memory that it needs exist."""
        self._base = self._store.instantiate(self.linker.base_code)
        self._store.define_instance(BASE_NAMESPACE, self._base)
        self._ensure_table = self._base.function(ENSURE_TABLE, ENSURE_TABLE_TYPE)

    def _load(self, operation: LoadModules) -> None:
        if self._base is not None:
            self._grow_table(operation.table_length)
        for module in operation.modules:
            try:
                self._instantiate(module, keep_glue=module.handle in operation.keeps_glue)
            except TrapError as error:
                raise InitializationError(module.name, "instantiation", error) from error
            except InstantiationError as error:
                raise InstantiationError(module.name, error.reason) from error
            if module.handle == MAIN_HANDLE and self._base is None:
                self.linker.main_instantiated(self._store, self._instances[MAIN_HANDLE])
                self.define_base()
                self._grow_table(operation.table_length)
        if operation.placement is not None:
            placement = self._store.instantiate(operation.placement)
            self._set_up_thread_locals(operation, placement)

    def _instantiate(self, module: LinkedModule, *, keep_glue: bool) -> None:
        assert module.code is not None
        if module.import_code is not None:
            glue = self._store.instantiate(module.import_code)
            self._store.define_instance(LINK_NAMESPACE, glue)
            if keep_glue:
                self._store.define_instance(glue_namespace(module.handle), glue)
        instance = self._store.instantiate(module.code)
        self._store.define_instance(module_namespace(module.handle), instance)
        self._instances[module.handle] = instance

    def _set_up_thread_locals(self, operation: LoadModules, placement: EngineInstance) -> None:
        blocks = []
        for module in operation.thread_local:
            # The first thread's block is the one wasm-ld laid out in the module's own data.
            blocks.append(self._instances[module.handle].global_value("__tls_base"))
        if blocks:
            placement.function(INIT_THREAD, FuncType(("i32",) * len(blocks), ()))(*blocks)
        elif operation.keeps_glue:
            placement.function(BIND_THREAD_LOCALS, FuncType((), ()))()

    def _grow_table(self, length: int) -> None:
        if self._ensure_table(length):
            raise ResourceLimitError("the program", f"the engine refuses a table of {length} elements")

    def _unload(self, operation: UnloadModules) -> None:
        self.clear_table(operation.table_runs)
        for module in operation.modules:
            self._instances.pop(module.handle, None)
            for address in [a for a, f in self._functions.items() if f.module == module.handle]:
                del self._functions[address]

    def clear_table(self, runs: tuple[tuple[int, int], ...]) -> None:
        """Set runs of table elements to null; what this group's table does not reach is null already."""
        if self._base is None:
            return
        clear = self._base.function(CLEAR_TABLE, CLEAR_TABLE_TYPE)
        length = self.table_length()
        for start, count in runs:
            if start < length:
                clear(start, min(count, length - start))

    def forget(self, modules: list[LinkedModule]) -> None:
        """Drop what a failed load has instantiated."""
        runs = tuple((m.elements.address, m.elements.size) for m in modules if m.elements is not None)
        self._unload(UnloadModules(tuple(modules), runs))

    def set_stack_pointer(self, address: int) -> None:
        """Set the thread's shadow stack pointer, bytes."""
        assert self._base is not None
        self._base.function(SET_STACK_POINTER, SET_STACK_POINTER_TYPE)(address)

    def table_length(self) -> int:
        """Elements of this group's table."""
        assert self._base is not None
        return self._store.table_size(self._base, TABLE_NAME)

    def table(self) -> list[object]:
        """Return what the table holds: None, or a value that is equal for the same function in every group."""
        assert self._base is not None
        return [self._store.table_entry(self._base, TABLE_NAME, i) for i in range(self.table_length())]

    def call_export(self, module: LinkedModule, name: str, kind: FuncType, *arguments: Any) -> Any:
        """Call an exported function of a module by name, symbol or not.

        Raises:
            SymbolNotFoundError: the module exports no such function of this signature.
        """
        export = module.wasm.exports.get(name)
        if export is None or export.type != kind:
            raise SymbolNotFoundError(name, [module.name])
        function = self._instances[module.handle].function(name, kind)
        token = self.enter_guest()
        try:
            return function(*arguments)
        finally:
            self.leave_guest(token)

    # the API

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
        """
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
        symbol = self.linker.find_symbol(handle, name)
        if isinstance(symbol, FunctionSymbol):
            return self.function(symbol)
        return GuestData(name, self.address_of(symbol), symbol.module)

    def function(self, symbol: FunctionSymbol) -> GuestFunction:
        """Return a function symbol as this group's callable."""
        function = self._functions.get(symbol.address)
        if function is None or function.name != symbol.name or function.module != symbol.module:
            if self._owner != get_ident() or self._closed:
                self._refuse_entry()
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
        main = self.linker.main_module
        if main is None:
            raise LinkerUsageError("there is no main module to run")
        if main.wasm.exports.get("_start") is None:
            raise LinkerUsageError(
                f"{main.name} exports no _start: it is a library of functions, not a command"
            )
        try:
            self.call_export(main, "_start", FuncType((), ()))
        except ProgramExited as exited:
            return exited.code
        return 0

    def close(self) -> None:
        """Free the group's instances; idempotent."""
        if not self._closed:
            self._closed = True
            self._functions.clear()
            self._instances.clear()
            self._base = None
            self._store.close()

    def __repr__(self) -> str:
        return f"<InstanceGroup {self.name} of {self.linker!r}>"
