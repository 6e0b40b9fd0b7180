"""Types of what is imported and defined: numbers, tags, memories, tables, bases."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import dl
from tests.support.engines import need_code
from tests.support.modules import (
    MEMORY,
    MEMORY_BASE,
    TABLE,
    TABLE_BASE,
    data,
    got,
    imports,
    library,
    linker,
    module,
    pie,
    reads,
    returns,
)


class TestNumbers:
    def test_of_every_type(self) -> None:
        """Numbers of the host become globals of the type that the import asks for."""
        values = {"a": -1, "b": 1 << 40, "c": 1.5, "d": 1e300, "e": 0xFFFFFFFF, "f": 3}
        kinds = {"a": "i32", "b": "i64", "c": "f32", "d": "f64", "e": "(mut i32)", "f": "f64"}
        fields = [f'(import "cfg" "{n}" (global ${n} {k}))' for n, k in kinds.items()]
        fields += [
            f'(func (export "{n}") (result {k.strip("()").split()[-1]}) global.get ${n})'
            for n, k in kinds.items()
        ]
        with linker({"lib.so": library(*fields)}, imports={"cfg": values}) as program:
            group = program.main_group
            handle = group.dlopen("lib.so")

            assert [group.dlsym(handle, n)() for n in "abcdef"] == [-1, 1 << 40, 1.5, 1e300, -1, 3.0]

    def test_zeros_and_what_is_no_number(self) -> None:
        """Negative zero stays negative, whatever was linked before, and NaN passes."""
        lib = library('(import "cfg" "n" (global $n f64))', '(func (export "n") (result f64) global.get $n)')
        results = []
        for value in (0.0, -0.0, float("nan"), 0):
            with linker({"lib.so": lib}, imports={"cfg": {"n": value}}) as program:
                group = program.main_group
                results.append(str(group.dlsym(group.dlopen("lib.so"), "n")()))

        assert results == ["0.0", "-0.0", "nan", "0.0"]

    def test_as_data_addresses(self) -> None:
        """A number under GOT.mem, or under env, is the address of a variable that no module defines."""
        lib = library(
            got("x", "mem"), got("y", "mem"), reads("x_at", "got_mem_x"), reads("y_at", "got_mem_y")
        )
        with linker({"lib.so": lib}, imports={"GOT.mem": {"x": 64}, "env": {"y": 128}}) as program:
            group = program.main_group
            handle = group.dlopen("lib.so")

            assert (group.dlsym(handle, "x_at")(), group.dlsym(handle, "y_at")()) == (64, 128)

    @pytest.mark.parametrize(
        ("kind", "value"),
        [
            ("i32", 1 << 32),
            ("i32", -(1 << 31) - 1),
            ("i64", 1 << 64),
            ("i32", 1.5),
            ("i64", float("nan")),
            ("f32", 1 << 2000),
            ("v128", 1),
            ("funcref", 1),
        ],
    )
    def test_that_do_not_fit(self, kind: str, value: float) -> None:
        """A number that the global's type cannot hold is a type error that names the import."""
        lib = library(f'(import "cfg" "n" (global $n {kind}))')
        with linker({"lib.so": lib}, imports={"cfg": {"n": value}}) as program:
            with pytest.raises(dl.ImportTypeError, match=r"cfg\.n"):
                program.main_group.dlopen("lib.so")

    def test_a_large_float_becomes_infinite(self) -> None:
        """A double too large for single precision becomes an infinity, as a C conversion makes it."""
        lib = library('(import "cfg" "n" (global $n f32))', '(func (export "n") (result f32) global.get $n)')
        with linker({"lib.so": lib}, imports={"cfg": {"n": -1e300}}) as program:
            group = program.main_group

            assert group.dlsym(group.dlopen("lib.so"), "n")() == float("-inf")

    def test_where_a_function_is_asked_for(self) -> None:
        """A number for a function import, and a function for a global, are type errors."""
        with linker({"lib.so": library(imports("f"))}, imports={"env": {"f": 3}}) as program:
            with pytest.raises(dl.ImportTypeError, match="the number 3"):
                program.main_group.dlopen("lib.so")
        lib = library('(import "env" "f" (global i32))')
        with linker({"lib.so": lib}, imports={"env": {"f": lambda: 1}}) as program:
            with pytest.raises(dl.ImportTypeError, match="a function"):
                program.main_group.dlopen("lib.so")


