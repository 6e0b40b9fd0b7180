"""Replaces a plug-in by a newer version, and back, while eight threads call it: no call fails, and no count is lost.

    python examples/hot_replacement.py --seconds 2

`Replaceable` is the recipe of docs/hot-replacement.md, to be copied. The plug-in is fixtures/replace.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import dl

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures" / "replace" / "shared"

Move = Callable[[dl.Library, dl.Library], object]
"""Takes the old version and the new one, and moves the state over; what it raises stops the replacement."""


class Replaceable:
    """A library that can be replaced while threads use it. From any thread that has a group.

    Args:
        group: the calling thread's.
        source: the first version.

    Attributes:
        pauses: how long each replacement kept calls waiting, seconds.
    """

    def __init__(self, group: dl.InstanceGroup, source: str) -> None:
        self._handle = group.dlopen(source)
        self._changed = threading.Condition()
        self._users = 0
        self._switching = False
        self._inside = threading.local()
        self.pauses: list[float] = []

    @contextmanager
    def use(self, group: dl.InstanceGroup) -> Iterator[dl.Library]:
        """Use the present version for a `with`: it stays until the end, and waits out a replacement at the beginning.

        Args:
            group: the calling thread's.
        """
        depth = getattr(self._inside, "depth", 0)
        with self._changed:
            # A call inside a call must not wait for the replacement that waits for the outer one.
            self._changed.wait_for(lambda: depth or not self._switching)
            self._users += 1
            handle = self._handle
        self._inside.depth = depth + 1
        try:
            yield dl.Library(group, handle)
        finally:
            self._inside.depth = depth
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def replace(self, group: dl.InstanceGroup, source: str, move: Move) -> None:
        """Put another version in the place of the present one.

        It is loaded beside the old one while calls go on. Then new calls wait until those under way have ended and the state is
        moved; the next call reaches the new version, and the old one is closed. If anything fails before, the old one stays.
        """
        new = group.library(source)
        try:
            with self._alone():
                old = dl.Library(group, self._handle)
                move(old, new)
                self._handle = new.handle
        except BaseException:
            new.close()
            raise
        old.close()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep new calls waiting for a `with`, which begins when those under way have ended."""
        ours = False
        try:
            with self._changed:
                self._changed.wait_for(lambda: not self._switching)
                ours = self._switching = True
                began = time.perf_counter()
                self._changed.wait_for(lambda: not self._users)
            yield
            self.pauses.append(time.perf_counter() - began)
        finally:  # also after Ctrl-C in the wait: else calls would wait for ever
            if ours:
                with self._changed:
                    self._switching = False
                    self._changed.notify_all()


def move_meter(old: dl.Library, new: dl.Library) -> None:
    """Move the state of the meter, as its versions have agreed: one writes a block, the other reads what it knows of it."""
    with old.group.linker.allocate(max(old.saved_size(), new.saved_size())) as block:
        old.save(block)
        if not new.restore(block):
            raise RuntimeError(f"version {new.version()} does not understand version {old.version()}")


def run(seconds: float, threads: int = 8) -> str:
    """Call the meter from threads and replace it again and again; return what to say of it."""
    done = threading.Event()
    with dl.Linker(None, library_path=[FIXTURES], memory=dl.MemoryType(shared=True)) as linker:
        main = linker.main_group
        meter = Replaceable(main, "meter1.so")

        def work(group: dl.InstanceGroup) -> int:
            calls = 0
            while not done.is_set():
                with meter.use(group) as lib:
                    lib.add(1)
                calls += 1
            return calls

        workers = [linker.spawn(work) for _ in range(threads)]
        end = time.monotonic() + seconds
        versions = 0
        while time.monotonic() < end:
            versions += 1
            meter.replace(main, f"meter{versions % 2 + 1}.so", move_meter)
        done.set()
        calls = sum(worker.join() for worker in workers)
        with meter.use(main) as lib:
            total = lib.total()
        assert total == calls, f"{calls} calls, but the meter counted {total}"
        pause = sorted(meter.pauses)[len(meter.pauses) // 2]
        return f"{calls} calls by {threads} threads, {versions} replacements, none failed; pause {pause * 1e3:.1f} ms"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Replace a plug-in while threads call it.")
    parser.add_argument("--seconds", type=float, default=2.0)
    print(run(parser.parse_args().seconds))
