"""The linker: a program, the libraries linked into it, and the groups that run it."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from typing_extensions import Self

from dl.callbacks import Callback, Callbacks
from dl.dlfcn import MAIN_HANDLE, RTLD_DEFAULT, DlFlags, ModuleHandle
from dl.engine import default_engine
from dl.engine.protocol import Engine, WasiOptions
from dl.errors import (
    DlError,
    InvalidHandleError,
    LibraryNotFoundError,
    LinkerClosedError,
    LinkerUsageError,
    NotDynamicError,
    ProgramExited,
    SymbolNotFoundError,
    ThreadExited,
    UnresolvedCallError,
)
from dl.glue.base import FIND_INVOKER, FIND_INVOKER_TYPE
from dl.glue.names import HOST_NAMESPACE, RESOLVE_STUB, RESOLVE_STUB_TYPE
from dl.group import InstanceGroup
from dl.groups import wakeup_bell
from dl.groups.registry import ThreadGroups
from dl.groups.threads import HostThread
from dl.link.open import START, Loader
from dl.link.resolve import find_symbol, scope_of
from dl.modules.guest_paths import paths_of_program
from dl.modules.image import ModuleImage, image_from_bytes, image_from_file
from dl.modules.linked_module import LinkedModule, breadth_first
from dl.modules.locate import Locator, Requester, SearchPolicy, loaded_by_base_name
from dl.modules.symbols import FunctionSymbol, Symbol
from dl.options import (
    DEFAULT_STACK_BYTES,
    HostImports,
    MemoryType,
    ModuleSource,
    Output,
    SideMemorySource,
    checked_flags,
    checked_side_memory,
    listed,
)
from dl.program.closure_slots import ClosureSlots
from dl.program.host_symbols import HostSymbols
from dl.program.main_module import plan_main
from dl.program.operations import DlOperation
from dl.program.program import Program
from dl.program.state import LinkerState
from dl.program.statistics import LinkerStatistics, linker_statistics
from dl.program.table import TableSpace
from dl.wasix import system_interface
from dl.wasix.dynamic_calls import Invokers
from dl.wasm.types import FuncType
from memory import LinearMemory
from threads import DETACHED, Rendezvous

log = logging.getLogger("dl.link")

T = TypeVar("T", bound="Linker")


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
        thread_stack_size: bytes of the shadow stack of each thread that the host attaches, a multiple of 1024.
        side_memory: where side modules' data goes.
        interrupts: whether guest code can be interrupted (costs about 11 % on tight loops); None for what the
            program needs: on with shared memory. Without, a thread that computes stalls links.
        engine: the engine; None for the default one.

    Attributes:
        engine: the engine.
        program: memory and code that all groups share.
        rendezvous: the link lock, the operation log and the barrier.
        threads: the program's threads.
        closures: table indices whose function is made at run time.
        process: what the threads have in common for the guest: open files, directory, signals, terminal.

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
        thread_stack_size: int = DEFAULT_STACK_BYTES // 4,
        side_memory: SideMemorySource = "auto",
        interrupts: bool | None = None,
        engine: Engine | None = None,
    ) -> None:
        self._closed = False
        self._ended: BaseException | None = None
        self._end_lock = threading.Lock()  # guards `_ended` against a second ending; a leaf
        self._group: InstanceGroup | None = None
        self._anonymous = itertools.count(1)
        opened_for_guest = {guest: os.fspath(host) for guest, host in (preopens or {}).items()}
        self._locator = Locator(
            [Path(p) for p in listed("library_path", library_path)], dict(libraries or {})
        )
        image = None if main is None else self._image(main, name)
        self._paths = paths_of_program(
            opened_for_guest, self._locator.library_path, image.path if image else None
        )
        self._name = image.name if image else "libraries only"
        plan = plan_main(image.wasm if image else None, memory=memory, stack_size=stack_size)
        shared = plan.memory_type is not None and plan.memory_type.limits.shared
        self.engine = engine or default_engine(interrupts=shared if interrupts is None else interrupts)
        self.rendezvous: Rendezvous[DlOperation] = Rendezvous(self.engine.interrupt)
        self.threads = ThreadGroups(self)
        functions = self.engine.host_functions(self.threads)
        self._host = HostSymbols(functions, imports or {})
        self.program = Program(
            plan,
            self.engine,
            functions,
            self._host,
            WasiOptions(
                args=listed("args", args) or ((image.base_name,) if image else ()),
                env=tuple((env or {}).items()),
                preopens=tuple(opened_for_guest.items()),
                stdin=stdin if stdin is None or isinstance(stdin, bytes) else os.fspath(stdin),
                stdout=stdout if stdout is None or callable(stdout) else os.fspath(stdout),
                stderr=stderr if stderr is None or callable(stderr) else os.fspath(stderr),
            ),
            checked_side_memory(side_memory),
            thread_stack_size,
        )
        self._state = LinkerState(
            table=TableSpace(plan.table_length),
            places=plan.places,
            memory_type=plan.memory_type,
            linker_addresses=dict(plan.addresses),
        )
        self._loader = Loader(
            self.program, self._state, self._host, self._locator, self.rendezvous, self.threads.current
        )
        self.closures = ClosureSlots(self.program, self._state, self.rendezvous, self.threads.find)
        self._callbacks = Callbacks(self, functions)
        self.process = system_interface(self, self._host)
        functions.define(HOST_NAMESPACE, RESOLVE_STUB, RESOLVE_STUB_TYPE, self._resolve_stub)
        functions.define(HOST_NAMESPACE, FIND_INVOKER, FIND_INVOKER_TYPE, Invokers(self).find)
        try:
            if self.engine.capabilities.interrupts:
                wakeup_bell.BELL.add(self.engine.interrupt)
            self._group = group = InstanceGroup(self, "main")
            self.threads.enter(group)
            self.rendezvous.join(group.replica)
            if image is not None:
                self._loader.load_main(group, image, SearchPolicy.of_host((), self._paths))
        except BaseException:
            self.close()
            raise

    # loading

    def _image(self, source: ModuleSource, name: str | None) -> ModuleImage:
        if isinstance(source, (bytes, bytearray, memoryview)):
            known_as = name or f"<bytes {next(self._anonymous)}>"
            return image_from_bytes(bytes(source), known_as, f"<memory>/{known_as}")
        if "\0" in os.fspath(source):
            raise LibraryNotFoundError(os.fspath(source), [(repr(source), "not a path")])
        return image_from_file(Path(source), name or os.fspath(source), self._locator.budget)

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
        flags = checked_flags(flags)
        policy = SearchPolicy.of_host(listed("library_path", library_path or ()), self._paths)
        named: str | None = None
        if isinstance(library, (bytes, bytearray, memoryview)):
            image = self._image(bytes(library), name)
            if name is not None and self._locator.add(name, bytes(library)):
                named = name
        else:
            image = self._locator.find(os.fspath(library), Requester(), policy, self._known)
        try:
            self.check_dynamic(image.name)
            return self._loader.open(group, image, flags, lenient=False, policy=policy)
        except BaseException:
            if named is not None:
                self._locator.remove(named)
            raise

    def open_for_guest(self, name: str, search: str) -> ModuleHandle:
        """Load a library as the guest of the calling thread asks for it; see `dl.wasix.linking`.

        Args:
            name: its path, as the guest sees it, or its bare name.
            search: the guest's LD_LIBRARY_PATH.

        Raises:
            DlError: it could not be loaded.
        """
        paths = dataclasses.replace(self._paths, current=self.process.directory)
        policy = SearchPolicy.of_guest(search, paths, name)
        # No run path: the call does not say which module's code made it (nor does WASIX ask).
        image = self._locator.find(name, Requester(), policy, self._known)
        flags = DlFlags.LAZY | DlFlags.GLOBAL
        return self._loader.open(self.threads.current(), image, flags, lenient=True, policy=policy)

    def text_for_guest(self, error: DlError) -> str:
        """Return an error's message as the guest may read it: paths as the guest sees them, no others of the host."""
        text = error.for_guest if isinstance(error, LibraryNotFoundError) else str(error)
        return self._paths.as_guest_sees(text, self._state.base_names())

    def _known(self, name: str) -> ModuleImage | None:
        return loaded_by_base_name(name, self._state.named_images())

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
            scope = self._state.global_scope
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
        group = self.threads.current()
        group.synchronize()
        return group.address_of(self.find_symbol(handle, name, tree=False))

    def is_side_module(self, handle: int) -> bool:
        """Whether a handle is that of a loaded side module."""
        return handle != MAIN_HANDLE and ModuleHandle(handle) in self._state.modules

    def _resolve_stub(self, handle: int, position: int) -> int:
        """Return the table index that a stub's import means now; the host side of every stub's first call."""
        module = self._state.module(handle)
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
            provider = self._state.module(symbol.module)
            raise UnresolvedCallError(
                module.name,
                entry.module,
                entry.name,
                f"it is {entry.type}, but {provider.name if provider else symbol.module} defines it otherwise",
            )
        log.info("%s: %s bound at its first call to table index %d", module.name, entry.name, symbol.address)
        # Every group asks once and gets the same answer, whichever thread came first.
        return module.late.setdefault(position, symbol.address)

    # threads

    def attach(self, name: str | None = None) -> AbstractContextManager[InstanceGroup]:
        """Give the calling thread an instance group of its own, for a `with`.

        For any thread that the host owns, such as a thread pool's worker. A thread that has a group keeps it.

        Args:
            name: the thread's name in messages.

        Raises:
            LinkerUsageError: the program's memory is not shared.
            ResourceLimitError: there is no memory for its stack.
        """
        self._check_open()
        return self.threads.attach(name)

    def spawn(self, function: Callable[..., Any], *args: Any, name: str | None = None) -> HostThread:
        """Start a thread with an instance group of its own, which runs `function(group, *args)`.

        Returns:
            The thread; `join` returns or raises what the function does.

        Raises:
            LinkerUsageError: the program's memory is not shared.
        """
        self._check_open()
        return self.threads.spawn(function, args, name)

    # function pointers

    def callback(self, signature: FuncType | str, function: Callable[..., Any]) -> Callback:
        """Make a Python function a function pointer of the guest, valid in every instance group, also in later ones.

        Args:
            signature: as text, such as `"(i32, f64) -> i32"`, or as a `FuncType`.
            function: gets and returns values as `imports` do: int, float, 16 bytes for v128, a tuple for several
                results. Called in the thread of the caller, which may call the guest in turn. What it raises unwinds the
                guest.

        Returns:
            The callback: its `address` is the pointer. Close it when the guest will call it no more, or use it in a `with`.

        Raises:
            LinkerUsageError: the text is no signature.
            ValueConversionError: the signature has values that Python code cannot hold.
            NotDynamicError: the program's table cannot take functions.
            ResourceLimitError: the table is full.
        """
        self._check_open()
        return self._callbacks.make(signature, function)

    # the program

    @property
    def main(self) -> ModuleHandle:
        """Handle of the main module."""
        return MAIN_HANDLE

    @property
    def main_module(self) -> LinkedModule | None:
        """The main module; None without one."""
        return self._state.modules.get(MAIN_HANDLE) or self._state.arriving.get(MAIN_HANDLE)

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
        self._check_open()
        if self.program.linear is None:
            raise LinkerUsageError("the program neither imports nor exports a memory")
        return self.program.linear

    def grow_memory(self, pages: int) -> int | None:
        """Grow linear memory by a number of 64 KiB pages; return its former size in pages, or None when refused."""
        self._check_open()
        return self.program.grow_memory(pages)

    def modules(self) -> list[LinkedModule]:
        """Return the loaded modules, in handle order."""
        return sorted(self._state.modules.copy().values(), key=lambda m: m.handle)

    def statistics(self) -> LinkerStatistics:
        """Return a snapshot of what the program holds."""
        return linker_statistics(self._state, self.program, self.rendezvous)

    def check_dynamic(self, library: str | None = None) -> None:
        """Check that the program can take libraries.

        Raises:
            NotDynamicError: it cannot; says why.
        """
        refusal = self.program.plan.no_libraries
        if refusal:
            raise NotDynamicError(
                library or self._name, f"not a dynamically-linked instance: {self._name}: {refusal}"
            )

    def run(self, group: InstanceGroup) -> int:
        """Run the program in a group; see `InstanceGroup.run`."""
        self._check_open()
        main = self.main_module
        if main is None:
            raise LinkerUsageError("there is no main module to run")
        if START not in main.wasm.exports:
            raise LinkerUsageError(
                f"{main.name} exports no _start: it is a library of functions, not a command"
            )
        code = 0
        try:
            try:
                group.call_export(main, START, FuncType((), ()))
            except ThreadExited:
                # The program goes on without its first thread until its last has ended.
                self.threads.wait_for_guests()
        except ProgramExited as exited:
            code = exited.code
        finally:
            self.threads.stop_guests(ProgramExited(code))
        return code

    # the end

    @property
    def ended(self) -> BaseException | None:
        """What ended the program; None while it can run."""
        return self._ended

    def end(self, reason: BaseException) -> None:
        """End the program: every thread in it raises `reason` at its next safe point, wait or entry; the first call counts."""
        # Known before it is felt: a thread that this wakes must find the program ended.
        with self._end_lock:
            if self._ended is not None:
                return
            self._ended = reason
        self.rendezvous.shutdown(reason)

    def _check_open(self) -> None:
        if self._closed:
            raise LinkerClosedError("the linker is closed")

    def close(self) -> None:
        """End the program, wait for the threads that it or the linker started, and free all it holds; idempotent.

        A thread that is attached gets `LinkerClosedError` when it next enters the guest. Not from inside guest code.
        """
        if self._closed:
            return
        caller = self.threads.find()
        if caller is not None and caller.replica.state != DETACHED:
            raise LinkerUsageError("the linker cannot be closed from inside its guest code")
        self._closed = True
        self.end(LinkerClosedError("the linker is closed"))
        self.process.close()
        self.threads.join_all()
        # Inside guest code in another thread, it is freed with its last reference, which that thread drops.
        if self._group is not None and self._group.replica.state == DETACHED:
            self.threads.leave(self._group)
        self.program.close()
        wakeup_bell.BELL.remove(self.engine.interrupt)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Linker of {self._name}>"
