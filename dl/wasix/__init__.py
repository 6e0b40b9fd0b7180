"""System interfaces for the guest: WASI preview 1 and WASIX."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dl.host import ATOMICS
from dl.wasix import closures, dynamic_calls, dynlink, threading
from dl.wasix.abi import NAMESPACES, PREVIEW1, UNSTABLE, WASI_THREADS, WASIX
from dl.wasix.absent import absent_functions
from dl.wasix.calls import process_functions
from dl.wasix.process import Process

if TYPE_CHECKING:
    from dl.host import HostSymbols, SystemFunction
    from dl.linker import Linker


def system_interface(linker: Linker, host: HostSymbols) -> Process:
    """Add every system function to the host's; WASI's own that concern no descriptor are there already.

    Returns:
        The program's process, to be closed with it.
    """
    process = Process(linker)
    endings = threading.preview1_functions(linker)
    tables: list[dict[str, dict[str, SystemFunction]]] = [
        process_functions(process),
        {
            WASIX: absent_functions(linker.end)
            | dynlink.dynlink_functions(linker)
            | closures.closure_functions(linker)
            | dynamic_calls.dynamic_call_functions(linker)
            | {name: function for name, function in endings.items() if name in NAMESPACES[WASIX]}
            | threading.wasix_functions(linker),
            PREVIEW1: endings,
            UNSTABLE: endings,
            WASI_THREADS: threading.wasi_functions(linker),
        },
    ]
    for table in tables:
        for namespace, functions in table.items():
            known = host.system.get(namespace, {})
            host.system[namespace] = known | functions
    host.system[ATOMICS] = threading.atomic_functions(linker)
    return process
