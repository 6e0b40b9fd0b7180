"""What an engine lacks is asked for where it matters, and refused in words; engines are found by name."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import wasmtime

import dl
import dl.engine
from dl.engine import default_name, engine_named, known_engines
from dl.engine.capabilities import Capabilities
from dl.engine.protocol import Engine
from dl.engine.wasmtime.engine import WasmtimeEngine
from tests.support.engines import engine_class, fresh_engine, need, switched_off
from tests.support.modules import MEMORY, TABLE, library, returns

if TYPE_CHECKING:
    from dl.engine.wasmtime.engine import WasmtimeEngine as OneEngine
else:
    OneEngine = engine_class()

NAME = default_name()
ROOT = Path(__file__).resolve().parents[2]
UNSHARED, SHARED = dl.MemoryType(32, 256), dl.MemoryType(32, 256, shared=True)


def opened(engine: Engine, *parts: str, name: str = "lib.so") -> None:
    with dl.Linker(None, memory=UNSHARED, engine=engine, libraries={name: library(*parts)}) as linker:
        linker.main_group.dlopen(name)


def test_every_capability_can_be_switched_off() -> None:
    """An engine made without a capability says so, and still runs what needs none."""
    names = list(vars(fresh_engine().capabilities))
    nothing = fresh_engine(*names)

    assert set(names) == set(Capabilities.__dataclass_fields__)
    assert not any(vars(nothing.capabilities).values())
    with dl.Linker(None, memory=UNSHARED, engine=nothing) as linker:
        group = linker.main_group
        handle = group.dlopen(library(MEMORY, TABLE, returns("f", 5)), name="lib.so")
        assert group.dlsym(handle, "f")() == 5


def test_shared_memory_is_refused() -> None:
    """A program that shares its memory does not run on an engine that cannot share."""
    with pytest.raises(
        dl.LinkerUsageError, match=f"^the program uses shared memory, which engine {NAME} lacks$"
    ):
        dl.Linker(None, memory=SHARED, engine=fresh_engine("shared_memory"))


def test_a_program_that_defines_a_shared_memory_is_refused() -> None:
    """A main module with a shared memory of its own is named, with what is missing."""
    text = '(module (memory (export "memory") 1 2 shared) (func (export "_start")))'
    with pytest.raises(
        dl.UnsupportedModuleError,
        match=f"app: not supported: it uses shared memory, which engine {NAME} lacks",
    ):
        dl.Linker(bytes(wasmtime.wat2wasm(text)), name="app", engine=fresh_engine("shared_memory"))


def test_interrupts_that_are_asked_for_are_refused() -> None:
    """Who insists on interrupts is told that the engine has none; who does not gets a program without."""
    engine = fresh_engine("interrupts")
    with pytest.raises(
        dl.LinkerUsageError, match=f"^libraries only asks for interrupts, which engine {NAME} lacks$"
    ):
        dl.Linker(None, memory=SHARED, engine=engine, interrupts=True)
    with dl.Linker(None, memory=SHARED, engine=engine) as linker:
        assert not linker.engine.capabilities.interrupts


@pytest.mark.parametrize(
    "body",
    [
        '(import "env" "__cpp_exception" (tag (param i32)))',
        "(tag $t) (func (throw $t))",
        "(func (block $caught (try_table (catch_all $caught))))",
        "(func (param exnref))",
    ],
)
def test_exceptions_are_refused(body: str) -> None:
    """A library that throws, catches, or holds exceptions is refused by name before the engine sees it."""
    with pytest.raises(
        dl.UnsupportedModuleError,
        match=rf"lib\.so: not supported: it uses exception handling, which engine {NAME} lacks",
    ):
        opened(fresh_engine("exceptions"), body)


@pytest.mark.parametrize(
    "body",
    [
        "(func (drop (v128.const i64x2 1 2)))",
        "(func (param v128))",
        "(global v128 (v128.const i64x2 1 2))",
    ],
)
def test_vectors_are_refused(body: str) -> None:
    """A library with vector instructions or values is refused by name before the engine sees it."""
    with pytest.raises(
        dl.UnsupportedModuleError,
        match=rf"lib\.so: not supported: it uses vector instructions, which engine {NAME} lacks",
    ):
        opened(fresh_engine("simd"), body)


def test_everything_that_is_missing_is_named_at_once() -> None:
    """A library that needs two things gets one refusal that names both."""
    with pytest.raises(dl.UnsupportedModuleError, match="exception handling and vector instructions"):
        opened(fresh_engine("simd", "exceptions"), "(tag)", "(func (param v128))")


STUBS = """
  (import "env" "later" (func $later (param i32) (result i32)))
  (func (export "call") (param i32) (result i32) (call $later (local.get 0)))
