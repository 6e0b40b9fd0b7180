"""Timelines: what is recorded of loads, barriers, waits and calls, and what viewers get."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import dl
from dl.cli import main
from tests.support.command_line import HELLO, TRAPS
from tests.support.modules import constructor, library, returns
from threads import recording

SPIN = """(func (export "spin") (param i32) (result i32) (local $i i32)
    (loop $again (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br_if $again (i32.lt_u (local.get $i) (local.get 0))))
    (local.get $i))"""
SHARED = dl.MemoryType(shared=True)


def opened(libraries: dict[str, bytes]) -> dl.Linker:
    """A program of libraries only, whose threads share memory."""
    return dl.Linker(None, libraries=libraries, memory=SHARED, cache=False)


def of(timeline: dl.Timeline, phase: str) -> list[dl.TimelineEvent]:
    """Return the events of a phase."""
    return [event for event in timeline.events if event.phase == phase]


def drawn(timeline: dl.Timeline) -> list[dict[str, Any]]:
    """Return what a viewer gets, without the names of threads."""
    return [event for event in json.loads(timeline.to_json())["traceEvents"] if event["ph"] != "M"]


class TestWhatIsRecorded:
    def test_the_phases_of_a_load(self) -> None:
        """A dlopen is a span that has all phases of the load in it, in their order, in the thread that opens."""
        wasm = library(returns("f", 7), constructor())
        with opened({"a.so": wasm}) as linker, dl.Timeline() as timeline:
            linker.main_group.dlopen("a.so")
        (whole,) = of(timeline, "dlopen")
        inside = [e for e in timeline.events if e.kind == "load" and e is not whole]
        order = list(dict.fromkeys(e.phase for e in sorted(inside, key=lambda e: (e.begin_ns, -e.end_ns))))
        expected = [
            "parse", "find", "take compiled code", "compile", "reserve memory", "number", "place", "resolve", "generate",
            "instantiate", "initialize",
        ]  # fmt: skip
        assert [phase for phase in order if phase in expected] == expected
        assert all(whole.begin_ns <= e.begin_ns <= e.end_ns <= whole.end_ns for e in inside)
        assert {e.thread for e in timeline.events} == {whole.thread}
        assert of(timeline, "initialize")[0].about["function"] == "__wasm_call_ctors"

    def test_a_barrier_and_who_arrives(self) -> None:
        """Of a load beside a thread that computes: the barrier has its name, it arrives within it, and then replays."""
        with opened({"spin.so": library(SPIN), "b.so": library(returns("g", 1))}) as linker:
            spin = linker.main_group.dlopen("spin.so")

            def work(group: dl.InstanceGroup) -> None:
                function = group.dlsym(spin, "spin")
                assert callable(function)
                while not done:
                    function(200_000)

            done: list[int] = []
            with dl.Timeline() as timeline:
                thread = linker.spawn(work, name="worker")
                try:
                    for _ in range(200):
                        handle = linker.main_group.dlopen("b.so")
                        linker.main_group.dlclose(handle)
                        if any(e.about["waited_for"] for e in of(timeline, "barrier")):
                            break
                finally:
                    done.append(1)
                    thread.join()
        waited = next(e for e in of(timeline, "barrier") if e.about["waited_for"])
        assert waited.about["awaited"] == ["worker"]
        number = waited.about["operation"]
        (arrival,) = (e for e in of(timeline, "arrives") if e.about["operation"] == number)
        assert arrival.thread[1] == "worker"
        assert waited.begin_ns <= arrival.begin_ns <= waited.end_ns
        assert any(e.thread == arrival.thread for e in of(timeline, "replay"))
        assert {e.thread[1] for e in of(timeline, "call")} == {"worker"}
        arrows = [e for e in drawn(timeline) if e["name"] == "arrival"]
        starts, ends = ({e["id"] for e in arrows if e["ph"] == ph} for ph in "sf")
        assert starts == ends
        assert len(arrows) == 2 * len(starts) > 0

    def test_waits_say_what_for_and_how_they_ended(self) -> None:
        """A join is a wait for a thread; it ended because it was woken."""
        with opened({}) as linker, dl.Timeline() as timeline:
            linker.spawn(lambda group: None, name="short").join()
            linker.spawn(lambda group: None, name="second").join()
        waits = of(timeline, "wait for")
        assert all(e.kind == "wait" and "to end" in e.subject for e in waits)
        assert {e.about["result"] for e in waits} <= {"woken", "not_equal"}
        assert [e.subject for e in of(timeline, "host thread")] == ["short", "second"]

    def test_what_ends_with_an_error_has_its_name(self) -> None:
        """A dlopen that fails is there with the class of the error."""
        with opened({}) as linker, dl.Timeline() as timeline, pytest.raises(dl.LibraryNotFoundError):
            linker.main_group.dlopen("nowhere.so")
        assert of(timeline, "dlopen")[0].about == {"error": "LibraryNotFoundError"}


class TestBounds:
    def test_nothing_is_recorded_outside(self) -> None:
        """Before and after the `with` there is no recorder, and nothing comes."""
        assert recording.recorders == ()
        with opened({"a.so": library(returns("f", 7))}) as linker:
            with dl.Timeline() as timeline:
                pass
            linker.main_group.dlopen("a.so")
        assert len(timeline) == 0
        assert recording.recorders == ()

    def test_the_oldest_are_dropped_and_counted(self) -> None:
        """A timeline of ten events has the last ten, and counts the others; a limit of nothing is refused."""
        with opened({"a.so": library(returns("f", 7))}) as linker, dl.Timeline(limit=10) as timeline:
            function = linker.main_group.library("a.so").function("f")
            for _ in range(25):
                function()
        assert [e.phase for e in timeline.events] == ["call"] * 10
        assert timeline.lost >= 15
        assert "lost" in repr(timeline)
        with pytest.raises(dl.LinkerUsageError):
            dl.Timeline(limit=0)

    def test_two_at_once(self) -> None:
        """Timelines may overlap: each has what came in its time."""
        with opened({"a.so": library(returns("f", 7))}) as linker:
            function = linker.main_group.library("a.so").function("f")
            with dl.Timeline() as outer:
                function()
                with dl.Timeline() as inner:
                    function()
        assert (len(of(outer, "call")), len(of(inner, "call"))) == (2, 1)
        assert outer.totals()["guest", "call"][0] == 2


class TestFormat:
    def test_spans_of_a_thread_nest(self) -> None:
        """What a viewer gets of one thread: spans that contain each other or lie apart, outer ones first."""
        with dl.Timeline() as timeline, opened({"a.so": library(returns("f", 7))}) as linker:
            linker.main_group.library("a.so").function("f")()
        assert len(drawn(timeline)) > 10
        open_: list[float] = []
        for event in (e for e in drawn(timeline) if e["ph"] == "X"):
            assert {"name", "cat", "pid", "tid", "ts", "dur", "args"} <= set(event)
            while open_ and open_[-1] <= event["ts"]:
                open_.pop()
            assert not open_ or event["ts"] + event["dur"] <= open_[-1] + 0.001
            open_.append(event["ts"] + event["dur"])

    def test_threads_have_names(self) -> None:
        """Each thread's row has the name of the thread and the one that it has in the program."""
        with dl.Timeline() as timeline, opened({}) as linker:
            linker.spawn(lambda group: None, name="worker").join()
        events = json.loads(timeline.to_json("p"))["traceEvents"]
        names = {e["args"]["name"] for e in events if e["ph"] == "M" and "name" in e["args"]}
        assert {"p", "MainThread (main)", "worker"} <= names


