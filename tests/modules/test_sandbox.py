"""What a guest may make the linker open: `docs/security.md`, attacked with real files, links and threads."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import dl
from tests.support.modules import imports, library, pie, returns

SUCCESS, UNKNOWN = 0, 79
TEXT, SEARCH, ERROR, OUT = 4096, 49152, 16384, 256
SEED = 20240612
RACE_SECONDS = 2.0
SECRET = library(returns("secret", 1))
HARMLESS = library(returns("harmless", 1))

MAIN = pie(
    imports("dlopen", "(param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)", "wasix_32v1"),
    imports("dlsym", "(param i32 i32 i32 i32 i32 i32) (result i32)", "wasix_32v1"),
    '(export "dlopen" (func $dlopen)) (export "dlsym" (func $dlsym))',
    memory_size=4 * 65536,
)


class Guest:
    """The guest's side of a program: strings in its memory, calls through its own imports."""

    def __init__(self, program: dl.Linker) -> None:
        self.program = program

    def dlopen(self, path: str, search: str = "") -> tuple[int, str]:
        """Return errno and error text."""
        memory, group = self.program.memory, self.program.main_group
        for at, text in ((TEXT, path), (SEARCH, search)):
            memory.write(at, text.encode())
        memory.fill(ERROR, 0, 16384)
        errno = group.dlsym(1, "dlopen")(
            TEXT, len(path.encode()), 2, ERROR, 16384, SEARCH, len(search.encode()), OUT
        )
        return errno, memory.read_cstring(ERROR, 16384)

    def dlsym(self, handle: int, name: str) -> str:
        """Return the error text."""
        memory, group = self.program.memory, self.program.main_group
        memory.write(TEXT, name.encode())
        memory.fill(ERROR, 0, 4096)
        group.dlsym(1, "dlsym")(handle, TEXT, len(name), ERROR, 4096, OUT)
        return memory.read_cstring(ERROR, 4096)

    def has_secret(self) -> bool:
        """Whether what must stay outside was loaded."""
        try:
            self.program.main_group.dlsym(dl.RTLD_DEFAULT, "secret")
        except dl.SymbolNotFoundError:
            return False
        return True


Make = Callable[..., Guest]


@pytest.fixture
def made() -> Iterator[Make]:
    """Return a function that makes a program and gives its guest's side."""
    programs: list[dl.Linker] = []

    def make(main: bytes | Path = MAIN, **options: object) -> Guest:
        programs.append(dl.Linker(main, **options))  # type: ignore[arg-type]
        return Guest(programs[-1])

    yield make
    for program in programs:
        program.close()


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """`data` is opened for the guest, `data/libs` is in the library path, `secret` is nobody's business."""
    for directory in ("data/libs", "data/sub", "secret", "host"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "secret" / "s.so").write_bytes(SECRET)
    (tmp_path / "data" / "fine.so").write_bytes(HARMLESS)
    return tmp_path


