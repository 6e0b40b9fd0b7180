"""Reading modules: what a good one says, and that a bad one is always a DlError with its byte."""

from __future__ import annotations

import tracemalloc

import pytest
import wasmtime
from hypothesis import given, settings
from hypothesis import strategies as st

import dl
from dl.errors import DlError, MalformedModuleError, UnsupportedModuleError
from dl.wasm.module import parse_module
from dl.wasm.records import ElementSegment, Global
from dl.wasm.types import FuncType, GlobalType, Limits, MemoryType, TableType, TagType

HEADER = b"\0asm\x01\0\0\0"

EVERYTHING = """
(module $library
  (type $binary (func (param i32 i64) (result f32)))
  (type $void (func))
  (import "env" "memory" (memory 2 16 shared))
  (import "env" "__indirect_function_table" (table 3 funcref))
  (import "env" "call" (func $call (type $binary)))
  (import "env" "__memory_base" (global $base i32))
  (import "GOT.mem" "errno" (global $errno (mut i32)))
  (import "env" "__cpp_exception" (tag $cpp (param i32)))
  (import "env" "void" (func $imported_void))
  (table $own 2 4 externref)
  (global $counter (mut i64) (i64.const -5))
  (global $address i32 (i32.add (global.get $base) (i32.const 1024)))
  (global $fraction f64 (f64.const 1.5))
  (global $function (ref null $void) (ref.func $run))
  (tag $own_tag (param i64 f32))
  (func $run (export "run"))
  (func $more (export "more") (param v128 funcref externref) (result i32 i32) unreachable)
  (export "memory" (memory 0))
  (export "counter" (global $counter))
  (export "own" (table $own))
  (export "own_tag" (tag $own_tag))
  (export "imported" (func $call))
  (start $run)
  (elem (table 0) (global.get $base) func $run $call)
  (elem $passive funcref (ref.func $more) (ref.null func))
  (elem declare func $more)
  (data (i32.const 0) "abc")
  (data $later "def"))
"""


@pytest.fixture(name="everything", scope="module")
def _everything() -> bytes:
    return bytes(wasmtime.wat2wasm(EVERYTHING))


def section(number: int, payload: bytes) -> bytes:
    """Encode a section of fewer than 16384 bytes."""
    size = len(payload)
    return bytes([number, size & 0x7F | 0x80, size >> 7]) + payload


def module_of(*sections: tuple[int, bytes]) -> bytes:
    return HEADER + b"".join(section(number, payload) for number, payload in sections)


def parse_error(data: bytes) -> dl.MalformedModuleError:
    """Parse what must be malformed, and give the error."""
    with pytest.raises(MalformedModuleError) as caught:
        parse_module(data, "bad.wasm")
    return caught.value


