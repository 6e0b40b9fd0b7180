"""Containers that several threads use without a lock are used by whole steps only; the rule is in `docs/locking.md`."""

from __future__ import annotations

import ast
import itertools
import threading
from collections.abc import Callable, Iterator, Sized
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.imports import sources
from tests.support.paths import ROOT

KINDS = ("WeakKeyDictionary", "WeakSet", "WeakValueDictionary", "deque")
"""Containers that cannot be walked or copied beside a thread that changes them."""
WALKED = {
    "dl/program/guest_wasi.py _SCRATCHES": "in a forked child, which has one thread",
    "dl/program/limbo.py _resting": "under Limbo._lock",
    "dl/pool/programs.py _ready": "under ProgramPool._changed",
    "dl/stress/run.py latest": "by the thread that reports",
    "threads/process.py _gated": "in a forked child, which has one thread",
    "threads/rendezvous.py _latency": "under Rendezvous._lock",
    "threads/testing/scheduler.py _trail": "one thread runs at a time",
    "threads/testing/store_buffers.py _stores": "each belongs to one thread",
    "threads/turn.py _queue": "under Turn._lock",
}
"""Those that are walked or copied nevertheless, and why that is safe."""
COPYING = {
    "list",
    "tuple",
    "set",
    "frozenset",
    "sorted",
    "dict",
    "any",
    "all",
    "sum",
    "max",
    "min",
    "filter",
    "map",
    "copy",
    "reversed",
}
VIEWS = {"copy", "items", "keys", "values"}
ROUNDS = 1_000


def named(node: ast.AST) -> str:
    """Return the last part of what is named, through `copy()` and the like; empty if nothing is."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in VIEWS:
        return named(node.func.value)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def walked(tree: ast.Module, kind: str) -> Iterator[str]:
    """Yield the names of what is walked or copied, if it is of a kind."""
    for node in ast.walk(tree):
        if isinstance(node, ast.For | ast.comprehension):
            yield named(node.iter)
        elif isinstance(node, ast.Starred):
            yield named(node.value)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in COPYING:
            yield from map(named, node.args)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in VIEWS:
            yield named(node.func.value)
        elif (
            isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn) and kind == "deque"
        ):
            yield named(node.comparators[0])


def kept(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield the containers of these kinds that outlive a call, those of modules, classes and objects: their names and kinds."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef):
            targets = [child for child in node.body if isinstance(child, ast.AnnAssign)]
        else:
            targets = (
                [node] if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Attribute) else []
            )
        for target in targets:
            kind = ast.unparse(target.annotation).partition("[")[0].rpartition(".")[2]
            if kind in KINDS:
                yield named(target.target), kind


def test_what_cannot_be_copied_in_one_step_is_walked_where_no_other_thread_changes_it() -> None:
    """A deque and a weak container is walked or copied only where it is known that no other thread changes it meanwhile."""
    texts = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in sources(ROOT)}
    found: set[str] = set()
    for owner in (path for path, text in texts.items() if any(kind in text for kind in KINDS)):
        for name, kind in kept(ast.parse(texts[owner])):
            # What begins with an underscore is used in its file alone.
            users = (
                [texts[owner]] if name[0] == "_" else [text for text in texts.values() if f".{name}" in text]
            )
            if any(name in walked(ast.parse(user), kind) for user in users):
                found.add(f"{owner} {name}")
    assert found == WALKED.keys()


DICTIONARY: dict[object, int] = dict.fromkeys(map(object.__new__, [object] * 20), 1)
LIST, SET = list(range(20)), set(range(20))


def change_dictionary(key: object) -> None:
    DICTIONARY[key] = 1
    assert DICTIONARY.pop(key) == 1


def change_list(_key: object) -> None:
    LIST.append(1)
    LIST.pop()


def change_set(key: object) -> None:
    SET.add(id(key))
    SET.remove(id(key))


STEPS: dict[str, tuple[Callable[[object], None], Callable[[], Sized]]] = {
    "dict.copy": (change_dictionary, DICTIONARY.copy),
    "list of a dictionary": (change_dictionary, lambda: list(DICTIONARY)),
    "list of its values": (change_dictionary, lambda: list(DICTIONARY.values())),
    "list of its items": (change_dictionary, lambda: list(DICTIONARY.items())),
    "list.copy": (change_list, LIST.copy),
    "tuple of a list": (change_list, lambda: tuple(LIST)),
    "set.copy": (change_set, SET.copy),
}


@pytest.mark.parametrize("name", STEPS)
def test_copy_is_whole_beside_threads_that_change_its_object(name: str) -> None:
    """Each way to copy that the sources use never fails, and has all that stays and at most what each other thread adds."""
    change, copy = STEPS[name]
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            change(object())

    with ThreadPoolExecutor(2) as others:
        changing = [others.submit(run) for _ in range(2)]
        try:
            sizes = {len(copy()) for _ in range(ROUNDS)}
        finally:
            stop.set()
    assert sizes <= {20, 21, 22}
    assert [one.result() for one in changing] == [None, None]


def test_number_of_a_count_belongs_to_one_thread() -> None:
    """Threads that take numbers of one `itertools.count` get different ones; an iterator over a range would not do that."""
    count, each = itertools.count(), 20_000
    taken: list[list[int]] = []

    def run() -> None:
        taken.append([next(count) for _ in range(each)])

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(itertools.chain.from_iterable(taken))) == 4 * each
