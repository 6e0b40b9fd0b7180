"""`dlrun bundle`: what it makes runs elsewhere, with the files that it came from gone, and is the same for the same files."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import dl
from dl.modules.image import image_from_file
from tests.support.command_line import DlRun
from tests.support.modules import MEMORY, calls, imports, library, pie, returns
from tests.support.paths import FIXTURES

Move = Callable[..., Path]

RUNPATH = FIXTURES / "runpath/shared"
READER = """
(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "sub/note.txt")
  (func (export "_start")
    (call $exit (call $open (i32.const 3) (i32.const 0) (i32.const 16) (i32.const 12) (i32.const 0)
      (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 8)))))
"""


def app(*needed: str, run_path: tuple[str, ...] = ()) -> bytes:
    """A program whose exit code is the result of `number`."""
    return pie(
        '(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))',
        imports("number"),
        '(func (export "_start") (call $exit (call $number)))',
        needed=needed,
        run_path=run_path,
    )


@pytest.fixture
def moved(dlrun_here: DlRun, tmp_path: Path) -> Move:
    """Bundles a program, removes it with its folder, and moves the bundle; returns where it is."""

    def move(program: str, *words: str, archive: bool = True) -> Path:
        made = tmp_path / ("out.zip" if archive else "out")
        done = dlrun_here("bundle", *words, "-o", str(made), program)
        assert done.returncode == 0, done.stderr
        shutil.rmtree(tmp_path / "app")
        elsewhere = tmp_path / "else/where"
        elsewhere.mkdir(parents=True)
        return Path(shutil.move(made, elsewhere))

    return move


@pytest.mark.parametrize("archive", [True, False])
def test_a_program_with_run_paths(dlrun_here: DlRun, tmp_path: Path, moved: Move, archive: bool) -> None:
    """A program whose libraries are in four folders runs from its bundle alone, as it did before."""
    shutil.copytree(RUNPATH, tmp_path / "app")
    expected = dlrun_here("app/main.wasm")
    made = moved("app/main.wasm", archive=archive)
    done = dlrun_here(str(made))

    assert (done.returncode, done.stdout, done.stderr) == (0, expected.stdout, "")
    if not archive:
        assert dlrun_here(str(made / "main.wasm")).stdout == expected.stdout
        paths = [image_from_file(p, p.name).wasm.dylink for p in made.iterdir() if p.name != "bundle.json"]
        assert {path for info in paths if info for path in info.runtime_path} == {"$ORIGIN"}
        with dl.Linker(None, memory=dl.MemoryType(shared=True)) as linker:
            assert linker.main_group.library(str(made / "libtop.so")).path == str(made / "libtop.so")


def test_names_that_clash(dlrun_here: DlRun, tmp_path: Path, moved: Move) -> None:
    """Two libraries of one name in different folders, needed by paths, both come along, and each is found by who needs it."""
    for name, value in (("one", 40), ("two", 2)):
        (tmp_path / "app" / name).mkdir(parents=True)
        (tmp_path / "app" / name / "lib.so").write_bytes(library(MEMORY, returns(f"{name}_value", value)))
    (tmp_path / "app/sum.so").write_bytes(
        library(
            MEMORY,
            imports("one_value"),
            imports("two_value"),
            '(func (export "number") (result i32) (i32.add (call $one_value) (call $two_value)))',
            needed=(str(tmp_path / "app/one/lib.so"), str(tmp_path / "app/two/lib.so")),
        )
    )
    (tmp_path / "app/main.wasm").write_bytes(app("sum.so"))
    made = moved("app/main.wasm", archive=False)

    names = sorted(p.name for p in made.iterdir())
    assert len(names) == 5
    assert "lib.so" in names
    assert any(name.startswith("lib-") and len(name) == len("lib-12345678.so") for name in names)
    assert dlrun_here(str(made)).returncode == 42


def test_a_library_under_two_names(dlrun_here: DlRun, tmp_path: Path, moved: Move) -> None:
    """A library that is needed under a link's name, too, is one file in the bundle."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app/lib.so.1").write_bytes(library(MEMORY, returns("number", 9)))
    (tmp_path / "app/lib.so").symlink_to("lib.so.1")
    (tmp_path / "app/mid.so").write_bytes(library(MEMORY, needed=("lib.so.1",)))
    (tmp_path / "app/main.wasm").write_bytes(app("lib.so", "mid.so"))
    made = moved("app/main.wasm", archive=False)

    assert sorted(p.name for p in made.iterdir()) == ["bundle.json", "lib.so", "main.wasm", "mid.so"]
    assert dlrun_here(str(made)).returncode == 9


