"""The linker: a program, the libraries linked into it, and the groups that run it."""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import get_ident
from types import TracebackType
from typing import Any

from dl.bindings import BASE_NAMESPACE, HOST_NAMESPACE
from dl.engine import default_engine
from dl.engine.protocol import CompiledModule, Engine, EngineInstance, EngineMemory, Store, WasiOptions
from dl.errors import (
    InitializationError,
    InvalidHandleError,
    LibraryNotFoundError,
    LinkerClosedError,
    LinkerUsageError,
    NotDynamicError,
    SymbolNotFoundError,
    TrapError,
    UnresolvedCallError,
)
from dl.glue import RESOLVE_STUB, RESOLVE_STUB_TYPE, base_module
from dl.group import InstanceGroup
from dl.handles import MAIN_HANDLE, RTLD_DEFAULT, DlFlags, ModuleHandle
from dl.host import HostSymbols
from dl.images import ModuleImage, compiled, image_from_bytes, image_from_file
from dl.linked import LinkedModule, breadth_first
from dl.load import Load
from dl.locate import Locator, Requester, split_path
from dl.main_module import MainKind, plan_main
from dl.options import (
    DEFAULT_STACK_BYTES,
    HostImports,
    MemoryType,
    ModuleSource,
    Output,
    SideMemory,
)
from dl.resolve import find_symbol, scope_of
from dl.side_memory import GrownMemory, GuestAllocator
from dl.state import LinkerState, LoadModules, TableSpace, UnloadModules
from dl.symbols import FunctionSymbol, Symbol
from dl.wasix import dynlink
from dl.wasix.guest_paths import GuestPaths
from dl.wasix.wasi import SharedWasi, add_forwarder, direct_wasi, forwarded_wasi
from dl.wasm.types import FuncType
from memory import LinearMemory

log = logging.getLogger("dl.link")

_NOTHING = FuncType((), ())
_RELOCATIONS = "__wasm_apply_data_relocs"
_CONSTRUCTORS = "__wasm_call_ctors"
_INITIALIZE = "_initialize"


class _NoBoundary:
    """The border between guest and host code."""

    def enter_host(self) -> None:
        """Come from guest code into a host function."""

    def exit_host(self, token: None) -> None:
        """Go back to guest code."""


