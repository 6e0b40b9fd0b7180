"""`dlrun explain`, `dlrun deps -r -u` and the parts of `dlrun inspect`: symbols by who asks, who answers and who could."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from dl.cli import main
from dl.wasm.encode import ModuleBuilder
from dl.wasm.types import FuncType
from tests.support.modules import MEMORY, calls, dylink, got, imports, library, pie, reads, returns
from tests.support.paths import FIXTURES, ROOT

DEMANGLES = pytest.mark.skipif(
    find_spec("pydemumble") is None,
    reason="shows C++ names, for which there is no package that leaves the GIL off",
)


@pytest.fixture
def program(tmp_path: Path) -> str:
    """A program that needs three libraries: one that is used, one whose symbol comes too late, one in vain."""
    top = pie(
        imports("f"),
        imports("_Z4gonei", "(param i32)"),
        calls("main", "f"),
        needed=["a.so", "b.so", "vain.so"],
    )
    (tmp_path / "app.wasm").write_bytes(top)
    (tmp_path / "a.so").write_bytes(library(returns("f", 1), imports("g"), calls("h", "g"), needed=["b.so"]))
    (tmp_path / "b.so").write_bytes(library(returns("f", 2), returns("g", 3)))
    (tmp_path / "vain.so").write_bytes(library(returns("_Z3addii", 4)))
    return str(tmp_path / "app.wasm")


def told(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Run a command; return its exit code and what it printed."""
    code = main(words)
    return code, capfd.readouterr().out


