"""Profiles: samples of the guest's stacks, files for profilers of the system, and what is refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import dl
from dl.cli import main
from dl.engine.wasmtime.engine import WasmtimeEngine
from dl.errors import EngineError
from tests.support.command_line import HELLO
from tests.support.engines import fresh_engine, need
from tests.support.groups import SECONDS
from tests.support.modules import library, returns
from tests.support.paths import ROOT

SPINNING = library(
    """(func $inner (param i32) (result i32) (local $i i32)
    (loop $again (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br_if $again (i32.lt_u (local.get $i) (local.get 0))))
    (local.get $i))""",
    '(func $outer (export "spin") (param i32) (result i32) (call $inner (local.get 0)))',
)
SHARED = dl.MemoryType(shared=True)


@pytest.fixture
def _profiling() -> None:
    need("profiling")


def test_an_engine_without_profiles_refuses_them() -> None:
    """An engine that cannot profile says what is missing, to the linker's user."""
    with opened(engine=fresh_engine("profiling")) as linker:
        with pytest.raises(dl.LinkerUsageError, match="no capability profiling"):
            linker.profile()


def opened(**options: object) -> dl.Linker:
    """A program with the spinning library, and one that is opened later."""
    libraries = {"spin.so": SPINNING, "late.so": library(returns("f", 1))}
    return dl.Linker(None, libraries=libraries, memory=SHARED, cache=False, **options)  # type: ignore[arg-type]


def spin_until_sampled(linker: dl.Linker, profile: dl.Profile) -> None:
    """Call the spinning function until its thread has been sampled some sixty times."""
    function = linker.main_group.library("spin.so").function("spin")
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        function(3_000_000)
        if sum(thread.pending + len(thread.samples) for thread in profile.threads()) > 60:
            return
    pytest.fail("no samples")


@pytest.mark.usefixtures("_profiling")
class TestSamples:
    def test_who_takes_the_time(self, tmp_path: Path) -> None:
        """Samples name the functions by module, the inner one itself, the outer one with what it calls."""
        with opened() as linker, linker.profile(interval=0.0005) as profile:
            spin_until_sampled(linker, profile)
        functions = profile.functions()
        inner, outer = "spin.so!inner", "spin.so!outer"
        assert (
            next(iter(functions)) == inner
        )  # of the others none takes time itself, so their order says nothing
        assert functions[inner][0] > 0.01
        assert functions[outer][0] <= functions[inner][0] <= functions[outer][1]
        assert re.search(r"^main;spin\.so!outer;spin\.so!inner \d+$", profile.to_folded(), re.MULTILINE)
        profile.write(tmp_path / "p.json", "spinning")
        document = json.loads((tmp_path / "p.json").read_text())
        names = [frame["name"] for frame in document["shared"]["frames"]]
        (thread,) = document["profiles"]
        assert (document["name"], thread["name"], thread["type"]) == ("spinning", "main", "sampled")
        assert len(thread["samples"]) == len(thread["weights"])
        assert thread["endValue"] == pytest.approx(len(profile) * 0.5)
        assert ["spin.so!outer", "spin.so!inner"] in [
            [names[f] for f in stack] for stack in thread["samples"]
        ]
        profile.write(tmp_path / "p.folded")
        assert (tmp_path / "p.folded").read_text() == profile.to_folded()

    def test_threads_and_libraries_that_come_later(self) -> None:
        """Each thread has its own samples; code that is loaded while a profile is taken is known to it."""
        with opened() as linker, linker.profile(interval=0.0005) as profile:
            linker.main_group.dlopen("late.so")
            spin_until_sampled(linker, profile)

            def work(group: dl.InstanceGroup) -> None:
                function = group.library("spin.so").function("spin")
                for _ in range(20):
                    function(5_000_000)

            linker.spawn(work, name="worker").join()
        assert {line.partition(";")[0] for line in profile.to_folded().splitlines()} == {"main", "worker"}

    def test_samples_have_a_bound(self) -> None:
        """Of more samples than the limit, the later ones are dropped and counted."""
        with opened() as linker, linker.profile(interval=0.0005, limit=10) as profile:
            spin_until_sampled(linker, profile)
        assert len(profile) == 10
        assert profile.lost > 10

    def test_nothing_is_left(self) -> None:
        """After a profile no thread of it runs, and the program can be profiled again; two at once, or one twice, cannot be."""
        with opened() as linker:
            with linker.profile() as first, pytest.raises(dl.LinkerUsageError, match="already"):
                with linker.profile():
                    pass
            assert linker.program.sampling is None
            with linker.profile() as second:
                pass
            with pytest.raises(dl.LinkerUsageError, match="taken once"), first:
                pass
            assert linker.program.sampling is None
        assert (len(first), len(second)) == (0, 0)

    def test_what_is_refused(self) -> None:
        """Numbers out of range, and a program without interrupts, each with its reason."""
        with opened() as linker:
            for wrong in ({"interval": 0}, {"interval": 60.0}, {"limit": 0}):
                with pytest.raises(dl.LinkerUsageError):
                    linker.profile(**wrong)
        with opened(interrupts=False) as linker, pytest.raises(dl.LinkerUsageError, match="interrupts=False"):
            linker.profile()


@pytest.mark.usefixtures("_profiling")
class TestFilesForTheSystem:
    @pytest.mark.skipif(sys.platform != "linux", reason="files of Linux's perf")
    @pytest.mark.parametrize("profiler", ["perfmap", "jitdump"])
    def test_the_engine_writes_them(self, profiler: str, tmp_path: Path) -> None:
        """`dlrun --profile perfmap` and `jitdump` leave a file that names the program's functions."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            [sys.executable, "-m", "dl", "--profile", profiler, "--no-cache", HELLO],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        assert process.wait(60) == 0
        written = {
            "perfmap": Path(f"/tmp/perf-{process.pid}.map"),
            "jitdump": tmp_path / f"jit-{process.pid}.dump",
        }[profiler]
        data = written.read_bytes()
        written.unlink()
        assert b"greet" in data
        assert profiler == "perfmap" or data[:4] == b"DTiJ"

    def test_others_are_refused(self, capfd: pytest.CaptureFixture[str]) -> None:
        """VTune, a name that nobody knows, a file for what the engine names itself, and samples without interrupts."""
        for words, reason in (
            (["--profile", "vtune"], "VTune's own collector"),
            (["--profile", "gprof"], "there are guest, perfmap and jitdump"),
            (["--profile", "perfmap,x"], "takes no file"),
            (["--profile", "guest", "--no-interrupts"], "at interrupts"),
        ):
            assert main([*words, HELLO]) == 2
            assert reason in capfd.readouterr().err
        with pytest.raises(EngineError, match="VTune"):
            WasmtimeEngine(profiler="vtune")
        with pytest.raises(dl.LinkerUsageError, match="this engine"):
            opened(engine=WasmtimeEngine(), profiler="perfmap")

    def test_dlrun_writes_samples(self, tmp_path: Path) -> None:
        """`dlrun --profile guest,FILE` writes a profile, also of a run that is too short for a sample; not without a place."""
        assert main(["--profile", f"guest,{tmp_path / 'p.json'}", HELLO]) == 0
        assert json.loads((tmp_path / "p.json").read_text())["exporter"] == "wasix-dl"
        assert main(["--profile", f"guest,{tmp_path / 'no' / 'p.json'}", HELLO]) == 74
