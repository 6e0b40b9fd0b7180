"""Modules that are linked by import name: what is registered and found, one instance of each, and cycles."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import dl
from dl.instances.program_instances import ProgramInstances
from tests.instances.naming import MEMORY, importing, linked
from tests.support.modules import module, returns

M_A = module(returns("A1", 11))
M_B = module(
    '(import "mA" "A1" (func $a (result i32)))', '(export "B2" (func $a))', returns("B1", 21),
)  # fmt: skip
M_C = module(
    '(import "mA" "A1" (func $a (result i32)))', '(import "mB" "B1" (func $b (result i32)))',
    '(import "mB" "B2" (func $b2 (result i32)))', returns("C1", 31), '(func (export "C2") (result i32) call $b)',
    '(func (export "C3") (result i32) call $a)', '(func (export "C4") (result i32) call $b2)', returns("$a$b", 5),
)  # fmt: skip


@pytest.fixture(name="multi")
def _multi(tmp_path: Path) -> Iterator[tuple[dl.Linker, dl.Instance]]:
    for name, wasm in (("mA", M_A), ("mB", M_B), ("mC", M_C)):
        (tmp_path / f"{name}.wasm").write_bytes(wasm)
    with linked(module_path=[tmp_path]) as linker:
        yield linker, linker.instantiate(tmp_path / "mC.wasm", name="mC")


def test_three_modules_by_name(multi: tuple[dl.Linker, dl.Instance]) -> None:
    """A command that imports from two modules, one of which imports from the other: 31, 21, 11, 11."""
    _, instance = multi
    assert [instance[f"C{i}"]() for i in (1, 2, 3, 4)] == [31, 21, 11, 11]
    assert instance["C3"] is not instance["C4"]
    assert instance.dependencies["mB"]["B2"] is instance.dependencies["mA"]["A1"]
    with pytest.raises(dl.SymbolNotFoundError):
        instance["C5"]


def test_ctrl_c_leaves_no_module_half_made() -> None:
    """After Ctrl-C at any line of the way through dependencies, what imports from them can be instantiated as ever."""
    body = ProgramInstances._with_dependencies.__code__
    modules: dict[str, bytes] = {}
    linker = linked(finder=modules.get)
    linker.parts.instances()
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    pressed, line = True, 0
    try:
        while pressed:
            pressed, line, seen = False, line + 1, 0

            def trace(frame: FrameType, event: str, _argument: object) -> Any:
                nonlocal pressed, seen
                if frame.f_code is not body:
                    return None
                seen += event == "line"
                if seen == line and not pressed:  # noqa: B023  of this round
                    pressed = True
                    signal.raise_signal(signal.SIGINT)
                return trace

            modules[f"a{line}"], modules[f"b{line}"] = importing(), importing(f"a{line}")
            sys.settrace(trace)
            try:
                linker.instantiate(importing(f"b{line}"), name="c")
            except KeyboardInterrupt:
                pass
            finally:
                sys.settrace(None)
            assert linker.instantiate(importing(f"b{line}"), name="c")["f"]() == 3
    finally:
        signal.signal(signal.SIGINT, former)
        linker.close()
    assert line > 20


def test_functions_of_dependencies_are_found_by_two_names(multi: tuple[dl.Linker, dl.Instance]) -> None:
    """`$module$function` finds a dependency's function; an export of exactly that name wins; other forms are errors."""
    _, instance = multi
    assert [instance.lookup(n)() for n in ("$mB$B1", "$mA$A1", "C1", "$a$b")] == [21, 11, 31, 5]
    assert instance.lookup("$mB$B1", "() -> i32") is instance.dependencies["mB"]["B1"]
    for wrong in ("$mX$B1", "$mB$B9", "$mB", "$$B1", "nothing"):
        with pytest.raises(dl.SymbolNotFoundError):
            instance.lookup(wrong)
    with pytest.raises(dl.ImportTypeError):
        instance.lookup("$mB$B1", "(i32) -> i32")


