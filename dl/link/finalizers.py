"""What libraries register to run at their end: C++ statics, `atexit` handlers, thread-local destructors.

A C library keeps one list for the whole program (`__cxa_atexit`), and calls it when the program exits. musl's, which the C
libraries of WASI and WASIX are made from, has no way to run one library's part of it: its `__cxa_finalize` is empty. So a
library's registrations pass through here. Each is noted with its library, and the C library is given a function of ours in its
place, which runs the noted one unless the library's end has done so already. Order and moment at the program's exit stay those
of the C library.

A registration belongs to the library that holds the function which is registered.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable

from dl.dlfcn import MAIN_HANDLE, ModuleHandle
from dl.errors import DlError, FinalizationError, SymbolNotFoundError, TrapError, UnresolvedCallError
from dl.groups.entry import Group
from dl.groups.registry import Groups
from dl.link.sources import find_symbol
from dl.logs import logger
from dl.modules.linked_module import LinkedModule
from dl.modules.symbols import FunctionSymbol
from dl.program.host_symbols import FINALIZERS, SystemFunction
from dl.records import dataclass
from dl.wasm.types import FuncType
from threads import found_in

log = logger("dl.link")

_NOTHING = FuncType((), ())
_ENTRY = FuncType(("i32",), ())
_CXA = FuncType(("i32", "i32", "i32"), ("i32",))
_ATEXIT = FuncType(("i32",), ("i32",))
_DESTRUCTORS = ("__wasm_call_dtors", "_fini")
"""Exports that run what a library with a C library of its own has registered in that."""

SIGNATURES = {
    "__cxa_atexit": _CXA,
    "atexit": _ATEXIT,
    "__cxa_thread_atexit": _CXA,
    "__cxa_thread_atexit_impl": _CXA,
}


MOST_SPARE = 64
"""Places in the C library's list, of libraries that are gone, from which on these are used again."""


@dataclass(eq=False)
class _Registration:
    """One function to run.

    Attributes:
        module: the library that holds it.
        function: its table index.
        argument: what it gets; None for a handler of `atexit`, which gets nothing.
        group: of the thread at whose end it runs; None for the program's end. Not the thread's identity, which the next thread
            may have again.
        placed: whether the C library's list has a place for it.
    """

    module: ModuleHandle
    function: int
    argument: int | None
    group: weakref.ref[Group] | None
    placed: bool = False

    def ends_with(self, group: Group | None) -> bool:
        """Whether it runs at the end of a group's thread, or for None at the program's."""
        if self.group is None or group is None:
            return self.group is None and group is None
        return self.group() is group