def test_libraries_that_are_opened(dlrun_here: DlRun, tmp_path: Path, moved: Move) -> None:
    """`--library` takes a library that is opened later, with what it needs, and `--preload` finds it by its name."""
    (tmp_path / "app/lib").mkdir(parents=True)
    (tmp_path / "app/lib/low.so").write_bytes(library(MEMORY, returns("low", 6)))
    (tmp_path / "app/lib/late.so").write_bytes(
        library(MEMORY, imports("low"), calls("number", "low"), needed=("low.so",), run_path=("$ORIGIN",))
    )
    (tmp_path / "app/main.wasm").write_bytes(app())
    made = moved("app/main.wasm", "--library", str(tmp_path / "app/lib/late.so"))

    assert dlrun_here("--preload", "late.so", str(made)).returncode == 6


def test_what_stays_outside(dlrun_here: DlRun, tmp_path: Path, moved: Move) -> None:
    """A library that is excluded is found where the bundle runs; without it the run says what is missing."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app/sys.so").write_bytes(library(MEMORY, returns("number", 5)))
    (tmp_path / "system").mkdir()
    shutil.copy(tmp_path / "app/sys.so", tmp_path / "system")
    (tmp_path / "app/main.wasm").write_bytes(app("sys.so"))
    made = moved("app/main.wasm", "--exclude", "s*.so")

    assert sorted(zipfile.ZipFile(made).namelist()) == ["bundle.json", "main.wasm"]
    assert dlrun_here("-L", "system", str(made)).returncode == 5
    missing = dlrun_here(str(made))
    assert (missing.returncode, "sys.so" in missing.stderr) == (127, True)


@pytest.mark.parametrize("archive", [True, False])
def test_data(dlrun_here: DlRun, tmp_path: Path, moved: Move, archive: bool) -> None:
    """A program sees the copy of a directory that `--data` gave it, and with `--dir` of the same name another one."""
    (tmp_path / "app/files/sub").mkdir(parents=True)
    (tmp_path / "app/files/sub/note.txt").write_text("note")
    (tmp_path / "app/files/link").symlink_to("sub/note.txt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "app/main.wat").write_text(READER)
    assert dlrun_here("--no-default-files", "--dir", "/data::app/files", "app/main.wat").returncode == 0
    made = moved("app/main.wat", "--data", "/data::app/files", archive=archive)

    assert dlrun_here("--no-default-files", str(made)).returncode == 0
    assert dlrun_here("--no-default-files", "--dir", "/data::empty", str(made)).returncode == 44
    assert dlrun_here("--no-default-files", str(made)).returncode == 0


def test_data_that_cannot_be_taken(dlrun_here: DlRun, tmp_path: Path) -> None:
    """A link that leads out, a pipe and a name that no archive may have are refused, and nothing is written."""
    (tmp_path / "files").mkdir()
    (tmp_path / "main.wasm").write_bytes(pie('(func (export "_start"))'))
    for make, reason in (
        (lambda path: path.symlink_to("/etc/passwd"), "leads out of its directory"),
        (lambda path: path.symlink_to("/etc"), "is a link to a directory"),
        (os.mkfifo, "no regular file"),
    ):
        make(tmp_path / "files/odd")
        done = dlrun_here("bundle", "--data", "files", "main.wasm")
        assert (done.returncode, reason in done.stderr) == (127, True), done.stderr
        (tmp_path / "files/odd").unlink()
    (tmp_path / "files/a\\b").write_text("")
    assert "has a slash or a backslash" in dlrun_here("bundle", "--data", "files", "main.wasm").stderr
    assert sorted(os.listdir(tmp_path)) == ["files", "main.wasm"]


def test_equal_files_give_equal_archives(dlrun_here: DlRun, tmp_path: Path) -> None:
    """The same program in another folder, with other times, permissions and another user's mask, gives the same bytes."""
    made = []
    for number, mask in ((1, 0o022), (2, 0o077)):
        folder = tmp_path / f"copy{number}"
        shutil.copytree(RUNPATH, folder)
        os.utime(folder / "main.wasm", (number * 1e9, number * 1e9))
        before = os.umask(mask)
        try:
            assert (
                dlrun_here(
                    "bundle", "--data", f"/d::{folder}/lib", f"copy{number}/main.wasm", "-o", f"{number}.zip"
                ).returncode
                == 0
            )
        finally:
            os.umask(before)
        made.append((tmp_path / f"{number}.zip").read_bytes())
    assert made[0] == made[1]
    assert str(tmp_path).encode() not in made[0]