class TestTags:
    THROW = '(func (export "throw") (param i32) local.get 0 throw $t)'
    CATCH = (
        '(func (export "catch") (param i32) (result i32)'
        " (block $caught (result i32) (try_table (catch $t $caught) local.get 0 call $throw) i32.const -1))"
    )

    @pytest.mark.parametrize("tag", ["__cpp_exception", "__c_longjmp"])
    def test_the_common_tags_are_the_linkers(self, tag: str) -> None:
        """An exception of C++ or longjmp thrown in one library is caught in another: both have one tag."""
        imported = f'(import "env" "{tag}" (tag $t (param i32)))'
        libs = {
            "thrower.so": library(imported, self.THROW),
            "catcher.so": library(
                imported, imports("throw", "(param i32)"), self.CATCH, needed=["thrower.so"]
            ),
        }
        with linker(libs) as program:
            group = program.main_group

            assert group.dlsym(group.dlopen("catcher.so"), "catch")(42) == 42

    def test_a_tag_of_a_library(self) -> None:
        """A tag that a library defines is shared with those that need it."""
        libs = {
            "thrower.so": library('(tag $t (export "mine") (param i32))', self.THROW),
            "catcher.so": library(
                '(import "env" "mine" (tag $t (param i32)))',
                imports("throw", "(param i32)"),
                self.CATCH,
                needed=["thrower.so"],
            ),
        }
        with linker(libs) as program:
            group = program.main_group

            assert group.dlsym(group.dlopen("catcher.so"), "catch")(7) == 7

    def test_the_main_modules_own_tag_is_everyones(self) -> None:
        """A main module that defines the C++ tag itself shares it with libraries."""
        main = pie('(tag $t (export "__cpp_exception") (param i32))', self.THROW)
        lib = library(
            '(import "env" "__cpp_exception" (tag $t (param i32)))',
            imports("throw", "(param i32)"),
            self.CATCH,
        )
        with dl.Linker(main, libraries={"lib.so": lib}) as program:
            group = program.main_group

            assert group.dlsym(group.dlopen("lib.so"), "catch")(5) == 5

    def test_of_another_type(self) -> None:
        """A tag with other parameters is a type error."""
        libs = {
            "a.so": library('(tag (export "t") (param i64))'),
            "b.so": library('(import "env" "t" (tag (param i32)))', needed=["a.so"]),
        }
        with linker(libs) as program:
            with pytest.raises(dl.ImportTypeError, match=r"a\.so defines it as tag \(i64\)"):
                program.main_group.dlopen("b.so")