class TestExplain:
    def test_who_asks_who_answers_and_who_else_could(
        self, program: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """The winner, its rule, and the reason of each loser; as text and as JSON."""
        code, text = told(capfd, "explain", program, "f")
        assert code == 0
        assert "app.wasm asks for env.f, () -> i32" in text
        assert "a.so: the first definition in the global scope" in text
        assert "b.so (a function () -> i32): it comes after" in text
        code, text = told(capfd, "explain", "--json", program, "f")
        report = json.loads(text)
        (asked,) = report["asked"]
        assert (asked["state"], Path(asked["provider"]).name) == ("linked", "a.so")
        assert [Path(other["provider"]).name for other in asked["others"]] == ["b.so"]
        assert {Path(one["module"]).name for one in report["defined"]} == {"a.so", "b.so"}

    @DEMANGLES
    def test_exit_codes(self, program: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        """0 for an answer or a call that looks later, 127 for an import that keeps its module out, 1 for an unknown symbol."""
        assert told(capfd, "explain", program, "gone(int)")[0] == 0
        assert main(["explain", program, "no_such_symbol"]) == 1
        assert "imports or defines no_such_symbol" in capfd.readouterr().err
        (tmp_path / "bad.so").write_bytes(library(MEMORY, got("d", "mem"), reads("w", "got_mem_d")))
        code, text = told(capfd, "explain", str(tmp_path / "bad.so"), "d")
        assert code == 127
        assert "undefined: nothing defines it" in text

    @DEMANGLES
    def test_names_as_their_authors_wrote_them(self, program: str, capfd: pytest.CaptureFixture[str]) -> None:
        """A symbol of C++ is found by its name, by its signature, and without its arguments."""
        for name in ("_Z4gonei", "gone(int)", "gone"):
            assert "asks for env.gone(int)" in told(capfd, "explain", program, name)[1]
        assert "env._Z4gonei" in told(capfd, "explain", "--no-demangle", program, "_Z4gonei")[1]
        assert "vain.so defines add(int, int)" in told(capfd, "explain", program, "add")[1]

    def test_it_says_what_the_linker_does(self, capfd: pytest.CaptureFixture[str]) -> None:
        """For every function that a program of several libraries imports, the answer is that of the running linker."""
        import dl

        path = FIXTURES / "diamond/shared/main.wasm"
        with dl.Linker(path, library_path=[path.parent]) as linker:
            expected = {}
            for module in linker.modules:
                imported = linker.program.state.modules[module.handle].wasm.imports
                for name in {entry.name for entry in imported if entry.module != "wasix_32v1"}:
                    for entry in linker.explain(name, module).imports:
                        expected[module.name, name, entry.namespace] = (entry.provider, entry.rule)
        assert len(expected) > 3
        capfd.readouterr()
        for name in {name for _, name, _ in expected}:
            report = json.loads(told(capfd, "explain", "--json", str(path), name)[1])
            for asked in report["asked"]:
                key = asked["importer"], name, asked["module"]
                assert expected[key] == (asked["provider"], asked["rule"])


class TestDeps:
    @DEMANGLES
    def test_undefined_and_unused(self, program: str, capfd: pytest.CaptureFixture[str]) -> None:
        """Functions that nothing defines are listed for each library, and needs that serve nobody are marked; the code is 1."""
        code, text = told(capfd, "deps", "-r", "-u", program)
        assert code == 1
        assert [line for line in text.splitlines() if "(unused)" in line and "vain.so" in line]
        assert text.count("(unused)") == 2  # the program asks b.so for nothing either
        assert "gone(int)" in text
        code, text = told(capfd, "deps", "--json", "-r", "-u", program)
        report = json.loads(text)
        assert code == 1
        assert [node["unused"] for node in report["needed"]] == [False, True, True]
        assert [(link["name"], link["demangled"], link["state"]) for link in report["undefined"]] == [
            ("_Z4gonei", "gone(int)", "late")
        ]
        assert told(capfd, "deps", program)[0] == 0

    def test_what_keeps_a_library_out_is_127(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        """Undefined data, a function of another type, and an unshared memory beside a shared one are named."""
        (tmp_path / "top.wasm").write_bytes(pie(shared=True, needed=["data.so", "memory.so", "type.so"]))
        (tmp_path / "data.so").write_bytes(library(got("d", "mem"), reads("w", "got_mem_d"), returns("f", 1)))
        (tmp_path / "memory.so").write_bytes(library(MEMORY))
        (tmp_path / "type.so").write_bytes(library(imports("f", "(param i32)")))
        code, text = told(capfd, "deps", "--json", "-r", str(tmp_path / "top.wasm"))
        states = {link["name"]: link["state"] for link in json.loads(text)["undefined"]}
        assert code == 127
        assert states == {"d": "undefined", "memory": "refused", "f": "refused"}

    def test_what_the_engine_cannot_run(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        """With -r a library with exceptions in their former encoding is named with the remedy, and so is the file itself."""
        build = ModuleBuilder()
        build.export("f", "func", build.function(FuncType((), ()), b"\x06\x40\x19\x0b\x0b"))
        old = build.build()
        old = old[:8] + dylink() + old[8:]
        (tmp_path / "old.so").write_bytes(old)
        (tmp_path / "top.wasm").write_bytes(pie(needed=["old.so"]))
        assert told(capfd, "deps", str(tmp_path / "top.wasm"))[0] == 0
        code, text = told(capfd, "deps", "-r", "--json", str(tmp_path / "top.wasm"))
        report = json.loads(text)
        assert code == 127
        assert not report["complete"]
        assert "legacy exception handling" in report["needed"][0]["error"]
        assert "recompile" in report["needed"][0]["error"]
        code, text = told(capfd, "deps", "-r", str(tmp_path / "old.so"))
        assert code == 127
        assert "old.so: legacy exception handling" in text

    def test_symbols_wait_for_libraries(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        """While a library is missing no symbol is judged."""
        (tmp_path / "top.wasm").write_bytes(pie(imports("f"), needed=["gone.so"]))
        assert main(["deps", "-r", str(tmp_path / "top.wasm")]) == 127
        said = capfd.readouterr()
        assert "f" not in said.out.replace("file", "").split()
        assert "while libraries are missing" in said.err


class TestInspect:
    @DEMANGLES
    def test_parts_of_several_files(self, program: str, capfd: pytest.CaptureFixture[str]) -> None:
        """Exports, imports and undefined imports of several files, a header for each, and a list in JSON."""
        a, b = (str(Path(program).parent / name) for name in ("a.so", "b.so"))
        code, text = told(capfd, "inspect", "--exports", a, b)
        assert code == 0
        assert [line.split()[:2] for line in text.splitlines() if line.startswith("  ")] == [
            ["func", "f"],
            ["func", "h"],
            ["func", "f"],
            ["func", "g"],
        ]
        parts = json.loads(told(capfd, "inspect", "--json", "--imports", "--undefined", program, a)[1])
        assert [Path(part["file"]).name for part in parts] == ["app.wasm", "a.so"]
        assert [e["name"] for e in parts[0]["undefined"]] == ["f", "_Z4gonei"]
        assert len(parts[0]["imports"]) == 7
        assert "gone(int)" in told(capfd, "inspect", "-C", "--undefined", program)[1]
        assert "_Z4gonei" in told(capfd, "inspect", "--undefined", program)[1]
        assert len(json.loads(told(capfd, "inspect", "--json", a, b)[1])) == 2

    @DEMANGLES
    def test_who_defines_a_symbol(self, program: str, capfd: pytest.CaptureFixture[str]) -> None:
        """Only the files that define it are shown; without one the code is 1."""
        files = [str(Path(program).parent / name) for name in ("a.so", "b.so", "vain.so")]
        code, text = told(capfd, "inspect", "--defined-by", "g", *files)
        assert (code, "b.so" in text, "a.so" in text) == (0, True, False)
        code, text = told(capfd, "inspect", "--json", "-C", "--defined-by", "add", *files)
        assert [Path(part["file"]).name for part in json.loads(text)] == ["vain.so"]
        assert told(capfd, "inspect", "--defined-by", "nobody", *files) == (1, "")

    def test_demangling_without_its_library(self, program: str) -> None:
        """`-C` says which extra to install; other commands show names as they are."""
        hide = "import sys; sys.modules['pydemumble'] = None; from dl.cli import main; sys.exit(main({}))"
        for words, code, said in (
            (["inspect", "-C", program], 2, "wasix-dl[demangle]"),
            (["explain", program, "_Z4gonei"], 0, "env._Z4gonei"),
        ):
            done = subprocess.run(
                [sys.executable, "-c", hide.format(words)],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == code
            assert said in done.stdout + done.stderr