class TestModule:
    def test_imports_have_their_types_and_indices(self, everything: bytes) -> None:
        """Imports come in file order, each with its type and its index among its kind."""
        found = [(i.module, i.name, i.kind, i.index, i.type) for i in parse_module(everything, "m").imports]

        assert found == [
            ("env", "memory", "memory", 0, MemoryType(Limits(2, 16, shared=True, is64=False))),
            (
                "env",
                "__indirect_function_table",
                "table",
                0,
                TableType("funcref", Limits(3, None, shared=False, is64=False)),
            ),
            ("env", "call", "func", 0, FuncType(("i32", "i64"), ("f32",))),
            ("env", "__memory_base", "global", 0, GlobalType("i32", mutable=False)),
            ("GOT.mem", "errno", "global", 1, GlobalType("i32", mutable=True)),
            ("env", "__cpp_exception", "tag", 0, TagType(FuncType(("i32",), ()))),
            ("env", "void", "func", 1, FuncType((), ())),
        ]

    def test_exports_have_their_types_and_indices(self, everything: bytes) -> None:
        """Exports come in file order, and their indices count the imports."""
        found = [
            (e.name, e.kind, e.index, str(e.type)) for e in parse_module(everything, "m").exports.values()
        ]

        assert found == [
            ("run", "func", 2, "() -> ()"),
            ("more", "func", 3, "(v128, funcref, externref) -> (i32, i32)"),
            ("memory", "memory", 0, "memory 2 16 shared"),
            ("counter", "global", 2, "global (mut i64)"),
            ("own", "table", 1, "table 2 4 externref"),
            ("own_tag", "tag", 1, "tag (i64, f32)"),
            ("imported", "func", 0, "(i32, i64) -> f32"),
        ]

    def test_everything_else_is_there(self, everything: bytes) -> None:
        """Globals, segments, start function, counts, names and the code's place are read."""
        module = parse_module(everything, "m")

        assert module.import_counts == {"func": 2, "table": 1, "memory": 1, "global": 2, "tag": 1}
        assert module.start == 2
        assert module.data_segments == 2
        assert module.module_name == "library"
        assert module.dylink is None
        assert module.func_type(3).results == ("i32", "i32")
        assert module.globals[0] == Global(GlobalType("i32", mutable=False), None)
        assert module.globals[2:] == (
            Global(GlobalType("i64", mutable=True), (("i64.const", -5),)),
            Global(
                GlobalType("i32", mutable=False), (("global.get", 0), ("i32.const", 1024), ("i32.add", 0))
            ),
            Global(GlobalType("f64", mutable=False), (("f64.const", 0x3FF8_0000_0000_0000),)),
            Global(GlobalType("(ref null 1)", mutable=False), (("ref.func", 2),)),
        )
        assert module.elements == (
            ElementSegment("active", 0, (("global.get", 0),), (2, 0)),
            ElementSegment("passive", 0, None, (3, None)),
            ElementSegment("declarative", 0, None, (3,)),
        )
        assert everything[module.code_start] == 2
        code = module.section(10)
        assert (code.payload_start, code.end) == (module.code_start, module.code_end)
        assert [everything[s.start] for s in module.sections] == [s.id for s in module.sections]

    def test_agrees_with_the_engine(self, everything: bytes) -> None:
        """The engine sees the same names in the same order."""
        config = wasmtime.Config()
        config.wasm_threads = config.wasm_exceptions = config.shared_memory = True
        config.wasm_function_references = True
        theirs = wasmtime.Module(wasmtime.Engine(config), everything)
        ours = parse_module(everything, "m")

        assert [(i.module, i.name) for i in theirs.imports] == [(i.module, i.name) for i in ours.imports]
        assert [e.name for e in theirs.exports] == list(ours.exports)

    def test_empty_module_parses(self) -> None:
        """Eight bytes of header are a module without anything."""
        module = parse_module(HEADER, "m")

        assert (module.imports, module.exports, module.sections, module.code_end) == ((), {}, (), 0)

    def test_long_lists_of_exports_and_globals(self) -> None:
        """Indices and constants of every encoded length come out right."""
        values = [0, 63, 64, -1, -64, -65, 8191, 8192, -8193, 1 << 20, (1 << 20) - 1, -(1 << 20) - 1, 1 << 27]
        values += [2**31 - 1, -(2**31), *range(-300, 40_000, 97)]
        text = "".join(f'(global (export "g{n}") i32 (i32.const {v}))' for n, v in enumerate(values))
        functions = "".join(f'(func (export "f{n}"))' for n in range(17_000))
        module = parse_module(bytes(wasmtime.wat2wasm(f"(module {functions} {text})")), "m")

        assert [g.init for g in module.globals] == [(("i32.const", v),) for v in values]
        assert [module.exports[f"f{n}"].index for n in range(17_000)] == list(range(17_000))

    def test_long_element_segments(self) -> None:
        """Function indices of one, two and three bytes come out in order."""
        functions = "(func)" * 17_000
        every = " ".join(str(n) for n in range(17_000))
        text = f"(module {functions} (table 17000 funcref) (elem (i32.const 0) func {every}))"
        module = parse_module(bytes(wasmtime.wat2wasm(text)), "m")

        assert module.elements[0].functions == tuple(range(17_000))

    def test_types_of_the_gc_proposal(self) -> None:
        """Recursion groups count as the types they hold; those that are not function types are None."""
        text = """(module
          (rec (type $node (struct (field (mut i8)) (field (ref null $node))))
               (type $visit (func (param (ref $node) anyref) (result (ref null func)))))
          (type $list (array (mut i64)))
          (type $open (sub (func (result i31ref))))
          (func (export "visit") (type $visit) unreachable))"""
        module = parse_module(bytes(wasmtime.wat2wasm(text)), "m")

        visit = FuncType(("(ref 0)", "anyref"), ("funcref",))
        assert module.types == (None, visit, None, FuncType((), ("i31ref",)))

    def test_64_bit_memories_and_tables(self) -> None:
        """64-bit limits are read, beyond what 32 bits hold."""
        module = parse_module(
            bytes(wasmtime.wat2wasm("(module (memory i64 70000 80000) (table i64 5 funcref))")), "m"
        )

        assert module.memories == (MemoryType(Limits(70_000, 80_000, shared=False, is64=True)),)
        assert module.tables == (TableType("funcref", Limits(5, None, shared=False, is64=True)),)

    def test_padded_integers_are_accepted(self) -> None:
        """An integer padded to five bytes, as linkers write for later patching, is read."""
        data = module_of(
            (1, b"\x01\x60\x00\x00"),
            (3, b"\x81\x80\x80\x80\x00\x80\x80\x80\x80\x00"),
            (10, b"\x01\x02\x00\x0b"),
        )

        assert parse_module(data, "m").functions == (FuncType((), ()),)

    def test_compact_imports(self) -> None:
        """Both groups of the compact import encoding read like the imports they stand for."""
        one_type = b"\x03env\x00\x7e\x00\x00\x02\x01a\x01b"
        typed = b"\x07GOT.mem\x00\x7f\x02\x01c\x03\x7f\x01\x01d\x00\x00"
        module = parse_module(module_of((1, b"\x01\x60\x00\x00"), (2, b"\x02" + one_type + typed)), "m")

        assert [(i.module, i.name, i.kind, i.index) for i in module.imports] == [
            ("env", "a", "func", 0),
            ("env", "b", "func", 1),
            ("GOT.mem", "c", "global", 0),
            ("GOT.mem", "d", "func", 2),
        ]

    def test_big_code_and_data_are_not_copied(self) -> None:
        """Parsing a module with 8 MB of code and data takes no memory of that order."""
        big = b"\x00" + b"\x01" * (4 << 20) + b"\x0b"
        size = bytes(len(big) >> shift & 0x7F | (0x80 if shift < 21 else 0) for shift in (0, 7, 14, 21))
        code = b"\x01" + size + big

        def wide(number: int, payload: bytes) -> bytes:
            length = len(payload)
            return (
                bytes([number, *(length >> s & 0x7F | (0x80 if s < 21 else 0) for s in (0, 7, 14, 21))])
                + payload
            )

        data = (
            module_of((1, b"\x01\x60\x00\x00"), (3, b"\x01\x00")) + wide(10, code) + wide(0, b"\x01x" + big)
        )
        tracemalloc.start()
        try:
            parse_module(data, "m")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

        assert peak < 100_000