class TestTypes:
    @pytest.mark.parametrize(
        ("wanted", "defined", "expected"),
        [
            (imports("x", "(param i32)"), returns("x", 1), r"\(i32\) -> \(\).*\(\) -> i32"),
            (imports("x"), data("x", 0), "data"),
            (got("x", "mem"), returns("x", 1), r"GOT\.mem\.x.*a function"),
            (got("x", "func"), data("x", 0), r"GOT\.func\.x.*data"),
            ('(import "env" "x" (global (mut i32)))', '(global (export "x") (mut i64) (i64.const 0))', r"i32\).*\(mut i64"),
            ('(import "env" "x" (global f32))', '(global (export "x") (mut f32) (f32.const 0))', "f32"),
            ('(import "env" "x" (global (mut i32)))', returns("x", 1), "a function"),
        ],
    )  # fmt: skip
    def test_mismatch(self, wanted: str, defined: str, expected: str) -> None:
        """A definition of another type or kind is reported with both types and both modules."""
        libs = {
            "def.so": library(MEMORY, defined, memory_size=8),
            "user.so": library(wanted, needed=["def.so"]),
        }
        with linker(libs) as program:
            with pytest.raises(dl.ImportTypeError, match=expected) as caught:
                program.main_group.dlopen("user.so")
            assert caught.value.module == "user.so"
            assert caught.value.provider == "def.so"
            assert [m.name for m in program.modules] == []

    def test_host_function_of_another_signature(self) -> None:
        """dl.HostFunction states a signature, which an import must have exactly."""
        typed = dl.HostFunction(lambda: 1, (), ("i64",))
        with linker({"lib.so": library(imports("f"))}, imports={"env": {"f": typed}}) as program:
            with pytest.raises(
                dl.ImportTypeError, match=r"\(\) -> i32, but the host defines it as \(\) -> i64"
            ):
                program.main_group.dlopen("lib.so")

    def test_system_function_of_another_signature(self) -> None:
        """An import of WASI with another signature than WASI's is a type error."""
        lib = library('(import "wasi_snapshot_preview1" "fd_close" (func (param i64) (result i32)))')
        with linker({"lib.so": lib}) as program:
            with pytest.raises(dl.ImportTypeError, match="fd_close"):
                program.main_group.dlopen("lib.so")

    @pytest.mark.parametrize(
        ("field", "options", "expected"),
        [
            ('(import "env" "memory" (memory 0 65536 shared))', {}, "shared"),
            (MEMORY, {"memory": dl.MemoryType(shared=True)}, "shared"),
            ('(import "env" "memory" (memory 0 20))', {}, "memory 0 20"),
            ('(import "env" "memory" (memory i64 0))', {}, "a 64-bit memory: libraries and main modules"),
        ],
    )
    def test_memory(self, field: str, options: dict[str, dl.MemoryType], expected: str) -> None:
        """A memory import must agree on sharing and width, and must not promise a smaller maximum."""
        with linker({"lib.so": library(field)}, **options) as program:
            with pytest.raises((dl.ImportTypeError, dl.UnsupportedModuleError), match=expected):
                program.main_group.dlopen("lib.so")

    def test_memory_within_the_maximum(self) -> None:
        """A memory import with a maximum fits a program whose memory has no larger one."""
        lib = library('(import "env" "memory" (memory 0 100))', returns("f", 1))
        with linker({"lib.so": lib}, memory=dl.MemoryType(maximum=100)) as program:
            group = program.main_group

            assert group.dlsym(group.dlopen("lib.so"), "f")() == 1

    @pytest.mark.parametrize(
        "field",
        [
            '(import "env" "__indirect_function_table" (table 0 100 funcref))',
            '(import "env" "__indirect_function_table" (table 0 externref))',
            '(import "env" "__stack_pointer" (global i32))',
            '(import "env" "__stack_pointer" (global (mut i64)))',
            '(import "env" "__memory_base" (global f32))',
            '(import "GOT.mem" "x" (global (mut f64)))',
        ],
    )
    def test_the_linkers_own(self, field: str) -> None:
        """Table, stack pointer, bases and GOT entries of an impossible type are refused by name."""
        with linker({"lib.so": library(field)}) as program:
            with pytest.raises((dl.ImportTypeError, dl.UnsupportedModuleError), match=r"env\.__|GOT\.mem"):
                program.main_group.dlopen("lib.so")
            assert program.modules == ()


class TestBases:
    def test_libraries_without_data_or_elements(self) -> None:
        """A library of size 0 gets bases 0; one with data gets what it asked for."""
        bases = [MEMORY_BASE, TABLE_BASE, reads("mb", "memory_base"), reads("tb", "table_base")]
        libs = {
            "none.so": library(*bases),
            "some.so": library(
                MEMORY, TABLE, *bases, memory_size=5, memory_align=12, table_size=3, table_align=4
            ),
        }
        with linker(libs) as program:
            group = program.main_group
            none, some = group.dlopen("none.so"), group.dlopen("some.so")

            assert (group.dlsym(none, "mb")(), group.dlsym(none, "tb")()) == (0, 0)
            assert group.dlsym(some, "mb")() % 4096 == 0 < group.dlsym(some, "mb")()
            assert group.dlsym(some, "tb")() % 16 == 0 < group.dlsym(some, "tb")()

    def test_absolute_data(self) -> None:
        """An exported constant that is flagged absolute is not moved with the module."""
        lib = library(MEMORY, data("fixed", 99), data("moved", 4), memory_size=8, flags={"fixed": 0x200})
        with linker({"lib.so": lib}) as program:
            group = program.main_group
            handle = group.dlopen("lib.so")

            assert group.dlsym(handle, "fixed").address == 99
            assert group.dlsym(handle, "moved").address > 1024

    def test_a_library_that_was_not_linked_as_one(self) -> None:
        """A module without a dylink section is not a library, and the error says how to make one."""
        with linker({"lib.so": module(returns("f", 1))}) as program:
            with pytest.raises(dl.NotDynamicError, match="-shared"):
                program.main_group.dlopen("lib.so")


