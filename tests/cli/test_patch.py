"""`dlrun patch`: what it changes is linked and run, what it cannot change is refused, and no file is left half written."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import dl
from dl.modules.image import image_from_file
from tests.support.command_line import DlRun
from tests.support.fifos import read_from
from tests.support.modules import MEMORY, data, got, imports, library, module, reads, returns
from tests.support.paths import FIXTURES, ROOT

RUNPATH = FIXTURES / "runpath/shared"
HELLO = FIXTURES / "hello/shared"


def info(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return needed list and run path of a file."""
    dylink = image_from_file(path, path.name).wasm.dylink
    assert dylink is not None
    return dylink.needed, dylink.runtime_path


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_libraries_move_to_another_folder(dlrun_here: DlRun, tmp_path: Path) -> None:
    """A program whose libraries are in other folders than it says runs again once its run paths are set."""
    shutil.copytree(RUNPATH, tmp_path / "app")
    app, moved = tmp_path / "app", tmp_path / "app/moved"
    (app / "lib").rename(moved)
    expected = dlrun_here(str(RUNPATH / "main.wasm")).stdout
    assert dlrun_here("app/main.wasm").returncode == 127
    for name in ("libmid.so", "libwasm.wasm"):
        (moved / "nested" / name).rename(moved / name)
    done = dlrun_here("patch", "--set-rpath", "$ORIGIN/moved:$ORIGIN", "app/main.wasm")
    assert done.returncode == 0, done.stderr
    done = dlrun_here("patch", "--set-rpath", "$ORIGIN", "app/moved/libtop.so", "app/moved/libmid.so")
    assert done.returncode == 0, done.stderr

    assert info(app / "main.wasm")[1] == ("$ORIGIN/moved", "$ORIGIN")
    assert dlrun_here("app/main.wasm").stdout == expected
    assert (
        dlrun_here("patch", "--add-rpath", "/one:/two", "--add-rpath", "/one", "app/main.wasm").returncode
        == 0
    )
    assert info(app / "main.wasm")[1] == ("$ORIGIN/moved", "$ORIGIN", "/one", "/two")
    assert dlrun_here("patch", "--remove-rpath", "app/main.wasm").returncode == 1
    assert dlrun_here("patch", "--remove-rpath", "--no-check", "app/main.wasm").returncode == 0
    assert info(app / "main.wasm")[1] == ()


def test_a_symbol_is_renamed_in_several_modules(dlrun_here: DlRun, tmp_path: Path) -> None:
    """A variable and a function are renamed in a library and its program by one command, and the program runs as before."""
    shutil.copytree(HELLO, tmp_path / "app")
    expected = dlrun_here("app/main.wasm").stdout
    done = dlrun_here(
        "patch",
        "--rename",
        "greetings=counter",
        "--rename",
        "greet=salute",
        "app/main.wasm",
        "app/libgreet.so",
    )

    assert done.returncode == 0, done.stderr
    assert "salute" in dlrun_here("inspect", "--exports", "app/libgreet.so").stdout
    assert dlrun_here("app/main.wasm").stdout == expected
    assert dlrun_here("patch", "--rename", "counter=greetings", "app/main.wasm").returncode == 1