def test_compiled_code_is_for_those_who_trust_it(dlrun: DlRun, dlrun_here: DlRun, tmp_path: Path) -> None:
    """Code in an archive is used with `--trust-compiled` alone; of a folder by the rules of compiled forms."""
    (tmp_path / "lib.so").write_bytes(library(MEMORY, returns("number", 0)))
    (tmp_path / "main.wasm").write_bytes(app("lib.so"))
    assert dlrun_here("bundle", "--compile", "main.wasm", "-o", "b.zip").returncode == 0
    assert dlrun_here("bundle", "--compile", "main.wasm", "-o", "b").returncode == 0
    for words, used in ((("b.zip",), 0), (("--trust-compiled", "b.zip"), 2), (("b",), 2)):
        done = dlrun("--trace=files", *words)
        assert done.returncode == 0
        assert done.stderr.count(".compiled used") == used


def test_modules_that_import_by_name(dlrun_here: DlRun, tmp_path: Path) -> None:
    """A program that is linked by import names runs from its bundle without a word about it."""
    source = FIXTURES / "multimodule/unshared"
    assert dlrun_here("bundle", "--module-path", str(source), str(source / "mC.wasm")).returncode == 0
    names = zipfile.ZipFile(tmp_path / "mC.zip").namelist()

    assert names == ["bundle.json", "mA.wasm", "mB.wasm", "mC.wasm"]
    assert dlrun_here("--invoke", "$mB$B2", "mC.zip").stdout == "11\n"


def test_what_is_there_is_not_overwritten(dlrun_here: DlRun, tmp_path: Path) -> None:
    """`--force` replaces a bundle, as a folder or as an archive, and nothing else."""
    (tmp_path / "main.wasm").write_bytes(pie('(func (export "_start"))'))
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").write_text("mine")
    for out in ("one.zip", "one"):
        assert dlrun_here("bundle", "main.wasm", "-o", out).returncode == 0
        assert dlrun_here("bundle", "main.wasm", "-o", out).returncode == 1
        assert dlrun_here("bundle", "--force", "main.wasm", "-o", out).returncode == 0
        assert dlrun_here(out).returncode == 0
    (tmp_path / "one").rename(tmp_path / "two.zip")
    assert dlrun_here("bundle", "--force", "main.wasm", "-o", "two.zip").returncode == 0
    assert zipfile.is_zipfile(tmp_path / "two.zip")
    assert dlrun_here("bundle", "--force", "main.wasm", "-o", "precious").returncode == 1
    assert (tmp_path / "precious/file").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["main.wasm", "one.zip", "precious", "two.zip"]