class TestLinks:
    def test_a_link_in_a_library_path_that_the_guest_can_write_to(self, made: Make, world: Path) -> None:
        """A library path inside of a directory of the guest: links that the guest makes there lead nowhere outside."""
        guest = made(preopens={"/data": world / "data"}, library_path=[world / "data" / "libs"])
        (world / "data" / "libs" / "a.so").symlink_to("../../secret/s.so")
        (world / "data" / "libs" / "b.so").symlink_to(world / "secret" / "s.so")
        (world / "data" / "libs" / "c.so").symlink_to("../fine.so")

        for name in ("a.so", "b.so", str(world / "data" / "libs" / "a.so"), "/data/libs/a.so"):
            errno, text = guest.dlopen(name)
            assert errno == UNKNOWN, name
            assert str(world) not in text.replace(name, "")
        assert guest.dlopen("c.so")[0] == SUCCESS
        assert not guest.has_secret()

    def test_a_library_path_that_the_guest_replaces(self, made: Make, world: Path) -> None:
        """The directory of a library path replaced by a link out of the guest's directory is not followed."""
        guest = made(preopens={"/data": world / "data"}, library_path=[world / "data" / "libs"])
        (world / "data" / "libs").rmdir()
        (world / "data" / "libs").symlink_to(world / "secret")

        for name in ("s.so", "/data/libs/s.so", str(world / "data" / "libs" / "s.so")):
            assert guest.dlopen(name)[0] == UNKNOWN, name
        assert not guest.has_secret()

    def test_the_programs_own_directory(self, made: Make, world: Path) -> None:
        """The main module's directory, when the guest can write to it, is confined like any other."""
        (world / "data" / "main.wasm").write_bytes(MAIN)
        guest = made(world / "data" / "main.wasm", preopens={"/data": world / "data"})
        (world / "data" / "a.so").symlink_to("../secret/s.so")
        (world / "data" / "dir").symlink_to("..")

        for name in ("/data/a.so", str(world / "data" / "a.so"), "/data/dir/secret/s.so"):
            assert guest.dlopen(name)[0] == UNKNOWN, name
        assert guest.dlopen(str(world / "data" / "fine.so"))[0] == SUCCESS
        assert not guest.has_secret()

    def test_nested_directories_of_a_guest(self, made: Make, world: Path) -> None:
        """An opened directory inside of another one, which the guest replaces by a link, is not what was opened any more."""
        guest = made(preopens={"/data": world / "data", "/inner": world / "data" / "sub"})
        (world / "data" / "sub").rmdir()
        (world / "data" / "sub").symlink_to(world / "secret")

        assert guest.dlopen("/inner/s.so")[0] == UNKNOWN
        assert not guest.has_secret()

    def test_links_of_the_host_in_its_library_path(self, made: Make, world: Path) -> None:
        """What a library path itself holds is the host's, links too; deeper, and through directories, nothing leads out."""
        (world / "host" / "link.so").symlink_to(world / "secret" / "s.so")
        (world / "host" / "dir").symlink_to(world / "secret")
        (world / "host" / "deep").mkdir()
        (world / "host" / "deep" / "link.so").symlink_to(world / "secret" / "s.so")
        guest = made(preopens={"/data": world / "data"}, library_path=[world / "host"])
        for name in ("dir/s.so", "deep/link.so"):
            assert guest.dlopen(str(world / "host" / name))[0] == UNKNOWN, name
        assert not guest.has_secret()

        assert guest.dlopen("link.so")[0] == SUCCESS

    def test_one_module_by_every_way(self, made: Make, world: Path) -> None:
        """A library is one module by whatever path, link or search the guest comes to it, and for the host too."""
        (world / "data" / "sub" / "link.so").symlink_to("../fine.so")
        (world / "data" / "full.so").symlink_to(world / "data" / "fine.so")
        guest = made(preopens={"/data": world / "data"})
        for name in ("/data/fine.so", "/data/./sub/../fine.so", "/data/sub/link.so", "/data/full.so"):
            assert guest.dlopen(name) == (SUCCESS, ""), name
        assert guest.dlopen("link.so", "/data/sub")[0] == SUCCESS

        guest.program.main_group.dlopen(world / "data" / "fine.so")
        assert len(guest.program.modules) == 2


