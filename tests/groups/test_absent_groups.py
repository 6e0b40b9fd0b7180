"""Groups that were absent while others opened and closed libraries; and what a close does not hold up."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator

import pytest

import dl
import dl.program.resting
from dl.stress.modules import LibraryKind, library_module, program_module

SECONDS = 30
IMPORTS: dict[str, dict[str, Callable[..., object]]] = {
    "env": {"on_thread": lambda _number, _record: None, "on_construct": lambda _addend: None}
}


@contextlib.contextmanager
def other_group(linker: dl.Linker, looks: int) -> Iterator[Callable[[], list[object]]]:
    """A group of another thread, which does nothing but tell its table, so many times, when the function is called."""
    turn = threading.Barrier(2, timeout=SECONDS)
    tables: list[list[object]] = []

    def look(group: dl.InstanceGroup) -> None:
        for _ in range(looks):
            turn.wait()
            tables.append(group.table())
            turn.wait()

    def its_table() -> list[object]:
        turn.wait()
        turn.wait()
        return tables.pop()

    thread = linker.spawn(look)
    yield its_table
    thread.join(SECONDS)


@pytest.mark.parametrize("seed", range(3))
def test_an_absent_group_finds_the_table_that_the_others_have(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each absence, over so many closes that table indices are used again, and after none."""
    print("seed", seed)
    monkeypatch.setattr(dl.program.resting, "RESTING_ELEMENTS", 64)
    chance = random.Random(seed)
    with dl.Linker(program_module(), imports=IMPORTS) as linker, other_group(linker, 12) as its_table:
        main = linker.main_group
        opened: list[int] = []
        for step in range(12):
            for number in range(chance.choice((0, 1, 5, 40))):
                if opened and chance.random() < 0.5:
                    main.dlclose(opened.pop(chance.randrange(len(opened))))
                else:
                    kind = LibraryKind(chance.randrange(4))
                    opened.append(main.dlopen(library_module(kind), name=f"l{step}-{number}.so"))
            assert its_table() == main.table(), step


def test_an_absent_group_keeps_what_stands_where_other_libraries_had_stood(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Table indices that rest for the second time hold functions that trap, also after an absence."""
    monkeypatch.setattr(dl.program.resting, "RESTING_ELEMENTS", 32)
    with dl.Linker(program_module(), imports=IMPORTS) as linker, other_group(linker, 40) as its_table:
        main = linker.main_group
        for step in range(40):
            closes = 1 + (step % 13 == 12)  # it makes most closes one by one, and misses one now and then
            for number in range(closes):
                main.dlclose(main.dlopen(library_module(LibraryKind(0)), name=f"l{step}-{number}.so"))
            assert its_table() == main.table(), step


def test_a_close_holds_no_load_up_while_its_own_group_forgets() -> None:
    """Another thread opens a library while the closing thread makes its own change."""
    with dl.Linker(program_module(), imports=IMPORTS) as linker:
        closing, opened = threading.Event(), threading.Event()

        def open_meanwhile(group: dl.InstanceGroup) -> int:
            assert closing.wait(SECONDS)
            handle = group.dlopen(library_module(LibraryKind(1)), name="other.so")
            opened.set()
            return handle

        other = linker.spawn(open_meanwhile)
        handle = linker.main_group.dlopen(library_module(LibraryKind(0)), name="first.so")

        def checkpoint(step: str, group: str | None) -> None:
            if step == "clear" and group == linker.main_group.name:
                closing.set()
                assert opened.wait(SECONDS)

        linker.program.checkpoint = checkpoint
        linker.main_group.dlclose(handle)
        assert other.join(SECONDS) in [module.handle for module in linker.modules]