TYPED = "(module (func (param (ref func))))"
"""What an engine without typed references refuses."""


class TestReferences:
    MAKER = library(
        "(type $a (func (param i32)))",
        "(func $f (type $a)) (elem declare func $f)",
        '(global (export "one") (ref $a) (ref.func $f))',
        '(global (export "any") (mut funcref) (ref.null func))',
        '(func (export "takes") (param funcref))',
    )

    def test_a_constant_may_be_of_a_subtype(self) -> None:
        """A constant reference to one function fits an import of any function; a variable must be of the same type."""
        need_code(TYPED)
        fits = library(
            '(import "env" "one" (global (ref null func)))',
            '(import "env" "takes" (func (param funcref)))',
            needed=("maker.so",),
        )
        wide = library('(import "env" "any" (global (mut externref)))', needed=("maker.so",))
        with linker({"maker.so": self.MAKER, "fits.so": fits, "wide.so": wide}) as one:
            one.main_group.dlopen("fits.so")
            with pytest.raises(dl.ImportTypeError, match="any"):
                one.main_group.dlopen("wide.so")

    def test_what_refers_to_types_of_a_library(self) -> None:
        """An import whose type refers to a type of its module by number is refused by name."""
        need_code(TYPED)
        typed = library(
            "(type $a (func (param i32)))",
            '(import "env" "one" (global (ref null $a)))',
            needed=("maker.so",),
        )
        with (
            linker({"maker.so": self.MAKER, "typed.so": typed}) as one,
            pytest.raises(dl.UnsupportedModuleError, match=r"env\.one"),
        ):
            one.main_group.dlopen("typed.so")


def test_a_constant_of_a_subtype_serves_an_import() -> None:
    """Libraries' globals are matched by the specification's rules too: a reference that is not null serves one that may be."""
    need_code(TYPED)
    modules = {
        "a.so": library(MEMORY, '(func $f (export "f"))', '(global (export "g") (ref func) (ref.func $f))'),
    }
    user = (
        '(import "env" "g" (global {0}))',
        '(func (export "null") (result i32) (ref.is_null (global.get 0)))',
    )
    with linker(modules) as made:
        group = made.main_group
        group.dlopen("a.so", dl.DlFlags.NOW | dl.DlFlags.GLOBAL)
        fits = group.dlopen(library(MEMORY, *(field.format("funcref") for field in user)))
        assert group.dlsym(fits, "null")() == 0
        with pytest.raises(dl.ImportTypeError):
            group.dlopen(library(MEMORY, *(field.format("externref") for field in user)))


SIGNATURES = [
    ((), ("i32",)),
    (("i32",), ("i32",)),
    (("i64",), ("i32",)),
    (("i32",), ()),
    (("f32", "v128"), ("f64",)),
]


class TestHost:
    @pytest.mark.parametrize("have", SIGNATURES)
    def test_libraries_and_instances_take_the_same(
        self, have: tuple[tuple[str, ...], tuple[str, ...]]
    ) -> None:
        """A function of the host's fits an import of a library exactly if it fits an instance's: one type of these."""
        function = dl.HostFunction(lambda *_: 1, *have)

        def takes(load: Callable[[bytes], object], source: bytes) -> bool:
            try:
                load(source)
            except dl.ImportTypeError:
                return False
            return True

        for want in SIGNATURES:
            wanted = imports("f", f"(param {' '.join(want[0])}) (result {' '.join(want[1])})")
            with dl.Linker(None, cache=False, imports={"env": {"f": function}}) as program:
                taken = [
                    takes(program.main_group.dlopen, library(wanted)),
                    takes(program.instantiate, module(wanted)),
                    takes(lambda source: program.instantiate(source, [function]), module(wanted)),
                ]
            assert taken == [have == want] * 3

    def test_the_stack_pointer(self) -> None:
        """It fits an import of its own type only."""
        with dl.Linker(None, cache=False) as program:
            for kind in ("i32", "(mut i64)", "(mut f32)"):
                pointer = f'(import "env" "__stack_pointer" (global {kind}))'
                with pytest.raises(dl.ImportTypeError, match="mutable i32"):
                    program.main_group.dlopen(library(pointer))
            program.main_group.dlopen(library('(import "env" "__stack_pointer" (global (mut i32)))'))