class Linker:
    """A WebAssembly program that libraries can be linked into while it runs.

    Args:
        main: the main module: the path of a file, or its bytes; None for libraries only.
        name: what messages call the main module, and what its bytes are known by.
        library_path: directories in which bare library names are looked for.
        libraries: modules held in memory by the names that open them and that needed lists use.
        imports: host functions and numbers, by import module name and field name.
        args: the program's arguments, its name first; the main module's name when empty.
        env: its environment variables.
        preopens: directories it sees: guest path to host path.
        stdin: None for the host's own, bytes, or the path of a file.
        stdout: None for the host's own, the path of a file, or a callable that gets chunks of bytes.
        stderr: like stdout.
        memory: the memory to provide, without a main module, or with one that imports it (then only a larger minimum or a
            smaller maximum than its own).
        stack_size: bytes of the main thread's shadow stack, a multiple of 1024.
        side_memory: where side modules' data goes.
        interrupts: whether guest code can be interrupted (costs about 11 % on tight loops); None for what the
            program needs: on with shared memory.
        engine: the engine; None for the default one.

    Attributes:
        main: handle of the main module.
        main_group: the instance group of the thread that made the linker.
        memory: the program's linear memory.

    Raises:
        DlError: the program could not be linked.
    """

    def __init__(
        self,
        main: ModuleSource | None,
        *,
        name: str | None = None,
        library_path: Sequence[str | os.PathLike[str]] = (),
        libraries: Mapping[str, bytes] | None = None,
        imports: HostImports | None = None,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        preopens: Mapping[str, str | os.PathLike[str]] | None = None,
        stdin: bytes | str | os.PathLike[str] | None = None,
        stdout: Output = None,
        stderr: Output = None,
        memory: MemoryType | None = None,
        stack_size: int = DEFAULT_STACK_BYTES,
        side_memory: SideMemory = "auto",
        interrupts: bool | None = None,
        engine: Engine | None = None,
    ) -> None:
        self._closed = False
        self._link_lock = threading.RLock()
        self._by_thread: dict[int, InstanceGroup] = {}
        self._anonymous = itertools.count(1)
        self._preopens = {guest: os.fspath(host) for guest, host in (preopens or {}).items()}
        self._locator = Locator([Path(p) for p in library_path], dict(libraries or {}))
        self._group: InstanceGroup | None = None
        self._wasi: SharedWasi | None = None
        self._engine_memory: EngineMemory | None = None
        self._linear: LinearMemory | None = None
        self._closing: Any = lambda: None

        image = None if main is None else self._image(main, name)
        self._plan = plan_main(image.wasm if image else None, memory=memory, stack_size=stack_size)
        shared = self._plan.memory_type is not None and self._plan.memory_type.limits.shared
        self.engine = engine or default_engine(interrupts=shared if interrupts is None else interrupts)
        if shared and not self.engine.capabilities.shared_memory:
            raise LinkerUsageError(f"the program shares memory, which engine {self.engine.name} cannot")
        self._side_memory_source = side_memory
        self._functions = self.engine.host_functions(_NoBoundary())
        self._host = HostSymbols(self._functions, imports or {})
        self._wasi_options = WasiOptions(
            args=tuple(args) or ((image.base_name,) if image else ()),
            env=tuple((env or {}).items()),
            preopens=tuple(self._preopens.items()),
            stdin=stdin if stdin is None or isinstance(stdin, bytes) else os.fspath(stdin),
            stdout=stdout if stdout is None or callable(stdout) else os.fspath(stdout),
            stderr=stderr if stderr is None or callable(stderr) else os.fspath(stderr),
        )
        plan = self._plan
        self._state = LinkerState(
            table=TableSpace(plan.table_length),
            places=plan.places,
            memory_type=plan.memory_type,
            linker_addresses=dict(plan.addresses),
        )
        self._log: list[LoadModules | UnloadModules] = []
        try:
            self._start(image)
        except BaseException:
            self.close()
            raise

    # start-up

    def _start(self, image: ModuleImage | None) -> None:
        plan = self._plan
        self._functions.define(HOST_NAMESPACE, RESOLVE_STUB, RESOLVE_STUB_TYPE, self._resolve_stub)
        self._host.system[dynlink.NAMESPACE] = dynlink.dynlink_functions(self)
        store = self._new_store()
        group = InstanceGroup(self, store, "main")
        self._group = self._by_thread[get_ident()] = group
        self._base_code: CompiledModule | None = None
        table_from_main = plan.places.table.namespace != BASE_NAMESPACE
        if plan.memory_type is not None and plan.memory_export is None:
            self._make_memory(store)
        if image is not None:
            if plan.memory_export is not None or (plan.memory_type is None):
                direct_wasi(self._host)
        if not table_from_main and plan.memory_export is None:
            self._prepare_base(plan.stack_pointer or 0)
            group.define_base()
        if image is not None:
            self._load_main(group, image)

    def _new_store(self) -> Store:
        store = self.engine.new_store(self._functions)
        shared = self._plan.memory_type is not None and self._plan.memory_type.limits.shared
        if not (shared and self._plan.memory_export is None):
            store.enable_wasi(self._wasi_options)
        return store

    def _make_memory(self, store: Store) -> None:
        kind = self._plan.memory_type
        assert kind is not None
        if kind.limits.shared:
            self._engine_memory = self.engine.shared_memory(kind)
            self._wasi = SharedWasi(
                self.engine,
                self.engine.host_functions(_NoBoundary()),
                self._wasi_options,
                self._engine_memory,
                kind,
            )
            self._wasi.install(self._host)
        else:
            self._engine_memory = store.new_memory(kind)
        store.define_memory(BASE_NAMESPACE, "memory", self._engine_memory)
        if not kind.limits.shared:
            add_forwarder(self.engine, store, kind)
            forwarded_wasi(self._host)
        self._use_memory(self._engine_memory)

    def _use_memory(self, memory: EngineMemory) -> None:
        kind = self._state.memory_type
        assert kind is not None
        self._linear = LinearMemory(memory, stable_address=kind.limits.shared)
        if self._uses_guest_allocator():
            self._state.side_memory = GuestAllocator(
                self._linear, self._plan.heap_base, lambda end: self._grow_memory_to(-(-end // 65536))
            )
        else:
            self._state.side_memory = GrownMemory(self._linear, memory.grow, kind.limits.maximum)

    def _uses_guest_allocator(self) -> bool:
        if self._side_memory_source == "auto":
            return self._plan.allocator
        return self._side_memory_source == "allocator"

    def _prepare_base(self, stack_pointer: int) -> None:
        wasm = base_module(self._plan.places, self._plan.table_length, stack_pointer)
        self._base_code = compiled(self.engine, ("generated", wasm), "base", lambda: wasm)

    @property
    def base_code(self) -> CompiledModule:
        """Code of the base module."""
        assert self._base_code is not None
        return self._base_code

    def main_instantiated(self, store: Store, instance: EngineInstance) -> None:
        """Take from a static main module what it defines for the program, before anything else is linked."""
        plan = self._plan
        if plan.memory_export is not None:
            memory = instance.memory(plan.memory_export)
            store.define_memory(BASE_NAMESPACE, "memory", memory)
            if self._engine_memory is None:
                self._engine_memory = memory
                self._use_memory(memory)
            assert plan.memory_type is not None
            add_forwarder(self.engine, store, plan.memory_type)
        if self._base_code is None:
            stack = 0
            if (
                plan.stack_pointer is not None
                and self._state.side_memory is not None
                and not plan.no_libraries
            ):
                if isinstance(self._state.side_memory, GrownMemory):
                    block = self._state.side_memory.allocate(
                        plan.stack_pointer, 10, "the side modules' stack"
                    )
                    stack = block.address + block.size
            self._prepare_base(stack)

    def _load_main(self, group: InstanceGroup, image: ModuleImage) -> None:
        load = self._new_load(DlFlags.LAZY | DlFlags.GLOBAL, lenient=True)
        plan = self._plan
        with self._link_lock:
            try:
                if plan.no_libraries and image.wasm.dylink is not None and image.wasm.dylink.needed:
                    raise NotDynamicError(
                        image.name, f"needs libraries, but cannot take any: {plan.no_libraries}"
                    )
                root = load.find_tree(image, main=True)
                root.memory_base, root.table_base = plan.memory_base, plan.table_base
                if not plan.no_libraries:
                    load.place_main_functions(root)
                load.place()
                if isinstance(self._state.side_memory, GuestAllocator):
                    self._state.linker_addresses["__heap_base"] = self._state.side_memory.heap_base
                self._link(group, load, root)
            except BaseException:
                load.undo.run()
                raise
        if plan.memory_export is not None:
            forwarded_wasi(self._host)
        self._initialize(group, load.new)

    # loading

    def _new_load(self, flags: DlFlags, *, lenient: bool, first: Sequence[Path] = ()) -> Load:
        return Load(
            state=self._state,
            engine=self.engine,
            host=self._host,
            locator=self._locator,
            flags=flags,
            lenient=lenient,
            search_first=first,
            grow_memory_to=self._grow_memory_to,
        )

    def _grow_memory_to(self, pages: int) -> bool:
        memory = self._engine_memory
        if memory is None:
            return True
        missing = pages - memory.data_size() // 65536
        return missing <= 0 or memory.grow(missing) is not None

    def _image(self, source: ModuleSource, name: str | None) -> ModuleImage:
        if isinstance(source, (bytes, bytearray, memoryview)):
            known_as = name or f"<bytes {next(self._anonymous)}>"
            return image_from_bytes(bytes(source), known_as, f"<memory>/{known_as}")
        if "\0" in os.fspath(source):
            raise LibraryNotFoundError(os.fspath(source), [(repr(source), "not a path")])
        return image_from_file(Path(source), os.fspath(source))

    def open(
        self,
        group: InstanceGroup,
        library: ModuleSource,
        flags: DlFlags,
        *,
        name: str | None = None,
        library_path: Sequence[str | os.PathLike[str]] | None = None,
    ) -> ModuleHandle:
        """Load a library for a group; see `InstanceGroup.dlopen`."""
        self._check_open()
        if not flags & (DlFlags.LAZY | DlFlags.NOW):
            raise LinkerUsageError("dlopen needs RTLD_LAZY or RTLD_NOW among its flags")
        first = [Path(p) for p in library_path or ()]
        if isinstance(library, (bytes, bytearray, memoryview)):
            image = self._image(bytes(library), name)
            if name is not None and name not in self._locator.libraries:
                self._locator.libraries = {**self._locator.libraries, name: bytes(library)}
        else:
            image = self._locator.find(os.fspath(library), Requester(), first)
        return self._open_image(group, image, flags, lenient=False, first=first)

    def open_for_guest(self, name: str, search: str) -> ModuleHandle:
        """Load a library as the guest of the calling thread asks for it; see `dl.wasix.dynlink`.

        Raises:
            DlError: it could not be loaded.
        """
        paths = self._guest_paths()
        first = [host for part in split_path(search) if (host := paths.to_host(str(part))) is not None]
        wanted = name
        if "/" in name and name not in self._locator.libraries:
            host = paths.to_host(name)
            if host is None:
                raise LibraryNotFoundError(
                    name, [(name, "outside the directories that the program may load from")]
                )
            wanted = str(host) if host.is_absolute() else os.path.join(".", host)
        main = self.main_module
        image = self._locator.find(wanted, main.requester() if main else Requester(), first)
        flags = DlFlags.LAZY | DlFlags.GLOBAL
        return self._open_image(self.current_group(), image, flags, lenient=True, first=first)

    def _guest_paths(self) -> GuestPaths:
        trusted = [Path(p) for p in self._locator.library_path]
        main = self.main_module
        if main is not None and main.image.path is not None:
            trusted.append(main.image.path.parent)
        return GuestPaths(self._preopens, trusted)

    def _open_image(
        self,
        group: InstanceGroup,
        image: ModuleImage,
        flags: DlFlags,
        *,
        lenient: bool,
        first: Sequence[Path],
    ) -> ModuleHandle:
        self.check_dynamic(image.name)
        load = self._new_load(flags, lenient=lenient, first=first)
        with self._link_lock:
            known = self._state.by_identity.get(image.identity)
            if flags & DlFlags.NOLOAD and known is None:
                raise LibraryNotFoundError(
                    image.name, [(image.name, "not loaded, and RTLD_NOLOAD was given")]
                )
            try:
                root = load.find_tree(image)
                load.place()
                self._link(group, load, root)
            except BaseException:
                group.forget(load.new)
                load.undo.run()
                raise
            root.opens += 1
        try:
            self._initialize(group, load.new)
            self._wait_until_ready(root)
        except BaseException:
            root.opens -= 1
            raise
        return root.handle

    def _link(self, group: InstanceGroup, load: Load, root: LinkedModule) -> None:
        """Turn a placed tree into an operation, apply it in the instigating group, and publish it."""
        load.define()
        scope = load.enter_scopes(root)
        load.resolve(root, scope)
        if load.new:
            operation = load.generate()
            group.apply(operation)
            self._log.append(operation)
        load.publish()
        for module in load.new:
            log.info("loaded %s as %d at %#x", module.name, module.handle, module.memory_base)

    def _initialize(self, group: InstanceGroup, modules: Sequence[LinkedModule]) -> None:
        """Run relocations, then constructors, of new modules: once, in the loading thread, with no lock held."""
        if not modules:
            return
        for module in modules:
            module.constructing_thread = get_ident()
        try:
            for module in modules:
                self._run(group, module, _RELOCATIONS)
            for module in sorted(modules, key=lambda m: (m.handle == MAIN_HANDLE) and self._is_command(m)):
                self._construct(group, module)
        except BaseException as error:
            self._unload_failed(group, modules, error)
            raise
        for module in modules:
            module.constructing_thread = None
            module.ready.set()

    def _is_command(self, module: LinkedModule) -> bool:
        return "_start" in module.wasm.exports

    def _construct(self, group: InstanceGroup, module: LinkedModule) -> None:
        if module.handle == MAIN_HANDLE:
            # A command's _start runs its constructors; a reactor's _initialize does.
            if self._is_command(module):
                self._start_allocator(group, module)
                return
            if _INITIALIZE in module.wasm.exports:
                self._run(group, module, _INITIALIZE)
            elif self._plan.kind is MainKind.PIE:
                self._run(group, module, _CONSTRUCTORS)
            self._start_allocator(group, module)
            return
        self._run(group, module, _CONSTRUCTORS)

    def _start_allocator(self, group: InstanceGroup, main: LinkedModule) -> None:
        side_memory = self._state.side_memory
        if not isinstance(side_memory, GuestAllocator):
            return
        pointer, nothing = FuncType(("i32",), ("i32",)), FuncType(("i32",), ())
        for name, kind in (("malloc", pointer), ("free", nothing)):
            export = main.wasm.exports.get(name)
            if export is None or export.type != kind:
                raise LinkerUsageError(
                    f"side modules' data must come from {main.name}'s allocator, but it exports no {name}{kind}"
                )
        side_memory.start(
            lambda size: int(self.current_group().call_export(main, "malloc", pointer, size)),
            lambda address: self.current_group().call_export(main, "free", nothing, address),
        )

    def _run(self, group: InstanceGroup, module: LinkedModule, function: str) -> None:
        if function not in module.wasm.exports:
            return
        log.debug("%s: %s", module.name, function)
        try:
            group.call_export(module, function, _NOTHING)
        except (TrapError, SymbolNotFoundError) as error:
            raise InitializationError(module.name, function, error) from error

    def _unload_failed(
        self, group: InstanceGroup, modules: Sequence[LinkedModule], error: BaseException
    ) -> None:
        """Take back a load whose constructors failed: every group has its modules by now, and forgets them."""
        runs = tuple((m.elements.address, m.elements.size) for m in modules if m.elements is not None)
        operation = UnloadModules(tuple(modules), runs)
        with self._link_lock:
            for module in modules:
                self._state.modules.pop(module.handle, None)
                self._state.by_identity.pop(module.image.identity, None)
                if module in self._state.global_scope:
                    self._state.global_scope.remove(module)
                if module.elements is not None:
                    self._state.table.free(module.elements)
                if module.block is not None and self._state.side_memory is not None:
                    self._state.side_memory.free(module.block)
            group.apply(operation)
            self._log.append(operation)
        for module in modules:
            module.failure = error
            module.constructing_thread = None
            module.ready.set()

    def _wait_until_ready(self, module: LinkedModule) -> None:
        """Wait for another thread's constructors; the thread that runs them does not wait for itself."""
        if module.constructing_thread == get_ident():
            return
        module.ready.wait()
        if module.failure is not None:
            raise InitializationError(module.name, _CONSTRUCTORS, module.failure)

    # looking up

    def find_symbol(self, handle: int, name: str, *, tree: bool = True) -> Symbol:
        """Find a symbol; see `InstanceGroup.dlsym`.

        Args:
            handle: a module or `RTLD_DEFAULT`.
            name: the symbol.
            tree: whether what the module needs is searched too.

        Raises:
            SymbolNotFoundError: there is no such symbol.
            InvalidHandleError: no module has this handle.
        """
        self._check_open()
        if handle == RTLD_DEFAULT:
            scope = list(self._state.global_scope)
        else:
            module = self._state.modules.get(ModuleHandle(handle))
            if module is None:
                raise InvalidHandleError(handle)
            scope = breadth_first([module]) if tree else [module]
        symbol = find_symbol(name, scope)
        if symbol is None:
            raise SymbolNotFoundError(name, self._state.names(scope))
        return symbol

    def address_for_guest(self, handle: int, name: str) -> int:
        """Return a symbol's address as the guest's dlsym does: only in the module itself."""
        symbol = self.find_symbol(handle, name, tree=False)
        return self.current_group().address_of(symbol)

    def is_side_module(self, handle: int) -> bool:
        """Whether a handle is that of a loaded side module."""
        return handle != MAIN_HANDLE and ModuleHandle(handle) in self._state.modules

    def _resolve_stub(self, handle: int, position: int) -> int:
        """Return the table index that a stub's import means now; the host side of every stub's first call."""
        module = self._state.modules.get(ModuleHandle(handle))
        if module is None:
            raise UnresolvedCallError(
                f"module {handle}", "?", f"import {position}", "its module was unloaded"
            )
        known = module.late.get(position)
        if known is not None:
            return known
        entry = module.wasm.imports[position]
        symbol = find_symbol(entry.name, scope_of(module, self._state.global_scope))
        if entry.module != "env" or symbol is None:
            raise UnresolvedCallError(module.name, entry.module, entry.name)
        if not isinstance(symbol, FunctionSymbol) or symbol.type != entry.type:
            provider = self._state.modules[symbol.module].name
            raise UnresolvedCallError(
                module.name,
                entry.module,
                entry.name,
                f"it is {entry.type}, but {provider} defines it otherwise",
            )
        log.info("%s: %s bound at its first call to table index %d", module.name, entry.name, symbol.address)
        # Every group asks once and gets the same answer, whichever thread came first.
        return module.late.setdefault(position, symbol.address)

    # the program

    @property
    def main(self) -> ModuleHandle:
        """Handle of the main module."""
        return MAIN_HANDLE

    @property
    def main_module(self) -> LinkedModule | None:
        """The main module; None without one."""
        return self._state.modules.get(MAIN_HANDLE)

    @property
    def main_group(self) -> InstanceGroup:
        """The instance group of the thread that made the linker."""
        self._check_open()
        assert self._group is not None
        return self._group

    @property
    def memory(self) -> LinearMemory:
        """The program's linear memory.

        Raises:
            LinkerUsageError: the program has none that the host can reach.
        """
        if self._linear is None:
            self._check_open()
            raise LinkerUsageError("the program neither imports nor exports a memory")
        return self._linear

    def grow_memory(self, pages: int) -> int | None:
        """Grow linear memory by a number of 64 KiB pages; return its former size in pages, or None when refused."""
        self._check_open()
        return None if self._engine_memory is None else self._engine_memory.grow(pages)

    def modules(self) -> list[LinkedModule]:
        """Return the loaded modules, in handle order."""
        return sorted(self._state.modules.copy().values(), key=lambda m: m.handle)

    def current_group(self) -> InstanceGroup:
        """Return the group of the calling thread.

        Raises:
            LinkerUsageError: it has none.
        """
        group = self._by_thread.get(get_ident())
        if group is None:
            raise LinkerUsageError("this thread has no instance group; use Linker.attach()")
        return group

    def check_dynamic(self, library: str | None = None) -> None:
        """Check that the program can take libraries.

        Raises:
            NotDynamicError: it cannot; says why.
        """
        if self._plan.no_libraries:
            main = self.main_module
            name = main.name if main else "the program"
            raise NotDynamicError(
                library or name, f"not a dynamically-linked instance: {name}: {self._plan.no_libraries}"
            )

    # the end

    def _check_open(self) -> None:
        if self._closed:
            raise LinkerClosedError("the linker is closed")

    def close(self) -> None:
        """End the program and free all it holds; idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._linear is not None:
            self._linear.close()
        if self._group is not None:
            self._group.close()
        if self._wasi is not None:
            self._wasi.close()
        self._by_thread.clear()

    def __enter__(self) -> Linker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        main = self._state.modules.get(MAIN_HANDLE) if hasattr(self, "_state") else None
        return f"<Linker of {main.name if main else 'libraries only'}>"
