"""`Linker.instantiate` with imports in order, by name and as instances; what serves what is missing; failures."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

import dl
from dl.engine import default_name
from tests.support.engines import fresh_engine, need
from tests.support.modules import library, module, returns


@pytest.fixture(name="linker")
def _linker() -> Iterator[dl.Linker]:
    with dl.Linker(
        None, cache=False, imports={"env": {"seven": lambda: 7}, "user": {"n": 12, "x": 0.5}}
    ) as linker:
        yield linker


TWICE = module(
    '(import "a" "f" (func $f (result i32)))', '(import "a" "f" (func $g (result i32)))',
    '(func (export "f") (result i32) call $f)', '(func (export "g") (result i32) call $g)',
)  # fmt: skip


def test_a_list_is_by_position(linker: dl.Linker) -> None:
    """Two imports of one name get the two functions at their places in the list."""
    instance = linker.instantiate(TWICE, [lambda: 1, lambda: 2])
    assert (instance["f"](), instance["g"]()) == (1, 2)
    with pytest.raises(dl.UnresolvedSymbolsError) as missing:
        linker.instantiate(TWICE, [None, lambda: 2])
    assert [(m.namespace, m.symbol) for m in missing.value.missing] == [("a", "f")]
    with pytest.raises(dl.LinkerUsageError, match="has 2 imports, but 3"):
        linker.instantiate(TWICE, [lambda: 1] * 3)


def test_names_and_instances(linker: dl.Linker) -> None:
    """A mapping is by (module, field), by module and field, or by module with an instance."""
    provider = linker.instantiate(module(returns("f", 3)))
    for given in ({("a", "f"): provider["f"]}, {"a": {"f": provider["f"]}}, {"a": provider}):
        assert linker.instantiate(TWICE, given)["g"]() == 3
    for wrong in ({"a": 5}, {5: provider}, "text", 5, iter([1])):
        with pytest.raises(dl.LinkerUsageError):
            linker.instantiate(TWICE, wrong)  # type: ignore[arg-type]


WRONG = [
    ("(func (param i32))", "(func)", "function () -> ()"),
    ("(memory 2)", "(memory 1)", "memory 1"),
    ("(memory 1 2)", "(memory 1 3)", "memory 1 3"),
    ("(memory i64 1)", "(memory 1)", "memory 1"),
    ("(memory 1)", "(memory i64 1)", "memory i64 1"),
    ("(table 1 funcref)", "(table 1 externref)", "table 1 externref"),
    ("(global i32)", "(global (mut i32) (i32.const 0))", "global (mut i32)"),
    ("(global i64)", "(global i32 (i32.const 0))", "global i32"),
    ("(tag (param i32))", "(tag (param i64))", "tag (i64)"),
    ("(func)", "(global i32 (i32.const 0))", "global i32"),
]


@pytest.mark.parametrize(("wanted", "given", "got"), WRONG)
def test_every_type_is_checked(linker: dl.Linker, wanted: str, given: str, got: str) -> None:
    """A type that does not fit is an error with the import's place, names, and both types; the external stays usable."""
    if "i64 1" in given + wanted:
        need("memory64")
    kind, _, rest = given.partition(" ")
    body = f'{kind} (export "x") {rest}' if rest else f'{kind[:-1]} (export "x"))'
    provider = linker.instantiate(module(body), name="provider")
    with pytest.raises(dl.ImportTypeError) as wrong:
        linker.instantiate(
            module('(import "env" "seven" (func (result i32)))', f'(import "a" "x" {wanted})'),
            {"a": provider},
        )
    error = wrong.value
    assert (error.index, error.symbol, error.got) == (1, "a.x", got)
    assert error.expected in str(error)
    linker.instantiate(
        module(f'(import "a" "x" {kind} {rest})'.replace("(i32.const 0)", "")), {"a": provider}
    )


def test_what_grew_is_compared_as_it_is(linker: dl.Linker) -> None:
    """A memory or table that has grown fits an import of its present size."""
    memory, table = linker.new_memory(1, 4), linker.new_table("funcref", 1, 4)
    wasm = module('(import "a" "m" (memory 3 4))', '(import "a" "t" (table 3 4 funcref))')
    with pytest.raises(dl.ImportTypeError):
        linker.instantiate(wasm, [memory, table])
    memory.grow(2)
    table.grow(2)
    linker.instantiate(wasm, [memory, table])