class TestNotAModule:
    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"", "the file is empty"),
            (b"\x7fELF\x02\x01\x01", "not a WebAssembly module: it is an ELF file, native code"),
            (b"(module (func))", "not a WebAssembly module: it is WebAssembly text; assemble it first"),
            (b"  ;; hello\n(module)", "not a WebAssembly module: it is WebAssembly text; assemble it first"),
            (b"hello, world\n", "not a WebAssembly module: it is a text file"),
            (b"#!/bin/sh\n", "not a WebAssembly module: it is a script"),
            (
                b"!<arch>\n",
                "not a WebAssembly module: it is an archive of object files; link a shared library from it",
            ),
            (b"\x1f\x8b\x08", "not a WebAssembly module: it is compressed with gzip; unpack it"),
            (b"\xff\xfe\xfd\xfc\xfb", "not a WebAssembly module: it begins with the bytes ff fe fd fc"),
        ],
    )
    def test_says_what_it_looks_like(self, data: bytes, reason: str) -> None:
        """A file of another kind is refused by what it is."""
        error = parse_error(data)

        assert (error.module, error.offset, error.reason) == ("bad.wasm", 0, reason)
        assert str(error) == f"bad.wasm: malformed at byte 0x0: {reason}"

    @pytest.mark.parametrize("size", range(1, 8))
    def test_cut_header(self, size: int) -> None:
        """A header that is cut off says after how many bytes."""
        assert parse_error(HEADER[:size]).reason == f"the header ends after {size} of its 8 bytes"

    def test_component(self) -> None:
        """A component is valid WebAssembly, but not linkable."""
        with pytest.raises(
            UnsupportedModuleError, match=r"^c\.wasm: not supported: it is a WebAssembly component"
        ):
            parse_module(b"\0asm\x0d\0\x01\0", "c.wasm")

    def test_other_version(self) -> None:
        """A future version is not guessed at."""
        with pytest.raises(UnsupportedModuleError, match="binary format version 2; only version 1 is known"):
            parse_module(b"\0asm\x02\0\0\0", "c.wasm")


