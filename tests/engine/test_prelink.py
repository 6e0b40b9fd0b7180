"""Plans: what was generated for a program, found by the next process; never by other values, and never half of one."""

from __future__ import annotations

import random
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import dl
from dl.dlfcn import DlFlags
from dl.engine import prelink
from dl.engine.disk_cache import DiskCache
from dl.engine.prelink import MOST_CODE_BYTES, MOST_ENTRIES, Plan, key_of, open_plan
from dl.engine.wasmtime.engine import WasmtimeEngine
from dl.glue.resolution import FromNamespace
from dl.wasm.types import FuncType, GlobalType, Limits, MemoryType, TableType
from tests.support.disk_caches import CountingEngine, compiled, module

PROGRAM = b"a program"
PACKAGE = Path(dl.__file__).parent


def plan_of(cache: DiskCache, engine: WasmtimeEngine, program: bytes = PROGRAM) -> Plan:
    """Return a plan as a new process has it."""
    plan = open_plan(cache, engine, program)
    assert plan is not None
    return plan


def learn(plan: Plan, engine: WasmtimeEngine, count: int) -> None:
    """Let a plan learn what came of some numbers."""
    for number in range(count):
        key, found = plan.find(("n", number))
        if found is None:
            plan.add(key, number.to_bytes(32, "big"), compiled(engine, None, module(number % 3)))
    plan.save(last=True)


def known(plan: Plan, count: int) -> list[int]:
    """Return which of some numbers a plan knows; what it says of each must be true."""
    found = {number: plan.find(("n", number))[1] for number in range(count)}
    for number, entry in found.items():
        assert entry is None or entry.digest == number.to_bytes(32, "big")
    return [number for number, entry in found.items() if entry is not None]


def plan_files(place: Path) -> list[Path]:
    return sorted(place.glob("*.plan"))


def test_the_next_process_knows(engine: CountingEngine, cache: DiskCache, place: Path) -> None:
    """What one process has noted, another finds, with code that runs; what it has not noted, it does not find."""
    learn(plan_of(cache, engine), engine, 3)
    again = plan_of(DiskCache(place), engine)

    assert known(again, 5) == [0, 1, 2]
    assert (again.hits, again.misses) == (3, 2)
    entry = again.find(("n", 2))[1]
    assert entry is not None
    assert engine.deserialize(entry.code).code_bytes > 0


def test_each_program_and_engine_has_its_own(cache: DiskCache, place: Path) -> None:
    """Another main module, and an engine with other settings, find nothing of it; one that serializes nothing has no plan."""
    engine = CountingEngine()
    learn(plan_of(cache, engine), engine, 1)

    assert known(plan_of(cache, engine, b"another"), 1) == []
    assert known(plan_of(cache, CountingEngine(interrupts=False)), 1) == []
    assert open_plan(cache, CountingEngine(serialization=False), PROGRAM) is None
    assert len(plan_files(place)) == 1


