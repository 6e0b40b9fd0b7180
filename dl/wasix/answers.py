"""Which functions of WASI the threads of a program answer by themselves, and what has a thread begin to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dl.engine.preview1 import PREVIEW1, UNSTABLE, WASIX
from dl.glue.guest_wasi import ANSWERED
from dl.glue.resolution import HOST, FromNamespace
from dl.program.guest_wasi import NAMESPACE
from dl.records import replace
from dl.wasix.clocks import Clocks

if TYPE_CHECKING:
    from dl.engine.protocol import Slots
    from dl.program.host_symbols import HostSymbols, SystemFunction
    from dl.wasix.system import System

_CLOCK = "clock_time_get"


def answer_in_guest(system: System, host: HostSymbols) -> None:
    """Have threads answer by themselves what they can, if the program and the engine let them.

    The host's functions answer a thread's first call, and have it answer the next by itself: a thread that never calls WASI is
    not made ready for it.
    """
    if not system.answers_in_guest:
        return
    behind: dict[str, FromNamespace] = {}
    for name, kind in ANSWERED.items():
        own = host.system[PREVIEW1][name]
        host.system[PREVIEW1][name] = _providing(system, own, clock=name == _CLOCK)
        binding = host.bind_system(PREVIEW1, name, kind, "the linker")
        assert binding is not None
        behind[name] = binding
    if system.answer_in_guest(behind, Clocks.resolutions()):
        for namespace in (PREVIEW1, UNSTABLE, WASIX):
            functions = host.system[namespace]
            for name in ANSWERED:
                functions[name] = replace(functions[name], binding=FromNamespace(NAMESPACE, name, HOST))


def _providing(system: System, own: SystemFunction, *, clock: bool) -> SystemFunction:
    """Return a function of the host's that has the calling thread answer its next calls."""
    typed, raw = own.function, own.raw
    if typed is not None:

        def call(*arguments: int) -> int | None:
            system.provide_wasi(clock=clock)
            answer: int | None = typed(*arguments)
            return answer

        return replace(own, function=call)
    assert raw is not None

    def call_raw(slots: Slots) -> None:
        system.provide_wasi(clock=clock)
        raw(slots)

    return replace(own, raw=call_raw)
