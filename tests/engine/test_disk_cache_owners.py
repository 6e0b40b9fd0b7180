"""Compiled code of other people is not loaded: who owns the directory and the files, and who can write to them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dl.engine.code_cache import content_digest
from dl.engine.disk_cache import DiskCache, open_cache
from dl.engine.private_directory import NotPrivateError
from tests.support.disk_caches import CountingEngine, code_files, compiled, module
from tests.support.paths import ROOT

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of other users")


def refused(path: Path, engine: CountingEngine) -> str:
    with pytest.raises(NotPrivateError) as caught:
        DiskCache(path)
    assert open_cache(path) is None
    return str(caught.value)


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777, 0o720])
def test_a_directory_that_others_can_write_to_is_not_used(
    place: Path, engine: CountingEngine, mode: int
) -> None:
    """Writable by group or others, with or without the sticky bit, a directory is no cache; the text names it."""
    place.mkdir()
    place.chmod(mode)

    assert refused(place, engine) == f"{place} can be written by others"


def test_a_directory_below_one_that_others_can_write_to_is_not_used(
    place: Path, engine: CountingEngine
) -> None:
    """Where others can rename what is on the way, a private directory does not help; below a sticky one it does."""
    place.mkdir()
    (place / "own").mkdir(mode=0o700)
    place.chmod(0o777)
    assert refused(place / "own", engine) == f"{place} can be written by others"
    place.chmod(0o1777)
    compiled(engine, DiskCache(place / "own"), module(1))

    assert len(code_files(place / "own")) == 1


@as_root
def test_a_directory_of_another_user_is_not_used(place: Path, engine: CountingEngine) -> None:
    """The directory of somebody else, or one below it, is no cache, and nothing is made in it, also for root."""
    place.mkdir(mode=0o700)
    os.chown(place, 12345, 12345)
    assert "belongs to user 12345" in refused(place, engine)
    assert "belongs to user 12345" in refused(place / "deeper", engine)

    assert list(place.iterdir()) == []


@as_root
def test_a_link_of_another_user_is_not_followed(place: Path, engine: CountingEngine) -> None:
    """In a sticky directory, a link that somebody else has put there is not followed; one's own is."""
    place.mkdir()
    place.chmod(0o1777)
    own = place / "own"
    own.mkdir(mode=0o700)
    (place / "link").symlink_to(own)
    compiled(engine, DiskCache(place / "link"), module(1))
    assert len(code_files(own)) == 1
    os.chown(place / "link", 12345, 12345, follow_symlinks=False)

    assert "is a link that is not to be trusted" in refused(place / "link", engine)
    assert "is a link that is not to be trusted" in refused(place / "link" / "deeper", engine)


def test_links_are_walked_as_paths_are(place: Path, engine: CountingEngine) -> None:
    """Relative, absolute and chained links lead to a cache; a link into a writable directory, or to itself, does not."""
    (place / "a/b").mkdir(parents=True, mode=0o700)
    (place / "relative").symlink_to("a/../a/b")
    (place / "absolute").symlink_to(place / "relative")
    compiled(engine, DiskCache(place / "absolute"), module(1))
    assert len(code_files(place / "a/b")) == 1

    (place / "loop").symlink_to("loop")
    assert "is a link that is not to be trusted" in refused(place / "loop", engine)
    (place / "a").chmod(0o777)
    assert refused(place / "absolute", engine) == f"{place / 'a'} can be written by others"


@as_root
def test_a_file_of_another_user_is_not_loaded(cache: DiskCache, place: Path, engine: CountingEngine) -> None:
    """A file that is whole, but belongs to somebody else, is not loaded."""
    compiled(engine, cache, module(1))
    [file] = code_files(place)
    os.chown(file, 12345, 12345)

    assert cache.load(engine, content_digest(module(1))) is None
    assert engine.loaded == []


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write_to_is_not_loaded(
    cache: DiskCache, place: Path, engine: CountingEngine, mode: int
) -> None:
    """A file that is whole, but writable by others, is not loaded."""
    compiled(engine, cache, module(1))
    code_files(place)[0].chmod(mode)

    assert cache.load(engine, content_digest(module(1))) is None
    assert engine.loaded == []


def _as_link(file: Path) -> None:
    file.rename(file.with_suffix(".elsewhere"))
    file.symlink_to(file.with_suffix(".elsewhere"))


def _as_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _as_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("change", [_as_link, _as_directory, _as_pipe])
def test_what_is_no_regular_file_is_not_loaded(
    cache: DiskCache, place: Path, engine: CountingEngine, change: Callable[[Path], None]
) -> None:
    """A link, a directory or a pipe in place of a file is a miss, and nobody waits for the pipe."""
    compiled(engine, cache, module(1))
    change(code_files(place)[0])

    assert cache.load(engine, content_digest(module(1))) is None
    assert engine.loaded == []


def test_a_directory_that_is_opened_to_others_later_is_not_used(
    cache: DiskCache, place: Path, engine: CountingEngine
) -> None:
    """Made writable by others while it is open, a directory is neither read nor written."""
    compiled(engine, cache, module(1))
    place.chmod(0o777)

    assert cache.load(engine, content_digest(module(1))) is None
    compiled(engine, cache, module(2))
    assert len(code_files(place)) == 1


@as_root
@pytest.mark.timeout(60)
def test_a_process_with_other_rights_has_no_cache(place: Path) -> None:
    """Set-uid and set-gid programs, whose starter chooses the environment, use no directory."""
    script = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path\n"
        "from dl.engine.private_directory import PrivateDirectory\n"
        "os.setresgid(*([int(sys.argv[3])] * 1), 0, 0) if sys.argv[4] == 'g' else os.setresuid(int(sys.argv[3]), 0, 0)\n"
        "try: PrivateDirectory(Path(sys.argv[2]))\n"
        "except Exception as error: print(error)\n"
    )
    for which in "ug":
        done = subprocess.run(
            [sys.executable, "-c", script, str(ROOT), str(place), "12345", which],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert (
            done.stdout == "the process runs with the rights of another user than the one that started it\n"
        )
    assert not place.exists()


def test_a_guest_that_can_reach_the_cache_gets_none(place: Path, tmp_path: Path) -> None:
    """A program whose directories hold the cache, or lie in it, links without; by whatever path they are given."""
    place.mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path)
    for directory in (tmp_path, place, place / "x", tmp_path / "link", tmp_path / "other" / ".."):
        assert open_cache(place, [str(directory)]) is None
    assert open_cache(place, [str(tmp_path / "other")]) is not None