def test_sources_come_in_order(linker: dl.Linker) -> None:
    """Given, registered, built in: each import says which one served it, and `strict` takes the first only."""
    wasm = module(
        '(import "env" "seven" (func $f (result i32)))', '(import "user" "n" (global $n i32))',
        '(import "reg" "f" (func $r (result i32)))', '(import "env" "memory" (memory 0))',
        '(func (export "sum") (result i32) (i32.add (call $f) (i32.add (call $r) (global.get $n))))',
    )  # fmt: skip
    registered = linker.instantiate(module(returns("f", 100)), name="the registered one")
    linker.register("reg", registered)
    instance = linker.instantiate(wasm)
    assert instance["sum"]() == 119
    assert [(s.name, s.origin, s.provider) for s in instance.sources] == [
        ("seven", "host", ""), ("n", "host", ""), ("f", "registered", "the registered one"), ("memory", "program", ""),
    ]  # fmt: skip
    other = linker.instantiate(wasm, {"env": {"seven": lambda: 1}, ("reg", "f"): lambda: 2})
    assert other["sum"]() == 15
    assert [s.origin for s in other.sources] == ["given", "host", "given", "program"]
    with pytest.raises(dl.UnresolvedSymbolsError) as missing:
        linker.instantiate(wasm, {"env": {"seven": lambda: 1}}, strict=True)
    assert [m.symbol for m in missing.value.missing] == ["n", "f", "memory"]


def test_numbers_are_of_the_imports_type(linker: dl.Linker) -> None:
    """A number serves a global of a type that holds it, and is refused for one that does not."""
    for kind, value in (("i64", 5_000_000_000), ("f32", 0.5), ("f64", 3), ("i32", -1)):
        wasm = module(f'(import "a" "g" (global {kind}))', '(export "g" (global 0))')
        assert linker.instantiate(wasm, [value])["g"].value == value
    for kind, wrong in (("i32", 1 << 32), ("i32", 0.5), ("i64", "x"), ("i32", print)):
        with pytest.raises(dl.ImportTypeError):
            linker.instantiate(module(f'(import "a" "g" (global {kind}))'), [wrong])
    with pytest.raises(dl.ImportTypeError, match="number 5"):
        linker.instantiate(module('(import "a" "f" (func))'), [5])


def test_a_failure_leaves_the_hosts_objects_usable(linker: dl.Linker) -> None:
    """After a trap in a start function, a segment out of bounds and an import that is missing, all works as before."""
    memory, table = linker.new_memory(1), linker.new_table("funcref", 2)
    imports = '(import "a" "m" (memory 1))', '(import "a" "t" (table 1 funcref))'
    failing = {
        "unreachable": module(*imports, "(func $f unreachable)", "(start $f)"),
        "out of bounds memory": module(*imports, '(data (i32.const 0) "ok")', '(data (i32.const 65536) "x")'),
        "undefined table element": module(*imports, "(func $f)", "(elem (i32.const 2) $f)"),
    }
    for reason, wasm in failing.items():
        with pytest.raises(dl.InitializationError, match=reason):
            linker.instantiate(wasm, [memory, table])
    with pytest.raises(dl.UnresolvedSymbolsError):
        linker.instantiate(module(*imports, '(import "a" "x" (func))'), [memory, table])
    assert memory.read(0, 2) == b"ok"  # as the specification has it: what was written before the trap stays
    instance = linker.instantiate(
        module(*imports, '(func (export "f") (result i32) (i32.load8_u (i32.const 0)))'), [memory, table]
    )
    assert instance["f"]() == ord("o")


def test_an_invalid_module_is_invalid_whatever_it_imports(linker: dl.Linker) -> None:
    """The engine's word on a module comes before the search for its imports."""
    broken = bytearray(module('(import "nowhere" "f" (func))', "(func (result i32) i32.const 1)"))
    broken[broken.rindex(b"\x41\x01")] = 0x01
    with pytest.raises(dl.InvalidModuleError):
        linker.instantiate(bytes(broken))


