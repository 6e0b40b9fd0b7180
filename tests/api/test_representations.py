"""What users see of the objects that they hold: `repr`, and HTML in a notebook."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest

import dl
from tests.support.modules import MEMORY, TABLE, library, returns
from tests.support.paths import FIXTURES

PLUGINS = FIXTURES / "plugins/shared"
HOSTILE = "<img src=x onerror=alert(1)>&'"


def shown(html: str) -> str:
    """Return the text of HTML, and fail for a tag that is none of ours."""
    tags = set(re.findall(r"</?([a-z0-9]+)", html))
    assert tags <= {"table", "caption", "tr", "th", "td", "code", "div", "style", "h1", "h2", "span", "i"}, (
        tags
    )
    return re.sub(r"<[^>]*>", "", html)


def many(count: int, long: int = 0) -> bytes:
    """A library with many functions, whose names are long."""
    return library(
        MEMORY, TABLE, *(returns(f"{HOSTILE}{'x' * long}{number}", number) for number in range(count))
    )


def test_names_that_a_guest_chose_are_text_in_a_notebook() -> None:
    """Names of libraries and symbols are escaped in the HTML of linker, library, module and memory map."""
    with dl.Linker(None, name=HOSTILE) as linker:
        lib = linker.main_group.library(many(3), name=HOSTILE)
        held: list[Any] = [linker, lib, lib.module, linker.memory_map(), linker.memory]
        for each in held:
            assert "<img" not in shown(each._repr_html_())
        assert "&lt;img" in shown(linker._repr_html_())
        assert "&lt;img" in shown(lib._repr_html_())
        assert "<img" not in linker.memory_map().to_html()


def test_html_has_a_bound_whatever_the_guest_loads() -> None:
    """Neither many libraries, many symbols nor long names make a notebook's cell larger than some 100 KB."""
    small = library(MEMORY, TABLE, returns("f", 1), memory_size=16, table_size=1)
    with dl.Linker(None) as linker:
        for number in range(150):
            linker.main_group.dlopen(small, name=f"lib{number}.so" + "y" * 2000)
        lib = linker.main_group.library(many(300, 1000), name="many.so")
        held: list[Any] = [linker, lib, lib.module, linker.memory_map()]
        for each in held:
            html = each._repr_html_()
            assert len(html) < 150_000, type(each)
        assert "51 more" in shown(linker._repr_html_())
        assert "200 more" in shown(lib._repr_html_())
        assert "smaller ones more" in shown(linker.memory_map()._repr_html_())
        assert "smaller ones more" not in linker.memory_map().to_html()


def test_html_after_the_end_says_so() -> None:
    """What is closed can still be shown."""
    with dl.Linker(None, library_path=[str(PLUGINS)], memory=dl.MemoryType(shared=True)) as linker:
        lib = linker.main_group.library("libadd.so")
        lib.close()
        assert "closed" in shown(lib._repr_html_())
    assert "closed" in shown(linker._repr_html_())


def test_a_thread_says_its_name_and_what_became_of_it() -> None:
    """A thread that was spawned runs, has ended, or has failed; its `repr` says which."""
    with dl.Linker(None, memory=dl.MemoryType(shared=True)) as linker:
        go = threading.Event()
        thread = linker.spawn(lambda _group: go.wait(30), name="patient")
        assert repr(thread) == "<HostThread patient, running>"
        go.set()
        thread.join(30)
        assert repr(thread) == "<HostThread patient, ended>"

        def fails(_group: dl.InstanceGroup) -> None:
            raise KeyError("x")

        thread = linker.spawn(fails, name="hasty")
        with pytest.raises(KeyError):
            thread.join(30)
        assert repr(thread) == "<HostThread hasty, ended by KeyError>"


@pytest.mark.parametrize("name", sorted(set(dl.__all__) - {"TrioLinker"}))
def test_no_public_class_has_the_repr_of_object(name: str) -> None:
    """Whatever a user may hold says more of itself than its address."""
    kind = getattr(dl, name)
    if isinstance(kind, type):
        assert getattr(kind, "__repr__") is not getattr(object, "__repr__")  # noqa: B009  their types differ
