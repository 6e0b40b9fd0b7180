"""When an external value fits an import, rule by rule, on types that are read from modules."""

from __future__ import annotations

import pytest
import wasmtime

import dl
from dl.wasm.deftypes import DefinedType, defined_types
from dl.wasm.encode import section, unsigned, vector
from dl.wasm.matching import LinkType, export_type, import_types
from dl.wasm.module import WasmModule, parse_module
from dl.wasm.types import FuncType, GlobalType, TagType


def parsed(fields: str) -> WasmModule:
    return parse_module(bytes(wasmtime.wat2wasm(f"(module {fields})")), "m")


def fits(defined: str, imported: str, types: str = "", other_types: str | None = None) -> bool:
    """Whether what one module exports fits what another imports."""
    have = parsed(types + defined)
    want = parsed((types if other_types is None else other_types) + f'(import "a" "b" {imported})')
    return export_type(have, have.exports["b"]).fits(import_types(want)[0])


LIMITS = [
    ('(memory (export "b") 1)', "(memory 1)", True),
    ('(memory (export "b") 1)', "(memory 2)", False),
    ('(memory (export "b") 2 3)', "(memory 1 3)", True),
    ('(memory (export "b") 2 3)', "(memory 1 2)", False),
    ('(memory (export "b") 1)', "(memory 1 5)", False),
    ('(memory (export "b") 1 2 shared)', "(memory 1 2)", False),
    ('(memory (export "b") i64 1)', "(memory 1)", False),
    ('(memory (export "b") i64 1 9)', "(memory i64 0)", True),
    ('(table (export "b") 10 funcref)', "(table 5 funcref)", True),
    ('(table (export "b") 10 funcref)', "(table 5 externref)", False),
    ('(table (export "b") 10 20 funcref)', "(table 5 19 funcref)", False),
    ('(table (export "b") i64 10 funcref)', "(table 5 funcref)", False),
    ('(global (export "b") i32 (i32.const 0))', "(global i32)", True),
    ('(global (export "b") i32 (i32.const 0))', "(global (mut i32))", False),
    ('(global (export "b") (mut i32) (i32.const 0))', "(global i32)", False),
    ('(global (export "b") i32 (i32.const 0))', "(func)", False),
]


@pytest.mark.parametrize(("have", "want", "expected"), LIMITS)
def test_limits_and_mutability(have: str, want: str, expected: bool) -> None:
    """Sizes, widths, sharing, mutability and kinds, as the specification has them."""
    assert fits(have, want) is expected


REFERENCES = [
    ("(ref func)", "(ref null func)", True),
    ("(ref null func)", "(ref func)", False),
    ("nullfuncref", "funcref", True),
    ("(ref $t)", "funcref", True),
    ("funcref", "(ref null $t)", False),
    ("(ref null nofunc)", "(ref null $t)", True),
    ("(ref null none)", "(ref null $s)", True),
    ("(ref null none)", "(ref null $t)", False),
    ("(ref $s)", "eqref", True),
    ("(ref null i31)", "anyref", True),
    ("anyref", "eqref", False),
    ("(ref extern)", "anyref", False),
    ("(ref $s2)", "(ref $s)", True),
    ("(ref $s)", "(ref $s2)", False),
    ("exnref", "exnref", True),
]
TYPES = "(type $t (func)) (type $s (sub (struct (field i32)))) (type $s2 (sub $s (struct (field i32) (field i64)))) "


@pytest.mark.parametrize(("have", "want", "expected"), REFERENCES)
def test_references_have_subtypes(have: str, want: str, expected: bool) -> None:
    """A global that cannot change may be of a subtype; one that can must be of the same type."""
    first = parsed(TYPES + f'(import "a" "b" (global {have}))')
    second = parsed(TYPES + f'(import "a" "b" (global {want}))')
    assert import_types(first)[0].fits(import_types(second)[0]) is expected

    first = parsed(TYPES + f'(import "a" "b" (global (mut {have})))')
    second = parsed(TYPES + f'(import "a" "b" (global (mut {want})))')
    assert import_types(first)[0].fits(import_types(second)[0]) is (have == want)


def test_groups_of_types_are_compared_whole() -> None:
    """Two functions of one signature differ if their types stand at different places of a group, or in different groups."""
    group = "(rec (type $a (func)) (type $b (func))) "
    tag = '(tag (export "b") (type $a))'
    assert fits(tag, "(tag (type $a))", group)
    assert not fits(tag, "(tag (type $b))", group)
    assert not fits(tag, "(tag (type $a))", group, "(type $a (func)) ")
    assert fits(tag, "(tag (type $a))", "(type $pad (struct)) " + group, group)


