"""The bounded memo: what it keeps, in which order it forgets, and that it is one value to all threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier

from hypothesis import given
from hypothesis import strategies as st

from dl.recent import Recent


def test_a_value_is_made_once() -> None:
    """What is kept is not made again, for any key that is equal."""
    recent, made = Recent[str](10), []

    def make() -> str:
        made.append(1)
        return "value"

    assert [recent.get(("a", (1, 2)), make, 1) for _ in range(3)] == ["value"] * 3
    assert (len(made), len(recent)) == (1, 1)
    assert recent.find("b") is None


@given(
    most=st.integers(0, 30),
    steps=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 12)), max_size=60),
)
def test_the_least_recently_used_go_first(most: int, steps: list[tuple[int, int]]) -> None:
    """The memo holds what a plain list of the last used values holds: within its weight, the newest always."""
    recent: Recent[int] = Recent(most)
    model: list[tuple[int, int]] = []
    for key, weight in steps:
        known = next((entry for entry in model if entry[0] == key), None)
        assert recent.get(key, partial(int, key), weight) == key
        if known is not None:
            model.remove(known)
        model.append(known or (key, weight))
        while len(model) > 1 and known is None and sum(w for _, w in model) > most:
            model.pop(0)

    assert len(recent) == len(model)
    assert all(recent.find(key) == key for key, _ in model)


def test_a_replaced_value_counts_once() -> None:
    """What is kept in the place of another value has its weight alone, and is found."""
    recent: Recent[int] = Recent(10)
    for value in range(5):
        recent.replace("a", value, 6)
    recent.keep("b", 7, 4)
    assert (recent.find("a"), recent.find("b"), len(recent)) == (4, 7, 2)


def test_threads_get_one_value() -> None:
    """Threads that make a value at the same time all get the one that was kept first."""
    recent: Recent[object] = Recent(10)
    ready = Barrier(8)

    def make() -> object:
        ready.wait(30)
        return object()

    with ThreadPoolExecutor(8) as pool:
        values = list(pool.map(lambda _: recent.get("key", make, 1), range(8)))

    assert len({id(value) for value in values}) == 1
