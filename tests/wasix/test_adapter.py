"""How calls of the guest's reach Python: arguments, errors, and what the package may know of the linker."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import dl
import dl.wasix
from memory import OutOfBoundsError
from tests.support.modules import module

ROOM = Path(dl.wasix.__file__).parent


def test_only_one_file_knows_the_linker() -> None:
    """No file of `dl/wasix` but `system.py` imports the linker, or what links, also not for types."""
    imports = re.compile(r"^\s*from dl\.(linker|group|link)\b", re.MULTILINE)
    files = {str(path.relative_to(ROOM)): path.read_text() for path in ROOM.rglob("*.py")}

    assert [name for name, text in files.items() if imports.search(text)] == ["system.py"]


def test_an_error_out_of_guest_code_is_not_one_of_the_arguments() -> None:
    """What a host function raises in a signal handler unwinds the call that delivered the signal; it is no errno of it."""

    def fails() -> None:
        raise OutOfBoundsError(1, 2, 3)

    wasm = module(
        '(memory (export "memory") 1)',
        '(import "wasix_32v1" "callback_signal" (func $callback (param i32 i32)))',
        '(import "wasix_32v1" "proc_raise" (func $raise (param i32) (result i32)))',
        '(import "host" "fails" (func $fails))',
        '(data (i32.const 8) "handler")',
        '(func (export "handler") (param i32) (call $fails))',
        '(func (export "go") (result i32) (call $callback (i32.const 8) (i32.const 7)) (call $raise (i32.const 10)))',
    )
    with dl.Linker(wasm, imports={"host": {"fails": fails}}) as linker:
        go = linker.main_group.dlsym(linker.main, "go")
        assert isinstance(go, dl.GuestFunction)

        with pytest.raises(OutOfBoundsError):
            go()


@pytest.mark.parametrize(
    ("name", "types", "arguments", "errno"),
    [
        ("fd_pipe", "i32 i32", "(i32.const -4) (i32.const 8)", 78),
        ("fd_dup", "i32 i32", "(i32.const -1) (i32.const 8)", 8),
        ("getcwd", "i32 i32", "(i32.const 8) (i32.const -1)", 78),
        ("chdir", "i32 i32", "(i32.const 16) (i32.const 1)", 28),
        ("thread_id", "i32", "(i32.const -1)", 78),
        ("proc_raise_interval", "i32 i64 i32", "(i32.const 65) (i64.const -1) (i32.const 0)", 28),
    ],
)
def test_errors_of_the_arguments_are_errnos(name: str, types: str, arguments: str, errno: int) -> None:
    """Arguments are unsigned; an address outside memory is 78, a text that is not UTF-8 28, and no descriptor 8."""
    params = " ".join(types.split())
    wasm = module(
        '(memory (export "memory") 1)',
        f'(import "wasix_32v1" "{name}" (func $f (param {params}) (result i32)))',
        '(data (i32.const 16) "\\ff")',
        f'(func (export "go") (result i32) (call $f {arguments}))',
    )
    with dl.Linker(wasm) as linker:
        go = linker.main_group.dlsym(linker.main, "go")
        assert isinstance(go, dl.GuestFunction)

        assert go() == errno


@pytest.mark.parametrize("namespace", ["wasi", "wasi_snapshot_preview1"])
def test_a_program_without_shared_memory_has_one_thread(namespace: str) -> None:
    """`thread-spawn` and `thread_spawn_v2` are refused with 76 (`notcapable`), and the program's memory stays what it was."""
    wasm = module(
        '(memory (export "memory") 1)',
        f'(import "{namespace}" "thread-spawn" (func $spawn (param i32) (result i32)))',
        '(import "wasix_32v1" "thread_spawn_v2" (func $v2 (param i32 i32) (result i32)))',
        '(func (export "wasi_thread_start") (param i32 i32))',
        '(func (export "go") (result i32) (i32.store (i32.const 64) (i32.const 5)) (call $spawn (i32.const 8)))',
        '(func (export "v2") (result i32) (call $v2 (i32.const 8) (i32.const 32)))',
    )
    with dl.Linker(wasm) as linker:
        go, v2 = (linker.main_group.dlsym(linker.main, name) for name in ("go", "v2"))
        assert isinstance(go, dl.GuestFunction)
        assert isinstance(v2, dl.GuestFunction)

        assert go() == -76
        assert v2() == 76
        assert linker.memory.read_u32(64) == 5
