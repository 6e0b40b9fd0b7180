"""What the linker asks of a WebAssembly engine.

The seam is small on purpose. The linker expresses its work as modules that it generates, so an engine has to compile,
instantiate with namespaces, call, and lend its memory; the program's table and stack pointer are reached through generated
code. Externals, which the user holds as objects, are the one thing that is asked of the engine itself, which may lack them.

Words: an *engine* compiles; a *store* is one thread's world of instances; *host functions* are Python callables that
every store of a program can import by namespace and name. What must hold for every adapter is tested in `tests/contracts/`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

from dl.engine.capabilities import Capabilities
from dl.engine.import_list import ListingStore
from dl.engine.values import WasiOptions
from dl.errors.frames import SourcePlace
from dl.errors.running import DescribeException
from dl.wasm.types import FuncType, GlobalType, MemoryType


class Slots(Protocol):
    """The arguments of a raw call, by position; results replace them from position 0 on. Valid during the call.

    Each is read and written with the width of its type; a number that is written may be signed or unsigned.
    """

    def u32(self, position: int) -> int:
        """Return an i32, unsigned."""

    def s32(self, position: int) -> int:
        """Return an i32, signed."""

    def u64(self, position: int) -> int:
        """Return an i64, unsigned."""

    def s64(self, position: int) -> int:
        """Return an i64, signed."""

    def set_32(self, position: int, value: int) -> None:
        """Set an i32."""

    def set_64(self, position: int, value: int) -> None:
        """Set an i64."""


RawFunction = Callable[[Slots], None]
"""A function that works on its slots in place. The slots of one call may be passed on to another function of the engine."""


class CompiledModule(Protocol):
    """Compiled code: immutable, shared by all stores and threads of its engine. It can be referred to weakly."""

    @property
    def code_bytes(self) -> int:
        """Size of the code in bytes, about."""


class EngineInstance(Protocol):
    """An instance of a module in one store."""

    def function(self, name: str, kind: FuncType) -> Callable[..., Any]:
        """Return an exported function as a Python callable.

        Values are int, float and (v128) 16 bytes; no result is None, several results are a tuple. The callable belongs
        to the store's thread.

        Raises:
            KeyError: no function of that name is exported.
        """

    def raw_function(self, name: str, *, calls_back: bool = True) -> RawFunction:
        """Return an exported function as a callable on slots, without conversion of values.

        Args:
            name: its name.
            calls_back: whether it may call Python functions; what never does needs no room for their frames.

        Raises:
            KeyError: no function of that name is exported.
        """

    def memory(self, name: str) -> EngineMemory:
        """Return an exported memory.

        Raises:
            KeyError: no memory of that name is exported.
        """

    def external(self, name: str) -> EngineExternal:
        """Return an export as an object that other instances of the store can import.

        Raises:
            KeyError: nothing of that name is exported.
            EngineError: it is a shared memory that the instance defines, which others cannot import.
        """

    def global_value(self, name: str) -> int:
        """Return the present value of an exported global of type i32 or i64, unsigned.

        Raises:
            KeyError: no global of that name is exported.
        """


class EngineExternal(Protocol):
    """A memory, table, global, function or tag of one store."""

    @property
    def key(self) -> Hashable:
        """A value that is equal for two objects exactly if they mean the same external of the store."""


class EngineFunction(EngineExternal, Protocol):
    """A function of one store."""

    def callable(self, kind: FuncType) -> Callable[..., Any]:
        """Return it as a Python callable; see `EngineInstance.function`.

        Args:
            kind: its signature; references as the tops of their hierarchies.
        """

    def raw(self) -> RawFunction:
        """Return it as a callable on slots, without conversion of values."""

    def type(self) -> FuncType:
        """Return its signature; references as the tops of their hierarchies."""


class EngineGlobal(EngineExternal, Protocol):
    """A global of one store."""

    def get(self) -> Any:
        """Return its value."""

    def set(self, value: Any) -> None:
        """Set its value.

        Raises:
            ValueConversionError: the value is of another type.
            EngineError: it cannot change.
        """


class EngineTable(EngineExternal, Protocol):
    """A table of one store."""

    def size(self) -> int:
        """Elements it has now."""

    def get(self, index: int) -> Any:
        """Return an element.

        Raises:
            IndexError: there is none.
        """

    def set(self, index: int, value: Any) -> None:
        """Set an element.

        Raises:
            IndexError: there is none.
            ValueConversionError: the value is of another type.
        """

    def grow(self, count: int, value: Any) -> int | None:
        """Add elements of a value; return the former size, or None when refused.

        Raises:
            ValueConversionError: the value is of another type.
        """


class EngineMemory(Protocol):
    """A linear memory."""

    def data_address(self) -> int:
        """Address of byte 0 in the host; that of an unshared memory may change when it grows."""

    def data_size(self) -> int:
        """Size in bytes."""

    def grow(self, pages: int) -> int | None:
        """Grow by a number of 64 KiB pages; return the former size in pages, or None when refused."""


class HostFunctions(Protocol):
    """The Python functions of one program, importable in each of its stores."""

    def define(
        self,
        namespace: str,
        name: str,
        kind: FuncType,
        function: Callable[..., Any],
        *,
        blocking: bool = True,
    ) -> None:
        """Define a function that gets and returns typed Python values.

        Args:
            namespace: import module name.
            name: import field name; defining the same pair again replaces it for stores made from then on.
            kind: its signature.
            function: what to call. An exception it raises unwinds the guest and is raised, the same object, by the
                innermost call into the guest of the same thread.
            blocking: whether the function may take long, call back into the guest or link; False only for functions
                that return at once, which then save the two safe points.
        """

    def define_raw(self, namespace: str, name: str, kind: FuncType, function: RawFunction) -> None:
        """Define a function that works on its slots in place; it may block."""

    def offer_wasi(self, namespace: str, memory: EngineMemory) -> None:
        """Make preview 1, and a shared memory, importable by what `Store.instantiate_with_wasi` instantiates; once.

        Args:
            namespace: from where the memory is imported, as `memory`, by one instance of each store.
            memory: the memory.
        """


class StackProfiler(Protocol):
    """Samples of a thread's stack; made by `Store.new_profiler`."""

    @property
    def outdated(self) -> bool:
        """Whether the store has got modules since it was made, which it does not know."""

    def sample(self) -> None:
        """Note what is on the stack; in the store's thread, in the handler of an interrupt."""

    def finish(self) -> list[tuple[str, ...]]:
        """Return the samples, each as texts `module!function`, outermost first; nothing else may follow. From any thread."""


