"""System interfaces for the guest: WASI preview 1 and WASIX."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dl.engine.preview1 import WASIX
from dl.wasix.abi import DL_EXT
from dl.wasix.absent import absent_functions
from dl.wasix.adapter import Adapter
from dl.wasix.answers import answer_in_guest
from dl.wasix.closures import closure_functions
from dl.wasix.dl_ext import extension_functions
from dl.wasix.dynamic_calls import dynamic_call_functions
from dl.wasix.linking import linking_functions
from dl.wasix.process import Process
from dl.wasix.system import System
from dl.wasix.tables import process_functions
from dl.wasix.threads import thread_functions

if TYPE_CHECKING:
    from dl.program.host_symbols import HostSymbols


def system_interface(system: System, host: HostSymbols) -> Process:
    """Add every system function to the host's; WASI's own that concern no descriptor are there already.

    Returns:
        The program's process, to be closed with it.
    """
    process = system.process = Process(system)
    adapter = Adapter(process.signals)
    for table in (
        process_functions(process, adapter, system.make_slots),
        {WASIX: absent_functions(system.end)},
        {WASIX: linking_functions(system, adapter)},
        {DL_EXT: extension_functions(system, adapter)},
        {WASIX: closure_functions(system, adapter)},
        {WASIX: dynamic_call_functions(system, adapter)},
        thread_functions(system, adapter),
    ):
        for namespace, functions in table.items():
            host.system[namespace] = host.system.get(namespace, {}) | functions
    answer_in_guest(system, host)
    return process
