"""`threads.tables`: what a dictionary has for a key, on interpreters with a GIL and without."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest

from threads import found_in
from threads.tables import _found_in


@pytest.mark.parametrize("look_up", [found_in, _found_in])
@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_it_is_what_get_returns(look_up: Callable[..., Any], kind: type[dict[object, object]]) -> None:
    """For a key that is there, for one that is not, and for one whose value is None; nothing is entered."""
    table = kind({1: "one", b"two": None})

    for key in (1, b"two", "three", (4, 5)):
        assert look_up(table, key) == table.get(key)
        assert look_up(table, key, "nothing") == table.get(key, "nothing")
    assert list(table) == [1, b"two"]
    with pytest.raises(TypeError, match="unhashable"):
        look_up(table, [])
