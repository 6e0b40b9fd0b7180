"""`dlrun --module-path`, and `deps` and `inspect --links` of programs whose modules import from each other by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.command_line import DlRun
from tests.support.modules import MEMORY, calls, imports, library, module, pie, returns
from tests.support.paths import FIXTURES

MULTI = FIXTURES / "multimodule/unshared"
PROGRAM = str(MULTI / "mC.wasm")


class TestRun:
    def test_the_sample(self, dlrun: DlRun) -> None:
        """The command runs, and so does each of its functions and of the modules that it imports from, by `$module$name`."""
        done = dlrun("run", "--module-path", str(MULTI), PROGRAM)
        assert (done.stdout, done.returncode) == ("C1 31, C2 21, C3 11, C4 11, sum 74\n", 0), done.stderr
        for name, value in (
            *(("C1", 31), ("C2", 21), ("C3", 11), ("C4", 11)),
            *(("$mB$B1", 21), ("$mA$A1", 11), ("$mB$B2", 11), ("$mA$times_initialized", 1)),
        ):
            done = dlrun("run", "--module-path", str(MULTI), "--invoke", name, PROGRAM)
            assert (done.stdout, done.returncode) == (f"{value}\n", 0), done.stderr

    @pytest.mark.parametrize("name", ["C5", "$mB$nothing", "$nothing$B1", "$mB", "$$B1"])
    def test_names_that_lead_nowhere(self, dlrun: DlRun, name: str) -> None:
        """What is not exported, no module, and half of such a name end with 127 and say so."""
        done = dlrun("run", "--module-path", str(MULTI), "--invoke", name, PROGRAM)
        assert (done.stdout, done.returncode) == ("", 127)
        assert "undefined symbol" in done.stderr

    def test_a_list_of_directories(self, dlrun: DlRun, tmp_path: Path) -> None:
        """Directories are searched in their order, then the program's own; what is missing is named with them."""
        for folder, value in (("one", 1), ("two", 2)):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "m.wasm").write_bytes(module(returns("f", value)))
        (tmp_path / "main.wasm").write_bytes(module(imports("f", namespace="m"), '(export "f" (func $f))'))
        for path, first in (("one:two", "1"), ("two:one", "2"), ("nowhere:two", "2")):
            assert dlrun("--module-path", path, "--invoke", "f", "main.wasm").stdout == f"{first}\n"
        done = dlrun("--module-path", "nowhere", "--invoke", "f", "main.wasm")
        assert done.returncode == 127
        assert "nowhere/m.wasm" in done.stderr
        assert dlrun("--module-path", "one", "--memory-min", "64k", "main.wasm").returncode == 2

    def test_a_main_module_stays_one(self, dlrun: DlRun, tmp_path: Path) -> None:
        """A position-independent program imports from a module by name, and needs a library as well."""
        (tmp_path / "m.wasm").write_bytes(module(returns("f", 4)))
        (tmp_path / "lib.so").write_bytes(library(MEMORY, imports("f", namespace="m"), calls("g", "f")))
        (tmp_path / "main.wasm").write_bytes(
            pie(
                imports("f", namespace="m"),
                imports("g"),
                calls("h", "f"),
                calls("i", "g"),
                needed=("lib.so",),
            )
        )
        for name in ("h", "i", "$lib.so$g"):
            assert dlrun("--module-path", ".", "--invoke", name, "main.wasm").stdout == "4\n"

    def test_in_a_mode_of_wamr(self, dlrun: DlRun, tmp_path: Path) -> None:
        """In WAMR's mode the module path is the library path, and its order holds."""
        done = dlrun(
            "run", "--wamr-mode", "3", "--module-path", f"{tmp_path}:{FIXTURES}/wamr/unshared",
            str(FIXTURES / "wamr/unshared/root.wasm"),
        )  # fmt: skip
        assert done.returncode == 43, done.stderr


class TestDeps:
    def test_the_sample(self, dlrun: DlRun) -> None:
        """The tree has each module under the names of its importers, and what was shown before is not shown again."""
        done = dlrun("deps", "--json", PROGRAM)
        tree = json.loads(done.stdout)
        assert (done.returncode, tree["complete"]) == (0, True)
        assert [node["name"] for node in tree["needed"]] == ["mB", "mA"]
        (inner,) = tree["needed"][0]["needed"]
        assert (inner["name"], inner["path"]) == ("mA", str(MULTI / "mA.wasm"))
        assert tree["needed"][1]["repeated"]
        assert "mB => " in dlrun("deps", PROGRAM).stdout

    def test_a_circle_and_a_missing_module(self, dlrun: DlRun, tmp_path: Path) -> None:
        """A circle and a name that leads nowhere are in the tree, with where it was looked for; the exit code is 127."""
        (tmp_path / "a.wasm").write_bytes(module(imports("f", namespace="b"), returns("g", 1)))
        (tmp_path / "b.wasm").write_bytes(
            module(imports("g", namespace="a"), imports("h", namespace="absent"), returns("f", 1))
        )
        done = dlrun("deps", "--json", "--module-path", ".", "a.wasm")
        tree = json.loads(done.stdout)
        assert (done.returncode, tree["complete"]) == (127, False)
        circle, absent = tree["needed"][0]["needed"]
        assert circle["cycle"]
        assert absent["error"] == "not found"
        assert any(place["path"].endswith("absent.wasm") for place in absent["tried"])

    def test_what_the_host_serves_is_no_module(self, dlrun: DlRun, tmp_path: Path) -> None:
        """Without `--module-path` a module that imports from a host's namespace still needs no libraries."""
        (tmp_path / "a.wasm").write_bytes(module(imports("f", namespace="host")))
        done = dlrun("deps", "a.wasm")
        assert done.returncode == 0
        assert "needs no libraries" in done.stdout


class TestLinks:
    def test_the_sample(self, dlrun: DlRun) -> None:
        """Every import of the three modules has its place."""
        done = dlrun("inspect", "--links", "--json", PROGRAM)
        links = json.loads(done.stdout)["links"]
        meant = {(Path(one["importer"]).name, one["module"], one["name"]): one for one in links}
        assert meant["mC.wasm", "mB", "B2"]["meaning"] == "B2 of mB"
        assert meant["mB.wasm", "mA", "A1"]["provider"] == str(MULTI / "mA.wasm")
        assert meant["mC.wasm", "wasi_snapshot_preview1", "fd_write"]["meaning"] == "built in: system"
        assert {one["state"] for one in links} == {"linked"}
        assert done.returncode == 0

    def test_what_does_not_fit(self, dlrun: DlRun, tmp_path: Path) -> None:
        """A wrong type, a missing export and a missing module are told, each with what was found."""
        (tmp_path / "m.wasm").write_bytes(module(returns("f", 1), '(memory (export "small") 1)'))
        (tmp_path / "main.wasm").write_bytes(
            module(
                imports("f", "(result f64)", "m"),
                imports("no", namespace="m"),
                imports("x", namespace="absent"),
                '(import "m" "small" (memory 2))',
            )
        )
        done = dlrun("inspect", "--links", "--json", "main.wasm")
        assert done.returncode == 127
        meant = {one["name"]: (one["state"], one["meaning"]) for one in json.loads(done.stdout)["links"]}
        assert meant["f"][0] == meant["small"][0] == "refused"
        assert meant["no"] == ("undefined", "m has no such export")
        assert meant["x"] == ("undefined", "module absent is not found")