class TestNeeded:
    @pytest.mark.parametrize("place", ["data", "data/libs", "host"])
    @pytest.mark.parametrize(
        "info",
        [
            {"needed": ["../secret/s.so"]},
            {"needed": ["../../secret/s.so"]},
            {"needed": ["{world}/secret/s.so"]},
            {"needed": ["./../secret/s.so"]},
            {"needed": ["s.so"], "run_path": ["$ORIGIN/../secret", "$ORIGIN/../../secret"]},
            {"needed": ["s.so"], "run_path": ["{world}/secret"]},
            {"needed": ["s.so"], "run_path": ["/data/../secret:/data/out:$ORIGIN/out"]},
            {"needed": ["out.so"], "run_path": ["$ORIGIN"]},
        ],
    )
    def test_needs_do_not_leave_the_directories(
        self, made: Make, world: Path, place: str, info: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What a library needs, wherever a guest opens it from, comes from the program's directories only."""
        monkeypatch.chdir(world / "data")
        filled = {key: [text.format(world=world) for text in texts] for key, texts in info.items()}
        (world / place / "top.so").write_bytes(library(**filled))
        (world / "data" / "out").symlink_to("../secret")
        (world / "data" / "out.so").symlink_to("../secret/s.so")
        if place == "data/libs":
            (world / place / "out").symlink_to("../../secret")
            (world / place / "out.so").symlink_to("../../secret/s.so")
        guest = made(
            preopens={"/data": world / "data"}, library_path=[world / "data" / "libs", world / "host"]
        )
        errno, text = guest.dlopen("top.so", "/data")

        assert errno == UNKNOWN
        assert not guest.has_secret()
        assert str(world) not in text.replace(filled["needed"][0], "").replace(
            filled.get("run_path", ["-"])[0], ""
        )

    def test_the_host_opens_what_a_guest_wrote(self, made: Make, world: Path) -> None:
        """A library from a directory of the guest is confined also when the host opens it; others may need what they like."""
        absolute = str(world / "secret" / "s.so")
        for n, info in enumerate(
            ({"needed": [absolute]}, {"needed": ["s.so"], "run_path": ["$ORIGIN/../secret"]})
        ):
            (world / "data" / f"{n}.so").write_bytes(library(**info))
            (world / "host" / f"{n}.so").write_bytes(library(**info))
            guest = made(preopens={"/data": world / "data"})
            with pytest.raises(dl.LibraryNotFoundError, match="outside the directories"):
                guest.program.main_group.dlopen(world / "data" / f"{n}.so")
            assert not guest.has_secret()
            guest.program.main_group.dlopen(world / "host" / f"{n}.so")
            guest.program.main_group.dlsym(guest.program.main_group.dlopen(absolute), "secret")

    def test_needs_inside(self, made: Make, world: Path) -> None:
        """Run paths with and without $ORIGIN, and names with a slash, reach what the guest was given."""
        for name in "abcd":
            (world / "data" / "sub" / f"{name}.so").write_bytes(HARMLESS)
        (world / "data" / "libs" / "top.so").write_bytes(
            library(needed=["a.so", "/data/sub/b.so"], run_path=["$ORIGIN/../sub"])
        )
        (world / "data" / "libs" / "next.so").write_bytes(library(needed=["c.so"], run_path=["/data/sub"]))
        guest = made(preopens={"/data": world / "data"})

        assert guest.dlopen("/data/libs/top.so") == (SUCCESS, "")
        assert guest.dlopen("/data/libs/next.so") == (SUCCESS, "")


class TestKnowledge:
    def test_existence_outside_changes_nothing(self, made: Make, world: Path) -> None:
        """The answer about a path outside is the same text for a module, another file, a directory, a pipe and nothing."""
        guest = made(preopens={"/data": world / "data"}, library_path=[world / "data" / "libs"])
        thing = world / "secret" / "thing.so"
        for link in (world / "data" / "libs" / "link.so", world / "data" / "link.so"):
            link.symlink_to(thing)
        (world / "data" / "way").symlink_to("../secret")
        (world / "data" / "needs.so").write_bytes(library(needed=[str(thing), "thing.so"]))

        def module() -> None:
            thing.write_bytes(SECRET)

        def closed() -> None:
            thing.write_bytes(SECRET)
            thing.chmod(0)

        kinds = (
            lambda: None,
            module,
            closed,
            lambda: thing.write_bytes(b"text"),
            thing.mkdir,
            lambda: os.mkfifo(thing),
            lambda: thing.symlink_to("/dev/zero"),
            lambda: thing.symlink_to(thing),
        )
        said = set()
        for kind in kinds:
            if thing.is_dir():
                thing.rmdir()
            thing.unlink(missing_ok=True)
            kind()
            said.add(
                tuple(
                    guest.dlopen(*asked)
                    for asked in (
                        (str(thing),),
                        ("link.so",),
                        ("/data/link.so",),
                        ("/data/libs/link.so",),
                        ("/data/way/thing.so",),
                        ("/data/way/thing.so/x",),
                        ("/data/needs.so",),
                        ("thing.so", f"{world / 'secret'}:/data/way:/data/../secret"),
                    )
                )
            )

        assert len(said) == 1, said
        assert {errno for errno, _ in said.pop()} == {UNKNOWN}
        assert not guest.has_secret()

    def test_error_texts_have_no_path_of_the_host(self, made: Make, world: Path) -> None:
        """Missing, broken and unlinkable libraries, and symbols not found, are reported without the host's directories."""
        for place in ("data", "data/libs", "host"):
            (world / place / "broken.so").write_bytes(b"\0asm\x01\0\0\0\x01")
            (world / place / "text.so").write_bytes(b"#!/bin/sh\n")
            (world / place / "needs.so").write_bytes(library(needed=["gone.so"], run_path=["$ORIGIN/x"]))
            (world / place / "static.so").write_bytes(library(returns("f", 1))[:8])
            (world / place / "undefined.so").write_bytes(
                library('(import "GOT.mem" "nothing" (global (mut i32)))')
            )
            (world / place / "dir.so").mkdir()
        (world / "host" / "main.wasm").write_bytes(MAIN)
        guest = made(
            world / "host" / "main.wasm",
            preopens={"/data": world / "data"},
            library_path=[world / "data" / "libs", world / "host"],
        )
        guest.program.main_group.dlopen(world / "secret" / "s.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)
        for name in ("broken.so", "text.so", "needs.so", "static.so", "undefined.so", "dir.so", "gone.so"):
            for path in (name, f"/data/{name}", f"/data/libs/{name}"):
                errno, text = guest.dlopen(path, "/data/libs:/data/none")
                assert errno == UNKNOWN, path
                assert text
                assert str(world) not in text, path
                assert name.removesuffix(".so") in text
        for handle in (0, 1, 2):
            assert str(world) not in guest.dlsym(handle, "nothing")

    def test_paths_in_errors_are_those_of_the_guest(self, made: Make, world: Path) -> None:
        """A guest reads its own directories' names, and that of a search, in what was tried."""
        guest = made(preopens={"/data": world / "data"}, library_path=[world / "host"])
        text = guest.dlopen("gone.so", "/data/sub")[1]

        assert "/data/sub/gone.so: no such file" in text
        assert "<library path>/gone.so: no such file" in text
        assert "/data/gone.so: no such file" in guest.dlopen("/data/gone.so")[1]
        with pytest.raises(dl.LibraryNotFoundError) as caught:
            guest.program.main_group.dlopen("gone.so")
        assert str(world / "host" / "gone.so") in str(caught.value)
        assert str(world) not in caught.value.for_guest


class TestBounds:
    def test_long_names(self, made: Make, world: Path) -> None:
        """Names, parts of names and search paths that no file system takes are refused at once."""
        guest = made(preopens={"/data": world / "data", ".": world / "data"}, library_path=[world / "host"])
        started = time.thread_time()
        for name in (
            "/data/" + "a/" * 2045,
            "/data/" + "a" * 256,
            "a" * 256,
            "./" + "../" * 1364,
            "x" * 4096,
        ):
            errno, text = guest.dlopen(name)
            assert errno == UNKNOWN
            assert len(text) < 16000
        for search in ("/data:" * 300, "/data/" * 6000, ":".join(["/data/" + "d" * 250] * 200)):
            assert guest.dlopen("gone.so", search)[0] == UNKNOWN
        assert time.thread_time() - started < 2

    def test_names_larger_than_any_path_are_not_read(self, made: Make, world: Path) -> None:
        """A name of 128 KiB is refused by its size, and one outside of memory by its address."""
        guest = made(preopens={"/data": world / "data"})
        call = guest.program.main_group.dlsym(1, "dlopen")
        started = time.thread_time()

        assert call(TEXT, 131072, 2, ERROR, 200, 0, 0, OUT) == UNKNOWN
        assert "more than 4095 bytes" in guest.program.memory.read_cstring(ERROR, 200)
        assert call(TEXT, 6, 2, ERROR, 200, TEXT, 131072, OUT) == UNKNOWN
        assert "more than 32768 bytes" in guest.program.memory.read_cstring(ERROR, 200)
        assert call(TEXT, 0xFFFFFFF - 1, 2, ERROR, 200, 0, 0, OUT) == 78
        assert time.thread_time() - started < 1

    def test_run_paths(self, made: Make, world: Path) -> None:
        """Of a run path without end the first 256 directories are searched, and long ones are left out."""
        (world / "data" / "top.so").write_bytes(
            library(needed=["dep.so"], run_path=[":".join(["$ORIGIN/none"] * 5000), "x" * 5000])
        )
        guest = made(preopens={"/data": world / "data"})
        started = time.thread_time()
        errno, text = guest.dlopen("/data/top.so")

        assert errno == UNKNOWN
        assert len(text) < 16000
        assert time.thread_time() - started < 2


class TestRaces:
    """The seed fixes what is swapped for what, not how the threads interleave."""

    @pytest.mark.parametrize(
        ("name", "search"),
        [
            ("what.so", ""),
            ("what.so", "/data"),
            ("/data/libs/what.so", ""),
            ("/data/way/s.so", ""),
            ("needs.so", ""),
        ],
    )
    def test_swapped_links(self, made: Make, world: Path, name: str, search: str) -> None:
        """A link to the outside, swapped in while the guest opens in a loop, is never what is read."""
        print("seed", SEED)
        chosen = random.Random(SEED)
        libs = world / "data" / "libs"
        (libs / "needs.so").write_bytes(library(needed=["what.so"]))
        broken = b"#!not a module, so that nothing stays loaded"
        (world / "data" / "way").mkdir()
        (world / "data" / "way" / "s.so").write_bytes(broken)
        guest = made(preopens={"/data": world / "data"}, library_path=[libs])
        end = threading.Event()

        def swap() -> None:
            while not end.is_set():
                new = libs / ".new"
                if chosen.randrange(2):
                    new.write_bytes(broken)
                else:
                    new.symlink_to(chosen.choice(["../../secret/s.so", str(world / "secret" / "s.so")]))
                os.replace(new, libs / "what.so")
                os.rename(world / "data" / "way", world / "data" / ".aside")
                os.symlink("../secret", world / "data" / "way")
                os.unlink(world / "data" / "way")
                os.rename(world / "data" / ".aside", world / "data" / "way")

        thread = threading.Thread(target=swap)
        thread.start()
        try:
            deadline = time.monotonic() + RACE_SECONDS
            tries = 0
            while time.monotonic() < deadline:
                errno, text = guest.dlopen(name, search)
                assert errno == UNKNOWN
                assert str(world) not in text
                tries += 1
        finally:
            end.set()
            thread.join()
        print("tries", tries)

        assert tries > 37
        assert not guest.has_secret()