def test_what_cannot_be_bundled(dlrun_here: DlRun, tmp_path: Path) -> None:
    """A missing library ends the command with the places that were tried, and leaves nothing."""
    (tmp_path / "main.wasm").write_bytes(app("missing.so"))
    done = dlrun_here("bundle", "main.wasm")
    assert (done.returncode, "missing.so: no such file" in done.stderr) == (127, True)
    assert dlrun_here("bundle", "--list", "main.wasm").returncode == 127
    assert os.listdir(tmp_path) == ["main.wasm"]


def test_a_list_writes_nothing(dlrun_here: DlRun, tmp_path: Path) -> None:
    """`--list` prints each file with where it was found."""
    done = dlrun_here("bundle", "--list", str(RUNPATH / "main.wasm"))
    assert [line.split("  ")[0] for line in done.stdout.splitlines()] == [
        "main.wasm",
        "libtop.so",
        "libmid.so",
        "libside.so",
        "libwasm.wasm",
    ]
    assert os.listdir(tmp_path) == []


def test_a_damaged_folder_is_reported(dlrun_here: DlRun, tmp_path: Path) -> None:
    """A folder whose manifest leads out, or whose program is gone, is refused with one line."""
    (tmp_path / "main.wasm").write_bytes(pie('(func (export "_start"))'))
    assert dlrun_here("bundle", "main.wasm", "-o", "b").returncode == 0
    manifest = tmp_path / "b/bundle.json"
    text = manifest.read_text()
    manifest.write_text(json.dumps(json.loads(text) | {"directories": {"/": "data/../.."}}))
    done = dlrun_here("b")
    assert (done.returncode, done.stderr.count("\n")) == (127, 1)
    assert "bundle b: a directory of the program" in done.stderr
    manifest.write_text(text)
    (tmp_path / "b/main.wasm").unlink()
    assert dlrun_here("b").returncode == 127


@pytest.mark.parametrize("archive", [True, False])
def test_it_is_looked_into_like_its_program(
    dlrun_here: DlRun, tmp_path: Path, moved: Move, monkeypatch: pytest.MonkeyPatch, archive: bool
) -> None:
    """`inspect`, `deps`, `explain`, `graph` and `map` take a bundle for its program and libraries, and leave nothing behind."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app/main.wasm").write_bytes(app("libnumber.so"))
    (tmp_path / "app/libnumber.so").write_bytes(library(returns("number", 7)))
    bundle = str(moved("app/main.wasm", archive=archive))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))

    for words, shows in (
        (["inspect", bundle], "libnumber.so"),
        (["inspect", "--links", bundle], "linked  func    env.number"),
        (["deps", "-r", bundle], "libnumber.so"),
        (["explain", bundle, "number"], "libnumber.so"),
        (["graph", bundle], "libnumber.so"),
        (["map", bundle], "libnumber.so"),
    ):
        done = dlrun_here(*words)
        assert (done.returncode, done.stderr) == (0, ""), words
        assert shows in done.stdout, words
    assert dlrun_here("map", "--run", bundle).returncode == 7
    assert list(temporary.iterdir()) == []


def test_a_damaged_one_is_not_looked_into(
    dlrun_here: DlRun, tmp_path: Path, moved: Move, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archive that is none is refused by name, and what was unpacked of others before it is removed."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app/main.wasm").write_bytes(app("libnumber.so"))
    (tmp_path / "app/libnumber.so").write_bytes(library(returns("number", 7)))
    bundle = str(moved("app/main.wasm"))
    (tmp_path / "damaged.zip").write_bytes(Path(bundle).read_bytes()[:-30])
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    done = dlrun_here("inspect", bundle, "damaged.zip")

    assert done.returncode == 127
    assert "damaged.zip" in done.stderr
    assert list(temporary.iterdir()) == []
