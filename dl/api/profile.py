"""Where guest code spends its time: samples of the stacks of a program's threads, by the engine's own profiler."""

from __future__ import annotations

import os
import threading
from array import array
from typing import TYPE_CHECKING, Any

from dl.checks import any_path, taken
from dl.errors import LinkerUsageError

if TYPE_CHECKING:
    from typing_extensions import Self

    from dl.engine.protocol import StackProfiler
    from dl.groups.entry import Group
    from dl.program.program import Program

_AT_ONCE = 1000
"""Samples that the engine keeps before they are taken from it: some 20 kB."""

_FOLDED = (".folded", ".txt")


class _ThreadSamples:
    """The samples of one group's thread. `lock` guards the profiler, which belongs to one thread at a time; a leaf.

    Attributes:
        name: the thread's name in the program.
        stacks: the different stacks, in the order in which they were first seen; outermost function first.
        samples: which stack each sample is, in order.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.lock = threading.Lock()
        self.profiler: StackProfiler | None = None
        self.pending = 0
        self.ended = False
        self.stacks: dict[tuple[str, ...], int] = {}
        self.samples = array("I")

    def flush(self, most: int) -> int:
        """Take what the engine has; under the lock. Returns how many samples were dropped, because there are `most`."""
        profiler, self.profiler, self.pending = self.profiler, None, 0
        if profiler is None:
            return 0
        taken = [stack for stack in profiler.finish() if stack]
        room = max(0, most - len(self.samples))
        for stack in taken[:room]:
            self.samples.append(self.stacks.setdefault(stack, len(self.stacks)))
        return max(0, len(taken) - room)


class Profile:
    """Samples of what a program's threads run, taken while a `with` lasts; made by `Linker.profile`.

    A thread is sampled at the beginnings of functions and loops, where it notices interrupts, and only in guest code: time
    in host functions and in waits is not in it.

    Args:
        program: the program.
        interval: seconds between samples.
        limit: how many samples of each thread are kept; later ones are dropped and counted.

    Attributes:
        interval: seconds between samples.
        lost: how many samples were dropped.

    Raises:
        LinkerUsageError: the engine has no profiler, the program was made without interrupts, or a number is out of range.
    """

    def __init__(self, program: Program, interval: float, limit: int) -> None:
        engine = program.engine
        if not engine.capabilities.profiling:
            raise LinkerUsageError(
                f"engine {engine.name} has no profiler of guest code (no capability profiling)"
            )
        if not engine.capabilities.interrupts:
            raise LinkerUsageError(
                "samples are taken at interrupts, and the program was made with interrupts=False"
            )
        if not 0.0001 <= interval <= 10:
            raise LinkerUsageError(f"the interval of samples is 0.0001 to 10 seconds, not {interval}")
        if limit < 1:
            raise LinkerUsageError(f"a profile has at least one sample, not {limit}")
        self._program = program
        self.interval = interval
        self._limit = limit
        self._threads: dict[Group, _ThreadSamples] = {}
        self._over = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="profile", daemon=True)
        self.lost = 0

    def __enter__(self) -> Self:
        if self._over.is_set() or self._ticker.is_alive():
            raise LinkerUsageError("a profile is taken once; make another one")
        if self._program.sampling is not None:
            raise LinkerUsageError("the program is being profiled already")
        # Before the samples are wanted: a host that has no thread for it leaves the program as it was.
        self._ticker.start()
        self._program.sampling = self._sample
        return self

    def __exit__(self, *_: object) -> None:
        self._program.sampling = None
        self._over.set()
        self._ticker.join()
        for thread in self.threads():
            with thread.lock:
                self.lost += thread.flush(self._limit)
                thread.ended = True

    def _tick(self) -> None:
        while not self._over.wait(self.interval):
            self._program.engine.interrupt()

    def _sample(self, group: Group) -> None:
        """Take a sample of the calling thread, which is in guest code of its group."""
        thread = self._threads.get(group)
        if thread is None:
            thread = self._threads[group] = _ThreadSamples(group.name)
        with thread.lock:
            if thread.ended:
                return
            if thread.profiler is not None and (thread.pending >= _AT_ONCE or thread.profiler.outdated):
                self.lost += thread.flush(self._limit)
            if thread.profiler is None:
                thread.profiler = group.instances.new_profiler()
            thread.profiler.sample()
            thread.pending += 1

    def threads(self) -> list[_ThreadSamples]:
        """Return what was taken of each thread; for the suite."""
        return list(self._threads.values())

    # what users ask

    def functions(self) -> dict[str, tuple[float, float]]:
        """Return for each function, as `module!function`, about how many seconds it took itself, and with those that it called.

        The longest itself first.
        """
        own: dict[str, int] = {}
        with_called: dict[str, int] = {}
        for _, stack, count in self._counted():
            own[stack[-1]] = own.get(stack[-1], 0) + count
            for name in set(stack):
                with_called[name] = with_called.get(name, 0) + count
        names = sorted(with_called, key=lambda name: (-own.get(name, 0), -with_called[name]))
        return {name: (own.get(name, 0) * self.interval, with_called[name] * self.interval) for name in names}

    def _counted(self) -> list[tuple[str, tuple[str, ...], int]]:
        counted = []
        for thread in self.threads():
            counts = [0] * len(thread.stacks)
            for number in thread.samples:
                counts[number] += 1
            counted += [(thread.name, stack, counts[number]) for stack, number in thread.stacks.items()]
        return counted

    def to_folded(self) -> str:
        """Return a line for each thread and stack, functions separated by `;`, and its samples: for flame graphs."""
        lines = [
            f"{';'.join([name, *stack]).replace(chr(10), ' ')} {count}"
            for name, stack, count in self._counted()
            if count
        ]
        return "".join(f"{line}\n" for line in sorted(lines))

    def to_json(self, program: str = "") -> str:
        """Return the profile in the format of speedscope, each thread by itself, in order of time.

        Args:
            program: what the viewer calls it.
        """
        import json  # noqa: PLC0415  a program that nobody looks into needs none of it

        frames: dict[str, int] = {}
        profiles = []
        for thread in self.threads():
            stacks = [
                [frames.setdefault(name, len(frames)) for name in stack]
                for stack in thread.stacks  # in order of their numbers
            ]
            # Samples that repeat are one that lasted as long.
            samples: list[list[int]] = []
            weights: list[float] = []
            last = -1
            for number in thread.samples:
                if number == last:
                    weights[-1] += 1e3 * self.interval
                else:
                    samples.append(stacks[number])
                    weights.append(1e3 * self.interval)
                last = number
            profiles.append(
                {
                    "type": "sampled",
                    "name": thread.name,
                    "unit": "milliseconds",
                    "startValue": 0,
                    "endValue": sum(weights),
                    "samples": samples,
                    "weights": weights,
                }
            )
        document: dict[str, Any] = {
            "$schema": "https://www.speedscope.app/file-format-schema.json",
            "name": program or self._program.options.name,
            "exporter": "wasix-dl",
            "shared": {"frames": [{"name": name} for name in frames]},
            "profiles": profiles,
        }
        return json.dumps(document)

    def write(self, path: str | os.PathLike[str], program: str = "") -> None:
        """Write the profile to a file: folded stacks if its name ends with `.folded` or `.txt`, else for speedscope.

        Raises:
            OSError: it cannot be written.
        """
        text = self.to_folded() if os.fspath(path).endswith(_FOLDED) else self.to_json(program)
        with open(taken(any_path, path, "path"), "w", encoding="utf-8") as file:
            file.write(text)

    def __len__(self) -> int:
        return sum(len(thread.samples) for thread in self.threads())

    def __repr__(self) -> str:
        return f"<Profile of {len(self)} samples of {len(self._threads)} threads>"
