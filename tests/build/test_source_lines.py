"""Source lines in the frames of traps, of what `dlrun cc -g` builds."""

from __future__ import annotations

import importlib.util
import os
import pickle
from pathlib import Path

import pytest

import dl
from dl.build.driver import Driver, parse
from dl.cli import main
from dl.modules.image import image_from_bytes
from dl.modules.source_lines import source_lines
from tests.support.modules import imports, pie

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ziglang") is None,
    reason="ziglang, the toolchain, is not installed (pip install 'wasix-dl[build]')",
)

LIBRARY = """\
static int deep(int *p, int x) {
    int y = x + 1;
    return p[y] + 1;
}

int crash(int x) {
    int y = x * 2;
    return deep((int *)-64, y) + y;
}
"""

WAITS = """\
int word;

int crash(int x) {
    __builtin_wasm_memory_atomic_notify(&word, 1);
    int y = __builtin_wasm_memory_atomic_wait32(&word, 7, -1);
    __builtin_wasm_memory_atomic_notify(&word, 1);
    return *(int *)-64 + y;
}
"""


def build(folder: Path, name: str, source: str, *words: str) -> str:
    """Build a file in a folder, from a source beside it; return its path."""
    (folder / f"{name}.c").write_text(source)
    before = Path.cwd()
    os.chdir(folder)
    try:
        Driver(
            parse([*words, "-O0", "-shared", f"{name}.c", "-o", f"{name}.so"], cplusplus=False), print
        ).run()
    finally:
        os.chdir(before)
    return str(folder / f"{name}.so")


def trap(library: str) -> dl.TrapError:
    """Open a library, and return what its function `crash` traps with."""
    with dl.Linker(None, memory=dl.MemoryType(shared=True), cache=False) as linker:
        with pytest.raises(dl.TrapError) as caught:
            linker.main_group.library(library).function("crash")(1)
    return caught.value


class TestLines:
    @pytest.mark.parametrize("version", ["-g", "-gdwarf-5"])
    def test_a_trap_names_file_and_line(self, tmp_path: Path, version: str) -> None:
        """The line of the instruction that trapped, and in the frames further out those of the calls."""
        error = trap(build(tmp_path, "lib", LIBRARY, version, "-pthread"))
        assert error.frames == ("lib.so!deep", "lib.so!crash")
        inner, outer = error.frames
        assert [(f.module, f.function, f.line, os.path.basename(f.file or "")) for f in error.frames] == [
            ("lib.so", "deep", 3, "lib.c"),
            ("lib.so", "crash", 8, "lib.c"),
        ]
        assert inner.offset
        assert inner.column
        assert outer.function_index is not None
        assert (
            str(error)
            == f"guest trapped: {error.reason} (in lib.so!deep at {inner.file}:3 < lib.so!crash at {outer.file}:8)"
        )
        assert repr(inner) == f"<Frame lib.so!deep at {inner.file}:3>"

    def test_code_that_the_linker_has_rewritten(self, tmp_path: Path) -> None:
        """Behind atomic waits, which the linker replaces by longer code, lines are right, too."""
        error = trap(build(tmp_path, "waits", WAITS, "-g", "-pthread"))
        assert [(f.function, f.line) for f in error.frames] == [("crash", 7)]

    def test_without_debugging_information(self, tmp_path: Path) -> None:
        """A frame has module, function and offset, and no line; its text is what it was."""
        (inner, _) = trap(build(tmp_path, "lib", LIBRARY, "-pthread", "-fno-inline")).frames
        assert (inner, inner.file, inner.line, inner.column, inner.source) == (
            "lib.so!deep",
            None,
            None,
            None,
            "",
        )

    def test_lines_travel_with_the_error(self, tmp_path: Path) -> None:
        """A pickled error has the lines, without what has found them."""
        error = trap(build(tmp_path, "lib", LIBRARY, "-g", "-pthread"))
        again = pickle.loads(pickle.dumps(error))
        assert [(f, f.line, f.offset) for f in again.frames] == [(f, f.line, f.offset) for f in error.frames]
        assert str(again) == str(error)

    def test_broken_debugging_information(self, tmp_path: Path) -> None:
        """A library whose line table is garbage traps as ever, with no lines."""
        path = Path(build(tmp_path, "lib", LIBRARY, "-g", "-pthread"))
        data = path.read_bytes()
        (section,) = image_from_bytes(data, "lib.so", "lib.so").wasm.custom_sections(".debug_line")
        path.write_bytes(
            data[: section.payload_start]
            + b"\xff" * (section.end - section.payload_start)
            + data[section.end :]
        )
        error = trap(str(path))
        assert [(f, f.line) for f in error.frames] == [("lib.so!deep", None), ("lib.so!crash", None)]

    def test_the_table_is_read_when_a_line_is_asked_for(self, tmp_path: Path) -> None:
        """A trap that is caught reads no table."""
        path = build(tmp_path, "lib", LIBRARY, "-g", "-pthread")
        with dl.Linker(None, memory=dl.MemoryType(shared=True), cache=False) as linker:
            library = linker.main_group.library(path)
            with pytest.raises(dl.TrapError) as caught:
                library.function("crash")(1)
            module = linker.program.state.modules[library.handle]
            lines = source_lines(module.wasm)
            assert lines is not None
            assert lines.table is None
            assert caught.value.frames[0].line == 3
            assert lines.table is not None


def test_dlrun_shows_them(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """After a trap dlrun shows the line of each frame that has one."""
    build(tmp_path, "lib", LIBRARY, "-g")
    app = '(func (export "_start") (drop (call $crash (i32.const 1))))'
    (tmp_path / "app.wasm").write_bytes(
        pie(imports("crash", "(param i32) (result i32)"), app, needed=["lib.so"])
    )
    assert main([str(tmp_path / "app.wasm")]) == 134
    lines = capfd.readouterr().err.splitlines()
    assert lines[1:3] == ["  at lib.so!deep (lib.c:3)", "  at lib.so!crash (lib.c:8)"]
