"""What WASI shows a program, whoever's the memory is: output, input, arguments, directories, exits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import dl
from tests.support.modules import (
    MEMORY,
    SHARED_MEMORY,
    imports,
    library,
    pie,
    static,
)

PREVIEW1 = "wasi_snapshot_preview1"


def wasi(name: str, kind: str) -> str:
    return f'(import "{PREVIEW1}" "{name}" (func ${name} {kind}))'


FD_WRITE = wasi("fd_write", "(param i32 i32 i32 i32) (result i32)")


FD_READ = wasi("fd_read", "(param i32 i32 i32 i32) (result i32)")


PROC_EXIT = wasi("proc_exit", "(param i32)")


def command(*fields: str, kind: str = "pie", body: str = "") -> bytes:
    """A program that has WASI's functions it names, exported again, for the host to call, and a _start."""
    start = f'(func (export "_start") {body})'
    if kind == "static":
        return static(*fields, start)
    if kind == "static with imported memory":
        return static(*fields, start, memory='(import "env" "memory" (memory 2))')
    return pie(*fields, start, shared=kind == "shared", memory_size=8192)


KINDS = ["pie", "shared", "static", "static with imported memory"]


def print_text(text: bytes, fd: int = 1) -> str:
    """Instructions that write a text, which is in memory at 64, to a file descriptor."""
    return f"""
      (i32.store (i32.const 32) (i32.const 64)) (i32.store (i32.const 36) (i32.const {len(text)}))
      (drop (call $fd_write (i32.const {fd}) (i32.const 32) (i32.const 1) (i32.const 48)))"""


