"""Every run that the fixtures describe, from the command line and from Python, with the same outcome.

`fixtures/README.md` explains `case.json`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import dl

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class Run:
    """One run of one program, with one kind of memory."""

    case: str
    memory: str
    described: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Where the modules are."""
        return FIXTURES / self.case / self.memory

    @property
    def main(self) -> Path:
        """The program."""
        return self.folder / self.described["main"]

    @property
    def library_path(self) -> list[Path]:
        """Where its libraries are."""
        return [self.folder / path for path in self.described.get("library_path", ["."])]

    @property
    def output(self) -> list[str]:
        """The lines it prints."""
        lines: list[str] = self.described["stdout"]
        return lines

    @property
    def by_name(self) -> bool:
        """Whether its modules import from each other by name."""
        return bool(self.described.get("by_name"))

    @property
    def ends_by_trap(self) -> bool:
        """Whether a trap or an error ends it."""
        return self.described.get("ends", "exit") == "trap"

    def preopens(self, fresh: Path) -> dict[str, Path]:
        """Return the folders it sees; a fresh one for those that have none."""
        folders = self.described.get("preopens", {})
        return {
            guest: fresh if host is None else FIXTURES / self.case / host for guest, host in folders.items()
        }

    def check_files(self, fresh: Path) -> None:
        """Assert that the run left the files it should."""
        for guest, content in self.described.get("files", {}).items():
            folder = self.preopens(fresh)[str(Path(guest).parent)]

            assert (folder / Path(guest).name).read_text() == content


RUNS = [
    pytest.param(
        Run(path.parent.name, memory, described), id=f"{path.parent.name}-{described['name']}-{memory}"
    )
    for path in sorted(FIXTURES.glob("*/case.json"))
    for described in json.loads(path.read_text())
    for memory in described["memory"]
]


def test_every_case_is_known() -> None:
    """Every folder with a program in it describes how the program is run."""
    with_programs = {path.parent.parent.name for path in FIXTURES.glob("*/*/*.wasm")}
    described = {path.parent.name for path in FIXTURES.glob("*/case.json")}

    assert with_programs <= described


@pytest.mark.parametrize("run", RUNS)
def test_run_from_the_command_line(run: Run, tmp_path: Path) -> None:
    """`dlrun` prints what the program prints and returns its exit code; what a trap or an error ends returns 134 or 127."""
    words = [sys.executable, "-m", "dl"]
    for directory in run.library_path:
        words += ["--module-path" if run.by_name else "-L", str(directory)]
    for name, value in run.described.get("env", {}).items():
        words += ["--env", f"{name}={value}"]
    for guest, host in run.preopens(tmp_path).items():
        words += ["--dir", f"{guest}::{host}"]
    if "wamr_mode" in run.described:
        words += ["--wamr-mode", str(run.described["wamr_mode"])]
    words += [str(run.main), *run.described.get("args", [])]

    done = subprocess.run(
        words,
        input=run.described.get("stdin", "").encode(),
        capture_output=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )

    codes = {134, 127} if run.ends_by_trap else {run.described.get("exit_code", 0)}
    messages = done.stderr.decode()
    assert done.stdout.decode().splitlines() == run.output, messages
    assert done.returncode in codes, messages
    assert "Traceback" not in messages
    assert ("dlrun: error: " in messages) == run.ends_by_trap
    run.check_files(tmp_path)


@pytest.mark.parametrize("run", RUNS)
def test_run_from_python(run: Run, tmp_path: Path) -> None:
    """`InstanceGroup.run` returns the exit code, or raises what ended the program; output goes where it was told."""
    printed: list[bytes] = []
    code: int | None = None
    error: dl.DlError | None = None
    with dl.Linker(
        None if run.by_name else run.main,
        library_path=run.library_path,
        module_path=run.library_path if run.by_name else (),
        args=[run.main.name, *run.described.get("args", [])],
        env=run.described.get("env", {}),
        preopens=run.preopens(tmp_path),
        stdin=run.described.get("stdin", "").encode(),
        stdout=printed.append,
        wamr=run.described.get("wamr_mode"),
    ) as linker:
        try:
            code = linker.instantiate(run.main).run() if run.by_name else linker.main_group.run()
        except dl.DlError as caught:
            error = caught

    assert b"".join(printed).decode().splitlines() == run.output
    assert (error is not None) == run.ends_by_trap, error
    assert run.ends_by_trap or code == run.described.get("exit_code", 0)
    run.check_files(tmp_path)
