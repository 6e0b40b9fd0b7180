"""The code of the linker's own files in one: what is loaded from there, and what is not."""

from __future__ import annotations

import importlib.util
import marshal
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.paths import ROOT

HELLO = ROOT / "fixtures/hello/shared/main.wasm"

SOURCES = {
    "__init__.py": "",
    "one.py": "NUMBER = 1\n",
    "sub/__init__.py": "from sample import one\n",
    "sub/two.py": "N = 2\n",
}

SCRIPT = """
import sys
from dl.cli.code_file import CodeFile
file = CodeFile(sys.argv[1], ("sample",))
sys.meta_path.insert(0, file)
sys.path.insert(0, sys.argv[2])
import sample.sub.two, sample.one
file.update()
for name in ("one", "sub", "sub.two"):
    module = sys.modules["sample." + name]
    print(name, type(module.__loader__).__name__, module.__file__, module.__cached__, module.__spec__.has_location,
          module.__package__, list(getattr(module, "__path__", [])), [v for k, v in vars(module).items() if k.startswith("N")])
import inspect
print(inspect.getsource(sample.one))
"""

Import = Callable[..., "list[str]"]


@pytest.fixture
def imported(tmp_path: Path) -> Import:
    """Imports a small package in a process that has a code file, and returns what it says of its modules, a line for each."""
    for name, text in SOURCES.items():
        (tmp_path / "sample" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "sample" / name).write_text(text)

    def run(*flags: str, root: Path = tmp_path, script: str = SCRIPT) -> list[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        done = subprocess.run(
            [sys.executable, *flags, "-c", script, str(tmp_path / "all.code"), str(root)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout.splitlines()

    return run


def test_modules_from_the_file_are_as_others(imported: Import, tmp_path: Path) -> None:
    """Names, paths and sources are the same; only who loads them differs."""
    first, second = imported(), imported()

    assert [line.split()[1] for line in first[:3]] == ["SourceFileLoader"] * 3
    assert [line.split()[1] for line in second[:3]] == ["_Loader"] * 3
    assert [line.replace("_Loader", "SourceFileLoader") for line in second] == first
    assert (tmp_path / "all.code").stat().st_mode & 0o777 == 0o644


def test_an_edited_source_is_imported_anew(imported: Import, tmp_path: Path) -> None:
    """By its time or by its size; the others still come from the file, and next time all do."""
    imported()
    (tmp_path / "sample/one.py").write_text("NUMBER = 20\n")

    edited, after = imported(), imported()

    assert [line.split()[1] for line in edited[:3]] == ["SourceFileLoader", "_Loader", "_Loader"]
    assert edited[0].endswith("[20]")
    assert [line.split()[1] for line in after[:3]] == ["_Loader"] * 3
    assert after[0].endswith("[20]")


def test_a_file_that_is_cut_off_is_not_used(imported: Import, tmp_path: Path) -> None:
    """Wherever: every module is imported as usual, and the file is whole again afterwards; so is another file of that name."""
    expected = imported()
    file = tmp_path / "all.code"
    whole = file.read_bytes()
    from dl.cli.code_file import CodeFile

    for length in (*range(0, len(whole), 41), *range(len(whole) - 9, len(whole))):
        file.write_bytes(whole[:length])
        cut = CodeFile(str(file), ("sample",))
        assert cut.find_spec("sample.one", [str(tmp_path / "sample")]) is None, length
    former = marshal.dumps((sys.version, 0, {}))
    for other in (
        bytes(4),
        bytes(100),
        b"\1\0\0\0N",
        b"some text that is no code",
        len(former).to_bytes(4, "little") + former,
    ):
        file.write_bytes(other)
        assert CodeFile(str(file), ("sample",)).find_spec("sample.one", [str(tmp_path / "sample")]) is None
    assert imported() == expected
    # Not the same bytes: which texts `marshal` marks as interned depends on who else refers to them.
    assert [line.split()[1] for line in imported()[:3]] == ["_Loader"] * 3


def test_the_file_of_another_python_or_another_folder_is_not_used(imported: Import, tmp_path: Path) -> None:
    """The code of another version is none, and a package of the same name elsewhere is another one."""
    imported()
    other = tmp_path / "other"
    (tmp_path / "sample").rename(tmp_path / "moved")
    other.mkdir()
    (tmp_path / "moved").rename(other / "sample")

    assert all("_Loader" not in line for line in imported(root=other)[:3])

    file = tmp_path / "all.code"
    content = file.read_bytes()
    version = sys.version.encode()
    assert content.count(version) == 1
    file.write_bytes(content.replace(version, b"9" + version[1:]))

    assert all("_Loader" not in line for line in imported(root=other)[:3])


def test_nothing_is_written_where_python_writes_no_code(imported: Import, tmp_path: Path) -> None:
    """Neither with `-B`, nor where there is no folder."""
    imported("-B")
    assert not (tmp_path / "all.code").exists()

    (tmp_path / "all.code").mkdir()
    imported()

    assert [path.name for path in tmp_path.iterdir() if ".code" in path.name] == ["all.code"]


def test_what_is_imported_later_is_a_part_of_its_own(imported: Import, tmp_path: Path) -> None:
    """A module that the first process did not import is added, and one that is imported again is read anew."""
    (tmp_path / "sample/three.py").write_text("NUMBER = 3\n")
    imported()
    again = "import importlib, sys; sys.path.insert(0, sys.argv[2])\n" + SCRIPT.replace(
        "import sample.sub.two, sample.one", "import sample.sub.two, sample.three"
    ).replace("import inspect", "importlib.reload(sample.one); import inspect")

    outcomes = [imported(script=again) for _ in range(2)]

    assert outcomes[0] == outcomes[1]
    assert [line.split()[1] for line in imported()[:3]] == ["_Loader"] * 3
    content = (tmp_path / "all.code").read_bytes()
    (_, parts, index) = marshal.loads(content[4:])
    assert len(parts) == 2
    assert sorted(index) == ["sample.one", "sample.sub", "sample.sub.two", "sample.three"]


def test_processes_that_write_at_once_leave_one_whole_file(imported: Import, tmp_path: Path) -> None:
    """Eight first processes: all import what there is, and the ninth loads all from the file."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda _: imported(), range(8)))

    assert all(outcome[0].endswith("[1]") for outcome in outcomes)
    assert [line.split()[1] for line in imported()[:3]] == ["_Loader"] * 3
    assert [path.name for path in tmp_path.iterdir() if ".code" in path.name] == ["all.code"]


def test_a_second_dlrun_loads_its_code_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first process's files of Python the second one opens a handful; both run the program alike."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": str(tmp_path)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    opened, outputs = [], []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-v", "-m", "dl", str(HELLO)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        opened.append(done.stderr.count(f"# {ROOT}/"))
        outputs.append(done.stdout)

    assert outputs[0] == outputs[1]
    (file,) = tmp_path.rglob("all_code.*")
    assert file.stat().st_size > 100_000
    assert opened[1] < 12
    with monkeypatch.context() as patch:  # what installers remove is what Python would make of this source
        patch.setattr(sys, "pycache_prefix", str(tmp_path))
        assert str(file) == importlib.util.cache_from_source(str(ROOT / "dl/cli/all_code.py"))


def test_the_file_stands_in_the_way_of_nothing(tmp_path: Path) -> None:
    """Who imports the module in whose place it is gets an empty one, and the next process writes the file again."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": str(tmp_path)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    sizes = []
    for words in (["-m", "dl", str(HELLO)], ["-c", "import dl.cli.all_code"], ["-m", "dl", str(HELLO)]):
        subprocess.run([sys.executable, *words], env=environment, capture_output=True, timeout=60, check=True)
        (file,) = tmp_path.rglob("all_code.*")
        sizes.append(file.stat().st_size)

    assert sizes[0] > 100_000 > sizes[1] < sizes[2]