def test_registration(multi: tuple[dl.Linker, dl.Instance]) -> None:
    """A module that is found for another has its name at once, a loaded one only when it is registered; names are unique."""
    linker, instance = multi
    assert linker.find("mC") is None
    assert linker.find("mA") is instance.dependencies["mA"].module
    assert linker.find("mB") is not None
    assert linker.instance("mA") is instance.dependencies["mA"]
    assert (linker.instance("mC"), linker.instance("nothing")) == (None, None)
    loaded, other = instance.module, linker.load(M_A)
    linker.register("mC", loaded)
    linker.register("mC", loaded)
    assert linker.find("mC") is loaded
    for wrong in (
        lambda: linker.register("again", loaded),
        lambda: linker.register("mC", other),
        lambda: linker.register("", other),
        lambda: linker.register("env", other),
        lambda: linker.register("wasi_snapshot_preview1", other),
        lambda: linker.register(None, other),  # type: ignore[arg-type]
        lambda: linker.register("x", None),  # type: ignore[arg-type]
    ):
        with pytest.raises(dl.LinkerUsageError):
            wrong()
    linker.register("mC", other, replace=True)
    assert linker.find("mC") is other
    assert linker.instantiate(importing_field("mC", "A1"))["f"]() == 11


def test_an_instance_of_another_program_cannot_be_registered() -> None:
    """Its exports are not this program's: what lies in the same place here would be linked in their stead."""
    with dl.Linker(None, cache=False) as linker, dl.Linker(None, cache=False) as other:
        theirs = other.instantiate(M_A)
        linker.instantiate(module('(func (export "A1") (result i32) i32.const 99)'))
        with pytest.raises(dl.LinkerUsageError, match="another program"):
            linker.register("mA", theirs)
        linker.register("mA", theirs.module)
        assert linker.instantiate(importing_field("mA", "A1"))["f"]() == theirs["A1"]() == 11


def importing_field(name: str, field: str) -> bytes:
    return module(
        f'(import "{name}" "{field}" (func $f (result i32)))', '(func (export "f") (result i32) call $f)'
    )


def test_a_finder_is_asked_once_and_released_once() -> None:
    """Each name is asked for once, what was given is released once, at the linker's end, and at once if it is no module."""
    log: list[str] = []

    @contextlib.contextmanager
    def reads(name: str) -> Iterator[bytes]:
        log.append(f"read {name}")
        try:
            yield {"a": importing("b"), "b": module(returns("f", 1)), "bad": b"no module"}[name]
        finally:
            log.append(f"release {name}")

    with linked(
        finder=[lambda _name: None, lambda name: reads(name) if name in ("a", "b", "bad") else None]
    ) as linker:
        for _ in range(2):
            assert linker.instantiate(importing("a", "b"))["f"]() == 4
        assert log == ["read a", "read b"]
        with pytest.raises(dl.MalformedModuleError):
            linker.instantiate(importing("bad"))
        assert log[2:] == ["read bad", "release bad"]
        with pytest.raises(dl.UnresolvedSymbolsError, match="missing.f"):
            linker.instantiate(importing("missing"))
    assert log[4:] == ["release b", "release a"]


def test_finders_may_give_paths_and_bytes_and_nothing_else(tmp_path: Path) -> None:
    """A path is read, bytes are taken, and anything else is an error that names the module."""
    (tmp_path / "x.wasm").write_bytes(module(returns("f", 5)))
    answers = {"path": tmp_path / "x.wasm", "bytes": module(returns("f", 6)), "wrong": 7}
    with linked(finder=answers.get) as linker:
        assert linker.instantiate(importing("path", "bytes"))["f"]() == 12
        with pytest.raises(dl.LinkError, match="wrong"):
            linker.instantiate(importing("wrong"))


def test_names_lead_nowhere_outside_the_module_path(tmp_path: Path) -> None:
    """A name may have slashes, but neither `..`, nor a root, nor a link leads out; the error says where was looked."""
    inside, outside = tmp_path / "in", tmp_path / "out"
    (inside / "lib").mkdir(parents=True)
    outside.mkdir()
    for path in (inside / "lib" / "a.wasm", outside / "b.wasm", inside / "plain"):
        path.write_bytes(module(returns("f", 1)))
    (inside / "link.wasm").symlink_to(outside / "b.wasm")
    with linked(module_path=[inside]) as linker:
        assert linker.instantiate(importing("lib/a", "lib/a.wasm", "plain"))["f"]() == 4
        for name in ("../out/b", "lib/../../out/b", str(outside / "b"), "link", "lib", "."):
            with pytest.raises(dl.UnresolvedSymbolsError) as missing:
                linker.instantiate(importing(name))
            assert any(str(inside) in place for place in missing.value.searched) or name.startswith("/")


