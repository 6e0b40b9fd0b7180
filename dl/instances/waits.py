"""Atomic waits of instances: on any shared memory they are the linker's, as those of libraries are.

So a thread that waits in an instance holds up no load, ends with its program, and is woken by whoever notifies at the address:
libraries and instances on the program's memory, and threads of all programs that have a memory of the host's.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from dl.engine.code_cache import content_digest
from dl.glue.names import HOST_NAMESPACE
from dl.glue.resolution import FromNamespace
from dl.instances.externals import External, Memory
from dl.modules.image import ModuleImage
from dl.program.host_symbols import ATOMICS
from dl.program.operations import Filling
from dl.program.program import Program
from dl.wasix.abi import WAITING
from dl.wasix.system import System
from dl.wasix.threads import memory_waits
from dl.wasm.module import WasmModule
from dl.wasm.wait_table import WaitTable, with_wait_table
from threads import FutexTable, SharedFutexes


class InstanceWaits:
    """What stands in for the atomic waits of one program's instances.

    `_lock` guards the other fields.

    Args:
        program: the program.
        system: its system interface, by which threads wait.
    """

    def __init__(self, program: Program, system: System) -> None:
        self._program = program
        self._system = system
        self._lock = threading.Lock()
        self._tables: dict[bytes, tuple[WaitTable, bytes] | None] = {}
        self._functions: dict[tuple[int, bool], tuple[FromNamespace, ...]] = {}
        self._shared: list[tuple[SharedFutexes, FutexTable]] = []

    def rewritten(self, image: ModuleImage) -> tuple[WaitTable, bytes] | None:
        """Return a copy of a module that waits through a table, and its digest; None if it waits on no shared memory.

        Raises:
            DlError: its code cannot be stepped through.
        """
        with self._lock:
            if image.digest in self._tables:
                return self._tables[image.digest]
        table = with_wait_table(image.wasm)
        made = None if table is None else (table, content_digest(table.wasm))
        with self._lock:
            return self._tables.setdefault(image.digest, made)

    def filling(
        self, table: WaitTable, wasm: WasmModule, externals: Sequence[External], own: External | None
    ) -> Filling:
        """Return how the table of an instance is filled.

        Args:
            table: the copy of its module.
            wasm: the module.
            externals: what it imports.
            own: the program's memory.
        """
        memories = [one for one in externals if isinstance(one, Memory)]
        functions: list[FromNamespace] = []
        for index in table.memories:
            memory = memories[index] if index < len(memories) else None
            if memory is not None and memory is own:
                functions += self._of_program()
            else:
                functions += self._of_memory(memory, is64=wasm.memories[index].limits.is64)
        return Filling(table.table, tuple(functions), table.start)

    def _of_program(self) -> list[FromNamespace]:
        found = [self._program.host.bind(ATOMICS, name, kind, "the linker") for name, kind in WAITING.items()]
        return [one for one in found if one is not None]

    def _of_memory(self, memory: Memory | None, *, is64: bool) -> tuple[FromNamespace, ...]:
        shared = None if memory is None else memory.shared
        # The functions keep the memory that the key is the identity of.
        key = id(shared) if shared is not None else 0, is64
        with self._lock:
            known = self._functions.get(key)
            if known is None:
                futexes = memory.futexes if memory is not None and shared is not None else SharedFutexes()
                data = memory.data if memory is not None and shared is not None else None
                table = futexes.add(self._program.waits)
                self._shared.append((futexes, table))
                made = memory_waits(self._system, data, futexes, table, "i64" if is64 else "i32")
                labels = [f"{name} of memory {len(self._functions)}" for name in WAITING]
                for label, one in zip(labels, made, strict=True):
                    assert one.function is not None
                    self._program.functions.define(HOST_NAMESPACE, label, one.type, one.function)
                known = tuple(FromNamespace(HOST_NAMESPACE, label) for label in labels)
                self._functions[key] = known
            return known

    def close(self) -> None:
        """Leave the waits of memories that other programs have; idempotent."""
        with self._lock:
            shared, self._shared = self._shared, []
        for futexes, table in shared:
            futexes.remove(table)