def test_instances_are_separate(linker: dl.Linker) -> None:
    """A segment that one instance drops is still there in another instance of the module."""
    loaded = linker.load(
        module(
            "(memory 1)", '(data $d "A")', '(func (export "drop") (data.drop $d))',
            '(func (export "init") (memory.init $d (i32.const 0) (i32.const 0) (i32.const 1)))',
        )
    )  # fmt: skip
    first, second = loaded.instantiate(), loaded.instantiate()
    first["drop"]()
    with pytest.raises(dl.TrapError):
        first["init"]()
    second["init"]()
    assert first.module is second.module is loaded


def test_what_a_module_says_about_itself(linker: dl.Linker) -> None:
    """A loaded module tells the kind, names and type of each import and export, and instances look exports up by name."""
    loaded = linker.load(module('(import "a" "g" (global f32))', returns("f", 1)), resolve=False)
    assert [(e.module, e.name, e.kind, str(e.type)) for e in loaded.imports] == [
        ("a", "g", "global", "global f32")
    ]
    assert {name: (e.kind, str(e.type)) for name, e in loaded.exports.items()} == {"f": ("func", "() -> i32")}
    assert [(m.namespace, m.symbol) for m in loaded.missing_imports()] == [("a", "g")]
    assert loaded.missing_imports([0.5]) == []
    instance = loaded.instantiate([0.5])
    assert list(instance.exports) == ["f"]
    with pytest.raises(dl.SymbolNotFoundError):
        instance["g"]


def test_libraries_and_instances_live_in_one_program(linker: dl.Linker) -> None:
    """A module with a memory of its own calls a library's function, and keeps the library loaded."""
    group = linker.main_group
    side = library(
        '(import "env" "memory" (memory 0))', '(import "env" "__memory_base" (global $b i32))', '(data (global.get $b) "\\09")',
        '(func (export "nine") (result i32) (i32.load8_u (global.get $b)))', memory_size=8,
    )  # fmt: skip
    handle = group.dlopen(side, name="side.so")
    instance = linker.instantiate(
        module(
            '(import "lib" "nine" (func $nine (result i32)))', '(memory (export "memory") 1)', '(data (i32.const 0) "\\05")',
            '(func (export "sum") (result i32) (i32.add (call $nine) (i32.load8_u (i32.const 0))))',
        ),
        {("lib", "nine"): group.dlsym(handle, "nine")},
    )  # fmt: skip
    assert instance["sum"]() == 14
    group.dlclose(handle)
    assert instance["sum"]() == 14


def test_a_library_whose_function_is_refused_can_go(linker: dl.Linker) -> None:
    """An import of another type does not keep the library, and what was closed, or is being closed, cannot be given."""
    group, seen = linker.main_group, list[str]()
    needs = module('(import "lib" "nine" (func $f (result i32)))')
    held: list[object] = []

    def ending() -> None:
        with pytest.raises(dl.LinkerUsageError, match="was closed"):
            linker.instantiate(needs, held)
        seen.append("closing")

    linker.register(
        "test",
        linker.instantiate(module('(import "host" "end" (func $e)) (export "end" (func $e))'), [ending]),
    )
    side = library(
        '(import "test" "end" (func $end))', returns("nine", 9),
        '(func (export "__wasm_call_dtors") (call $end))',
    )  # fmt: skip
    handle = group.dlopen(side, name="side.so")
    held.append(group.dlsym(handle, "nine"))
    with pytest.raises(dl.ImportTypeError, match=r"side\.so"):
        linker.instantiate(module('(import "lib" "nine" (func))'), held)
    group.dlclose(handle)
    assert handle not in [one.handle for one in linker.modules]
    with pytest.raises(dl.LinkerUsageError, match="was closed"):
        linker.instantiate(needs, held)
    assert seen == ["closing"]


def test_the_list_for_the_specifications_tests_is_exact(linker: dl.Linker) -> None:
    """What `spectest` exports, with its types and values."""
    printed: list[object] = []
    made = linker.spectest_imports(lambda name, arguments: printed.append((name, arguments)))
    types = {name: str(external.type) for name, external in made.items() if not name.startswith("print")}  # type: ignore[attr-defined]
    expected = {
        "global_i32": "global i32", "global_i64": "global i64", "global_f32": "global f32", "global_f64": "global f64",
        "table": "table 10 20 funcref", "table64": "table i64 10 20 funcref", "memory": "memory 1 2",
        "shared_memory": "memory 1 2 shared",
    }  # fmt: skip
    if not linker.engine.capabilities.memory64:
        del expected["table64"]
    assert types == expected
    single = struct.unpack("<f", struct.pack("<f", 666.6))[0]
    values = [made[f"global_{kind}"].value for kind in ("i32", "i64", "f32", "f64")]  # type: ignore[attr-defined]
    assert values == [666, 666, single, 666.6]
    made["print_i32_f32"](1, 0.5)
    assert printed == [("print_i32_f32", (1, 0.5))]


