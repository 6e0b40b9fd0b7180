"""Thread-local blocks for every group, made before a load is committed, where replays may not make them themselves."""

from __future__ import annotations

from functools import partial

from dl.link.plan import LinkPlan
from dl.program.operations import LoadModules
from dl.program.program import Program


def stock_up(plan: LinkPlan, operation: LoadModules) -> None:
    """Make a block of each new module for each group, with no lock held; see `dl.program.reserve`.

    Raises:
        ResourceLimitError: there is no memory for them.
    """
    reserve = plan.program.reserve
    if reserve is None:
        return
    for module in operation.thread_local:
        plan.change.give_back(partial(reserve.close, module.handle))
        reserve.open(module)
    reserve.fill()


def is_stocked(program: Program) -> bool:
    """Whether there are blocks for all groups; under the link lock, under which groups are counted."""
    return program.reserve is None or program.reserve.suffices()