def test_two_names_of_one_file_are_one_module(tmp_path: Path) -> None:
    """`a`, `a.wasm` and `./a` are one module with one instance; two entries of `modules=` are two."""
    (tmp_path / "a.wasm").write_bytes(COUNTER)
    counts = "".join(
        f'(import "{n}" "next" (func $n{i} (result i32)))' for i, n in enumerate(("a", "a.wasm", "./a"))
    )
    wasm = module(counts, '(func (export "f") (result i32) (drop (call $n0)) (drop (call $n1)) (call $n2))')
    with linked(module_path=[tmp_path]) as linker:
        assert linker.instantiate(wasm)["f"]() == 3
    with linked({"a": COUNTER, "a.wasm": COUNTER, "./a": COUNTER}) as linker:
        assert linker.instantiate(wasm)["f"]() == 1


COUNTER = module(
    "(global $n (mut i32) (i32.const 0))",
    '(func (export "next") (result i32) (global.set $n (i32.add (global.get $n) (i32.const 1))) (global.get $n))',
)


def counting(name: str) -> bytes:
    """A module that passes on another's counter."""
    return module(
        f'(import "{name}" "next" (func $n (result i32)))', '(func (export "next") (result i32) call $n)'
    )


DIAMOND = {"d": COUNTER, "l": counting("d"), "r": counting("d")}
TOP = module(
    *(f'(import "{n}" "next" (func ${n} (result i32)))' for n in ("l", "r", "d")),
    '(func (export "f") (result i32) (drop (call $l)) (drop (call $r)) (call $d))',
)


def test_a_diamond_has_one_instance_of_each() -> None:
    """A counter at the end of a diamond counts to 3; with `isolate` each importer has its own, and it is 1."""
    with linked(DIAMOND) as linker:
        assert linker.instantiate(TOP)["f"]() == 3
        assert linker.instantiate(TOP)["f"]() == 6
    with linked(DIAMOND, isolate=True) as linker:
        assert [linker.instantiate(TOP)["f"]() for _ in range(2)] == [1, 1]


def test_one_memory_is_one_memory() -> None:
    """A memory that two modules import from a third is grown for both: 2 pages; isolated, each has its own."""
    modules = {
        "m": module('(memory (export "memory") 1)'),
        "grows": module(
            '(import "m" "memory" (memory 1))', '(func (export "f") (result i32) (memory.grow (i32.const 1)))'
        ),
    }
    wasm = module(
        '(import "grows" "f" (func $grow (result i32)))', '(import "m" "memory" (memory 1))',
        '(func (export "f") (result i32) (drop (call $grow)) (memory.size))',
    )  # fmt: skip
    with linked(modules) as linker:
        assert linker.instantiate(wasm)["f"]() == 2
    with linked(modules, isolate=True) as linker:
        assert linker.instantiate(wasm)["f"]() == 1


def ladder(levels: int) -> dict[str, bytes]:
    """A diamond on a diamond, so many levels."""
    modules = {"d0": module(returns("f", 1))}
    for n in range(1, levels + 1):
        modules[f"a{n}"] = modules[f"b{n}"] = importing(f"d{n - 1}")
        modules[f"d{n}"] = importing(f"a{n}", f"b{n}")
    return modules


def test_diamonds_are_linear() -> None:
    """Eighteen levels are 55 modules, and twice as many cost about twice as much, not a thousand times."""
    times = []
    for levels in (18, 36):
        modules = ladder(levels)
        with linked(modules, interrupts=False) as warm:
            warm.instantiate(importing(f"d{levels}"), name="root")
        best = 1e9
        for _ in range(3):
            with linked(modules, interrupts=False) as linker:
                began = time.thread_time()
                linker.instantiate(importing(f"d{levels}"), name="root")
                best = min(best, time.thread_time() - began)
                assert len({id(i) for i in reachable(linker)}) == 3 * levels + 1
        times.append(best)
    assert times[1] < 8 * times[0], times


def reachable(linker: dl.Linker) -> list[dl.Module]:
    return [m for n in range(40) for k in "abd" if (m := linker.find(f"{k}{n}")) is not None]