class Store(ListingStore, Protocol):
    """One thread's instances. Used by one thread at a time; nothing in it is locked."""

    def limit(self, *, memory_bytes: int, table_elements: int) -> None:
        """Bound each memory and each table that instances of this store define, whatever their types allow.

        One that begins larger is refused, and growing beyond fails. Shared ones, and the engine's own obey their types alone.
        """

    def runs(self, modules: Sequence[CompiledModule]) -> bool:
        """Return whether code of one of some modules is on the calling thread's stack, in any instance of this store.

        An engine without `stack_inspection` says that it is.
        """

    def define_memory(self, namespace: str, name: str, memory: EngineMemory) -> None:
        """Make a memory importable in this store."""

    def define_number(self, namespace: str, name: str, value: int) -> None:
        """Make a number importable in this store, as a global of type i32 that cannot be set, for later instances.

        Args:
            namespace: import module name.
            name: import field name; what had it before is replaced.
            value: the number, 32 bits, unsigned.
        """

    def define_instance(self, namespace: str, instance: EngineInstance) -> None:
        """Make all exports of an instance importable in this store, replacing earlier ones of the same names."""

    def offer_instance(self, namespace: str, instance: EngineInstance) -> None:
        """Make all exports of an instance importable, as `define_instance` does, if only once something imports one."""

    def name_tag(self, instance: EngineInstance, name: str) -> None:
        """Know an exception tag that an instance exports by its name, for errors about uncaught exceptions.

        Raises:
            KeyError: no tag of that name is exported.
        """

    def external(self, namespace: str, name: str) -> EngineExternal:
        """Return what is importable in this store by a namespace and a name.

        Raises:
            KeyError: nothing is.
        """

    def new_global(self, kind: GlobalType, value: Any) -> EngineGlobal:
        """Create a global: of a number, a vector, `funcref` or `externref`.

        Raises:
            ValueConversionError: the value is of another type.
            EngineError: the engine refuses the type.
        """

    def instantiate(
        self, module: CompiledModule, name: str, imports: Sequence[EngineExternal] | None = None
    ) -> EngineInstance:
        """Instantiate a module, importing by name or from a list, and run its start function.

        Args:
            module: the module's code, which has no name of its own.
            name: what stack traces and errors of this store call it from now on. All instances of the same content in a store
                have one name, the last one given. For two names, give the second module a content of its own: see
                `dl.wasm.rewrite.numbered_copy`.
            imports: one external of this store for each import, in their order; None to import by name.

        Raises:
            InstantiationError: an import is missing or of another type, or a limit was reached.
            TrapError: the start function or an active segment trapped.
        """

    def find_lines(self, module: CompiledModule, find: Callable[[int, int], SourcePlace | None]) -> None:
        """Set what finds source lines of a module's traps, by function index and place in its body, if stacks have places."""

    def describe_exceptions(self, describe: DescribeException) -> None:
        """Set what describes exceptions that no guest code caught; what it raises takes the place of the error."""

    def new_profiler(self) -> StackProfiler:
        """Return what takes samples of the stack of the store's thread, in the modules that the store has now.

        Raises:
            EngineError: the engine cannot.
        """

    def new_memory(self, kind: MemoryType) -> EngineMemory:
        """Create a memory that is not shared.

        Raises:
            EngineError: the engine refuses the type or the size.
        """

    def table_entry(self, instance: EngineInstance, name: str, index: int) -> object:
        """Return what an exported table holds at an index: None, or a value that is equal for the same function in every store.

        Raises:
            EngineError: the engine has no table reflection.
        """

    def function_type(self, instance: EngineInstance, name: str, index: int) -> FuncType | None:
        """Return the signature of the function an exported table holds at an index; None for a null entry or none at all.

        A value type that is not a number or vector is named by some text in parentheses.

        Raises:
            EngineError: the engine has no table reflection.
        """

    def enable_wasi(self, wasi: WasiOptions) -> None:
        """Own a WASI context: preview 1 functions become importable, under their own namespace."""

    def renew_wasi(self, wasi: WasiOptions) -> None:
        """Begin the WASI context anew, for the instances that there are, too; what the former one had open is closed.

        Raises:
            EngineError: an option cannot be passed to the program, or a file or directory cannot be opened; the context is as
                it was.
        """

    def instantiate_with_wasi(self, module: CompiledModule, name: str) -> EngineInstance:
        """Instantiate a module that imports what `HostFunctions.offer_wasi` offers, host functions, and memories of this store.

        It has no start function. Functions of WASI may be called once there is a context: see `provide_wasi`.

        Raises:
            InstantiationError: see `instantiate`.
        """

    def provide_wasi(self) -> None:
        """Own a WASI context with nothing of the host's: no arguments, files or streams. For `instantiate_with_wasi`."""

    def on_interrupt(self, handler: Callable[[], None]) -> None:
        """Set what runs, on the store's thread and inside guest code, after `Engine.interrupt`.

        An exception the handler raises unwinds the guest like one of a host function.
        """

    def close(self) -> None:
        """Free the store and all its instances; idempotent. No call into the guest may be under way."""


