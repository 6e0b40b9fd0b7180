"""Modules as the world builds them, and valid modules that nobody would write: what the engine accepts is read."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import wasmtime

import dl
from dl.modules.kind import ModuleKind, check_side_module, kind_of
from dl.wasm.dylink import parse_dylink
from dl.wasm.encode import name_bytes, section, unsigned, vector
from dl.wasm.module import parse_module
from tests.support.modules import MEMORY, library, linker, module, returns, static

HEADER = b"\0asm\x01\0\0\0"
SEED = 20240613
COUNT = 3000


class TestImportInfo:
    ENTRIES = (("env", "a", 0x11), ("env", "b", 0x11), ("GOT.mem", "c", 0x10))

    def payload(self, count: int) -> bytes:
        entries = b"".join(name_bytes(m) + name_bytes(n) + unsigned(f) for m, n, f in self.ENTRIES)
        body = unsigned(count) + entries
        return b"\x04" + unsigned(len(body)) + body

    @pytest.mark.parametrize("count", [0, 1, 2])
    def test_a_count_that_is_too_low(self, count: int) -> None:
        """All flags of imports are read though the number in front is lower, and a note says so."""
        info = parse_dylink(self.payload(count) + b"\x02\x03\x01\x01x", "lib.so", 0)

        assert info.imports == {(m, n): f for m, n, f in self.ENTRIES}
        assert info.needed == ("x",)
        assert info.notes == (f"the flags of imports say they are {count}, but are 3 (at byte 0x2)",)

    def test_a_count_that_is_right_or_too_high(self) -> None:
        """A right number needs no note; a number higher than the entries is damage."""
        assert parse_dylink(self.payload(3), "lib.so", 0).notes == ()
        with pytest.raises(dl.DylinkError, match="ends inside"):
            parse_dylink(self.payload(4), "lib.so", 0)

    def test_bytes_that_are_no_entry(self) -> None:
        """Bytes left over behind the entries must be entries themselves."""
        with pytest.raises(dl.DylinkError):
            parse_dylink(b"\x04\x02\x00\x07", "lib.so", 0)

    def test_such_a_library_links(self) -> None:
        """A library whose list is longer than it says is linked like any other."""
        wasm = module(returns("f", 5))
        wasm = wasm[:8] + section(0, name_bytes("dylink.0") + self.payload(1)) + wasm[8:]
        with dl.Linker(None, libraries={"lib.so": wasm}) as program:
            group = program.main_group
            assert group.dlsym(group.dlopen("lib.so"), "f")() == 5


@pytest.mark.parametrize("payload", [b"wasm32", b"\x06wasm32"])
def test_target_architecture(payload: bytes) -> None:
    """Subsection 6 says what the module was built for; one that holds no text is kept as it is."""
    assert parse_dylink(b"\x06" + unsigned(len(payload)) + payload, "x", 0).target_architecture == "wasm32"
    odd = parse_dylink(b"\x06\x02\xff\xfe", "x", 0)
    assert odd.target_architecture is None
    assert odd.unknown[0].data == b"\xff\xfe"


class TestKinds:
    def test_a_library_of_wasi_sdk_is_a_side_module(self) -> None:
        """A module with a dylink section that exports `_initialize` is a library, one that exports `_start` is not."""
        init = '(func (export "_initialize"))'

        assert kind_of(parse_module(library(init), "x")) is ModuleKind.SIDE
        assert kind_of(parse_module(library('(func (export "_start"))'), "x")) is ModuleKind.PIE
        heap = '(import "GOT.mem" "__heap_base" (global (mut i32)))'
        assert kind_of(parse_module(library(heap, init), "x")) is ModuleKind.PIE
        assert kind_of(parse_module(static(init), "x")) is ModuleKind.STATIC

    def test_a_side_module_with_a_memory_of_its_own(self) -> None:
        """A library that defines its memory is refused by name, and the program is as before."""
        libs = {
            "own.so": library("(memory 1)"),
            "shown.so": library('(memory (export "memory") 1)'),
            "fine.so": library(MEMORY, returns("f", 1)),
            "none.so": library(returns("g", 1)),
        }
        with dl.Linker(None, libraries=libs) as program:
            for name in ("own.so", "shown.so"):
                with pytest.raises(dl.NotDynamicError, match=f"{name}.*defines a memory of its own"):
                    program.main_group.dlopen(name)
            assert program.main_group.dlopen("fine.so") == 2
            assert program.main_group.dlopen("none.so") == 3

    def test_a_second_memory_beside_the_program_s(self) -> None:
        """What counts is memory 0: a private second one is no reason to refuse."""
        check_side_module(parse_module(library(MEMORY, "(memory 1)"), "x"))
        with pytest.raises(dl.NotDynamicError, match=r"no dylink\.0 section"):
            check_side_module(parse_module(module(returns("f", 1)), "x"))


def test_an_element_segment_of_nulls_in_a_module_without_functions() -> None:
    """A segment of only `ref.null` refers to no function, so there need not be one."""
    for text in (
        "(module (table 2 funcref) (elem (i32.const 0) funcref (ref.null func) (ref.null func)))",
        "(module (elem funcref (ref.null func)))",
        "(module (elem declare funcref (ref.null func)))",
        "(module (elem externref (ref.null extern)))",
        "(module (elem func))",
    ):
        parsed = parse_module(bytes(wasmtime.wat2wasm(text)), "x")
        assert all(item is None for segment in parsed.elements for item in segment.functions), text


class _Maker:
    """Makes modules of odd but mostly valid sections from a seed."""

    def __init__(self, chosen: random.Random) -> None:
        self.chosen = chosen

    def number(self, value: int) -> bytes:
        """An unsigned integer, sometimes padded."""
        raw = bytearray(unsigned(value))
        while self.chosen.random() < 0.2 and len(raw) < 5:
            raw[-1] |= 0x80
            raw.append(0)
        return bytes(raw)

    def name(self) -> bytes:
        """A name: empty, long, or outside of ASCII."""
        raw = self.chosen.choice(["", "a", "ä", "\0", "x" * 200, "😀", "a\nb"]).encode()
        return self.number(len(raw)) + raw

    def items(self, most: int, make: Callable[[int], bytes]) -> bytes:
        """A vector of up to some items."""
        count = self.chosen.randrange(most + 1)
        return self.number(count) + b"".join(make(n) for n in range(count))

    def custom(self) -> bytes:
        """Some custom sections, with names that other tools give a meaning."""
        made = b""
        while self.chosen.random() < 0.3:
            name = self.chosen.choice(
                ["", "name", "producers", "target_features", "linking", "reloc.CODE", "ä"]
            )
            made += section(0, name_bytes(name) + self.chosen.randbytes(self.chosen.randrange(6)))
        return made

    def part(self, code: int, payload: bytes) -> bytes:
        """A section with a padded length, left out or empty now and then, and custom ones before it."""
        if payload in (b"\0", b"") and self.chosen.random() < 0.7:
            return self.custom()
        return self.custom() + bytes([code]) + self.number(len(payload)) + payload

    def module(self) -> bytes:
        """A whole module."""
        chosen = self.chosen
        values = [0x7F, 0x7E, 0x7D, 0x7C, 0x7B, 0x70, 0x6F]

        def kind(_n: int) -> bytes:
            params = self.items(3, lambda _: bytes([chosen.choice(values)]))
            return b"\x60" + params + self.items(2, lambda _: bytes([chosen.choice(values)]))

        types = 1 + chosen.randrange(4)
        type_section = self.number(types) + b"\x60\0\0" + b"".join(kind(n) for n in range(types - 1))
        functions = globals_ = tables = memories = tags = 0

        def imported(_n: int) -> bytes:
            nonlocal functions, globals_, tables, memories, tags
            what = chosen.randrange(5)
            head = self.name() + self.name() + bytes([what])
            if what == 0:
                functions += 1
                return head + self.number(chosen.randrange(types))
            if what == 1:
                tables += 1
                return head + chosen.choice([b"\x70\0", b"\x6f\0", b"\x70\x01"])[:1] + b"\x01\0\x05"
            if what == 2:
                memories += 1
                return head + chosen.choice([b"\0\0", b"\x01\0\x01", b"\x03\0\x01"])
            if what == 3:
                globals_ += 1
                return head + bytes([chosen.choice(values), 0])
            tags += 1
            return head + b"\0" + self.number(0)

        import_section = self.items(4, imported)
        defined = chosen.randrange(4)
        function_section = self.number(defined)
        function_section += b"".join(self.number(0) for _ in range(defined))
        functions += defined

        def table(_n: int) -> bytes:
            nonlocal tables
            tables += 1
            return chosen.choice(
                [b"\x70\0\x03", b"\x6f\x01\0\x03", b"\x63\x70\0\x03", b"\x40\0\x70\0\x03\xd0\x70\x0b"]
            )

        table_section = self.items(2, table)

        def memory(_n: int) -> bytes:
            nonlocal memories
            memories += 1
            return chosen.choice([b"\0\x01", b"\x01\0\0", b"\x03\0\x02", b"\x04\0"])

        memory_section = self.items(2, memory)

        def tag(_n: int) -> bytes:
            nonlocal tags
            tags += 1
            return b"\0" + self.number(0)

        tag_section = self.items(2, tag)
        expressions = [
            (0x7F, b"\x41\x7f\x0b"),
            (0x7F, b"\x41\x80\x80\x00\x41\x01\x6a\x0b"),
            (0x7E, b"\x42\xff\xff\xff\xff\xff\xff\xff\xff\x00\x0b"),
            (0x7D, b"\x43\0\0\0\0\x0b"),
            (0x7C, b"\x44" + bytes(8) + b"\x0b"),
            (0x7B, b"\xfd\x0c" + bytes(16) + b"\x0b"),
            (0x70, b"\xd0\x70\x0b"),
            (0x6F, b"\xd0\x6f\x0b"),
        ]

        def global_(_n: int) -> bytes:
            nonlocal globals_
            globals_ += 1
            value, init = chosen.choice(expressions)
            return bytes([value, chosen.randrange(2)]) + init

        global_section = self.items(4, global_)
        spaces = [functions, tables, memories, globals_, tags]

        def export(n: int) -> bytes:
            what = chosen.choice([k for k, size in enumerate(spaces) if size])
            name = f"{n}{'é' * chosen.randrange(3)}".encode()
            return self.number(len(name)) + name + bytes([what]) + self.number(chosen.randrange(spaces[what]))

        export_section = self.items(4, export) if any(spaces) else b"\0"

        def element(_n: int) -> bytes:
            null = b"\xd0\x70\x0b"
            nulls = self.items(2, lambda _: null)
            indices = (
                self.items(2, lambda _: self.number(chosen.randrange(functions))) if functions else b"\0"
            )
            return chosen.choice(
                [
                    b"\x01\0" + indices,
                    b"\x03\0" + indices,
                    b"\x05\x70" + nulls,
                    b"\x07\x70" + nulls,
                    b"\x05\x63\x70" + nulls,
                    *([b"\0\x41\0\x0b" + indices, b"\x04\x41\0\x0b" + nulls] if tables else []),
                    *([b"\x02" + self.number(0) + b"\x41\0\x0b\0" + indices] if tables else []),
                ]
            )

        element_section = self.items(3, element)
        segments = chosen.randrange(3)
        data = b"".join(
            chosen.choice([b"\x01", *([b"\0\x41\0\x0b", b"\x02\0\x41\0\x0b"] if memories else [])])
            + b"\x02ab"
            for _ in range(segments)
        )
        parts = [
            self.part(1, type_section),
            self.part(2, import_section),
            self.part(3, function_section),
            self.part(4, table_section),
            self.part(5, memory_section),
            self.part(13, tag_section),
            self.part(6, global_section),
            self.part(7, export_section),
            self.part(9, element_section),
            self.part(12, self.number(segments)) if segments else self.custom(),
            self.part(10, self.number(defined) + b"\x02\0\x0b" * defined),
            self.part(11, self.number(segments) + data),
            self.custom(),
        ]
        return HEADER + b"".join(parts)


def test_what_the_engine_accepts_is_read() -> None:
    """Of thousands of odd modules, none that the engine finds valid is refused, and no other error than ours is raised."""
    print("seed", SEED)
    config = wasmtime.Config()
    config.wasm_memory64 = True
    config.wasm_multi_memory = True
    config.wasm_threads = True
    config.wasm_exceptions = True
    config.wasm_function_references = True
    config.wasm_gc = True
    engine = wasmtime.Engine(config)
    maker = _Maker(random.Random(SEED))
    valid = 0
    refused: list[tuple[str, str]] = []
    for _ in range(COUNT):
        wasm = maker.module()
        try:
            wasmtime.Module.validate(engine, wasm)
        except wasmtime.WasmtimeError:
            accepted = False
        else:
            accepted = True
            valid += 1
        try:
            parse_module(wasm, "odd")
        except dl.DlError as error:
            if accepted:
                refused.append((str(error), wasm.hex()))
    print("valid", valid)

    assert valid > COUNT // 4
    assert refused == []


def test_vectors_are_what_they_seem() -> None:
    """The test's own encoder agrees with the parser on the simplest module."""
    assert vector([b"a", b"b"]) == b"\x02ab"
    assert parse_module(HEADER, "empty").exports == {}


def test_other_bytes_of_the_same_name_and_length_are_another_module() -> None:
    """What is parsed is told apart by its bytes, also where name and length are those of the module before."""
    for value in (1, 2, 1):
        with linker({}) as program:
            found = program.main_group.dlsym(
                program.main_group.dlopen(library(returns("f", value)), name="same.so"), "f"
            )
            assert isinstance(found, dl.GuestFunction)
            assert found() == value