def test_needed_libraries(dlrun_here: DlRun, tmp_path: Path) -> None:
    """A library that is added, replaced and removed defines what it should from then on."""
    (tmp_path / "one.so").write_bytes(library(MEMORY, data("number", 0), memory_size=4))
    (tmp_path / "two.so").write_bytes(library(MEMORY, data("number", 4), memory_size=8))
    top = tmp_path / "top.so"
    top.write_bytes(library(MEMORY, got("number", "mem"), reads("where", "got_mem_number")))

    done = dlrun_here("patch", "--add-needed", "one.so", "top.so")
    assert done.returncode == 0
    assert info(top)[0] == ("one.so",)
    with dl.Linker(None, library_path=[tmp_path]) as linker:
        assert (
            linker.main_group.library("top.so").where()
            == linker.main_group.library("one.so")["number"].address
        )
    done = dlrun_here("patch", "--replace-needed", "one.so=two.so", "top.so")
    assert (done.returncode, done.stderr) == (0, "")
    with dl.Linker(None, library_path=[tmp_path]) as linker:
        assert (
            linker.main_group.library("top.so").where()
            == linker.main_group.library("two.so")["number"].address
        )
    before = contents(tmp_path)
    done = dlrun_here("patch", "--remove-needed", "two.so", "top.so")
    assert done.returncode == 1
    assert "could not be linked any longer: nothing fits top.so: number" in done.stderr
    done = dlrun_here("patch", "--add-needed", "three.so", "top.so")
    assert done.returncode == 1
    assert "three.so: not found" in done.stderr
    assert contents(tmp_path) == before


def test_a_function_that_is_lost_is_reported(dlrun_here: DlRun, tmp_path: Path) -> None:
    """A function that nothing defines any longer is said, since it may come later, and is no reason to refuse."""
    (tmp_path / "low.so").write_bytes(library(MEMORY, returns("low", 1)))
    (tmp_path / "top.so").write_bytes(library(MEMORY, imports("low"), needed=("low.so",)))
    done = dlrun_here("patch", "--remove-needed", "low.so", "top.so")

    assert done.returncode == 0
    assert "nothing defines top.so: low, looked for when called" in done.stderr


def test_stripping_leaves_a_program_that_runs(dlrun_here: DlRun, tmp_path: Path) -> None:
    """A stripped program is smaller and does what it did; its compiled form is reported as one of the old bytes."""
    wasm = module(
        '(memory (export "memory") 1)', '(func $named (export "_start"))', name="$long_name_of_a_module"
    )
    program = tmp_path / "app.wasm"
    program.write_bytes(wasm)
    (tmp_path / "app.wasm.compiled").write_bytes(b"of the old bytes")
    done = dlrun_here("patch", "--strip", "app.wasm")

    assert done.returncode == 0, done.stderr
    assert "app.wasm.compiled is of the old bytes" in done.stderr
    assert program.stat().st_size < len(wasm)
    assert dlrun_here("app.wasm").returncode == 0
    assert dlrun_here("patch", "--strip", "app.wasm").stdout == "app.wasm  unchanged\n"


def test_links_and_permissions_stay(dlrun_here: DlRun, tmp_path: Path) -> None:
    """What a symbolic link leads to is replaced, with its permissions, and the link stays; the old file is never written to."""
    real, link = tmp_path / "real.so", tmp_path / "link.so"
    real.write_bytes(library(MEMORY, returns("f", 1), run_path=("/x",)))
    real.chmod(0o640)
    link.symlink_to("real.so")
    os.link(real, tmp_path / "other.so")
    before = real.read_bytes()
    assert dlrun_here("patch", "--remove-rpath", "link.so").returncode == 0

    assert link.is_symlink()
    assert info(real)[1] == ()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert (tmp_path / "other.so").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.so", "other.so", "real.so"]


def test_output_and_input(dlrun: DlRun, dlrun_here: DlRun, tmp_path: Path) -> None:
    """With `-o` the module stays as it is, and may be text; without, what is no binary file cannot be patched."""
    (tmp_path / "plain.wat").write_text('(module (func (export "f")))')
    assert dlrun_here("patch", "--rename", "f=g", "plain.wat", "-o", "out.wasm").returncode == 0
    assert "g" in dlrun_here("inspect", "--exports", "out.wasm").stdout
    done = dlrun_here("patch", "--rename", "f=g", "plain.wat")
    assert (done.returncode, "no binary file" in done.stderr) == (2, True)
    assert (
        dlrun(
            "patch", "--rename", "f=g", "-", "-o", "no/such/dir.wasm", input='(module (func (export "f")))'
        ).returncode
        == 74
    )
    assert dlrun_here("patch", "plain.wat").returncode == 2
    assert dlrun_here("patch", "--strip", "-o", "x", "a", "b").returncode == 2
    assert dlrun_here("patch", "--rename", "f", "plain.wat").returncode == 2
    assert dlrun_here("patch", "--remove-rpath", "--set-rpath", "x", "plain.wat").returncode == 2


