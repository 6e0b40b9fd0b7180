"""`dlrun --profile`: where the program spends its time, by the engine's profilers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dl.linker import Linker

GUEST = "guest"
NATIVE = ("perfmap", "jitdump")
DEFAULT_FILE = "profile.speedscope.json"


def parts_of(profile: str | None) -> tuple[str | None, str | None]:
    """Return the profiler of the system that an option asks for, and the file for samples of the guest; None for each that not.

    Raises:
        ValueError: it asks for neither; the text says what there is.
    """
    if profile is None:
        return None, None
    kind, _, file = profile.partition(",")
    if kind == GUEST:
        return None, file or DEFAULT_FILE
    if file:
        raise ValueError(f"--profile {kind} takes no file: the engine names it by the process")
    if kind not in NATIVE:
        why = (
            ": the engine reports to VTune's own collector, without which nothing is written"
            if kind == "vtune"
            else ""
        )
        raise ValueError(f"--profile {kind} is not offered{why}; there are {GUEST}, {' and '.join(NATIVE)}")
    return kind, None


@contextmanager
def profiling(linker: Linker, target: str | None, program: str) -> Iterator[None]:
    """Take samples of the guest while the block runs, and write them at its end, however that comes.

    Args:
        linker: the program.
        target: the file; None for no samples.
        program: what a viewer calls it.

    Raises:
        LinkerUsageError: the engine cannot.
        OSError: the file cannot be written.
    """
    if target is None:
        yield
        return
    from dl.shipping.files import naming  # noqa: PLC0415  most programs are not measured

    with open(target, "a", encoding="utf-8"):
        pass  # an error comes before the program runs
    profile = linker.profile()
    try:
        with profile:
            yield
    finally:
        with naming(target):
            profile.write(target, program)