def test_other_code_of_ours_is_another_plan(
    engine: CountingEngine, cache: DiskCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a file that generates has changed, nothing is found that it had generated before."""
    learn(plan_of(cache, engine), engine, 1)
    former = prelink._generators()
    monkeypatch.setattr(prelink, "_generators", lambda: (*former[:-1], (*former[-1][:2], former[-1][2] + 1)))

    assert known(plan_of(cache, engine), 1) == []


def test_every_generator_is_watched() -> None:
    """Each file that generates modules is among those whose change makes plans void."""
    watched = {name for name, _, _ in prelink._generators()}
    callers = [
        path for path in sorted(PACKAGE.rglob("*.py")) if re.search(r"\bgenerated\($", path.read_text(), re.M)
    ]

    assert len(callers) > 3
    assert {path.relative_to(PACKAGE).as_posix() for path in callers} <= watched


def test_cut_off_anywhere(engine: CountingEngine, cache: DiskCache, place: Path) -> None:
    """A file that ends early, wherever, is no plan; it is as if there were none."""
    learn(plan_of(cache, engine), engine, 2)
    file = plan_files(place)[0]
    whole = file.read_bytes()
    for length in (*range(80), *range(80, len(whole), 1997), len(whole) - 1):
        file.write_bytes(whole[:length])
        assert known(plan_of(cache, engine), 2) == []
    file.write_bytes(whole)
    assert known(plan_of(cache, engine), 2) == [0, 1]


def test_flipped_bits(engine: CountingEngine, cache: DiskCache, place: Path) -> None:
    """A file with one bit changed, whichever, is no plan, and `verify` removes it."""
    learn(plan_of(cache, engine), engine, 1)
    file = plan_files(place)[0]
    whole = file.read_bytes()
    seed = 20
    print(f"seed {seed}")
    generator = random.Random(seed)
    for _ in range(60):
        at = generator.randrange(len(whole))
        changed = bytearray(whole)
        changed[at] ^= 1 << generator.randrange(8)
        file.write_bytes(changed)
        assert known(plan_of(cache, engine), 1) == []
    assert cache.verify().removed == (file.name,)


def test_entries_that_do_not_fit_in(engine: CountingEngine, cache: DiskCache) -> None:
    """Content that is whole and no plan is read as far as it makes sense."""
    plan = plan_of(cache, engine)
    learn(plan, engine, 2)
    content = cache.load_record(plan._key)
    assert content is not None
    for length in range(0, len(content), 61):
        cache.save_record(plan._key, content[:length])
        assert known(plan_of(cache, engine), 2) in ([], [0])


def test_plans_that_others_can_write(engine: CountingEngine, cache: DiskCache, place: Path) -> None:
    """A plan that others can write to, or that is a link, is not read: there is code in it."""
    learn(plan_of(cache, engine), engine, 1)
    file = plan_files(place)[0]
    file.chmod(0o622)
    assert known(plan_of(cache, engine), 1) == []
    file.chmod(0o600)
    moved = file.rename(place / "elsewhere")
    file.symlink_to(moved)
    assert known(plan_of(cache, engine), 1) == []


def test_a_plan_is_bounded(engine: CountingEngine, cache: DiskCache, place: Path) -> None:
    """However much a process notes, a plan has a bound, and what a process uses stays rather than what it does not."""
    learn(plan_of(cache, engine), engine, MOST_ENTRIES)
    plan = plan_of(cache, engine)
    for number in range(MOST_ENTRIES + 50):
        plan.find(("n", number))
    key, _ = plan.find("new")
    plan = plan_of(cache, engine)
    plan.add(key, bytes(32), compiled(engine, None, module(1)))
    plan.save(last=True)

    assert plan_files(place)[0].stat().st_size < MOST_CODE_BYTES + 200 * MOST_ENTRIES
    again = plan_of(cache, engine)
    assert again.find("new")[1] is not None
    assert len(known(again, MOST_ENTRIES)) == MOST_ENTRIES - 1


def test_little_news_waits_for_the_end(engine: CountingEngine, cache: DiskCache) -> None:
    """While a program runs, its plan is written when a fair part of it is new; the rest when it ends."""
    learn(plan_of(cache, engine), engine, 20)
    plan = plan_of(cache, engine)
    key, _ = plan.find("new")
    plan.add(key, bytes(32), compiled(engine, None, module(1)))
    plan.save()
    assert not plan_of(cache, engine).knows("new")
    plan.save(last=True)
    assert plan_of(cache, engine).knows("new")


def test_processes_and_threads_at_once(engine: CountingEngine, cache: DiskCache, place: Path) -> None:
    """Many that write and read one plan at the same time find what somebody has noted, whole; no file is left over."""

    def work(count: int) -> None:
        own = DiskCache(place)
        for _ in range(5):
            learn(plan_of(own, engine), engine, count)
            assert known(plan_of(own, engine), 8)[:1] == [0]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(1, 9)))
    shared = plan_of(cache, engine)

    def note(number: int) -> None:
        key, _ = shared.find(("n", number))
        shared.add(key, number.to_bytes(32, "big"), compiled(engine, None, module(1)))
        shared.save()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(note, range(40)))
    shared.save(last=True)
    assert known(plan_of(cache, engine), 41) == list(range(40))
    assert [file.name for file in place.iterdir()] == [plan_files(place)[0].name]


class SlowRecords:
    """Records in memory; the first one that is kept takes until somebody lets it."""

    def __init__(self) -> None:
        self.kept: dict[bytes, bytes] = {}
        self.begun, self.go_on = threading.Event(), threading.Event()

    def load_record(self, key: bytes) -> bytes | None:
        return self.kept.get(key)

    def save_record(self, key: bytes, content: bytes) -> None:
        if not self.begun.is_set():
            self.begun.set()
            assert self.go_on.wait(30)
        self.kept[key] = content


def test_an_older_state_does_not_replace_a_newer_one(engine: CountingEngine) -> None:
    """What is noted while an older state of the plan is being written is kept when the program ends."""
    records = SlowRecords()
    plan = Plan(records, engine, b"program")

    def note(number: int) -> None:
        key, _ = plan.find(("n", number))
        plan.add(key, number.to_bytes(32, "big"), compiled(engine, None, module(1)))
        plan.save()

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(note, 0)
        assert records.begun.wait(30)
        note(1)
        end = pool.submit(plan.save, last=True)
        records.go_on.set()
        first.result(30)
        end.result(30)
    assert known(Plan(records, engine, b"program"), 3) == [0, 1]


def values(generator: random.Random, depth: int) -> object:
    """Return any value that something may be generated from."""
    leaves = (
        lambda: generator.randrange(-2, 3),
        lambda: generator.choice(["", "a", "1", "'", "a', 'b", "None", "(", "\n"]),
        lambda: generator.choice([b"", b"a", b"1"]),
        lambda: generator.choice([None, True, False]),
        lambda: FromNamespace(generator.choice("ab"), generator.choice("ab")),
        lambda: FuncType(("i32",) * generator.randrange(3), ("i32",) * generator.randrange(2)),
        lambda: GlobalType(generator.choice(["i32", "i64"]), generator.random() < 0.5),
        lambda: TableType("funcref", Limits(generator.randrange(2), None, shared=False, is64=False)),
        lambda: MemoryType(Limits(generator.randrange(2), None, shared=False, is64=False)),
    )
    if depth and generator.random() < 0.6:
        parts = [values(generator, depth - 1) for _ in range(generator.randrange(4))]
        return frozenset(parts) if generator.random() < 0.2 else tuple(parts)
    return generator.choice(leaves)()


def test_keys_are_equal_only_for_equal_values() -> None:
    """Of many values, small and alike, those with one key are equal."""
    seed = 9
    print(f"seed {seed}")
    generator = random.Random(seed)
    by_key: dict[bytes, object] = {}
    for _ in range(6_000):
        value = values(generator, 3)
        assert by_key.setdefault(key_of(value), value) == value
    assert len(by_key) > 2_000
    assert key_of((DlFlags.NOW,)) == key_of((int(DlFlags.NOW),))


def test_values_without_a_text_are_refused() -> None:
    """A value that has no text of its own is an error, and no key: another one could have the same."""
    with pytest.raises(TypeError, match="no text is known that tells one object from all others"):
        key_of((1, object()))