class TestWasi:
    @pytest.mark.parametrize("kind", KINDS)
    def test_output(self, kind: str) -> None:
        """What a program writes reaches the callables given for it, whoever's the memory is."""
        out: list[Any] = []
        err: list[Any] = []
        main = command(FD_WRITE, kind=kind, body=print_text(b"hello\n") + print_text(b"hello", 2))
        with dl.Linker(main, stdout=out.append, stderr=err.append) as program:
            program.memory.write(64, b"hello\n")

            assert program.main_group.run() == 0
        assert (b"".join(out), b"".join(err)) == (b"hello\n", b"hello")

    @pytest.mark.parametrize("kind", KINDS)
    def test_output_to_files(self, kind: str, tmp_path: Path) -> None:
        """Output may go to files."""
        main = command(FD_WRITE, kind=kind, body=print_text(b"hello\n"))
        with dl.Linker(main, stdout=tmp_path / "out") as program:
            program.memory.write(64, b"hello\n")
            program.main_group.run()

        assert (tmp_path / "out").read_bytes() == b"hello\n"

    @pytest.mark.parametrize("kind", KINDS)
    def test_from_a_library(self, kind: str) -> None:
        """A library calls WASI on the program's memory too."""
        out: list[Any] = []
        memory = SHARED_MEMORY if kind == "shared" else MEMORY
        lib = library(memory, FD_WRITE, f'(func (export "say") {print_text(b"library")})')
        with dl.Linker(command(kind=kind), libraries={"lib.so": lib}, stdout=out.append) as program:
            group = program.main_group
            handle = group.dlopen("lib.so")
            program.memory.write(64, b"library")
            group.dlsym(handle, "say")()

        assert b"".join(out) == b"library"

    @pytest.mark.parametrize("kind", KINDS)
    def test_input(self, kind: str, tmp_path: Path) -> None:
        """Standard input is bytes or a file."""
        body = """(i32.store (i32.const 32) (i32.const 64)) (i32.store (i32.const 36) (i32.const 100))
                  (drop (call $fd_read (i32.const 0) (i32.const 32) (i32.const 1) (i32.const 48)))"""
        (tmp_path / "in").write_bytes(b"from a file")
        for source, expected in (
            (b"from bytes", b"from bytes"),
            (tmp_path / "in", b"from a file"),
            (b"", b""),
        ):
            with dl.Linker(command(FD_READ, kind=kind, body=body), stdin=source) as program:
                program.main_group.run()

                assert program.memory.read(64, program.memory.read_u32(48)) == expected

    @pytest.mark.parametrize("kind", KINDS)
    def test_arguments_and_environment(self, kind: str) -> None:
        """The program sees its arguments and environment, in any script; its name is the first argument when none are given."""
        pair = "(param i32 i32) (result i32)"
        main = command(
            *(wasi(n, pair) for n in ("args_sizes_get", "args_get", "environ_sizes_get", "environ_get")),
            kind=kind,
            body="""(drop (call $args_sizes_get (i32.const 64) (i32.const 68)))
                    (drop (call $args_get (i32.const 128) (i32.const 256)))
                    (drop (call $environ_sizes_get (i32.const 72) (i32.const 76)))
                    (drop (call $environ_get (i32.const 512) (i32.const 640)))""",
        )
        for given, expected in (
            (["prog", "zwei drei", "été 😀"], ["prog", "zwei drei", "été 😀"]),
            ([], ["main"]),
        ):
            with dl.Linker(main, name="main", args=given, env={"A": "1", "LEER": "", "Ü": "ö"}) as program:
                program.main_group.run()
                memory = program.memory

                count = memory.read_u32(64)
                assert [memory.read_cstring(memory.read_u32(128 + 4 * n)) for n in range(count)] == expected
                environment = [
                    memory.read_cstring(memory.read_u32(512 + 4 * n)) for n in range(memory.read_u32(72))
                ]
                assert sorted(environment) == ["A=1", "LEER=", "Ü=ö"]

    @pytest.mark.parametrize("kind", KINDS)
    def test_directories(self, kind: str, tmp_path: Path) -> None:
        """A program opens files in the directories it was given, and no others."""
        path_open = wasi("path_open", "(param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)")
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "file").write_bytes(b"content")
        (tmp_path / "secret").write_bytes(b"secret")
        main = command(
            path_open,
            FD_READ,
            '(export "path_open" (func $path_open))',
            '(export "fd_read" (func $fd_read))',
            kind=kind,
        )
        with dl.Linker(main, preopens={"/data": tmp_path / "data"}) as program:
            group, memory = program.main_group, program.memory

            def opened(name: bytes) -> int:
                memory.write(64, name)
                return group.dlsym(1, "path_open")(3, 0, 64, len(name), 0, 2, 2, 0, 200)

            assert opened(b"file") == 0
            memory.write_struct("<II", 32, 300, 100)
            assert group.dlsym(1, "fd_read")(memory.read_u32(200), 32, 1, 48) == 0
            assert memory.read(300, memory.read_u32(48)) == b"content"
            for name in (b"../secret", b"/secret", b"gone"):
                assert opened(name) != 0

    @pytest.mark.parametrize("kind", KINDS)
    def test_exit_codes(self, kind: str) -> None:
        """proc_exit ends the program at once with its code; falling off the end of _start is 0."""
        for code in (0, 1, 42, 255, 256, -1):
            main = command(PROC_EXIT, kind=kind, body=f"(call $proc_exit (i32.const {code})) unreachable")
            with dl.Linker(main) as program:
                assert program.main_group.run() == code & 0xFFFFFFFF

    def test_exit_from_a_library(self) -> None:
        """A library's exit ends the program with its code."""
        lib = library(PROC_EXIT, '(func (export "quit") i32.const 9 call $proc_exit)')
        main = pie(imports("quit", ""), '(func (export "_start") call $quit)', needed=["lib.so"])
        with dl.Linker(main, libraries={"lib.so": lib}) as program:
            assert program.main_group.run() == 9

    def test_a_trap_in_start(self) -> None:
        """A program that traps raises; it has no exit code."""
        with (
            dl.Linker(command(body="unreachable")) as program,
            pytest.raises(dl.TrapError, match="unreachable"),
        ):
            program.main_group.run()

    @pytest.mark.parametrize(
        "options",
        [
            {"preopens": {"/x": "/no/such/directory"}},
            {"stdin": "/no/such/file"},
            {"stdout": "/no/such/directory/file"},
            {"args": ["a\0b"]},
            {"env": {"A": "\0"}},
        ],
    )
    @pytest.mark.parametrize("kind", ["pie", "shared"])
    def test_impossible_options(self, kind: str, options: Any) -> None:
        """A directory or file that is not there, or text with NUL, is an error of the linker."""
        with pytest.raises(dl.DlError):
            dl.Linker(command(kind=kind), **options)

    @pytest.mark.parametrize("kind", KINDS)
    def test_an_output_that_fails(self, kind: str) -> None:
        """An output callable that raises gives the program an errno, or ends its call; nothing crashes."""

        def broken(_chunk: Any) -> None:
            raise OSError(28, "no space")

        main = command(FD_WRITE, '(export "fd_write" (func $fd_write))', kind=kind)
        with dl.Linker(main, stdout=broken) as program:
            program.memory.write_struct("<II", 32, 64, 5)
            try:
                assert program.main_group.dlsym(1, "fd_write")(1, 32, 1, 48) != 0
            except OSError as error:
                assert error.errno == 28  # noqa: PT017

    @pytest.mark.parametrize("kind", KINDS)
    def test_bad_pointers(self, kind: str) -> None:
        """WASI calls with addresses outside of memory are errnos or traps, never a crash of the host."""
        main = command(FD_WRITE, '(export "fd_write" (func $fd_write))', kind=kind)
        with dl.Linker(main, stdout=len) as program:
            for arguments in ((1, -4, 1, 48), (1, 32, -1, 48), (1, 32, 1, -1), (-1, 32, 1, 48)):
                try:
                    assert program.main_group.dlsym(1, "fd_write")(*arguments) != 0
                except dl.DlError:
                    continue

    def test_host_replaces_wasi(self) -> None:
        """A user's function for a WASI import takes the place of the system's."""
        main = command(FD_WRITE, '(export "fd_write" (func $fd_write))')
        with dl.Linker(main, imports={PREVIEW1: {"fd_write": lambda *_: 77}}) as program:
            assert program.main_group.dlsym(1, "fd_write")(1, 0, 0, 0) == 77