def test_groups_refer_to_themselves_and_to_earlier_ones() -> None:
    """A recursive type is the same in two modules whatever its index there, and another one if what it refers to differs."""
    types = "(type $s (struct (field {0}))) (rec (type $r (func (param (ref $r) (ref $s))))) "
    function = '(func (export "b") (type $r))'
    assert fits(
        function, "(func (type $r))", types.format("i32"), "(type $pad (func)) " + types.format("i32")
    )
    assert not fits(function, "(func (type $r))", types.format("i32"), types.format("i64"))


def test_a_function_may_be_of_a_declared_subtype() -> None:
    """Only a declared subtype fits, through any number of steps."""
    types = "(type $a (sub (func))) (type $b (sub $a (func))) (type $c (sub $b (func))) "
    function = '(func (export "b") (type $c))'
    assert fits(function, "(func (type $a))", types)
    assert not fits('(func (export "b") (type $a))', "(func (type $c))", types)
    final = types + "(type $z (func)) "
    assert not fits('(func (export "b") (type $a))', "(func (type $z))", final)


def test_a_long_chain_of_types_costs_a_line_each() -> None:
    """Types that refer to each other twice, two thousand deep, are compared at once: no type is written out in full."""
    chain = "(type $t0 (func)) " + "".join(
        f"(type $t{n} (func (param (ref $t{n - 1}) (ref $t{n - 1})))) " for n in range(1, 2000)
    )
    assert fits('(func (export "b") (type $t1999))', "(func (type $t1999))", chain)


def test_a_line_of_supertypes_has_an_end() -> None:
    """As engines have it, 63 types may be above one; so no comparison takes long, whatever a module declares."""

    def line(length: int) -> tuple[DefinedType, ...]:
        body = b"\x60\x00\x00"
        entries = [b"\x50\x00" + body, *(b"\x50\x01" + unsigned(n) + body for n in range(length))]
        return defined_types(parse_module(b"\0asm\1\0\0\0" + section(1, vector(entries)), "m"))

    types = line(63)
    assert types[-1].matches(types[0])
    assert not types[0].matches(types[-1])
    with pytest.raises(dl.MalformedModuleError, match="more than 63"):
        line(64)


def test_what_the_host_makes_is_of_the_type_that_modules_declare() -> None:
    """A function of the host has the type of a module's function with that signature, and no other."""
    module = parsed(
        '(func (export "f") (param i32 externref) (result f64) f64.const 0) (tag (export "t") (param i32))'
    )
    kind = FuncType(("i32", "externref"), ("f64",))
    assert LinkType.of_host(kind).fits(export_type(module, module.exports["f"]))
    assert not LinkType.of_host(FuncType(("i32",), ())).fits(export_type(module, module.exports["f"]))
    assert LinkType.of_host(TagType(FuncType(("i32",), ()))).fits(export_type(module, module.exports["t"]))
    assert not LinkType.of_host(GlobalType("i32", mutable=True)).fits(
        LinkType.of_host(GlobalType("i32", mutable=False))
    )


def test_signatures_for_the_host_have_no_indices() -> None:
    """Each reference is named by the top of its hierarchy."""
    module = parsed(
        TYPES + '(import "a" "b" (func (param (ref null $s) (ref $t) i32 (ref null extern) (ref i31))))'
    )
    assert import_types(module)[0].plain().params == ("anyref", "funcref", "i32", "externref", "anyref")


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        (b"\x01\x50\x01\x00\x60\x00\x00", "not declared before"),  # type 0 is its own supertype
        (
            b"\x01\x4e\x02\x50\x01\x01\x60\x00\x00\x50\x00\x60\x00\x00",
            "not declared before",
        ),  # the next of its group
        (b"\x01\x50\x01\x07\x60\x00\x00", "not declared before"),
        (b"\x01\x60\x01\x64\x09\x00", "out of range"),
        (b"\x01\x5d\x09", "out of range"),
        (b"\x03\x60\x00\x00\x50\x00\x60\x00\x00\x50\x02\x00\x01\x60\x00\x00", "2 supertypes"),
    ],
)
def test_types_that_refer_to_nothing_are_malformed(contents: bytes, reason: str) -> None:
    """A type index that is out of range, or a supertype that comes later, is an error and never a Python exception."""
    wasm = b"\0asm\1\0\0\0" + section(1, contents)
    with pytest.raises(dl.MalformedModuleError, match=reason):
        defined_types(parse_module(wasm, "m"))
