"""Commands and reactors of WASI, and what is called of a module after it is instantiated."""

from __future__ import annotations

import pytest

import dl
from tests.instances.naming import MEMORY, importing, linked
from tests.support.modules import module, returns


def test_commands_and_reactors() -> None:
    """What WASI's rules refuse: a command as a dependency, `_start` and `_initialize` of other types or imported, no memory."""
    start = '(func (export "_start"))'
    with linked({"command": module(MEMORY, start, returns("f", 1))}) as linker:
        with pytest.raises(dl.LinkError, match="command, with _start"):
            linker.instantiate(importing("command"))
        for mark in ("_start", "_initialize"):
            with pytest.raises(dl.LinkError, match=rf"its {mark} is \(i32\) -> \(\)"):
                linker.instantiate(module(MEMORY, f'(func (export "{mark}") (param i32))'))
            with pytest.raises(dl.LinkError, match="imports"):
                linker.instantiate(
                    module('(import "a" "f" (func $f))', MEMORY, f'(export "{mark}" (func $f))'),
                    [lambda: None],
                )
            with pytest.raises(dl.LinkError, match="must export its memory"):
                linker.instantiate(module("(memory 1)", f'(func (export "{mark}"))'))
        linker.instantiate(module("(memory 1)", returns("f", 1)))
        linker.instantiate(module(start), initialize=False)
        assert linker.instantiate(module(MEMORY, start)).run() == 0
        with pytest.raises(dl.LinkerUsageError, match="no command"):
            linker.instantiate(module(MEMORY)).run()


LOG = '(import "host" "log" (func $log (param i32)))'


def logging(*marks: tuple[str, int]) -> list[str]:
    return [LOG, MEMORY, *(f'(func (export "{mark}") (call $log (i32.const {n})))' for mark, n in marks)]


WASI = '(import "wasi_snapshot_preview1" "sched_yield" (func (result i32)))'
ALL = ("__wasm_call_ctors", 3), ("__post_instantiate", 2)
REACTOR, COMMAND = ("_initialize", 1), ("_start", 9)


@pytest.mark.parametrize(
    ("fields", "wanted", "as_wamr"),
    [
        (logging(*ALL), [2, 3], [2, 3]),
        (logging(*ALL, REACTOR), [1, 2], [2, 3]),
        ([WASI, *logging(*ALL, REACTOR)], [1, 2], [1, 2]),
        ([WASI, *logging(*ALL)], [2], [2]),
        (logging(*ALL, COMMAND), [2], [2, 3]),
        (logging(REACTOR, COMMAND), [], []),
        ([*logging(*ALL), "(start $s)", "(func $s (call $log (i32.const 0)))"], [0, 2, 3], [0, 2, 3]),
        ([LOG, '(export "__wasm_call_ctors" (func $log))'], [], []),
        ([LOG, '(func $s (export "__wasm_call_ctors") (call $log (i32.const 3)))', "(start $s)"], [3], [3]),
    ],
)
def test_what_is_called_after_instantiation(
    fields: list[str], wanted: list[int], as_wamr: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """The start function, `_initialize`, `__post_instantiate`, `__wasm_call_ctors`, each once; as WAMR does it on demand."""
    called: list[int] = []
    with linked({}, imports={"host": {"log": called.append}}) as linker:
        for how, numbers in ((True, wanted), ("wasi", as_wamr), (False, [n for n in wanted if n == 0])):
            called.clear()
            linker.instantiate(module(*fields), initialize=how)  # type: ignore[arg-type]
            expected = [3] if "$s (export" in str(fields) else numbers  # the start function itself
            assert called == expected
        with pytest.raises(dl.LinkerUsageError, match="initialize"):
            linker.instantiate(module(*fields), initialize="always")  # type: ignore[arg-type]
    warned = "neither _start nor _initialize" in caplog.text
    assert warned == (WASI in fields and "_initialize" not in str(fields))


def test_constructors_of_dependencies_come_first_and_a_trap_leaves_nothing() -> None:
    """In the order of dependencies; a trap has the function's name, and the next importer tries anew."""
    called: list[int] = []

    def log(number: int) -> None:
        called.append(number)

    first = module(*logging(ALL[0]), returns("f", 1))
    traps = '(func (export "__wasm_call_ctors") (call $log (i32.const 4)) unreachable)'
    with linked(
        {"first": first, "bad": module(LOG, traps, returns("f", 1))}, imports={"host": {"log": log}}
    ) as linker:
        of = '(import "first" "f" (func (result i32)))'
        linker.instantiate(module(of, *logging(("__wasm_call_ctors", 8))))
        linker.instantiate(module(of, *logging(("__wasm_call_ctors", 7))))
        assert called == [3, 8, 7]
        for _ in range(2):
            with pytest.raises(dl.InitializationError, match="bad.*__wasm_call_ctors.*unreachable"):
                linker.instantiate(module('(import "bad" "f" (func (result i32)))'))
            assert linker.instance("bad") is None
        assert called == [3, 8, 7, 4, 4]


@pytest.mark.parametrize("wasi", [False, True])
def test_a_reactor_is_initialized_once_and_first(wasi: bool) -> None:
    """`_initialize` runs once, before anything else of the module, in the order of dependencies, also without WASI."""
    imports = '(import "wasi_snapshot_preview1" "sched_yield" (func (result i32)))' if wasi else ""
    log: list[int] = []

    def reactor(number: int, *others: str) -> bytes:
        return module(
            imports, MEMORY, '(import "env" "log" (func $log (param i32)))',
            *(f'(import "{o}" "f" (func (result i32)))' for o in others),
            f'(func (export "_initialize") (call $log (i32.const {number})))', returns("f", number),
        )  # fmt: skip

    modules = {"a": reactor(1), "b": reactor(2, "a")}
    with linked(modules, imports={"env": {"log": log.append}}) as linker:
        for _ in range(2):
            linker.instantiate(importing("b", "a"))
        assert log == [1, 2]
        linker.instantiate(reactor(3, "b"))
        linker.instantiate(reactor(4), initialize=False)
        assert log == [1, 2, 3]


def test_wasi_reaches_modules_two_levels_deep() -> None:
    """Arguments and output are the program's in a module that a module imports from, on that one's own memory."""
    chunks: list[bytes] = []
    reactor = module(
        MEMORY, '(import "wasi_snapshot_preview1" "args_sizes_get" (func $sizes (param i32 i32) (result i32)))',
        '(import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))',
        '(data (i32.const 8) "\\10\\00\\00\\00\\03\\00\\00\\00hi\\n")', '(func (export "_initialize"))',
        '(func (export "f") (result i32) (drop (call $write (i32.const 1) (i32.const 8) (i32.const 1) (i32.const 0)))'
        " (drop (call $sizes (i32.const 0) (i32.const 4))) (i32.load (i32.const 0)))",
    )  # fmt: skip
    with linked(
        {"deep": reactor, "mid": importing("deep")}, args=["p", "x", "y"], stdout=chunks.append
    ) as linker:
        assert linker.instantiate(importing("mid"))["f"]() == 5
    assert b"".join(chunks) == b"hi\n"


def test_a_command_exits_with_its_code() -> None:
    """`run` returns what the program exits with."""
    command = module(
        MEMORY, '(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))',
        '(func (export "_start") (call $exit (i32.const 3)))',
    )  # fmt: skip
    with linked() as linker:
        assert linker.instantiate(command).run() == 3
