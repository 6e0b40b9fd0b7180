"""The loggers of look-ups and bindings; what they are told is worked out by `dl.link.why`, if anybody listens."""

from __future__ import annotations

from collections.abc import Sequence

from dl.link.plan import LinkPlan
from dl.logs import DEBUG, logger
from dl.modules.linked_module import LinkedModule
from dl.program.program import Program

bindings_log = logger("dl.link.bindings")
symbols_log = logger("dl.link.symbols")


def trace_bindings(program: Program, modules: Sequence[LinkedModule], plan: LinkPlan) -> None:
    """Tell the loggers what each import of some modules is bound to and why, and where its name was looked for.

    Args:
        program: the program.
        modules: those whose imports are bound.
        plan: the load that has bound them.
    """
    if bindings_log.isEnabledFor(DEBUG) or symbols_log.isEnabledFor(DEBUG):
        from dl.link.why import tell_bindings  # noqa: PLC0415  seldom asked for

        tell_bindings(program, modules, plan)


def trace_stub(program: Program, module: LinkedModule, position: int) -> None:
    """Tell the loggers what a function that was found at its first call is bound to; as `trace_bindings`."""
    if bindings_log.isEnabledFor(DEBUG) or symbols_log.isEnabledFor(DEBUG):
        from dl.link.why import tell_stub  # noqa: PLC0415  as above

        tell_stub(program, module, position)
