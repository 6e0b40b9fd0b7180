"""`dlrun --timeline FILE`: what the program's threads did, for a trace viewer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def timeline(output: str | None, program: str) -> Iterator[None]:
    """Record a timeline while the block runs, and write it at its end, however that comes.

    Args:
        output: the file, in whose name `%p` stands for the number of the process; None for no timeline.
        program: what the viewer calls it.

    Raises:
        OSError: the file cannot be written: before the block, or at its end.
    """
    if output is None:
        yield
        return
    from dl.api.timeline import Timeline  # noqa: PLC0415  running needs nothing of it
    from dl.shipping.files import naming  # noqa: PLC0415  as above

    path = output.replace("%p", str(os.getpid()))
    with naming(path):
        file = open(path, "w", encoding="utf-8")  # noqa: SIM115  closed below, after the program
    with Timeline() as recorded:
        try:
            yield
        finally:
            with naming(path), file:
                file.write(recorded.to_json(f"dlrun {os.path.basename(program)}"))
