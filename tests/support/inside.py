"""What tests look at and disturb inside a linker, in one place."""

from __future__ import annotations

from collections.abc import Callable

import dl


def groups_of(linker: dl.Linker) -> list[dl.InstanceGroup]:
    """Return the groups that threads have now, as the user holds them."""
    return [linker.view(group) for group in linker.parts.groups.all()]


def current_group(linker: dl.Linker) -> dl.InstanceGroup:
    """Return the calling thread's group."""
    return linker.view(linker.parts.groups.current())


def at_steps(linker: dl.Linker, hook: Callable[[str], object] | None) -> None:
    """Call a hook with the name of each step of a load or another change; what it raises fails the step. None: no longer."""

    def checkpoint(step: str, group: str | None) -> None:
        if hook is not None and group is None:
            hook(step)

    linker.program.checkpoint = checkpoint


def at_group_steps(linker: dl.Linker, hook: Callable[[str, str], object] | None) -> None:
    """Call a hook with a group's name and each step in which the group makes an operation; as `at_steps`."""

    def checkpoint(step: str, group: str | None) -> None:
        if hook is not None and group is not None:
            hook(group, step)

    linker.program.checkpoint = checkpoint
