"""The walk beneath a directory: what it opens, what it refuses, and what it never looks at."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dl.modules.beneath import (
    MAX_LINKS,
    NotOpenedError,
    Place,
    absolute,
    check_directory,
    host_place,
    identity_of,
    open_beneath,
    too_long,
)

SEED = 20240611
RACE_SECONDS = 1.5


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory with a file in it, beside one that must not be reached."""
    directory = tmp_path / "root"
    (directory / "sub").mkdir(parents=True)
    (directory / "file").write_bytes(b"inside")
    (directory / "sub" / "deep").write_bytes(b"deep")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "file").write_bytes(b"outside")
    return directory


def read(place: Place, guest: frozenset[tuple[int, int]] = frozenset()) -> bytes:
    with open_beneath(place, guest) as file:
        return os.read(file.fd, 100)


def refused(place: Place, guest: frozenset[tuple[int, int]] = frozenset()) -> int:
    with pytest.raises(NotOpenedError) as caught:
        read(place, guest)
    return caught.value.errno


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class TestBeneath:
    def test_files_and_links_inside(self, root: Path) -> None:
        """Files, relative links, absolute links into the root, and links with `..` that stay inside are followed."""
        (root / "sub" / "up").symlink_to("../file")
        (root / "abs").symlink_to(root / "sub")
        (root / "twice").symlink_to("abs/up")

        for inside in ("file", "./file", "sub/up", "abs/../file", "twice", "sub/../sub/../file"):
            with open_beneath(Place(str(root), inside)) as file:
                assert os.read(file.fd, 100) == b"inside", inside
                assert file.path == str(root / "file")
                assert file.size == 6

    @pytest.mark.parametrize(
        "text", ["../secret/file", "/etc/passwd", "/", "..", "sub/../../secret/file", "/etc/../etc/passwd"]
    )
    @pytest.mark.parametrize("through", ["link", "link/file", "sub/../link"])
    def test_links_that_lead_out(self, root: Path, text: str, through: str) -> None:
        """A link out of the root is refused, by the same error whether or not its target exists."""
        (root / "link").symlink_to(text)

        assert refused(Place(str(root), through)) == errno.EXDEV
        (root / "link").unlink()
        (root / "link").symlink_to(text + "-that-is-not-there" if text != ".." else "../gone")
        assert refused(Place(str(root), through)) == errno.EXDEV

    def test_dots_that_lead_out(self, root: Path) -> None:
        """`..` leads nowhere above the root, from however deep it comes."""
        for inside in ("..", "../secret/file", "sub/../../root/file", "sub/../../secret/file"):
            assert refused(Place(str(root), inside)) == errno.EXDEV

    def test_the_root_itself_may_be_a_link(self, root: Path, tmp_path: Path) -> None:
        """The path of a root is the host's: links in it are followed, and the root is what they lead to."""
        (tmp_path / "alias").symlink_to("root")

        assert read(Place(str(tmp_path / "alias"), "file")) == b"inside"
        assert refused(Place(str(tmp_path / "alias"), "../secret/file")) == errno.EXDEV

    def test_a_root_that_was_replaced(self, root: Path, tmp_path: Path) -> None:
        """A root that is no longer the directory that was recorded is refused."""
        identity = identity_of(str(root))
        root.rename(tmp_path / "moved")
        (tmp_path / "root").symlink_to("secret")

        assert refused(Place(str(tmp_path / "root"), "file", identity)) == errno.EXDEV

    def test_a_guest_directory_confines_a_walk_of_the_host(self, root: Path, tmp_path: Path) -> None:
        """Once a host path has entered a directory of the guest, nothing leads out of it; without confinement it may."""
        guest = frozenset({identity_of(str(root)) or (0, 0)})
        (root / "out").symlink_to("../secret")
        (root / "in").symlink_to("sub/deep")
        (tmp_path / "way").symlink_to(root / "sub")

        assert read(host_place(str(root / "in")), guest) == b"deep"
        assert refused(host_place(str(root / "out" / "file")), guest) == errno.EXDEV
        assert (
            refused(host_place(str(tmp_path / "way" / ".." / ".." / "secret" / "file")), guest) == errno.EXDEV
        )
        with open_beneath(host_place(str(root / "out" / "file"), confined=False), guest) as file:
            assert file.guest_written
            assert os.read(file.fd, 100) == b"outside"
        with open_beneath(host_place(str(tmp_path / "secret" / "file")), guest) as file:
            assert not file.guest_written

    def test_what_is_no_regular_file(self, root: Path) -> None:
        """Directories, pipes and devices are not opened; a pipe without a writer does not make anybody wait."""
        os.mkfifo(root / "pipe")
        (root / "null").symlink_to("/dev/null")

        assert refused(Place(str(root), "sub")) == errno.EISDIR
        assert refused(Place(str(root), ".")) == errno.EISDIR
        assert refused(Place(str(root), "pipe")) == errno.EINVAL
        assert refused(Place(str(root), "file/x")) == errno.ENOTDIR
        assert refused(host_place("/dev/null")) == errno.EINVAL
        assert refused(host_place(str(root / "null"))) == errno.EINVAL

    def test_bounds(self, root: Path) -> None:
        """Long paths are refused before anything is opened, endless links and steps after a bounded number."""
        (root / "loop").symlink_to("loop")
        (root / "a").symlink_to("b")
        (root / "b").symlink_to("a/x")
        before = root
        for n in range(MAX_LINKS):
            (root / f"link{n}").symlink_to("file" if n == 0 else f"link{n - 1}")
        (root / "wide").symlink_to("sub/../" * 500 + "wide2")
        (root / "wide2").symlink_to("sub/../" * 500 + "wide3")
        for n in range(3, 20):
            (root / f"wide{n}").symlink_to("sub/../" * 500 + f"wide{n + 1}")

        assert refused(Place(str(before), "loop")) == errno.ELOOP
        assert refused(Place(str(before), "a")) == errno.ELOOP
        assert refused(Place(str(before), "wide")) == errno.ELOOP
        assert read(Place(str(before), f"link{MAX_LINKS - 1}")) == b"inside"
        assert refused(Place(str(before), "x" * 256)) == errno.ENAMETOOLONG
        assert refused(Place(str(before), "x/" * 2048)) == errno.ENAMETOOLONG
        started = time.thread_time()
        assert too_long("a/" * 65536)
        assert refused(Place("/" + "a/" * 65536)) == errno.ENAMETOOLONG
        assert time.thread_time() - started < 1

    def test_names_that_are_none(self, root: Path) -> None:
        """A NUL, or a text that no file name encodes to, is a file that is not there."""
        assert refused(Place(str(root), "a\0b")) == errno.ENOENT
        assert refused(Place(str(root), "\ud800")) == errno.ENOENT

    @pytest.mark.parametrize(
        "way",
        ["file", "sub/deep", "sub/../file", "again", "dir/deep", "dir/../file", "././sub//deep", "out/file"],
    )
    def test_what_nothing_confines_is_where_a_walk_finds_it(self, root: Path, way: str) -> None:
        """A file that the kernel walks to is the one of the walk in steps: the same bytes, resolved path and version."""
        (root / "again").symlink_to("sub/../file")
        (root / "dir").symlink_to(root / "sub")
        (root / "out").symlink_to("../secret")
        place, nowhere = host_place(f"{root}/{way}", confined=False), frozenset({(0, 0)})
        with open_beneath(place) as whole, open_beneath(place, nowhere) as walked:
            assert (whole.path, whole.size, whole.version) == (walked.path, walked.size, walked.version)
            assert os.read(whole.fd, 100) == os.read(walked.fd, 100)
            assert not whole.guest_written

    def test_a_missing_file_has_the_path_it_would_have(self, root: Path) -> None:
        """The path of what is not there is told, links before it resolved, so that a module can be known by it."""
        (root / "abs").symlink_to("sub")
        with pytest.raises(NotOpenedError) as caught:
            read(Place(str(root), "abs/gone.so"))

        assert caught.value.errno == errno.ENOENT
        assert caught.value.path == str(root / "sub" / "gone.so")

    def test_no_descriptor_is_left_open(self, root: Path) -> None:
        """Whatever a walk meets, it closes all that it opened."""
        (root / "out").symlink_to("../secret")
        (root / "loop").symlink_to("loop")
        for inside in ("file", "sub/deep", "out", "loop", "gone", "sub", "file/x", "x" * 300, "sub/../../x"):
            before = descriptors()
            with contextlib.suppress(NotOpenedError):
                read(Place(str(root), inside), frozenset({identity_of(str(root / "sub")) or (0, 0)}))
            assert descriptors() == before, inside

    def test_directories(self, root: Path) -> None:
        """`check_directory` accepts directories beneath the root, and says of others what `chdir` does."""
        (root / "out").symlink_to("../secret")
        check_directory(Place(str(root), "."))
        check_directory(Place(str(root), "sub"))
        for inside, number in (
            ("file", errno.ENOTDIR),
            ("gone", errno.ENOENT),
            ("out", errno.EXDEV),
            ("x" * 256, errno.ENAMETOOLONG),
        ):
            with pytest.raises(NotOpenedError) as caught:
                check_directory(Place(str(root), inside))
            assert caught.value.errno == number, inside

    def test_relative_paths_of_the_host(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A leading `..` is applied to the text of the current directory, so that a walk may begin inside of the guest's."""
        monkeypatch.chdir(root / "sub")
        guest = frozenset({identity_of(str(root)) or (0, 0)})

        assert absolute("../../x/./y") == str(root.parent / "x" / "y")
        assert read(host_place("../../secret/file"), guest) == b"outside"
        assert read(host_place("deep"), guest) == b"deep"


class TestRaces:
    """Threads that swap links while others open; the seed fixes what is swapped, not how they interleave."""

    @pytest.fixture
    def swapping(self, root: Path) -> Iterator[threading.Event]:
        """Swap `what` between a file, a link out and a directory, and `sub` between a directory and a link out."""
        print("seed", SEED)
        chosen = random.Random(SEED)
        end = threading.Event()
        (root / "sub" / "file").write_bytes(b"deep")

        def swap() -> None:
            n = 0
            while not end.is_set():
                n += 1
                new = root / f".new{n}"
                kind = chosen.randrange(3)
                if kind == 0:
                    new.write_bytes(b"inside")
                    new.replace(root / "what")
                elif kind == 1:
                    new.symlink_to("../secret/file")
                    new.replace(root / "what")
                else:
                    os.rename(root / "sub", root / ".aside")
                    os.symlink("../secret", root / "sub")
                    os.unlink(root / "sub")
                    os.rename(root / ".aside", root / "sub")

        thread = threading.Thread(target=swap)
        thread.start()
        yield end
        end.set()
        thread.join()

    def test_a_link_swapped_in_is_never_followed_out(self, root: Path, swapping: threading.Event) -> None:
        """However links are swapped, what is read is inside, and every failure is one that may be."""
        seen = set()
        failed = set()
        guest = frozenset({identity_of(str(root)) or (0, 0)})
        deadline = time.monotonic() + RACE_SECONDS
        tries = 0
        while time.monotonic() < deadline:
            tries += 1
            for place in (
                Place(str(root), "what"),
                Place(str(root), "sub/file"),
                Place(str(root), "sub/../sub/file"),
                host_place(str(root / "what")),
                host_place(str(root / "sub" / "file")),
            ):
                try:
                    seen.add(read(place, guest))
                except NotOpenedError as error:
                    failed.add(error.errno)
        print("tries", tries)

        assert tries > 37
        assert seen <= {b"inside", b"deep"}
        assert failed <= {errno.ENOENT, errno.EXDEV, errno.ELOOP}
        assert stat.S_ISDIR(os.stat(root).st_mode)