def test_a_chain_of_a_thousand_needs_no_recursion() -> None:
    """A thousand modules deep."""
    modules = {f"m{n}": importing(f"m{n + 1}") for n in range(1000)} | {"m1000": module(returns("f", 1))}
    with linked(modules, interrupts=False) as linker:
        assert linker.load(importing("m0")).resolve() == []
        assert linker.instantiate(importing("m500"))["f"]() == 502


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_circle_is_named(tmp_path: Path, length: int) -> None:
    """Modules that import from each other are refused with the whole chain, nothing of them stays, and nothing hangs."""
    for n in range(length):
        (tmp_path / f"m{n}.wasm").write_bytes(importing(f"m{(n + 1) % length}"))
    chain = tuple(f"m{n % length}" for n in range(length + 1))
    with linked(module_path=[tmp_path]) as linker:
        for _ in range(2):
            with pytest.raises(dl.ImportCycleError) as circle:
                linker.instantiate(importing("m0"))
            assert circle.value.chain == chain
            with pytest.raises(dl.ImportCycleError):
                linker.load(importing("m0"))
        # The module itself, by its path, is the one that its circle comes back to.
        with pytest.raises(dl.ImportCycleError):
            linker.instantiate(tmp_path / "m0.wasm")


def test_a_dependency_that_fails_is_not_kept() -> None:
    """A trap in a dependency's start function is told with its text, and the next one tries anew; what came before stays."""
    switch = {"fails": 1}
    modules = {
        "good": COUNTER,
        "bad": module(
            '(import "good" "next" (func $n (result i32)))', '(import "env" "switch" (func $s (result i32)))',
            '(func $start (drop (call $n)) (if (call $s) (then unreachable)))', "(start $start)", returns("f", 1),
        ),
    }  # fmt: skip
    with linked(modules, imports={"env": {"switch": lambda: switch["fails"]}}) as linker:
        with pytest.raises(dl.InitializationError, match="unreachable") as failed:
            linker.instantiate(importing("bad"))
        assert failed.value.module == "bad"
        switch["fails"] = 0
        instance = linker.instantiate(importing("bad"))
        assert instance["f"]() == 2
        assert instance.dependencies["bad"].dependencies["good"]["next"]() == 3


def test_reexports_of_every_kind_through_five_modules() -> None:
    """A function, a global, a memory, a table and a tag that five modules pass on are the first module's own."""
    imports = [
        '(import "{0}" "f" (func (result i32)))', '(import "{0}" "g" (global (mut i32)))', '(import "{0}" "m" (memory 1))',
        '(import "{0}" "t" (table 1 funcref))', '(import "{0}" "e" (tag (param i32)))',
    ]  # fmt: skip
    exports = [
        f'(export "{n}" ({k} 0))'
        for n, k in zip("fgmte", ("func", "global", "memory", "table", "tag"), strict=True)
    ]
    first = module(
        "(func (result i32) i32.const 8)", "(global (mut i32) (i32.const 1))", "(memory 1)", "(table 1 funcref)",
        "(tag (param i32))", *exports,
    )  # fmt: skip
    modules = {"p0": first} | {
        f"p{n}": module(*(i.format(f"p{n - 1}") for i in imports), *exports) for n in range(1, 6)
    }
    with linked(modules) as linker:
        last = linker.instantiate(module(*(i.format("p5") for i in imports), *exports), name="last")
        assert last["f"]() == 8
        last["g"].value = 7
        at = last
        for n in range(5, -1, -1):
            at = at.dependencies[f"p{n}"]
        assert [at[name] is last[name] for name in "fgmte"] == [True] * 5


def test_types_are_checked_for_all_kinds() -> None:
    """A named module's export of another type, or none, is an error when linking, and never waits for a call."""
    other = module(
        returns("f", 1), '(global (export "g") i32 (i32.const 1))', '(memory (export "m") 1)', '(table (export "t") 1 funcref)'
    )  # fmt: skip
    with linked({"o": other}) as linker:
        for wrong in (
            '"f" (func)',
            '"g" (global (mut i32))',
            '"m" (memory 2)',
            '"t" (table 1 1 funcref)',
            '"f" (memory 1)',
        ):
            with pytest.raises(dl.ImportTypeError):
                linker.instantiate(module(f'(import "o" {wrong})'))
        with pytest.raises(dl.UnresolvedSymbolsError, match=r"o\.missing"):
            linker.instantiate(module('(import "o" "missing" (func))'))


