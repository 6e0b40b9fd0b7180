"""`dlrun inspect`: everything a module says, for people and as JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dl.cli import main
from dl.wasm.encode import name_bytes, section, unsigned, vector
from tests.support.command_line import GREET, HELLO, MEM_INFO, library, needed, subsection
from tests.support.paths import FIXTURES, ROOT


def inspected(path: Path | str, capfd: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Return what `inspect --json` prints for a file."""
    assert main(["inspect", "--json", str(path)]) == 0
    report: dict[str, Any] = json.loads(capfd.readouterr().out)
    return report


def test_inspect_reports_every_subsection(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """JSON has all five subsections in their units, the flags by name, and unknown subsections as they are."""
    path = tmp_path / "lib.so"
    path.write_bytes(
        library(
            MEM_INFO,
            needed("liba.so", "libb.so"),
            subsection(
                3, unsigned(2) + name_bytes("seven") + unsigned(0x01) + name_bytes("here") + unsigned(0x8104)
            ),
            subsection(4, unsigned(1) + name_bytes("env") + name_bytes("missing_one") + unsigned(0x11)),
            subsection(5, unsigned(2) + name_bytes("$ORIGIN") + name_bytes("/lib")),
            subsection(9, b"\x01\x02\x03"),
            imports=True,
        )
    )
    report = inspected(path, capfd)

    assert (report["memory_size"], report["memory_alignment"]) == (4096, 16)
    assert (report["table_size"], report["table_alignment"]) == (3, 2)
    assert report["needed"] == ["liba.so", "libb.so"]
    assert report["runtime_path"] == ["$ORIGIN", "/lib"]
    assert report["export_info"] == [
        {"name": "seven", "flags": ["binding_weak"], "value": 1},
        {"name": "here", "flags": ["visibility_hidden", "tls", "0x8000"], "value": 0x8104},
    ]
    assert report["import_info"] == [
        {"module": "env", "name": "missing_one", "flags": ["binding_weak", "undefined"], "value": 0x11}
    ]
    assert [(u["type"], u["size"], u["data"]) for u in report["unknown_subsections"]] == [(9, 3, "010203")]
    assert (report["kind"], report["legacy"]) == ("side", False)
    assert report["dylink"]["section"] == "dylink.0"
    assert report["imports"][0]["type"] == "memory 1 100"
    assert report["imports"][1:] == [
        {
            "module": "env",
            "name": "missing_one",
            "kind": "func",
            "type": "(i32, f64) -> ()",
            "params": ["i32", "f64"],
            "results": [],
        }
    ]
    here = report["exports"][1]
    assert (here["name"], here["kind"], here["type"], here["init"]) == (
        "here",
        "global",
        "global i32",
        "i32.const 16",
    )


DOCUMENTED_KEYS = {
    "file", "size", "kind", "module_name", "takes_libraries", "takes_no_libraries_because", "dylink", "legacy",
    "memory_size", "memory_alignment", "table_size", "table_alignment", "needed", "runtime_path", "export_info",
    "import_info", "unknown_subsections", "imports", "exports", "memories", "tables", "start", "functions", "globals",
    "tags", "element_segments", "data_segments", "sections", "features", "target_features", "target_architecture",
    "notes", "debug_information", "producers",
}  # fmt: skip


MODULES = sorted(path for path in FIXTURES.rglob("*") if path.suffix in (".wasm", ".so"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(FIXTURES)))
def test_inspect_reads_every_fixture(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Every built module can be inspected, has exactly the documented keys, and sections that fill the file."""
    report = inspected(path, capfd)

    assert report.keys() == DOCUMENTED_KEYS
    assert 8 + sum(s["size"] for s in report["sections"]) == report["size"] == path.stat().st_size
    assert (report["kind"] == "static") == (report["dylink"] is None) == (report["memory_size"] is None)
    if path.suffix == ".so":
        assert report["kind"] == "side"


def test_every_key_is_documented() -> None:
    """`docs/cli.md` explains each key of the JSON."""
    text = (ROOT / "docs/cli.md").read_text()

    assert [key for key in sorted(DOCUMENTED_KEYS) if f"`{key}`" not in text] == []


def test_inspect_tells_the_kinds_of_module_apart(capfd: pytest.CaptureFixture[str]) -> None:
    """A program is a main module, a library a side module, and a module without a dylink section an ordinary one."""
    main_module, side = inspected(HELLO, capfd), inspected(GREET, capfd)
    static = inspected(FIXTURES / "static/unshared/stock.wasm", capfd)

    assert (main_module["kind"], main_module["takes_libraries"]) == ("pie", True)
    assert (side["kind"], side["takes_libraries"]) == ("side", None)
    assert (static["kind"], static["takes_libraries"]) == ("static", False)
    assert "table" in static["takes_no_libraries_because"]
    assert "shared-memory" in main_module["features"]
    assert "shared-memory" not in static["features"]


def test_debugging_information_and_producers(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What a compiler has left for debuggers, and who it was; broken sections count as absent."""

    def custom(name: str, payload: bytes) -> bytes:
        return section(0, name_bytes(name) + payload)

    def text(word: str) -> bytes:
        return name_bytes(word)

    made_by = vector(
        [
            text("language") + vector([text("C11") + text("")]),
            text("processed-by") + vector([text("clang") + text("20")]),
        ]
    )
    line = (4).to_bytes(2, "little") + (9).to_bytes(4, "little") + bytes([1, 1, 1, 0xFB, 14, 1]) + b"\0\0\0"
    file = tmp_path / "a.so"
    file.write_bytes(
        library(MEM_INFO)
        + custom(".debug_line", len(line).to_bytes(4, "little") + line)
        + custom(".debug_info", b"1234")
        + custom("sourceMappingURL", text("a.map"))
        + custom("producers", made_by)
        + custom("producers", b"\xff\xff")
    )
    assert main(["inspect", "--json", str(file)]) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["debug_information"] == {
        "sections": [".debug_line", ".debug_info"],
        "size": 4 + len(line) + 4,
        "line_versions": [4],
        "elsewhere": {"sourceMappingURL": "a.map"},
    }
    assert report["producers"] == {
        "language": [{"name": "C11", "version": ""}],
        "processed-by": [{"name": "clang", "version": "20"}],
    }
    assert main(["inspect", str(file)]) == 0
    shown = capfd.readouterr().out
    assert "lines of DWARF 4; sourceMappingURL names a.map" in shown
    assert re.search(r"processed-by +clang 20", shown)
    assert main(["inspect", "--json", HELLO]) == 0
    assert json.loads(capfd.readouterr().out)["debug_information"] is None


@pytest.mark.parametrize("words", [(), ("--exports",), ("--links",), ("--defined-by", "greet")])
def test_a_file_that_is_no_module_hides_no_others(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    """The good files are shown, each bad one is a line on standard error, and the exit code is that of the error."""
    (tmp_path / "bad.so").write_bytes(b"\0asm\1\0\0\0\xff")
    files = [GREET, str(tmp_path / "bad.so"), str(tmp_path / "none.so"), GREET]
    assert main(["inspect", *words, *files]) == 127
    out, err = capfd.readouterr()
    assert out.count("libgreet.so\n") >= 2
    assert [line.split(":")[2].strip().rpartition("/")[2] for line in err.splitlines()] == [
        "bad.so",
        "none.so",
    ]
    assert main(["inspect", "--json", *words, *files]) == 127
    assert len(json.loads(capfd.readouterr().out)) == 2
