"""System interfaces for the guest: WASI preview 1 and WASIX."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dl.engine.preview1 import PREVIEW1, UNSTABLE, WASIX
from dl.program.host_symbols import ATOMICS
from dl.wasix import closures, dynamic_calls, linking, threads
from dl.wasix.abi import NAMESPACES, WASI_THREADS
from dl.wasix.absent import absent_functions
from dl.wasix.calls import process_functions
from dl.wasix.process import Process
from dl.wasix.system import Source, System

if TYPE_CHECKING:
    from dl.program.host_symbols import HostSymbols, SystemFunction


def system_interface(linker: Source, host: HostSymbols) -> Process:
    """Add every system function to the host's; WASI's own that concern no descriptor are there already.

    Returns:
        The program's process, to be closed with it.
    """
    system = System(linker)
    process = system.process = Process(system)
    endings = threads.preview1_functions(system)
    tables: list[dict[str, dict[str, SystemFunction]]] = [
        process_functions(process),
        {
            WASIX: absent_functions(system.end)
            | linking.dynlink_functions(system)
            | closures.closure_functions(system)
            | dynamic_calls.dynamic_call_functions(system)
            | {name: function for name, function in endings.items() if name in NAMESPACES[WASIX]}
            | threads.wasix_functions(system),
            PREVIEW1: endings,
            UNSTABLE: endings,
            WASI_THREADS: threads.wasi_functions(system),
        },
    ]
    for table in tables:
        for namespace, functions in table.items():
            known = host.system.get(namespace, {})
            host.system[namespace] = known | functions
    host.system[ATOMICS] = threads.atomic_functions(system)
    return process
