"""Guest code that asyncio tasks wait for: cancelled, timed out or closed under them, it ends, and so does `asyncio.run`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

import dl
from tests.support.groups import Program, program

pytestmark = pytest.mark.timeout(30)

DEADLINE_SECONDS = 10


class Cancelled(Exception):
    """What the guest code of a cancelled task ends with."""


GUEST_CODE: dict[str, Callable[[Program, dl.InstanceGroup], object]] = {
    "computes": lambda p, group: p.call(group, "spin", p.word(0)),
    "waits": lambda p, group: p.call(group, "wait", p.word(1), 0, -1),
}


async def run(p: Program, code: str) -> object:
    """What docs/threads.md says of tasks without `open_linker`."""
    thread = p.linker.spawn(lambda group: GUEST_CODE[code](p, group))
    try:
        return await asyncio.to_thread(thread.join)
    except asyncio.CancelledError:
        thread.cancel(Cancelled())
        raise


@pytest.mark.parametrize("code", GUEST_CODE)
def test_timed_out_task_ends_its_guest_code(code: str) -> None:
    """A task that takes too long ends what the guest does, and `asyncio.run` ends; the program can go on."""
    with program() as p:

        async def main() -> None:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(run(p, code), timeout=0.1)

        started = time.monotonic()
        asyncio.run(main())
        assert time.monotonic() - started < DEADLINE_SECONDS
        assert p.call(p.main, "count", p.word(9)) == 0


@pytest.mark.parametrize("code", GUEST_CODE)
def test_close_from_the_loop_ends_guest_code(code: str) -> None:
    """`close`, called in the loop, ends what tasks wait for: they get the error that says so."""
    with program() as p:

        async def main() -> None:
            task = asyncio.create_task(run(p, code))
            await asyncio.to_thread(
                lambda: p.until(1, "guest") if code == "computes" else p.until_waiting("futex")
            )
            p.linker.close()
            with pytest.raises(dl.LinkerClosedError):
                await task

        started = time.monotonic()
        asyncio.run(main())
        assert time.monotonic() - started < DEADLINE_SECONDS


def test_a_maker_returns_a_linker() -> None:
    """A function given to `open_linker` that returns something else is told so."""

    async def main(make: Any) -> None:
        async with dl.open_linker(make):
            raise AssertionError

    for wrong in (5, None, "app.wasm"):
        with pytest.raises(
            dl.LinkerUsageError, match=f"main: the function must return a dl.Linker, not {wrong!r}"
        ):
            asyncio.run(main(lambda wrong=wrong: wrong))
