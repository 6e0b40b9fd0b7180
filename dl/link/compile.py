"""The modules of a load are compiled: in their order, and side by side once the engine has one of them to compile.

The engine compiles the functions of one module on all cores, but reads the module before, and puts the code together
afterwards, on one. So other threads compile the modules that come next meanwhile. What they make is found by the loading thread
when it comes there; what they cannot make it tries by itself, so it meets the errors that it would have met alone, in the same
order.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dl.errors import DlError
from dl.forks import in_forked_child
from dl.link.find import FoundModule, FoundTree, compile_module, form_reader
from threads import found_in

if TYPE_CHECKING:
    from dl.engine.protocol import CompiledModule
    from dl.program.program import Program

MOST_COPIES = 64
"""Modules of equal content that have code of their own; beyond, traps show the last one's name."""

MOST_THREADS = 8
"""That compile beside the loading one: each takes several times the size of a module."""

LEAST_BYTES = 32 << 10
"""Of modules that are left to compile; for less, some tens of milliseconds of the engine, threads cost more than they bring."""


def compile_modules(program: Program, tree: FoundTree) -> None:
    """Compile the new modules of a tree.

    Raises:
        InvalidModuleError: the engine refuses one.
        UnsupportedModuleError: it does so for exceptions in their former encoding.
        ResourceLimitError: the program uses too many compiled modules.
    """
    taken: dict[bytes, set[int]] = {}
    for module in tree.new:
        copies = taken.get(module.image.digest)
        if copies is None:
            copies = taken[module.image.digest] = program.state.copies_of(module.image.digest)
        # The least number that no module of the program has: another run of it compiles the same.
        module.copy = next(n for n in itertools.count() if n not in copies or n >= MOST_COPIES)
        copies.add(module.copy)
    helpers = _Helpers(program, tree.new)
    try:
        for index, module in enumerate(tree.new):
            module.code = helpers.compile(index)
    finally:
        helpers.end()


_UNDER_WAY: dict[int, str] = {}
"""Names of the modules that the engine compiles now, by thread; each step on it is atomic."""

in_forked_child(_UNDER_WAY.clear)


def being_compiled() -> list[str]:
    """Return the names of the modules that are being compiled, in any thread of the process."""
    return list(_UNDER_WAY.copy().values())


def _nothing() -> None:
    """Do nothing."""


def _compiled(
    program: Program, module: FoundModule, starting: Callable[[], None] = _nothing
) -> CompiledModule:
    """Return a module's code; `starting` is called before the engine compiles it."""
    own = threading.get_ident()
    outer = found_in(_UNDER_WAY, own)  # what a signal handler of this thread has interrupted

    def start() -> None:
        _UNDER_WAY[own] = module.image.name
        starting()

    try:
        with program.compiling.one(module.image.digest):
            return compile_module(
                program.compiler, module.image, module.copy, form_reader(program, module.image), start
            )
    finally:
        _UNDER_WAY.pop(own, None)
        if outer is not None:
            _UNDER_WAY[own] = outer


class _Helpers:
    """Threads that compile what the loading thread has not come to. There are none until the engine has something to compile.

    Args:
        program: the program.
        modules: the modules of the load, in their order.
    """

    def __init__(self, program: Program, modules: Sequence[FoundModule]) -> None:
        self._program = program
        self._modules = modules
        self._taken: dict[
            int, int
        ] = {}  # which thread compiles the module of an index; each is taken by one step
        self._threads: list[threading.Thread] = []
        self._is_over = False

    def compile(self, index: int) -> CompiledModule:
        """Compile the module of an index, in the loading thread, or wait for the thread that does."""
        self._taken.setdefault(index, threading.get_ident())
        return _compiled(self._program, self._modules[index], self._start)

    def _start(self) -> None:
        """Start the threads, once: the engine compiles a module."""
        left = [module for index, module in enumerate(self._modules) if index not in self._taken]
        if sum(len(module.image.wasm.data) for module in left) < LEAST_BYTES:
            return
        # With little room for code, which module finds none must not depend on who comes first.
        if self._threads or self._program.compiler.room <= len(self._modules):
            return
        for _ in range(min(len(left), (os.cpu_count() or 1) - 1, MOST_THREADS)):
            thread = threading.Thread(target=self._help, name="wasix-dl compiles", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the host has no more
                return
            self._threads.append(thread)

    def _help(self) -> None:
        own = threading.get_ident()
        for index, module in enumerate(self._modules):
            if self._is_over:
                return
            if self._taken.setdefault(index, own) == own:
                # The loading thread tries what fails here by itself, if it comes to it.
                with contextlib.suppress(DlError, MemoryError):
                    _compiled(self._program, module)

    def end(self) -> None:
        """Wait until no thread compiles; each ends with the module that it is at."""
        self._is_over = True
        for thread in self._threads:
            thread.join()
