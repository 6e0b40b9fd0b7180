"""Memory maps: every byte and every index has an owner, and it is the right one."""

from __future__ import annotations

import threading

import pytest

import dl
from tests.support.modules import MEMORY, TABLE, data, library, pie, returns
from tests.support.paths import FIXTURES

SECONDS = 30


def regions(found: tuple[dl.MapRegion, ...], kind: str) -> list[tuple[str, int]]:
    """Owner and size of the regions of a kind."""
    return [(region.owner, region.size) for region in found if region.kind == kind]


def is_whole(found: tuple[dl.MapRegion, ...], length: int) -> bool:
    """Whether regions follow each other without gaps from 0 to an end."""
    ends = [0, *(region.end for region in found)]
    return ends[-1] == length and [region.start for region in found] == ends[:-1]


def plugin(size: int, table: int) -> bytes:
    """A library with data and table elements."""
    return library(MEMORY, TABLE, returns("f", 1), data("d", 0), memory_size=size, table_size=table)


def test_data_stack_heap_and_functions() -> None:
    """A program's data, stack and heap, a library's data and functions, and what is free, without gaps."""
    main = pie(returns("answer", 42), memory_size=100, table_size=3)
    with dl.Linker(main, name="app", stack_size=8192, libraries={"a.so": plugin(640, 2)}) as linker:
        handle = linker.main_group.dlopen("a.so")
        found = linker.memory_map()
        assert is_whole(found.memory, linker.memory.size)
        assert is_whole(found.table, linker.statistics().table_length)
        assert regions(found.memory, "data") == [("app", 100), ("a.so", 640)]
        assert regions(found.memory, "stack") == [("main", 8192)]
        assert [owner for owner, _ in regions(found.memory, "heap")] == ["app"]
        assert regions(found.table, "functions") == [("app", 4), ("a.so", 3)]
        place = next(region for region in found.memory if region.owner == "a.so")
        assert place.start <= linker.main_group.dlsym(handle, "d").address < place.end
        assert "a.so" in str(found)
        assert "<MemoryMap of app" in repr(found)


def test_what_is_closed_rests_and_what_is_given_back_is_free() -> None:
    """A closed library's indices rest under its name, and its memory is free; closures are closures while they are there."""
    with dl.Linker(None, libraries={"a.so": plugin(640, 2)}) as linker:
        before = linker.memory_map()
        linker.main_group.dlclose(linker.main_group.dlopen("a.so"))
        callback = linker.callback("() -> ()", lambda: None)
        found = linker.memory_map()
        assert regions(found.memory, "data") == regions(before.memory, "data") == []
        assert regions(found.table, "resting") == [("a.so, closed", 3)]
        assert regions(found.table, "closures") == [("closure", 1)]
        assert sum(size for _, size in regions(found.memory, "free")) >= 640
        callback.close()
        assert regions(linker.memory_map().table, "closures") == []
        with linker.allocate(1000):
            assert ("a block of the host's", 1000) in regions(linker.memory_map().memory, "block")
        assert regions(linker.memory_map().memory, "block") == []


def test_threads_have_stacks_and_thread_local_blocks() -> None:
    """Each thread's stack and thread-local blocks have its name while it lives."""
    path = FIXTURES / "diamond/shared"
    with dl.Linker(path / "main.wasm", library_path=[path], stdout=lambda _: None) as linker:
        ready, go = threading.Event(), threading.Event()

        def stay(group: dl.InstanceGroup) -> None:
            group.synchronize()
            ready.set()
            assert go.wait(SECONDS)

        thread = linker.spawn(stay, name="worker")
        assert ready.wait(SECONDS)
        found = linker.memory_map()
        go.set()
        thread.join(SECONDS)
        assert [size for owner, size in regions(found.memory, "stack") if owner == "worker"] == [256 << 10]
        assert [owner for owner, _ in regions(found.memory, "thread-local")] == [f"{path}/main.wasm, worker"]
        linker.program.limbo.drain()
        assert not [region for region in linker.memory_map().memory if "worker" in region.owner]


@pytest.mark.parametrize("whole", [True, False])
def test_the_page_escapes_names(whole: bool) -> None:
    """Names come from files: none of them becomes markup, on the page or in a notebook."""
    name = "<script>alert('x')</script>&.so"
    with dl.Linker(None, libraries={name: plugin(640, 2)}) as linker:
        linker.main_group.dlopen(name)
        found = linker.memory_map()
        text = found.to_html() if whole else found._repr_html_()
        assert "<script" not in text
        assert "&lt;script&gt;" in text
        assert text.startswith("<!DOCTYPE html>") == whole
