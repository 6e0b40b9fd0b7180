"""Memories, tables, globals, functions and tags as objects of the host's: what it reads, writes, grows and sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import dl
from memory import OutOfBoundsError
from tests.support.engines import need
from tests.support.modules import module


@pytest.fixture(name="linker")
def _linker() -> Iterator[dl.Linker]:
    with dl.Linker(None, cache=False) as linker:
        yield linker


MEMORY = """(export "memory" (memory 0))
  (func (export "load") (param i32) (result i32) (i32.load (local.get 0)))
  (func (export "store") (param i32 i32) (i32.store (local.get 0) (local.get 1)))
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))"""


def test_a_memory_of_the_host_is_one_for_all_that_import_it(linker: dl.Linker) -> None:
    """Host and two instances read each other's bytes and see each other's growth, up to the maximum."""
    memory = linker.new_memory(3, 5)
    wasm = module('(import "env" "memory" (memory 3 5))', MEMORY)
    first, second = linker.instantiate(wasm, [memory]), linker.instantiate(wasm, {("env", "memory"): memory})
    assert first["grow"](1) == 3
    assert (memory.pages, second["grow"](0), memory.type.limits.minimum) == (4, 4, 4)
    first["store"](0x30004, 77)
    memory.write(8, b"\5\0\0\0")
    assert (second["load"](0x30004), second["load"](8), memory.read(0x30004, 1)) == (77, 5, b"M")
    assert memory.data.read_u32(8) == 5
    assert (memory.grow(1), memory.grow(1), memory.size) == (4, None, 5 * 65536)
    assert first["memory"] is second["memory"] is memory
    with pytest.raises(OutOfBoundsError):
        memory.read(5 * 65536 - 1, 2)
    with pytest.raises(dl.LinkerUsageError):
        memory.grow(-1)


def test_growth_beyond_what_the_engine_can_count_is_refused(linker: dl.Linker) -> None:
    """A number whose low 64 bits are small is as impossible as it is, and not growth by what these bits say."""
    memories = [linker.new_memory(1), linker.new_memory(1, 4, shared=True)]
    tables = [linker.new_table("externref", 1)]
    if linker.engine.capabilities.memory64:
        memories.append(linker.new_memory(1, is64=True))
        tables.append(linker.new_table("externref", 1, is64=True))
    for memory in memories:
        assert (memory.grow((1 << 64) + 1), memory.grow(1 << 64), memory.pages) == (None, None, 1)
    for table in tables:
        assert (table.grow((1 << 64) + 1, "x"), table.grow(1 << 64), len(table)) == (None, None, 1)


def test_a_shared_memory_with_wide_addresses_is_one_for_all_that_import_it(linker: dl.Linker) -> None:
    """Host and instances share it as one with narrow addresses, and an access outside of it is a trap."""
    need("memory64")
    memory = linker.new_memory(1, 4, shared=True, is64=True)
    text = """(func (export "load") (param i64) (result i32) (i32.load (local.get 0)))
      (func (export "grow") (result i64) (memory.grow (i64.const 1)))"""
    wasm = module('(import "a" "m" (memory i64 1 4 shared))', text)
    first, second = linker.instantiate(wasm, [memory]), linker.instantiate(wasm, [memory])
    memory.write(4, (7).to_bytes(4, "little"))
    assert (first["load"](4), first["grow"](), second["load"](4), memory.pages) == (7, 1, 7, 2)
    with pytest.raises(dl.TrapError, match="out of bounds"):
        second["load"](1 << 32)
    with pytest.raises(dl.ImportTypeError):
        linker.instantiate(module('(import "a" "m" (memory 1 4 shared))', MEMORY), [memory])


def test_a_shared_memory_of_an_instance_is_the_hosts_to_use(linker: dl.Linker) -> None:
    """The host reads, writes and grows it; other instances import it or are told why not, and it is as usable after that."""
    owner = linker.instantiate(module("(memory 1 2 shared)", '(data (i32.const 4) "abc")', MEMORY))
    memory = owner["memory"]
    assert (memory.read(4, 3), memory.pages, memory.type.limits.shared) == (b"abc", 1, True)
    memory.write(8, (9).to_bytes(4, "little"))
    wasm = module('(import "m" "memory" (memory 1 2 shared))', MEMORY)
    if linker.engine.name == "wasmtime":
        with pytest.raises(dl.EngineError, match="that an instance defines"):
            linker.instantiate(wasm, {"m": owner})
    else:
        assert linker.instantiate(wasm, {"m": owner})["load"](8) == 9
    assert (owner["load"](8), memory.grow(1), owner["grow"](1), memory.pages) == (9, 1, -1, 2)
    with pytest.raises(dl.TrapError, match="out of bounds"):
        owner["load"](2 << 16)


def test_a_memory_of_an_instance_is_read_and_lent(linker: dl.Linker) -> None:
    """What a module defines and exports is the host's to use and another module's to import."""
    owner = linker.instantiate(module("(memory 1)", '(data (i32.const 4) "abc")', MEMORY))
    borrower = linker.instantiate(module('(import "m" "memory" (memory 1))', MEMORY), {"m": owner})
    assert owner["memory"].read(4, 3) == b"abc"
    borrower["store"](4, 0x7A7A)
    assert owner["memory"].read(4, 3) == b"zz\0"
    assert borrower["memory"] is owner["memory"]


TABLE = """(export "table" (table 0))
  (func (export "call") (param i32) (result i32) (call_indirect (result i32) (local.get 0)))
  (func (export "size") (result i32) (table.size 0))
  (func (export "grow") (result i32) (table.grow 0 (ref.null func) (i32.const 1)))"""


def test_a_shared_table_calls_the_function_that_was_put_there(linker: dl.Linker) -> None:
    """A function in a table is that of its own instance, whoever calls it: 100, 5 and 42, and an empty element traps."""
    owner = linker.instantiate(
        module(
            "(table 4 10 funcref)", "(elem (i32.const 0) $a $b)", "(func $a (result i32) i32.const 100)",
            "(global $g i32 (i32.const 5))", "(func $b (result i32) global.get $g)", TABLE,
        )
    )  # fmt: skip
    other = linker.instantiate(
        module(
            '(import "own" "table" (table 4 10 funcref))', "(elem (i32.const 2) $c)",
            "(global $g i32 (i32.const 42))", "(func $c (export \"c\") (result i32) global.get $g)", TABLE,
        ),
        {"own": owner},
    )  # fmt: skip
    assert [owner["call"](i) for i in (0, 1, 2)] == [100, 5, 42]
    with pytest.raises(dl.TrapError, match="uninitialized"):
        owner["call"](3)
    assert [other["call"](i) for i in (0, 2)] == [100, 42]
    table = owner["table"]
    assert table is other["table"]
    assert table[2] is other["c"]
    assert table[3] is None
    assert table[0] is table[0]
    assert table[0]() == 100

    assert other["grow"]() == 4
    assert (owner["size"](), len(table), table.type.limits.minimum) == (5, 5, 5)
    assert (table.grow(2, other["c"]), owner["call"](6), table.grow(9)) == (5, 42, None)
    table[3] = table[0]
    assert other["call"](3) == 100
    table[0] = None
    with pytest.raises(dl.TrapError):
        owner["call"](0)
    for index in (7, -1, 1 << 70):
        with pytest.raises(IndexError):
            table[index]
    with pytest.raises(dl.ValueConversionError):
        table[0] = lambda: 1


def test_tables_of_the_host_hold_functions_and_objects(linker: dl.Linker) -> None:
    """A Python function is called through a table; an externref table holds any object."""
    seven = linker.new_function("() -> i32", lambda: 7)
    functions = linker.new_table("funcref", 2, 4, initial=seven)
    instance = linker.instantiate(module('(import "a" "t" (table 2 4 funcref))', TABLE), [functions])
    assert (instance["call"](1), functions[1] is seven, instance["table"] is functions) == (7, True, True)

    thing = object()
    objects = linker.new_table("externref", 1, initial=thing)
    reader = linker.instantiate(
        module(
            '(import "a" "t" (table 1 externref))',
            '(func (export "get") (param i32) (result externref) (table.get 0 (local.get 0)))',
            '(func (export "set") (param i32 externref) (table.set 0 (local.get 0) (local.get 1)))',
        ),
        [objects],
    )
    assert reader["get"](0) is thing
    reader["set"](0, "text")
    assert (objects[0], objects.grow(1), objects[1]) == ("text", 1, None)


GLOBAL = """(export "value" (global 0)) (func (export "get") (result i32) (global.get 0))
  (func (export "set") (param i32) (global.set 0 (local.get 0)))"""


def test_a_mutable_global_is_one_variable(linker: dl.Linker) -> None:
    """What an instance, another one or the host sets, all see."""
    variable = linker.new_global("i32", 1, mutable=True)
    wasm = module('(import "a" "g" (global (mut i32)))', GLOBAL)
    first, second = (linker.instantiate(wasm, [variable]) for _ in range(2))
    first["set"](99)
    assert (second["get"](), variable.value) == (99, 99)
    variable.value = 1 << 31
    assert (first["get"](), variable.value, second["value"] is variable) == (-(1 << 31), -(1 << 31), True)
    with pytest.raises(dl.ValueConversionError):
        variable.value = 1 << 32
    with pytest.raises(dl.ValueConversionError):
        variable.value = "5"


def test_constants_place_segments(linker: dl.Linker) -> None:
    """An imported constant is an offset of data and of elements, and cannot be set."""
    constant = linker.new_global("i32", 8)
    instance = linker.instantiate(
        module(
            '(import "a" "g" (global $g i32))', '(memory (export "memory") 1)', '(data (global.get $g) "Z")'
        ),
        [constant],
    )
    assert instance["memory"].read(8, 1) == b"Z"
    with pytest.raises(dl.LinkerUsageError, match="cannot change"):
        constant.value = 9


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("i64", 5_000_000_000),
        ("f32", 0.5),
        ("f64", -0.0),
        ("v128", bytes(range(16))),
        ("funcref", None),
        ("externref", [1]),
    ],
)
def test_globals_of_every_type(linker: dl.Linker, kind: str, value: Any) -> None:
    """Each type of value comes back as it was given, from the host's global and from the instance's."""
    made = linker.new_global(kind, value)
    again = linker.instantiate(module(f'(import "a" "g" (global {kind}))', '(export "g" (global 0))'), [made])
    assert made.value == value
    assert again["g"] is made


def test_functions_of_the_host(linker: dl.Linker) -> None:
    """A Python function has a type, passes references, is one object everywhere, and what it raises reaches the caller."""

    def work(number: int, function: dl.Function, thing: object) -> tuple[dl.Function, object]:
        if number < 0:
            raise LookupError(number)
        assert function() == 5
        return function, thing

    made = linker.new_function("(i32, funcref, externref) -> (funcref, externref)", work)
    instance = linker.instantiate(
        module(
            '(import "h" "work" (func $work (param i32 funcref externref) (result funcref externref)))',
            '(export "work" (func $work))', '(func $five (export "five") (result i32) i32.const 5)',
            '(func (export "run") (param i32 externref) (result funcref externref)'
            "  (call $work (local.get 0) (ref.func $five) (local.get 1)))",
        ),
        [made],
    )  # fmt: skip
    thing = object()
    function, same = instance["run"](1, thing)
    assert function is instance["five"]
    assert same is thing
    assert instance["work"] is made
    assert made(3, instance["five"], None) == (instance["five"], None)
    with pytest.raises(LookupError):
        instance["run"](-1, thing)
    for wrong in ((), (1, 2, 3), ("x", None, None)):
        with pytest.raises(dl.ValueConversionError):
            made(*wrong)
    with pytest.raises(dl.ValueConversionError, match="anyref"):
        linker.new_function(dl.Function.type.fget(made).__class__(("anyref",), ()), work)  # type: ignore[attr-defined]
    with pytest.raises(dl.LinkerUsageError):
        linker.new_function("(i31) -> ()", work)


def test_a_call_by_bits_keeps_every_nan(linker: dl.Linker) -> None:
    """The bits of values pass unchanged, as unsigned integers; what is not of this width is refused."""
    made = linker.instantiate(
        module(
            '(func (export "f") (param i32 i64 f32 f64) (result f64 f32 i64 i32)'
            " (local.get 3) (local.get 2) (local.get 1) (local.get 0))",
            '(func (export "v") (param v128))', '(func (export "n"))', '(func (export "one") (result f32) (f32.const -0))',
        )
    )  # fmt: skip
    values = (0xFFFFFFFF, 1 << 63, 0x7FA00001, 0x7FF0000000000001)
    assert made["f"].call_bits(*values) == values[::-1]
    assert (made["n"].call_bits(), made["one"].call_bits()) == (None, 1 << 31)
    for wrong in ((), (-1, 0, 0, 0), (1 << 32, 0, 0, 0), (0, 0, 0.5, 0)):
        with pytest.raises(dl.ValueConversionError):
            made["f"].call_bits(*wrong)
    with pytest.raises(dl.ValueConversionError):
        made["v"].call_bits(0)


def test_a_function_that_nobody_exports_is_an_object(linker: dl.Linker) -> None:
    """A private function that comes out of a table, a global or a call is called, compared and put back."""
    instance = linker.instantiate(
        module(
            "(table (export \"t\") 2 funcref)", "(elem (i32.const 0) $p)", "(func $p (result i32) i32.const 12)",
            '(global (export "g") funcref (ref.func $p))', '(func (export "f") (result funcref) (ref.func $p))',
        )
    )  # fmt: skip
    private = instance["t"][0]
    assert private() == 12
    assert private is instance["g"].value
    assert private is instance["f"]()
    instance["t"][1] = private
    assert instance["t"][1] is private
    other = linker.instantiate(
        module(
            '(import "a" "f" (func $f (result i32)))',
            '(func (export "twice") (result i32) (i32.add (call $f) (call $f)))',
        ),
        [private],
    )
    assert other["twice"]() == 24


def test_tags_are_shared(linker: dl.Linker) -> None:
    """An exception that one instance throws with a tag of the host's is caught by another, and not with a tag of its own."""
    tag = linker.new_tag("(i32) -> ()")
    throws = linker.instantiate(
        module(
            '(import "a" "t" (tag $t (param i32)))',
            '(func (export "throw") (param i32) (throw $t (local.get 0)))',
        ),
        [tag],
    )
    catcher = module(
        '(import "a" "t" (tag $t (param i32)))', '(import "a" "throw" (func $throw (param i32)))', '(export "t" (tag $t))',
        """(func (export "catch") (param i32) (result i32)
          (block $h (result i32) (try_table (catch $t $h) (call $throw (local.get 0))) (i32.const -1)))""",
    )  # fmt: skip
    catches = linker.instantiate(catcher, [tag, throws["throw"]])
    assert (catches["catch"](6), catches["t"] is tag) == (6, True)
    deaf = linker.instantiate(catcher, [linker.new_tag("(i32) -> ()"), throws["throw"]])
    with pytest.raises(dl.UncaughtExceptionError):
        deaf["catch"](6)
    for wrong in ("(i32) -> i32", "i32"):
        with pytest.raises(dl.LinkerUsageError):
            linker.new_tag(wrong)


