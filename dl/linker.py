"""The linker: a program, the libraries linked into it, and the groups that run it."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dl.api.calling import Calling
from dl.api.host_thread import HostThread
from dl.api.hosts import Hosts
from dl.api.instantiation import Instantiation
from dl.api.introspection import Introspection
from dl.api.linker_base import LinkerActions
from dl.api.option_checks import check_options
from dl.assembly import Options, assemble, new_locator
from dl.checks import function as callable_
from dl.checks import optional, taken, word
from dl.dlfcn import MAIN_HANDLE, ModuleHandle
from dl.errors import LinkerUsageError
from dl.group import InstanceGroup
from dl.limits import Limits
from dl.link.host_libraries import module_image
from dl.options import (
    DEFAULT_STACK_BYTES,
    Binding,
    Finder,
    GuestDlfcn,
    HostImports,
    MemoryType,
    ModuleSource,
    NamingOptions,
    Output,
    SideMemorySource,
)

if TYPE_CHECKING:
    from typing_extensions import Self

    from dl.engine.protocol import Engine
    from dl.wamr.mode import WamrMode


class Linker(Introspection, Calling, Hosts, Instantiation):
    """A WebAssembly program that libraries can be linked into while it runs.

    Args:
        main: the main module: the path of a file, or its bytes; None for libraries only.
        name: what messages call the main module, and what its bytes are known by.
        library_path: directories in which bare library names are looked for.
        libraries: modules held in memory by the names that open them and that needed lists use.
        map_name: given a name of a needed list, and the extension of the file that needs it, returns the name to look for.
        imports: host functions and numbers, by import module name and field name.
        args: the program's arguments, its name first; the main module's name when empty.
        env: its environment variables.
        preopens: directories it sees: guest path to host path.
        stdin: None for the host's own, bytes, or the path of a file.
        stdout: None for the host's own, the path of a file, or a callable that gets chunks of bytes.
        stderr: likewise.
        memory: the memory to provide, without a main module, or with one that imports it (then only a larger minimum or a
            smaller maximum than its own).
        stack_size: bytes of the main thread's shadow stack, a multiple of 1024.
        thread_stack_size: bytes of the shadow stack of each thread that the host attaches, a multiple of 1024.
        side_memory: where side modules' data goes.
        interrupts: whether guest code can be interrupted (costs about 11 % on tight loops); None for what the
            program needs: on with shared memory. Without, a thread that computes stalls links.
        default_files: whether a program of WASIX finds `/dev/null` and the like, and a `/tmp` of its own (docs/wasix.md).
        bind: `"now"` makes functions that nothing defines an error of every load, whatever its flags say (LD_BIND_NOW).
        guest_dlfcn: `"elf"` makes the guest's own dlopen and dlsym honour flags and scopes as ELF's do; `"wasix"` ignores
            flags, as WASIX does (docs/dlfcn.md).
        preload: libraries, by path or name, that come before those that the main module needs, so that their symbols win
            (LD_PRELOAD); they stay loaded.
        engine: the engine, or its name, such as "wasmtime"; None for the default one.
        cache: the directory where compiled code is kept; True for the user's (or that in DLRUN_CACHE), False for none.
        limits: what the program may take of the host; None for the defaults.
        modules: ordinary modules, as paths or bytes, by the names that others import from (docs/linking-by-name.md).
        module_path: directories in which modules of other names are looked for, as `NAME` or `NAME.wasm`.
        finder: functions that are asked for a name then, and for libraries that are found nowhere else: they return a path,
            bytes, a context manager that gives one of these and releases it when the linker is closed, or None.
        isolate: whether each module has its own instances of those it imports from; else there is one of each name.
        wamr: its mode, for a program of WAMR's kind; as a `WamrMode` or the number of `iwasm --enable-dlopen` (docs/wamr.md).
        profiler: `"perfmap"` or `"jitdump"`: has the engine write down where code is, for perf (docs/looking.md).

    Attributes:
        engine: the engine.
        parts: what the program is made of, for tools; see `dl.assembly.Parts`.
        program: memory, table and linker state, the part that all groups share.

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
        map_name: Callable[[str, str], str] | None = None,
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
        default_files: bool = True,
        bind: Binding = "lazy",
        guest_dlfcn: GuestDlfcn = "wasix",
        preload: Sequence[str | os.PathLike[str]] = (),
        engine: str | Engine | None = None,
        cache: bool | str | os.PathLike[str] = True,
        limits: Limits | None = None,
        modules: Mapping[str, ModuleSource] | None = None,
        module_path: Sequence[str | os.PathLike[str]] = (),
        finder: Sequence[Finder] | Finder = (),
        isolate: bool = False,
        wamr: WamrMode | int | None = None,
        profiler: str | None = None,
    ) -> None:
        check_options(locals())  # each option under its own name
        self._closed = False
        self.own = LinkerActions(self, self._check_open)
        self._executors = weakref.WeakValueDictionary()
        locator = new_locator(library_path, libraries, limits or Limits(), map_name)
        image = None if main is None else module_image(locator, main, name)
        self.parts = assemble(image, locator, Options(
            imports=imports, args=args, env=env, preopens=preopens, stdin=stdin, stdout=stdout, stderr=stderr, memory=memory,
            stack_size=stack_size, thread_stack_size=thread_stack_size, side_memory=side_memory, interrupts=interrupts,
            profiler=profiler, engine=engine, default_files=default_files, bind=bind, guest_dlfcn=guest_dlfcn, preload=preload,
            limits=limits or Limits(), cache=cache, wamr=wamr, naming=NamingOptions(modules, module_path, finder, isolate),
        ))  # fmt: skip
        self.program = self.parts.program
        self.engine = self.program.engine
        self._main_group = self.parts.start(image)

    @contextmanager
    def attach(self, name: str | None = None) -> Iterator[InstanceGroup]:
        """Give the calling thread, any of the host's, an instance group of its own for a `with`; it keeps one that it has.

        Args:
            name: the thread's name in messages.

        Raises:
            LinkerUsageError: the program's memory is not shared.
            ResourceLimitError: there is no memory for its stack.
        """
        self._check_open()
        taken(optional(word), name, "name")
        with self.parts.host_threads.attached(name) as group:
            yield self.own.view(group)

    def spawn(self, function: Callable[..., Any], *args: Any, name: str | None = None) -> HostThread:
        """Start a thread with an instance group of its own, which runs `function(group, *args)`.

        Returns:
            The thread; `join` returns or raises what the function does.

        Raises:
            LinkerUsageError: the program's memory is not shared.
        """
        self._check_open()
        taken(callable_, function, "function")
        taken(optional(word), name, "name")
        return HostThread(self.parts.host_threads.spawn(self.own.viewing(function), args, name))

    @property
    def main_group(self) -> InstanceGroup:
        """The instance group of the thread that made the linker."""
        self._check_open()
        return self.own.view(self._main_group)

    @property
    def main(self) -> ModuleHandle:
        """Handle of the main module."""
        return MAIN_HANDLE

    def close(self) -> None:
        """End the program, wait for the threads that it or the linker started, and free all it holds; idempotent.

        A thread that is attached gets `LinkerClosedError` when it next enters the guest. Not from inside guest code. In a child
        made by `os.fork` this does nothing.
        """
        if self._closed or not self.program.rendezvous.process.is_this_one():
            return
        caller = self.parts.groups.find()
        if caller is not None and not caller.is_outside_guest:
            raise LinkerUsageError("the linker cannot be closed from inside its guest code")
        self._closed = True
        self._stop_executors()
        self.parts.stop(self._main_group)

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self.program.state.modules)} modules"
        return f"<Linker of {self.program.options.name}, {state}>"

    def _repr_html_(self) -> str:
        """What Jupyter shows: the loaded modules, and where they are."""
        from dl.api import notebook  # noqa: PLC0415  seldom shown

        if self._closed:
            return notebook.cut(repr(self))
        modules = self.modules
        rows = ((int(m.handle), m.name, f"{m.memory_base:#x}", m.table_base, m.opens) for m in modules)
        head = ("handle", "module", "memory base", "table base", "opens")
        return notebook.table(repr(self), head, rows, len(modules))
