"""`dlrun deps`: the tree of needed libraries, and what was tried for those that are missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dl.cli import main
from dl.wasm.encode import ModuleBuilder
from tests.support.command_line import GREET, HELLO, MEM_INFO, library, needed
from tests.support.paths import FIXTURES


def test_deps_shows_cycles_and_repetitions_once(capfd: pytest.CaptureFixture[str]) -> None:
    """A cycle is marked where it closes, a library that was shown is not unfolded again, and both end."""
    assert main(["deps", str(FIXTURES / "cyclic/shared/main.wasm")]) == 0
    cyclic = capfd.readouterr().out
    assert main(["deps", "--json", str(FIXTURES / "diamond/shared/main.wasm")]) == 0
    diamond = json.loads(capfd.readouterr().out)

    assert cyclic.count("(cycle)") == 1
    assert cyclic.count("(shown above)") == 1
    first, second, third = diamond["needed"]
    assert diamond["complete"]
    assert [n["name"] for n in (first, second, third)] == ["liba.so", "libb.so", "libc_state.so"]
    assert not first["needed"][0]["repeated"]
    assert second["needed"][0]["repeated"]
    assert third["repeated"]


def test_deps_uses_run_paths(capfd: pytest.CaptureFixture[str]) -> None:
    """Libraries are found through the run path of the library that needs them, and `.so` as `.wasm`."""
    assert main(["deps", "--json", str(FIXTURES / "runpath/shared/main.wasm")]) == 0
    tree = json.loads(capfd.readouterr().out)
    middle = tree["needed"][0]["needed"][0]

    assert [n["name"] for n in middle["needed"]] == ["libside.so", "libwasm.so"]
    assert middle["needed"][1]["path"].endswith("nested/libwasm.wasm")


def test_deps_tells_every_path_tried_and_goes_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A missing or broken library is reported with what was tried, the rest of the tree is shown, and the code is 127."""
    (tmp_path / "top.so").write_bytes(
        library(MEM_INFO, needed("libgone.so", "libbad.so", "./plain.wasm", "libgood.so"))
    )
    (tmp_path / "libgood.so").write_bytes(library(MEM_INFO))
    (tmp_path / "libbad.so").write_bytes(Path(HELLO).read_bytes()[:100])
    build = ModuleBuilder()
    (tmp_path / "plain.wasm").write_bytes(build.build())
    extra = tmp_path / "extra"
    extra.mkdir()

    code = main(["deps", "-L", str(extra), "--json", str(tmp_path / "top.so")])
    tree = json.loads(capfd.readouterr().out)
    gone, bad, plain, good = tree["needed"]

    assert code == 127
    assert not tree["complete"]
    assert [t["path"] for t in gone["tried"]] == [
        str(directory / name) for directory in (extra, tmp_path) for name in ("libgone.so", "libgone.wasm")
    ]
    assert "malformed" in bad["error"]
    assert not plain["found"]
    assert good["found"]
    assert main(["deps", "-L", str(extra), str(tmp_path / "top.so")]) == 127
    assert f"{extra}/libgone.so: no such file" in capfd.readouterr().out


def test_deps_of_a_module_that_needs_nothing_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    """A module without needed libraries is complete."""
    assert main(["deps", GREET]) == 0
    assert "needs no libraries" in capfd.readouterr().out