def test_what_cannot_be_made_is_refused(linker: dl.Linker) -> None:
    """Impossible sizes and types are errors that say so, before anything is made."""
    for impossible in (
        lambda: linker.new_memory(2, 1),
        lambda: linker.new_memory(65537),
        lambda: linker.new_memory(1, shared=True),
        lambda: linker.new_table("anyref", 1),
        lambda: linker.new_table("funcref", 5, 4),
        lambda: linker.new_global("i31", 1),
        lambda: linker.new_function("() -> ()", 5),  # type: ignore[arg-type]
    ):
        with pytest.raises(dl.LinkerUsageError):
            impossible()
    with pytest.raises(dl.ValueConversionError):
        linker.new_global("i32", None)
    with dl.Linker(None, limits=dl.Limits(instances=1)) as other:
        for size in (0, 2):
            with pytest.raises(dl.ValueConversionError):
                other.new_table("funcref", size, initial=5)
        assert len(other.new_table("funcref", 2)) == 2


def test_limits_bound_what_the_host_and_instances_make() -> None:
    """The program's limits hold for memories and tables of either, to begin with and as they grow."""
    with dl.Linker(None, cache=False, limits=dl.Limits(memory_pages=64, table_elements=100)) as linker:
        for refused in (lambda: linker.new_memory(65), lambda: linker.new_table("funcref", 101)):
            with pytest.raises(dl.ResourceLimitError):
                refused()
        with pytest.raises(dl.ResourceLimitError):
            linker.instantiate(module("(memory 65)"))
        with pytest.raises(dl.ResourceLimitError):
            linker.instantiate(module("(table 101 funcref)"))
        assert (linker.new_memory(64).grow(1), linker.new_table("funcref", 100).grow(1)) == (None, None)
        shared = linker.new_memory(1, 65536, shared=True)
        assert (shared.grow(63), shared.grow(1)) == (1, None)


