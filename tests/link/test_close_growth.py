"""Libraries that come and go without end: what absent threads owe, and what stays flat. Counts are compared, never times."""

from __future__ import annotations

import gc
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dl
from dl.engine.code_cache import PROCESS_CODE
from tests.support.engines import fresh_engine
from tests.support.modules import SHARED_MEMORY, TABLE, TABLE_BASE, library, returns

SECONDS = 60.0
SEED = int(os.environ.get("DL_SEED", "11"))
SHARED = dl.MemoryType(minimum=20, maximum=200, shared=True)


def plugin(value: int, *, elements: int = 2, **options: Any) -> bytes:
    """A library with data and a table, whose first element is a function."""
    return library(
        SHARED_MEMORY,
        TABLE,
        TABLE_BASE,
        f"(func $own (result i32) i32.const {value})",
        "(elem (global.get $table_base) $own)",
        returns("f", value),
        memory_size=4096,
        table_size=elements,
        **options,
    )


class Away:
    """A thread that is outside the guest, and does what it is asked to."""

    def __init__(self, linker: dl.Linker) -> None:
        self._asked, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._steps: list[Callable[[dl.InstanceGroup], Any] | None] = []
        self._results: list[Any] = []
        self._thread = linker.spawn(self._live)
        self.ask(lambda group: group.synchronize())

    def _live(self, group: dl.InstanceGroup) -> None:
        while True:
            assert self._asked.acquire(timeout=SECONDS)
            step = self._steps.pop()
            if step is None:
                return
            self._results.append(step(group))
            self._done.release()

    def ask(self, step: Callable[[dl.InstanceGroup], Any]) -> Any:
        self._steps.append(step)
        self._asked.release()
        assert self._done.acquire(timeout=SECONDS)
        return self._results.pop()

    def leave(self) -> None:
        self._steps.append(None)
        self._asked.release()
        self._thread.join(SECONDS)


@contextmanager
def with_away(linker: dl.Linker, count: int = 1) -> Iterator[list[Away]]:
    away = [Away(linker) for _ in range(count)]
    try:
        yield away
    finally:
        for thread in away:
            thread.leave()


def tables(linker: dl.Linker, away: list[Away]) -> list[list[object]]:
    """What all groups have, and a new one."""
    there = [linker.main_group.table(), *(thread.ask(lambda group: group.table()) for thread in away)]
    return [*there, linker.spawn(lambda group: group.table()).join(SECONDS)]


class TestAbsent:
    def test_a_thread_that_was_away_makes_as_much_as_there_is(self) -> None:
        """However many libraries have come and gone meanwhile, it replays what is there now; and the log holds no more."""
        libs = {"a.so": plugin(1), "b.so": plugin(2, needed=("a.so",)), "stays.so": plugin(3)}
        with dl.Linker(None, memory=SHARED, libraries=libs) as linker, with_away(linker, 2) as away:
            group = linker.main_group
            with group.library("a.so"):
                away[1].ask(lambda own: own.synchronize())  # this one has something to forget
                before = linker.statistics().protocol.committed
            for _ in range(50):
                group.dlclose(group.dlopen("b.so"))
            group.dlopen("stays.so")
            replays: list[int] = []
            linker.program.checkpoint = lambda step, name: (
                replays.append(1) if name and step != "place" else None
            )

            assert linker.statistics().protocol.committed > before + 100
            assert linker.statistics().protocol.log_entries <= 6
            assert away[0].ask(lambda own: own.dlsym(linker.modules[-1].handle, "f")()) == 3
            assert len(replays) <= 6
            there = tables(linker, away)
            assert all(table == there[0] for table in there)
            # A thread that waits for the others owes one operation for each library, and the one for what rests.
            assert linker.statistics().protocol.log_entries <= len(libs) + 2

    def test_groups_come_to_the_same_table_from_wherever_they_left(self) -> None:
        """Threads that follow at random moments end with equal tables, while indices rest, are free, and are used again."""
        print(f"seed {SEED}")
        choose = random.Random(SEED)
        libs = {f"{n}.so": plugin(n, elements=n) for n in (2, 7, 120, 300, 500)}
        with dl.Linker(None, memory=SHARED, libraries=libs) as linker, with_away(linker, 3) as away:
            opened: list[dl.ModuleHandle] = []
            for turn in range(120):
                if opened and choose.random() < 0.5:
                    linker.main_group.dlclose(opened.pop(choose.randrange(len(opened))))
                else:
                    opened.append(linker.main_group.dlopen(choose.choice(list(libs))))
                for thread in away:
                    if choose.random() < 0.15:
                        thread.ask(lambda own: own.synchronize())
                if turn % 20 == 19:
                    there = tables(linker, away)
                    assert all(table == there[0] for table in there), f"turn {turn}"


class TestCycles:
    def test_code_and_log_and_table_are_flat(self) -> None:
        """Libraries that many threads open and close are compiled once, wherever they come to lie."""
        libs = {
            "low.so": plugin(1),
            "local.so": plugin(2, elements=5),
            "top.so": plugin(3, needed=("low.so", "local.so")),
            "other.so": plugin(4, elements=9, needed=("low.so",)),
        }
        engine = fresh_engine()
        with dl.Linker(None, memory=SHARED, libraries=libs, engine=engine, cache=False) as linker:
            code = PROCESS_CODE.of(engine)
            together = threading.Barrier(5)

            def work(group: dl.InstanceGroup, number: int) -> None:
                choose = random.Random(f"{SEED} {number}")
                for _ in range(2):
                    for _ in range(40):
                        name = choose.choice(list(libs))
                        with group.library(name) as handle:
                            assert group.dlsym(handle, "f").address
                    group.synchronize()
                    together.wait(SECONDS)
                    together.wait(SECONDS)

            def figures() -> tuple[int, ...]:
                now = linker.statistics()
                gc.collect()
                return now.memory_bytes, now.side_bytes, now.modules, len(code._in_use)

            threads = [linker.spawn(work, number) for number in range(4)]
            together.wait(SECONDS)
            before, table = figures(), linker.statistics().table_length
            together.wait(SECONDS)
            together.wait(SECONDS)
            after = figures()
            # A thread that waits for the others owes one operation for each library, and the one for what rests.
            assert linker.statistics().protocol.log_entries <= len(libs) + 2
            together.wait(SECONDS)
            for thread in threads:
                thread.join(SECONDS)
            assert after[:-1] == before[:-1]
            assert after[-1] <= before[-1] + 8  # rare combinations
            # 1,024 indices rest, and what four threads have open, and close, at a time finds no gap of its size between them.
            assert table <= linker.statistics().table_length <= 1024 + 256