@pytest.mark.parametrize(
    ("wasm", "words", "code", "reason"),
    [
        (b"", ("--strip",), 127, "empty"),
        (b"\0asm\1\0\0\0\0\x7f\x08dylink.0", ("--strip",), 127, "malformed"),
        (library(MEMORY)[:40], ("--set-rpath", "x"), 127, ""),
        (library(returns("f", 1)), ("--rename", "f=memory"), 1, "the linker itself"),
        (library(returns("f", 1)), ("--add-needed", "x" * 5000), 1, "not a name of 1 to 4095 bytes"),
        (module(returns("f", 1)), ("--set-rpath", "x"), 1, "no dylink.0 section"),
        (library(returns("f", 1)), ("--rename", "f=\udcff"), 1, "not UTF-8"),
    ],
    ids=["empty", "lying", "cut", "reserved", "long", "ordinary", "bytes"],
)
def test_bad_input_changes_nothing(
    dlrun_here: DlRun, tmp_path: Path, wasm: bytes, words: tuple[str, ...], code: int, reason: str
) -> None:
    """Damaged modules and changes that cannot be made are refused in one line, and the file keeps its bytes."""
    (tmp_path / "bad.so").write_bytes(wasm)
    done = dlrun_here("patch", *words, "bad.so")

    assert done.returncode == code, done.stderr
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
    assert contents(tmp_path) == {"bad.so": wasm}


def test_of_several_files_none_is_written(dlrun_here: DlRun, tmp_path: Path) -> None:
    """If one of several files cannot be changed, none is."""
    (tmp_path / "good.so").write_bytes(library(MEMORY, returns("f", 1)))
    (tmp_path / "bad.so").write_bytes(library(MEMORY, returns("other", 1)))
    before = contents(tmp_path)

    assert dlrun_here("patch", "--rename", "f=g", "good.so", "bad.so").returncode == 1
    assert contents(tmp_path) == before


def test_a_pipe_is_written_and_stays(dlrun: DlRun, tmp_path: Path) -> None:
    """The result goes into a pipe that is there, also through a symbolic link, and the words about it go elsewhere."""
    shutil.copy(HELLO / "libgreet.so", tmp_path)
    assert dlrun("patch", "--strip", "libgreet.so", "-o", "wanted.so").returncode == 0
    wanted = (tmp_path / "wanted.so").read_bytes()
    with read_from(tmp_path / "pipe") as came:
        (tmp_path / "link").symlink_to("pipe")
        done = dlrun("patch", "--strip", "libgreet.so", "-o", "link")
    assert (done.returncode, done.stdout, came) == (0, "", [wanted])
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "pipe").is_fifo()


def test_standard_output_takes_the_result(dlrun: DlRun, tmp_path: Path) -> None:
    """`-o -` writes the module to standard output and nothing else, and makes no file of that name."""
    shutil.copy(HELLO / "libgreet.so", tmp_path)
    assert dlrun("patch", "--strip", "libgreet.so", "-o", "wanted.so").returncode == 0
    for target in ("-", "/dev/stdout"):
        with (tmp_path / "pipe").open("w+b") as file:
            code = subprocess.run(
                [sys.executable, "-m", "dl", "patch", "--strip", str(tmp_path / "libgreet.so"), "-o", target],
                stdout=subprocess.PIPE,
                stderr=file,
                cwd=ROOT,
                timeout=60,
                check=False,
            )
        assert code.stdout == (tmp_path / "wanted.so").read_bytes()
    assert not Path(ROOT, "-").exists()