def test_the_bytes_of_all_memories_are_bounded() -> None:
    """Memories of the host's and of instances count together as large as they are, and a failed one counts nothing."""
    page = 65536
    with dl.Linker(None, cache=False, limits=dl.Limits(instance_bytes=20 * page)) as linker:
        memory = linker.new_memory(4, 100)
        grower = linker.instantiate(
            module(
                '(memory (export "m") 4)', '(func (export "grow") (result i32) (memory.grow (i32.const 2)))'
            )
        )
        linker.instantiate(module("(memory 2 2)"))
        assert memory.grow(4) == 4  # 14 pages
        for refused in (
            lambda: linker.new_memory(7),
            lambda: linker.new_memory(7, 7, shared=True),
            lambda: linker.instantiate(module('(memory (export "m") 7)')),
            lambda: linker.instantiate(module("(memory 1)")),  # it may grow to 4 GiB, which nobody would see
        ):
            with pytest.raises(dl.ResourceLimitError, match="max-instance-bytes") as refusal:
                refused()
            assert refusal.value.limit == "instance_bytes"
        assert (memory.grow(7), memory.grow(0)) == (None, 8)
        assert grower["grow"]() == 4  # 16 pages, by the guest
        assert memory.grow(5) is None
        with pytest.raises(dl.ImportTypeError):
            linker.instantiate(module('(import "a" "b" (global i64))', "(memory 4 4)"), [memory])
        with pytest.raises(dl.InitializationError):
            linker.instantiate(module('(memory (export "m") 1)', "(start $s)", "(func $s unreachable)"))
        # A memory that was made stays, also if the start function trapped: 17.
        assert (memory.grow(4), memory.grow(3), memory.grow(1)) == (None, 8, None)


def test_a_shared_memory_is_lent_to_another_program(linker: dl.Linker) -> None:
    """Instances of two programs use one shared memory; what else belongs to a program is refused by another."""
    memory = linker.new_memory(1, 2, shared=True)
    wasm = module('(import "a" "m" (memory 1 2 shared))', MEMORY)
    with dl.Linker(None, cache=False, engine=linker.engine) as other:
        first, second = linker.instantiate(wasm, [memory]), other.instantiate(wasm, [memory])
        first["store"](4, 9)
        assert second["load"](4) == 9
        assert second["memory"] is other.instantiate(wasm, [memory])["memory"]
        with pytest.raises(dl.LinkerUsageError, match="another program"):
            other.instantiate(module('(import "a" "f" (func (param i32) (result i32)))'), [first["load"]])


def test_a_closed_linker_says_so(linker: dl.Linker) -> None:
    """Objects of a linker that is closed, or of a thread without a group, are refused by a clear error."""
    instance = linker.instantiate(module("(memory 1)", MEMORY))
    linker.close()
    for use in (
        lambda: instance["load"](0),
        lambda: instance["memory"].pages,
        lambda: linker.new_global("i32", 1),
    ):
        with pytest.raises(dl.LinkerClosedError):
            use()