VOID = (1, b"\x01\x60\x00\x00")
ONE_FUNCTION = (3, b"\x01\x00")
ONE_BODY = (10, b"\x01\x02\x00\x0b")


class TestMalformed:
    @pytest.mark.parametrize(
        ("data", "offset", "reason"),
        [
            (HEADER + b"\x01\x7f", 8, "the type section of 127 bytes does not fit in the 0 that are left"),
            (HEADER + b"\x0e\x00", 8, "section of unknown kind 0x0e"),
            (HEADER + b"\x01", 9, "ends inside a section's length"),
            (HEADER + b"\x01\x80\x80\x80\x80\x10", 9, "a section's length does not fit into 32 bits"),
            (HEADER + b"\x01\x80\x80\x80\x80\x80\x00", 9, "a section's length takes more than 5 bytes"),
            (module_of(VOID, VOID), 15, "a second type section"),
            (module_of((3, b"\0"), (1, b"\0")), 12, "the type section stands behind the function section"),
            (module_of((0, b"\x02\xff\xff")), 12, "a custom section's name is not valid UTF-8"),
            (
                module_of((0, b"\x05ab")),
                11,
                "a custom section's name of 5 bytes does not fit in the 2 that are left",
            ),
            (module_of((1, b"\x01\x61\x00")), 12, "a type begins with 0x61"),
            (module_of((1, b"\x01\x60\x01\x42\x00")), 14, "a function type has no type of code 0x42"),
            (module_of((1, b"\x00\x00")), 12, "1 bytes left over in the type section"),
            (module_of((2, b"\x01\x00\x00\x00\x00")), 15, "type 0 is out of range: there are 0"),
            (module_of((2, b"\x01\x00\x00\x09\x00")), 14, "an import has no kind of code 0x09"),
            (module_of((2, b"\x01\x00\x00\x03\x7f\x07")), 16, "a global's mutability is 0x07, not 0 or 1"),
            (module_of((2, b"\x01\x00\x00\x01\x7f\x00")), 15, "a table has no reference type of code 0x7f"),
            (
                module_of((2, b"\x01\x00\x00\x02\x03\x05\x04")),
                16,
                "the maximum of a memory, 4, is not between its minimum 5 and 65536",
            ),
            (module_of((2, b"\x01\x00\x00\x02\x02\x05")), 15, "a memory is shared but has no maximum"),
            (
                module_of((2, b"\x01\x00\x00\x02\x00\x81\x80\x04")),
                16,
                "a memory of 65537 is larger than any can be (65536)",
            ),
            (
                module_of((2, b"\x01\x00\x00\x02\x40\x00")),
                15,
                "the limits of a memory have unknown flags 0x40",
            ),
            (module_of((3, b"\x01\x00"), ONE_BODY), 11, "type 0 is out of range: there are 0"),
            (
                module_of((1, b"\x01\x5f\x00"), (3, b"\x01\x00"), ONE_BODY),
                17,
                "type 0 is not a function type",
            ),
            (module_of(VOID, ONE_FUNCTION), 20, "0 function bodies for 1 functions"),
            (module_of((13, b"\x01\x01\x00")), 12, "a tag's attribute is 0x01, not 0"),
            (module_of((6, b"\x01\x7f\x00\x6e\x0b")), 14, "instruction 0x6e in a constant expression"),
            (module_of((6, b"\x01\x7f\x00\x41\x05")), 16, "ends inside a constant expression"),
            (module_of((7, b"\x01\x01a\x00\x00")), 12, "export 'a': func 0 is out of range: there are 0"),
            (module_of((7, b"\x01\x01a\x07\x00")), 12, "export 'a' has no kind of code 0x07"),
            (
                module_of((5, b"\x01\x00\x01"), (7, b"\x02\x01a\x02\x00\x01a\x02\x00")),
                22,
                "export 'a' appears twice",
            ),
            (module_of((7, b"\x01\x01\xff\x00\x00")), 13, "an export's name is not valid UTF-8"),
            (module_of((8, b"\x03")), 11, "start function 3 is out of range: there are 0"),
            (module_of((9, b"\x01\x00\x41\x00\x0b\x00")), 12, "table 0 is out of range: there are 0"),
            (module_of((9, b"\x01\x01\x00\x01\x05")), 12, "function 5 is out of range: there are 0"),
            (module_of((9, b"\x01\x01\x05\x00")), 13, "an element segment has unknown kind 0x05"),
            (module_of((9, b"\x01\x08\x05\x00")), 12, "an element segment has unknown flags 0x8"),
            (module_of((12, b"\x02"), (11, b"\x00")), 11, "2 data segments announced, but there are 0"),
        ],
    )
    def test_names_the_byte_and_the_reason(self, data: bytes, offset: int, reason: str) -> None:
        """Each kind of damage is refused with its offset in the file and what is wrong there."""
        error = parse_error(data)

        assert (error.offset, error.reason) == (offset, reason)

    @pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 13])
    def test_count_beyond_the_section_takes_no_memory(self, number: int) -> None:
        """A vector that claims four billion items is refused before anything is allocated."""
        data = module_of((number, b"\xff\xff\xff\xff\x0f"))
        tracemalloc.start()
        try:
            error = parse_error(data)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

        assert error.offset == 11
        assert "cannot fit in the 0 bytes that are left" in error.reason
        assert peak < 1_000_000

    @pytest.mark.parametrize(
        ("data", "what"),
        [
            (module_of((2, b"\x01\x00\x00\x20\x00")), "an import of one exact function type"),
            (module_of((5, b"\x01\x08\x01\x00")), "a memory with a page size of its own"),
            (module_of((4, b"\x01\x70\x03\x01\x02")), "a shared table"),
            (module_of((2, b"\x01\x00\x00\x03\x7f\x02")), "a shared global"),
            (module_of((1, b"\x01\x65\x60\x00\x00")), "a shared or described type"),
        ],
    )
    def test_features_that_cannot_be_linked(self, data: bytes, what: str) -> None:
        """A feature beyond what the linker handles is refused by its name, not as damage."""
        with pytest.raises(UnsupportedModuleError) as caught:
            parse_module(data, "new.wasm")

        assert caught.value.reason.startswith(what)

    def test_endless_constant_expression(self) -> None:
        """A file that is one long constant expression does not become a million objects."""
        data = module_of((6, b"\x01\x7f\x00" + b"\x6a" * 10_001))
        error = parse_error(data)

        assert (error.offset, error.reason) == (14, "a constant expression of more than 10000 instructions")

    def test_too_many_sections(self) -> None:
        """A file of nothing but tiny sections does not become a million objects."""
        assert "more than 10000 sections" in parse_error(HEADER + b"\0\x01\0" * 10_001).reason