"""
LATER = '(func (export "later") (param i32) (result i32) (i32.add (local.get 0) (i32.const 1)))'


TAIL_CALL = re.compile(rb"\x13[\x00-\x03]\x00\x0b")
"""`return_call_indirect` as the last instruction of a body."""


class RecordingEngine(OneEngine):
    """Keeps what it compiles."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.seen: list[bytes] = []

    def compile(self, wasm: bytes) -> Any:
        self.seen.append(wasm)
        return super().compile(wasm)


@pytest.mark.parametrize("tail_calls", [True, False])
def test_stubs_do_without_tail_calls(tail_calls: bool) -> None:
    """Stubs use tail calls where the engine has them, plain calls where not, and reach their functions either way."""
    if tail_calls:
        need("tail_calls")
    engine = RecordingEngine(**({} if tail_calls else switched_off("tail_calls")))
    libraries = {"a.so": library(STUBS), "b.so": library(LATER)}
    with dl.Linker(None, memory=UNSHARED, engine=engine, libraries=libraries) as linker:
        group = linker.main_group
        handle = group.dlopen("a.so", dl.RTLD_LAZY | dl.RTLD_GLOBAL)
        group.dlopen("b.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)

        assert group.dlsym(handle, "call")(41) == 42
    assert any(TAIL_CALL.search(wasm) for wasm in engine.seen) == tail_calls


DYNAMIC = """
  (import "wasix_32v1" "call_dynamic" (func $call (param i32 i32 i32 i32 i32 i32) (result i32)))
  (import "wasix_32v1" "reflect_signature" (func $reflect (param i32 i32 i32 i32 i32 i32) (result i32)))
  (func (export "call") (param i32) (result i32)
    (call $call (local.get 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)))
  (func (export "reflect") (param i32) (result i32)
    (call $reflect (local.get 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1024)))
"""
NOT_SUPPORTED = 58


def test_functions_in_tables_are_not_described_without_reflection() -> None:
    """`call_dynamic` and `reflect_signature` answer NOTSUP, and `InstanceGroup.table` says what is missing."""
    engine = fresh_engine("table_reflection")
    with dl.Linker(
        None, memory=UNSHARED, engine=engine, libraries={"a.so": library(MEMORY, DYNAMIC, returns("f", 1))}
    ) as linker:
        group = linker.main_group
        handle = group.dlopen("a.so")
        pointer = group.dlsym(handle, "f").address

        assert group.dlsym(handle, "call")(pointer) == NOT_SUPPORTED
        assert group.dlsym(handle, "reflect")(pointer) == NOT_SUPPORTED
        with pytest.raises(dl.LinkerUsageError, match=f"^engine {NAME} lacks table reflection$"):
            group.table()


def test_serialization_is_refused() -> None:
    """An engine made without serialization neither gives nor takes serialized code."""
    able, unable = fresh_engine(), fresh_engine("serialization")
    code = able.compile(library(returns("f", 1)))
    for attempt in (
        lambda: unable.serialize(unable.compile(library(returns("f", 1)))),
        lambda: unable.deserialize(able.serialize(code)),
    ):
        with pytest.raises(dl.EngineError, match="cannot serialize code"):
            attempt()


# by name


def test_engines_are_the_processs() -> None:
    """A name gives the same engine each time, with and without interrupts; a linker takes the name."""
    assert known_engines()[0] == "wasmtime"
    assert engine_named("wasmtime") is engine_named("wasmtime")
    assert engine_named("wasmtime", interrupts=False) is not engine_named("wasmtime")
    with dl.Linker(None, memory=UNSHARED, engine="wasmtime") as linker:
        assert linker.engine is engine_named("wasmtime", interrupts=False)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("v8", r"^no engine 'v8': there is none of that name \(installed: wasmtime"),
        ("wasmer", r"^no engine 'wasmer': pip install 'wasix-dl\[wasmer\]' \(installed: wasmtime\)$"),
    ],
)
def test_an_unknown_engine_is_an_error_that_says_what_to_do(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names what is installed, and what to install for an engine that is known by name."""
    monkeypatch.setitem(sys.modules, "wasix_dl_wasmer", None)  # as if it were not installed
    monkeypatch.setattr(dl.engine, "_engines", {})
    with pytest.raises(dl.EngineNotFoundError, match=text) as caught:
        dl.Linker(None, memory=UNSHARED, engine=name)

    assert (caught.value.name, caught.value.known[0]) == (name, "wasmtime")


def made_elsewhere(*, interrupts: bool) -> Engine:
    """Make an engine as another distribution would."""
    return WasmtimeEngine(interrupts=interrupts)


def test_other_distributions_bring_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point of the group is an engine by its name; one that cannot be loaded says why."""
    points = EntryPoints(
        [
            EntryPoint("elsewhere", f"{__name__}:made_elsewhere", dl.engine.ENTRY_POINTS),
            EntryPoint("broken", "no.such.module:make", dl.engine.ENTRY_POINTS),
        ]
    )
    monkeypatch.setattr("importlib.metadata.entry_points", points.select)
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or sys.modules["__main__"])
    monkeypatch.setattr(dl.engine, "_engines", {})

    assert [name for name in known_engines() if name != "wasmer"] == ["wasmtime", "broken", "elsewhere"]
    assert isinstance(engine_named("elsewhere", interrupts=False), WasmtimeEngine)
    with pytest.raises(dl.EngineNotFoundError, match="it cannot be loaded: No module named 'no'"):
        engine_named("broken")