def test_traps_cross_from_module_to_module() -> None:
    """A trap keeps its kind across three instances, and its trace names them."""
    bodies = {
        "unreachable": "unreachable",
        "integer divide by zero": "(drop (i32.div_u (i32.const 1) (i32.const 0)))",
        "out of bounds memory access": "(drop (i32.load (i32.const 70000)))",
    }
    inner = module(
        "(memory 1)", *(f'(func (export "f{i}") {body})' for i, body in enumerate(bodies.values()))
    )
    passing = [f'(import "{{0}}" "f{i}" (func $f{i}))' for i in range(3)]
    calls = [f'(func (export "f{i}") (call $f{i}))' for i in range(3)]
    middle = module(*(p.format("inner") for p in passing), *calls)
    with linked({"inner": inner, "middle": middle}) as linker:
        outer = linker.instantiate(module(*(p.format("middle") for p in passing), *calls), name="outer")
        for i, reason in enumerate(bodies):
            with pytest.raises(dl.TrapError, match=reason) as trap:
                outer[f"f{i}"]()
            assert [frame.partition("!")[0] for frame in trap.value.frames] == ["inner", "middle", "outer"]


def test_imports_can_be_resolved_later(tmp_path: Path) -> None:
    """`load(resolve=False)` reads nothing else; `resolve` reads the others and lists what is missing of all of them."""
    with linked({"a": importing("b", "nowhere")}, module_path=[tmp_path]) as linker:
        loaded = linker.load(importing("a"), resolve=False)
        assert linker.find("a") is None
        assert [(m.importer, m.namespace) for m in loaded.resolve()] == [("a", "b"), ("a", "nowhere")]
        with pytest.raises(dl.UnresolvedSymbolsError):
            linker.load(importing("a"))
        (tmp_path / "b.wasm").write_bytes(module(returns("f", 5)))
        linker.register("nowhere", linker.instantiate(module(returns("f", 6))))
        assert loaded.resolve() == []
        assert loaded.missing_imports() == []
        assert loaded.instantiate()["f"]() == 13


def test_a_mutable_global_is_shared_between_modules() -> None:
    """An importer sees what the exporter's start function set, and each sees what the other sets: 99, then 7."""
    owner = module(
        '(global (export "g") (mut i32) (i32.const 5))', "(func $s (global.set 0 (i32.const 99)))", "(start $s)",
        '(func (export "get") (result i32) (global.get 0))', '(global (export "at") i32 (i32.const 8))',
    )  # fmt: skip
    wasm = module(
        '(import "o" "g" (global (mut i32)))', '(import "o" "at" (global $at i32))',
        '(import "o" "get" (func $get (result i32)))',
        MEMORY, '(data (global.get $at) "\\5a")', '(func (export "read") (result i32) (global.get 0))',
        '(func (export "write") (param i32) (result i32) (global.set 0 (local.get 0)) (call $get))',
    )  # fmt: skip
    with linked({"o": owner}) as linker:
        instance = linker.instantiate(wasm)
        assert (instance["read"](), instance["write"](7), instance["memory"].read(8, 1)) == (99, 7, b"\x5a")


def test_modules_of_equal_content_have_their_own_names_in_traces() -> None:
    """Two named modules of the same bytes are told apart in a trap."""
    traps = module('(func (export "f") (result i32) unreachable)')
    with linked({"one": traps, "two": traps}) as linker:
        for name in ("one", "two", "one"):
            with pytest.raises(dl.TrapError) as trap:
                linker.instantiate(importing(name), name=f"calls {name}")["f"]()
            assert [frame.partition("!")[0] for frame in trap.value.frames] == [name, f"calls {name}"]


@pytest.mark.parametrize(
    "name", ["x" * 300, "x/" * 3000, "a" * 70000, "ä/ü", "a//b", "a/", "/", "~", "%2e%2e/x"]
)
def test_odd_names_are_just_not_found(tmp_path: Path, name: str) -> None:
    """Whatever a module calls what it imports from, the answer is that there is none, and the message stays short."""
    with linked(module_path=[tmp_path]) as linker, pytest.raises(dl.UnresolvedSymbolsError) as missing:
        linker.instantiate(importing(name))
    assert len(str(missing.value)) < 20_000