class TestAnyBytes:
    def test_cut_anywhere(self, everything: bytes) -> None:
        """A module cut at any byte is a DlError, or a module if the cut is between sections."""
        whole = parse_module(everything, "m")
        # Behind the function section a cut leaves functions without bodies, up to the end of the code section.
        function = whole.section(3)
        good = {8} | {s.end for s in whole.sections if s.end <= function.start or s.end >= whole.code_end}
        for size in range(len(everything)):
            if size in good:
                continue
            with pytest.raises(DlError):
                parse_module(everything[:size], "m")

    @settings(max_examples=400, derandomize=True)
    @given(st.binary(max_size=200))
    def test_random_sections(self, data: bytes) -> None:
        """Random bytes behind a header are a module or a DlError."""
        _parse_or_refuse(HEADER + data)

    @settings(max_examples=400, derandomize=True)
    @given(st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]), st.binary(max_size=80))
    def test_random_section_contents(self, number: int, payload: bytes) -> None:
        """Random bytes in a section of any kind are a module or a DlError."""
        _parse_or_refuse(module_of((number, payload)))

    @settings(max_examples=1000, derandomize=True)
    @given(st.data())
    def test_mutated_module(self, everything: bytes, data: st.DataObject) -> None:
        """A real module with some bytes changed, removed or put in is a module or a DlError."""
        changed = bytearray(everything)
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(changed) - 1))
            new = data.draw(st.binary(max_size=6))
            changed[at : at + data.draw(st.integers(0, 6))] = new
            if not changed:
                break
        _parse_or_refuse(bytes(changed))


def _parse_or_refuse(data: bytes) -> None:
    message = "any.wasm: "
    tracemalloc.start()
    try:
        parse_module(data, "any.wasm")
    except DlError as error:
        message = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

    assert message.startswith("any.wasm: ")
    assert "\n" not in message
    assert peak < 1_000_000