@pytest.mark.parametrize("command", ["run", "stress"])
def test_the_command_line_takes_a_name(command: str) -> None:
    """`dlrun --engine` with an unknown name is a wrong command line, in one line."""
    words = (
        ["run", "--engine", "v8", "fixtures/hello/unshared/main.wasm"]
        if command == "run"
        else ["stress", "--engine", "v8"]
    )
    done = subprocess.run(
        [sys.executable, "-m", "dl", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 2
    assert done.stderr.startswith("dlrun: error: no engine 'v8': there is none of that name")
    assert done.stderr.count("\n") == 1


@pytest.mark.timeout(60)
def test_the_stress_run_takes_an_engine() -> None:
    """`dlrun stress --engine wasmtime` runs and reports no failure."""
    words = ["stress", "--engine", "wasmtime", "--threads", "4", "--seconds", "0.5", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "dl", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, json.loads(done.stdout)["failures"]) == (0, [])


def test_the_command_line_says_what_to_install() -> None:
    """`dlrun --engine wasmer` without the engine's library is one line with the command that installs it."""
    script = (
        "import sys; sys.modules['wasix_dl_wasmer'] = None\n"
        "from dl.cli import main; sys.exit(main(['run', '--engine', 'wasmer', 'fixtures/hello/unshared/main.wasm']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )

    assert "pip install 'wasix-dl[wasmer]'" in done.stderr
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