def test_the_list_for_wasi_has_what_a_module_imports(linker: dl.Linker) -> None:
    """Functions of WASI and the program's memory, and nothing of other modules."""
    loaded = linker.load(
        module(
            '(import "wasi_snapshot_preview1" "random_get" (func (param i32 i32) (result i32)))',
            '(import "env" "memory" (memory 0))', '(import "other" "f" (func))',
        ),
        resolve=False,
    )  # fmt: skip
    given = linker.wasi_imports(loaded)
    assert list(given) == [("wasi_snapshot_preview1", "random_get"), ("env", "memory")]
    loaded.instantiate(given | {("other", "f"): lambda: None}, strict=True)


def test_what_the_engine_lacks_is_refused() -> None:
    """An engine without externals has no instances, and a module that needs what an engine lacks is refused by its name."""
    plain = fresh_engine("interrupts", "externals", "references", "simd")
    with dl.Linker(None, cache=False, engine=plain) as linker:
        for refused in (
            lambda: linker.instantiate(TWICE, [len, len]),
            lambda: linker.new_memory(1),
            lambda: linker.new_tag("() -> ()"),
        ):
            with pytest.raises(dl.LinkerUsageError, match="lacks externals"):
                refused()
    numbers = fresh_engine("interrupts", "references", "simd", "exceptions")
    with dl.Linker(None, cache=False, engine=numbers) as linker:
        assert linker.instantiate(TWICE, [lambda: 1, lambda: 2])["g"]() == 2
        with pytest.raises(dl.ValueConversionError, match="externref"):
            linker.new_function("(externref) -> ()", print)
        with pytest.raises(dl.LinkerUsageError, match="lacks exceptions"):
            linker.new_tag("() -> ()")
        with pytest.raises(dl.UnsupportedModuleError, match="vector"):
            linker.instantiate(module("(func (drop (v128.const i64x2 0 0)))"))


def test_64_bit_addresses_that_the_engine_lacks_are_refused() -> None:
    """An engine without them makes no such memory or table, takes no module with one, and the list for tests has none."""
    with dl.Linker(None, cache=False, engine=fresh_engine("memory64")) as linker:
        for make in (
            lambda: linker.new_memory(1, is64=True),
            lambda: linker.new_memory(1, 2, is64=True, shared=True),
            lambda: linker.new_table("funcref", 1, is64=True),
        ):
            with pytest.raises(
                dl.LinkerUsageError, match=f"^engine {default_name()} lacks 64-bit addresses$"
            ):
                make()
        for body in ("(memory i64 1)", "(table i64 1 funcref)"):
            with pytest.raises(
                dl.UnsupportedModuleError, match=f"uses 64-bit addresses, which engine {default_name()}"
            ):
                linker.instantiate(module(body))
        assert "table64" not in linker.spectest_imports(print)


def test_the_number_of_instances_is_bounded() -> None:
    """Instances and externals count against one limit, also those that isolated modules multiply."""
    modules = {"d0": module(returns("f", 1))}
    for n in range(1, 9):
        modules[f"d{n}"] = module(
            f'(import "d{n - 1}" "f" (func $f (result i32)))', '(func (export "f") (result i32) (call $f))'
        )
    with dl.Linker(
        None, cache=False, modules=modules, isolate=True, limits=dl.Limits(instances=20)
    ) as linker:
        wide = [f'(import "d{n}" "f" (func (result i32)))' for n in range(1, 9)]
        with pytest.raises(dl.ResourceLimitError, match="max-instances") as refusal:
            linker.instantiate(module(*wide))
        assert refusal.value.limit == "instances"
        with pytest.raises(dl.ResourceLimitError):
            linker.new_global("i32", 1)