class Engine(Protocol):
    """Compiles modules and makes stores. All methods may be called from any thread.

    Attributes:
        name: by which users choose it.
        capabilities: what it can do.
    """

    name: str
    capabilities: Capabilities

    @property
    def fingerprint(self) -> str:
        """Everything but a module's content that its serialized code depends on: engine, version, settings, machine."""

    def compile(self, wasm: bytes) -> CompiledModule:
        """Compile a module. Only `dl.engine.code_cache` calls this for programs.

        The code depends on nothing but the bytes: `Store.instantiate` names the module.

        Raises:
            EngineError: the engine refuses the module; the text says why.
        """

    def serialize(self, module: CompiledModule) -> bytes:
        """Return code as bytes that an engine with the same `fingerprint` can load, in this process or another.

        Raises:
            EngineError: the engine has no serialization.
        """

    def deserialize(self, code: bytes) -> CompiledModule:
        """Load code that `serialize` returned.

        Loading code is running it: an engine may crash, or do whatever the bytes say, if they are anything else.

        Raises:
            EngineError: the engine notices that the bytes are not such code, or has no serialization.
        """

    def map_code(self, file: int, length: int) -> CompiledModule | None:
        """Load code that `serialize` returned and that a file begins with, without a copy where engine and system can.

        Processes that map the same file have its pages in common. The file must not be changed afterwards; it may be removed.
        What `deserialize` says of the bytes holds here too.

        Args:
            file: an open descriptor, which may be closed afterwards.
            length: bytes of the code; more may follow.

        Returns:
            None if code cannot be mapped here: read the file, and use `deserialize`.
        """

    def slots(self, count: int) -> Slots:
        """Make slots for calls of raw functions, all zeros; they may be used again, for one call at a time."""

    def shared_memory(self, kind: MemoryType) -> EngineMemory:
        """Create a shared memory.

        Raises:
            EngineError: the engine refuses the type or the size.
        """

    def host_functions(self, boundary: Boundary) -> HostFunctions:
        """Make an empty set of host functions whose calls pass a boundary."""

    def new_store(self, host: HostFunctions) -> Store:
        """Make a store that can import the given host functions."""

    def interrupt(self) -> None:
        """Have every store of this engine that runs guest code call its interrupt handler soon."""


class Boundary(Protocol):
    """What happens around each host function: the linker's safe points.

    One that has a method `own()` gives each store a boundary of its own, and an engine may call the store's functions with that
    one: threads that run Python in parallel, without a GIL, then share no object on the way.
    """

    def enter_host(self) -> Any:
        """Run before a host function; what it returns goes to `exit_host`."""

    def exit_host(self, token: Any) -> None:
        """Run after a host function that returned; not after one that raised."""
