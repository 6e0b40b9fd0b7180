"""Events: what is told, in which order and thread, and what listeners cannot do to the program."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import dl
from dl.program.events import EventLog
from tests.support.modules import SHARED_MEMORY, calls, constructor, imports, library, returns

SHARED = dl.MemoryType(minimum=20, maximum=200, shared=True)
SECONDS = 30


def told(queue: dl.EventQueue) -> list[tuple[str, str]]:
    """Take what waits in a queue."""
    return [(str(event.kind), event.module) for _ in range(len(queue)) if (event := queue.get(0))]


class TestWhatIsTold:
    def test_a_library_from_its_load_to_its_end(self) -> None:
        """Load, construction, close and unload of a library and of what it needs come in this order, with handles."""
        libs = {"top.so": library(returns("f", 1), needed=["low.so"]), "low.so": library(returns("g", 2))}
        with dl.Linker(None, libraries=libs) as linker:
            with linker.events.queue() as queue, linker.main_group.library("top.so") as handle:
                assert told(queue) == [
                    ("loaded", "low.so"),
                    ("loaded", "top.so"),
                    ("constructed", "low.so"),
                    ("constructed", "top.so"),
                ]
                assert linker.main_group.dlopen("top.so") == handle.handle
                linker.main_group.dlclose(handle)
                assert len(queue) == 0
            with linker.events.queue() as queue:
                linker.main_group.dlopen("top.so")
                events = [queue.get(0) for _ in range(4)]
                assert [e.number for e in events if e] == list(range(events[0].number, events[0].number + 4))
                assert events[0].thread == threading.current_thread().name
                assert events[0].thread_id == threading.get_ident()
                assert [e.handle for e in events if e] == [3 + 1, 3 + 2] * 2
                assert "loaded low.so (4)" in str(events[0])

    def test_the_close_of_a_library(self) -> None:
        """`closed` comes before its destructors, `unloaded` after them."""
        order: list[str] = []
        lib = library(imports("ran", ""), '(func (export "_fini") (call $ran))')
        with dl.Linker(
            None, libraries={"a.so": lib}, imports={"env": {"ran": lambda: order.append("ran")}}
        ) as linker:
            with linker.events.subscribe(lambda event: order.append(str(event.kind)), ["closed", "unloaded"]):
                linker.main_group.dlclose(linker.main_group.dlopen("a.so"))
            assert order == ["closed", "ran", "unloaded"]

    def test_a_function_that_is_bound_late(self) -> None:
        """The first call of a stub tells of the function, its caller and its provider; later calls tell nothing."""
        libs = {"user.so": library(imports("f"), calls("g", "f")), "maker.so": library(returns("f", 6))}
        with dl.Linker(None, libraries=libs) as linker, linker.events.queue(["bound"]) as queue:
            group = linker.main_group
            user = group.dlsym(group.dlopen("user.so", dl.RTLD_LAZY), "g")
            group.dlopen("maker.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)
            assert (user(), user()) == (6, 6)
            event = queue.get(0)
            assert event is not None
            assert (event.module, event.symbol, event.provider) == ("user.so", "f", "maker.so")
            assert len(queue) == 0

    def test_a_load_that_fails(self) -> None:
        """A failed dlopen is told with its error, after its modules are unloaded."""
        libs = {"bad.so": library(constructor("unreachable"))}
        with dl.Linker(None, libraries=libs) as linker, linker.events.queue() as queue:
            for name in ("bad.so", "none.so"):
                with pytest.raises(dl.LinkError):
                    linker.main_group.dlopen(name)
            events = [event for _ in range(len(queue)) if (event := queue.get(0))]
            assert [(str(e.kind), e.module) for e in events] == [
                ("loaded", "bad.so"),
                ("unloaded", "bad.so"),
                ("failed", "bad.so"),
                ("failed", "none.so"),
            ]
            assert isinstance(events[2].error, dl.InitializationError)
            assert isinstance(events[3].error, dl.LibraryNotFoundError)


class TestListeners:
    def test_a_function_is_called_in_the_acting_thread_with_no_lock_held(self) -> None:
        """While it waits, another thread loads and closes libraries; the library itself is waited for."""
        libs = {
            name: library(SHARED_MEMORY, returns("f", n)) for n, name in enumerate(("a.so", "b.so", "c.so"))
        }
        with dl.Linker(None, memory=SHARED, libraries=libs) as linker:
            inside, go = threading.Event(), threading.Event()

            def listener(event: dl.Event) -> None:
                if event.module == "a.so":
                    threads.append(event.thread_id)
                    inside.set()
                    assert go.wait(SECONDS)

            threads: list[int] = []
            with linker.events.subscribe(listener, [dl.EventKind.LOADED]):
                loading = linker.spawn(lambda own: (own.dlopen("a.so"), threading.get_ident()))
                assert inside.wait(SECONDS)
                group = linker.main_group
                with group.library("b.so") as handle:
                    assert group.dlsym(handle, "f")() == 1
                go.set()
                assert loading.join(SECONDS)[1:] == tuple(threads)

    def test_a_function_may_use_the_linker(self) -> None:
        """A listener that opens a library at the load of another makes further events, and no deadlock."""
        libs = {"a.so": library(returns("f", 1)), "b.so": library(returns("f", 2))}
        with dl.Linker(None, libraries=libs) as linker:
            seen: list[str] = []

            def listener(event: dl.Event) -> None:
                seen.append(f"{event.kind} {event.module}")
                if str(event) and event.module == "a.so" and event.kind == "constructed":
                    linker.main_group.dlopen("b.so")

            linker.events.subscribe(listener)
            linker.main_group.dlopen("a.so")
            assert seen == ["loaded a.so", "constructed a.so", "loaded b.so", "constructed b.so"]

    def test_a_function_that_raises_changes_nothing(self, caplog: pytest.LogCaptureFixture) -> None:
        """The error is logged, the other listeners get the event, and the library is loaded."""
        with dl.Linker(None, libraries={"a.so": library(returns("f", 1))}) as linker:
            seen: list[dl.Event] = []
            linker.events.subscribe(lambda _event: 1 // 0)
            linker.events.subscribe(seen.append)
            handle = linker.main_group.dlopen("a.so")
            assert linker.main_group.dlsym(handle, "f")() == 1
            assert [str(event.kind) for event in seen] == ["loaded", "constructed"]
            assert "ZeroDivisionError" in caplog.text

    def test_a_function_gets_nothing_from_before_it(self) -> None:
        """What was recorded for others, and not yet delivered, is not given to a function that is added meanwhile."""
        events = EventLog()
        former = events.subscribe(lambda _event: None)
        events.record(dl.EventKind.LOADED, "before")
        former.close()
        seen: list[str] = []
        events.subscribe(lambda event: seen.append(event.module))
        events.record(dl.EventKind.LOADED, "after")
        events.deliver()
        assert seen == ["after"]

    def test_a_queue_is_bounded(self) -> None:
        """Of more events than a queue holds the oldest are dropped, and counted."""
        libs = {"a.so": library(returns("f", 1))}
        with dl.Linker(None, libraries=libs) as linker, linker.events.queue(["loaded"], limit=3) as queue:
            for _ in range(5):
                with linker.main_group.library("a.so"):
                    pass
            assert (len(queue), queue.lost) == (3, 2)
            with pytest.raises(dl.LinkerUsageError, match="at least one"):
                linker.events.queue(limit=0)
            with pytest.raises(dl.LinkerUsageError, match="unloaded"):
                linker.events.queue(["gone"])

    def test_iterating_ends_with_the_linker(self) -> None:
        """A thread that takes events gets all of them, in order, and ends when the linker is closed."""
        taken: list[str] = []
        libs = {f"{n}.so": library(returns("f", n)) for n in range(5)}
        with dl.Linker(None, libraries=libs) as linker:
            queue = linker.events.queue(["constructed"])
            thread = threading.Thread(target=lambda: taken.extend(event.module for event in queue))
            thread.start()
            for name in libs:
                linker.main_group.dlopen(name)
        thread.join(SECONDS)
        assert taken == list(libs)
        assert linker.events.queue().get(0) is None

    def test_nothing_is_recorded_while_nobody_listens(self) -> None:
        """Loads before anybody listens, and after the last listener left, take no number."""
        libs = {"a.so": library(returns("f", 1)), "b.so": library(returns("f", 1))}
        with dl.Linker(None, libraries=libs) as linker:
            linker.main_group.dlopen("a.so")
            linker.events.queue().close()
            linker.events.subscribe(lambda _event: None).close()
            linker.main_group.dlopen("b.so")
            assert not linker.program.events.listening
            with linker.events.queue() as queue:
                linker.main_group.dlopen(library(returns("f", 1)), name="c.so")
                event = queue.get(0)
                assert event is not None
                assert event.number == 1

    def test_events_of_many_threads_have_one_order(self) -> None:
        """Each library's events come in the order of its life, whichever threads open and close it."""
        libs = {f"{n}.so": library(SHARED_MEMORY, returns("f", n)) for n in range(4)}
        with (
            dl.Linker(None, memory=SHARED, libraries=libs) as linker,
            linker.events.queue(limit=9999) as queue,
        ):

            def work(own: dl.InstanceGroup, seed: int) -> None:
                for number in range(12):
                    with own.library(f"{(seed + number) % 4}.so"):
                        pass

            threads = [linker.spawn(work, seed) for seed in range(4)]
            for thread in threads:
                thread.join(60)
            lives: dict[int, list[str]] = {}
            numbers = []
            for _ in range(len(queue)):
                event: Any = queue.get(0)
                numbers.append(event.number)
                lives.setdefault(event.handle, []).append(str(event.kind))
            assert numbers == sorted(numbers)
            assert {tuple(life) for life in lives.values()} == {
                ("loaded", "constructed", "closed", "unloaded")
            }