class TestCommand:
    def test_a_run(self, tmp_path: Path) -> None:
        """`dlrun --timeline` writes the loads of the program and its run."""
        # In a process that has read nothing yet: what it has parsed before, a process only compares.
        command = [sys.executable, "-m", "dl", "--timeline", str(tmp_path / "t.%p"), HELLO]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        (file,) = tmp_path.iterdir()
        names = {event["name"] for event in json.loads(file.read_text())["traceEvents"]}
        assert {"load main.wasm", "read libgreet.so", "parse libgreet.so", "run main.wasm"} <= names

    def test_a_run_that_traps(self, tmp_path: Path) -> None:
        """It is written when the program ends by a trap as well, and not without a place for it."""
        assert main(["--timeline", str(tmp_path / "t"), TRAPS, "library"]) == 134
        run = next(
            e for e in json.loads((tmp_path / "t").read_text())["traceEvents"] if e["name"].startswith("run")
        )
        assert run["args"]["error"] == "TrapError"
        assert main(["--timeline", str(tmp_path / "no" / "t"), HELLO]) == 74

    def test_the_trace_of_threads_and_times(self, capfd: pytest.CaptureFixture[str]) -> None:
        """`--trace=threads,statistics` shows barriers as they come, and at the end how long each phase took."""
        assert main(["--trace=threads,statistics", HELLO]) == 0
        text = capfd.readouterr().err
        assert "threads: barrier LoadModules of operation 1, waited for nobody: " in text
        assert "statistics: load: resolve: 1 times, " in text
