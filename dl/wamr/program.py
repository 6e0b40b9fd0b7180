"""What a mode of WAMR adds to a program: functions of `env`, names of the root's exports, and what they have counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from dl.options import HostFunction
from dl.program.main_module import ASSEMBLYSCRIPT_NAMES, RootNames
from dl.wamr.assemblyscript import AssemblyScript
from dl.wamr.dlfcn import GuestLinking, WamrStatistics
from dl.wamr.memory import memory_functions

if TYPE_CHECKING:
    from dl.groups.registry import Groups
    from dl.link.finalizers import Finalizers
    from dl.wamr.mode import WamrMode
    from dl.wasix.system import System
    from dl.wasm.module import WasmModule

ENV = "env"


class _Part(Protocol):
    def connect(self, groups: Groups) -> None: ...

    def functions(self) -> Mapping[str, HostFunction]: ...


class WamrProgram:
    """The mode of one program, at work.

    Args:
        mode: the mode.
        root: the main module; None for libraries only.

    Raises:
        LinkError: the root does not fit the mode.
    """

    def __init__(self, mode: WamrMode, root: WasmModule | None) -> None:
        self.mode = mode
        self.root_names = ASSEMBLYSCRIPT_NAMES if mode.assemblyscript_root else RootNames()
        self._linking = GuestLinking(mode)
        self._stub_requests = 0
        memory = memory_functions(mode, root, self.root_names)
        self._parts: list[_Part] = [] if memory is None else [memory]
        if mode.assemblyscript_root:
            self._parts.append(AssemblyScript())

    def imports(self) -> Mapping[str, Mapping[str, HostFunction]]:
        """Return the functions by import module and name; what the user gave comes before them."""
        linking = self._linking
        functions = {
            "dlopen": HostFunction(linking.dlopen, ("i32", "i32"), ("i32",)),
            "dlsym": HostFunction(linking.dlsym, ("i32", "i32"), ("i32",)),
            "dlclose": HostFunction(linking.dlclose, ("i32",), ("i32",)),
            "dlerror": HostFunction(linking.dlerror, (), ("i32",)),
        }
        for part in self._parts:
            functions.update(part.functions())
        return {ENV: functions}

    def connect(self, groups: Groups, finalizers: Finalizers, system: System) -> None:
        """Set what the functions work on, once, before the program runs."""
        self._linking.connect(groups, finalizers, system)
        for part in self._parts:
            part.connect(groups)

    def counting(self, resolve: Callable[[int, int], int]) -> Callable[[int, int], int]:
        """Return the function that stubs ask, which counts how often they do."""

        def asked(handle: int, position: int) -> int:
            self._stub_requests += 1
            return resolve(handle, position)

        return asked

    def statistics(self) -> WamrStatistics:
        """Return what was counted; while several threads run, about."""
        linking = self._linking
        cache = linking.cache
        return WamrStatistics(
            self._stub_requests,
            linking.lookups,
            0 if cache is None else cache.hits,
            0 if cache is None else len(cache),
        )