class Finalizers:
    """The registrations of one program.

    `_lock` guards `_registered` and `_spare`; a leaf: what was registered runs without it.

    Nothing leaves a C library's list before the program's end. So that it does not grow with each library that comes and goes,
    the places of those that are gone are used again from `MOST_SPARE` on. What was registered later then moves up by one place,
    so that all run in the order in which they were registered.

    Attributes:
        make_entry: makes a Python function a function pointer of the guest; set once, when callbacks are there.
    """

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._program = groups.program
        self.make_entry: Callable[[FuncType, Callable[[int], None]], int] | None = None
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._registered: dict[int, _Registration] = {}
        self._spare: set[int] = set()
        self._entry = 0

    def functions(self) -> dict[str, SystemFunction]:
        """Return what libraries get for the functions with which they register; see `dl.link.sources.RegisteredEnds`."""
        return {
            "__cxa_atexit": SystemFunction(_CXA, function=self._cxa_atexit),
            "atexit": SystemFunction(_ATEXIT, function=self._atexit),
            "__cxa_thread_atexit": SystemFunction(_CXA, function=self._thread_atexit),
            "__cxa_thread_atexit_impl": SystemFunction(_CXA, function=self._thread_atexit),
        }

    # registering, by a library's code

    def _cxa_atexit(self, function: int, argument: int, dso: int) -> int:
        return self._register("__cxa_atexit", function, argument, dso)

    def _atexit(self, function: int) -> int:
        return self._register("__cxa_atexit", function, None, 0)

    def _thread_atexit(self, function: int, argument: int, dso: int) -> int:
        return self._register("__cxa_thread_atexit", function, argument, dso, self._groups.current())

    def _register(
        self, registrar: str, function: int, argument: int | None, dso: int, owner: Group | None = None
    ) -> int:
        function &= 0xFFFFFFFF
        module = self._program.state.module_with_function(function)
        number = next(self._numbers) & 0x7FFFFFFF
        group = self._groups.current()
        real = find_symbol(registrar, self._program.state.global_scope)
        has_list = isinstance(real, FunctionSymbol) and real.type == _CXA
        if module is not None:
            reference = None if owner is None else weakref.ref(owner)
            placed = has_list and module.handle != MAIN_HANDLE
            new = _Registration(module.handle, function, argument, reference, placed)
            with self._lock:
                if placed and owner is None and len(self._spare) >= MOST_SPARE:
                    self._use_again(new)
                    return 0
                self._registered[number] = new
        if not isinstance(real, FunctionSymbol) or real.type != _CXA:
            return 0  # there is no C library to run it at the program's end; its own library's end does
        call = group.instances.function(real.module, real.name, real.type)
        if module is None or module.handle == MAIN_HANDLE:
            return int(group.in_guest(call, function, argument or 0, dso))
        return int(group.in_guest(call, self._entry_pointer(), number, dso))

    def _use_again(self, new: _Registration) -> None:
        """Give a registration the last place, and those since the place that is taken each the one before. Under the lock."""
        place = max(self._spare)
        self._spare.remove(place)
        behind = [n for n, r in self._registered.items() if n > place and r.placed and r.group is None]
        moved = [self._registered.pop(n) for n in behind]
        self._registered.update(zip([place, *behind], [*moved, new], strict=True))

    def _entry_pointer(self) -> int:
        if not self._entry:
            assert self.make_entry is not None
            self._entry = self.make_entry(
                _ENTRY, self._called
            )  # a second thread makes another one: both serve
        return self._entry

    # running

    def _called(self, number: int) -> None:
        """Run a registration for the C library, unless the end of its library has run it."""
        with self._lock:
            registration = self._registered.pop(number, None)
            self._spare.discard(number)
        if registration is not None:
            self._groups.current().call_pointer(registration.function, registration.argument)

    def run(self, group: Group, module: LinkedModule) -> list[BaseException]:
        """Run all that a library has registered, last first, and its own destructors; return what failed.

        Thread-local destructors of other threads are dropped: their threads cannot run them here.

        Args:
            group: the calling thread's.
            module: the library, which nobody can find any longer.
        """
        failures: list[BaseException] = []
        for owner in (group, None):
            while True:
                number = self._last(module.handle, owner)
                if number is None:
                    break
                with self._lock:
                    registration = self._registered.pop(number)
                    if registration.placed and owner is None:
                        self._spare.add(number)
                self._guarded(
                    failures,
                    module,
                    f"the function at table index {registration.function}",
                    lambda r=registration: group.call_pointer(r.function, r.argument),  # type: ignore[misc]
                )
        for name in _DESTRUCTORS:
            export = found_in(module.wasm.exports, name)
            if export is not None and export.type == _NOTHING:
                self._guarded(
                    failures,
                    module,
                    name,
                    lambda n=name: group.call_export(module, n, _NOTHING),  # type: ignore[misc]
                )
        with self._lock:
            for number in [n for n, r in self._registered.items() if r.module == module.handle]:
                del self._registered[number]
        return failures

    def _last(self, module: ModuleHandle, owner: Group | None) -> int | None:
        with self._lock:
            own = [n for n, r in self._registered.items() if r.module == module and r.ends_with(owner)]
        return own[-1] if own else None

    @staticmethod
    def _guarded(
        failures: list[BaseException], module: LinkedModule, what: str, call: Callable[[], object]
    ) -> None:
        try:
            call()
        except (TrapError, SymbolNotFoundError, UnresolvedCallError) as error:
            failures.append(FinalizationError(module.name, what, error))
        except DlError as error:
            failures.append(error)  # the program has ended, or the thread
        except BaseException as error:  # noqa: BLE001  raised when the library is gone
            failures.append(error)


__all__ = ["FINALIZERS", "SIGNATURES", "Finalizers"]
