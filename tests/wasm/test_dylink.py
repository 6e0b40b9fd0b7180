"""The dylink section: all it can say, in both its forms, and what is refused."""

from __future__ import annotations

import pytest
import wasmtime
from hypothesis import given, settings
from hypothesis import strategies as st

import dl
from dl.errors import DlError, DylinkError, MalformedModuleError
from dl.wasm.dylink import DylinkInfo, SymbolFlags, UnknownSubsection, parse_dylink
from dl.wasm.module import parse_module

HEADER = b"\0asm\x01\0\0\0"
# The worked bytes of the format description: one subsection of each type.
MEM_INFO = bytes.fromhex("01 04 08 02 00 00")
NEEDED = bytes.fromhex("02 09 01 07 6c 69 62 63 2e 73 6f")
EXPORT_INFO = bytes.fromhex("03 07 01 03 66 6f 6f 80 02")
IMPORT_INFO = bytes.fromhex("04 08 01 03 65 6e 76 01 77 11")
RUNTIME_PATH = bytes.fromhex("05 09 01 07 24 4f 52 49 47 49 4e")


def custom(name: str, payload: bytes) -> bytes:
    body = bytes([len(name)]) + name.encode() + payload
    return b"\0" + bytes([len(body)]) + body


def with_dylink(payload: bytes, name: str = "dylink.0") -> bytes:
    return HEADER + custom(name, payload)


def dylink_error(payload: bytes, *, legacy: bool = False) -> dl.DylinkError:
    with pytest.raises(DylinkError) as caught:
        parse_dylink(payload, "lib.so", 0x100, legacy=legacy)
    return caught.value


class TestSubsections:
    def test_all_five(self) -> None:
        """Every known subsection of one section is read."""
        data = with_dylink(MEM_INFO + NEEDED + EXPORT_INFO + IMPORT_INFO + RUNTIME_PATH)

        assert data[8:19] == bytes.fromhex("00 38 08 64 79 6c 69 6e 6b 2e 30")
        assert parse_module(data, "lib.so").dylink == DylinkInfo(
            memory_size=8,
            memory_alignment_log2=2,
            table_size=0,
            table_alignment_log2=0,
            needed=("libc.so",),
            runtime_path=("$ORIGIN",),
            exports={"foo": SymbolFlags.TLS},
            imports={("env", "w"): SymbolFlags.BINDING_WEAK | SymbolFlags.UNDEFINED},
            unknown=(),
            legacy=False,
        )

    def test_order_does_not_matter(self) -> None:
        """Subsections may stand in any order."""
        forward = parse_dylink(MEM_INFO + NEEDED + EXPORT_INFO, "lib.so", 0)

        assert parse_dylink(EXPORT_INFO + NEEDED + MEM_INFO, "lib.so", 0) == forward

    def test_empty_section(self) -> None:
        """A section without subsections asks for nothing, but marks a library."""
        assert parse_module(with_dylink(b""), "lib.so").dylink == DylinkInfo()

    def test_no_section(self) -> None:
        """A module without the section is no library."""
        assert parse_module(HEADER, "main.wasm").dylink is None

    def test_repeated_lists_accumulate(self) -> None:
        """Repeated lists add up, in order; flags of one symbol are joined."""
        other = bytes.fromhex("02 05 01 03 61 2e 62")
        weak_foo = bytes.fromhex("03 06 01 03 66 6f 6f 01")
        info = parse_dylink(NEEDED + EXPORT_INFO + other + weak_foo + RUNTIME_PATH * 2, "lib.so", 0)

        assert info.needed == ("libc.so", "a.b")
        assert info.exports == {"foo": SymbolFlags.TLS | SymbolFlags.BINDING_WEAK}
        assert info.runtime_path == ("$ORIGIN", "$ORIGIN")

    def test_memory_info_twice_the_same(self) -> None:
        """Memory info that repeats itself word for word is taken once."""
        assert parse_dylink(MEM_INFO * 2, "lib.so", 0).memory_size == 8

    def test_unknown_subsections_are_kept(self) -> None:
        """Unknown subsections keep their bytes and their place in the file."""
        payload = MEM_INFO + b"\x09\x03abc" + NEEDED + b"\xc8\x00"
        data = with_dylink(payload)
        unknown = parse_module(data, "lib.so").dylink.unknown

        assert unknown == (UnknownSubsection(9, b"abc", 27), UnknownSubsection(0xC8, b"", 43))
        assert data[unknown[0].offset :][:3] == b"abc"

    def test_padded_integers(self) -> None:
        """Integers padded to five bytes are read."""
        padded = b"\x01\x84\x80\x80\x80\x00" + MEM_INFO[2:]

        assert parse_dylink(padded, "lib.so", 0).memory_size == 8

    def test_section_anywhere(self) -> None:
        """The section counts wherever it stands in the file."""
        data = HEADER + custom("other", b"") + custom("dylink.0", MEM_INFO)

        assert parse_module(data, "lib.so").dylink.memory_size == 8

    def test_sizes_up_to_the_parser_s_bounds(self) -> None:
        """Sizes of 2 GiB and alignments of 2^31 are read, in bytes and elements."""
        info = parse_dylink(b"\x01\x0c\x80\x80\x80\x80\x08\x1f\x80\x80\x80\x80\x08\x1f", "lib.so", 0)

        assert (info.memory_size, info.memory_alignment) == (1 << 31, 1 << 31)
        assert (info.table_size, info.table_alignment) == (1 << 31, 1 << 31)

    def test_all_flags(self) -> None:
        """All flag bits have names, and bits without one are kept."""
        info = parse_dylink(b"\x03\x06\x01\x01x\xff\xff\x01", "lib.so", 0)

        assert int(info.exports["x"]) == 0x7FFF
        assert {
            name
            for name, flag in vars(SymbolFlags).items()
            if isinstance(flag, int) and flag & info.exports["x"]
        } >= {
            "BINDING_WEAK",
            "BINDING_LOCAL",
            "VISIBILITY_HIDDEN",
            "UNDEFINED",
            "EXPORTED",
            "EXPLICIT_NAME",
            "NO_STRIP",
            "TLS",
            "ABSOLUTE",
        }

    def test_engine_s_assembler_agrees(self) -> None:
        """A section made by another tool's text format reads as it was written."""
        text = """(module (@dylink.0
            (mem-info (memory 100 4) (table 3 1))
            (needed "liba.so" "libb.so")
            (export-info "tls_variable" tls)
            (import-info "env" "maybe" binding-weak undefined)))"""
        info = parse_module(bytes(wasmtime.wat2wasm(text)), "lib.so").dylink

        assert (info.memory_size, info.memory_alignment, info.table_size, info.table_alignment) == (
            100,
            16,
            3,
            2,
        )
        assert info.needed == ("liba.so", "libb.so")
        assert info.is_tls_export("tls_variable")
        assert info.is_weak_import("maybe")


class TestLookUps:
    def test_weak_import_by_field_alone(self) -> None:
        """A weak import is found by its field, whatever module name the toolchain wrote beside it."""
        info = parse_dylink(IMPORT_INFO, "lib.so", 0)

        assert info.is_weak_import("w")
        assert not info.is_weak_import("env")

    def test_undefined_but_not_weak(self) -> None:
        """An import that is only marked undefined must be defined."""
        info = parse_dylink(IMPORT_INFO[:-1] + b"\x10", "lib.so", 0)

        assert info.imports == {("env", "w"): SymbolFlags.UNDEFINED}
        assert not info.is_weak_import("w")

    def test_thread_local_export(self) -> None:
        """Exports flagged thread-local are told from others."""
        info = parse_dylink(EXPORT_INFO, "lib.so", 0)

        assert info.is_tls_export("foo")
        assert not info.is_tls_export("bar")


class TestLegacy:
    SAMPLE = bytes.fromhex("00 11 06 64 79 6c 69 6e 6b 08 02 00 00 01 04 61 2e 73 6f")

    def test_flat_section(self) -> None:
        """The old section is read into the same fields, and says that it is old."""
        info = parse_module(HEADER + self.SAMPLE, "old.wasm").dylink

        assert info == DylinkInfo(memory_size=8, memory_alignment_log2=2, needed=("a.so",), legacy=True)

    def test_bytes_left_over(self) -> None:
        """The old section has no room for extensions."""
        error = dylink_error(b"\x08\x02\x00\x00\x00\x05", legacy=True)

        assert (error.offset, error.reason) == (0x105, "1 bytes left over in the dylink section")


class TestRefused:
    @pytest.mark.parametrize(
        ("payload", "offset", "reason"),
        [
            (b"\x02\x7f\x01", 0x100, "dylink subsection 2 of 127 bytes does not fit in the 1 that are left"),
            (b"\x02", 0x101, "ends inside the length of a dylink subsection"),
            (b"\x01\x03\x08\x02\x00", 0x105, "ends inside the table alignment"),
            (b"\x01\x05\x08\x02\x00\x00\x07", 0x106, "1 bytes left over in dylink subsection 1"),
            (b"\x01\x04\x08\x20\x00\x00", 0x103, "memory alignment 2^32 is more than 2^31"),
            (b"\x01\x04\x08\x00\x00\x28", 0x105, "table alignment 2^40 is more than 2^31"),
            (b"\x01\x08\x80\x80\x80\x80\x10\x00\x00\x00", 0x102, "the memory size does not fit into 32 bits"),
            (
                b"\x02\x05\xff\xff\xff\xff\x0f",
                0x102,
                "4294967295 needed library names cannot fit in the 0 bytes that are left",
            ),
            (
                b"\x02\x03\x01\x05a" + MEM_INFO,
                0x103,
                "a needed library's name of 5 bytes does not fit in the 1 that are left",
            ),
            (b"\x02\x03\x01\x01\xff", 0x104, "a needed library's name is not valid UTF-8"),
            (b"\x03\x04\x02\x01a\x00", 0x102, "2 exported symbols cannot fit in the 3 bytes that are left"),
            (b"\x77\x00" * 1001, 0x100 + 2000, "more than 1000 dylink subsections of unknown types"),
            (
                MEM_INFO + b"\x01\x04\x09\x02\x00\x00",
                0x106,
                "a second memory info that differs from the first",
            ),
        ],
    )
    def test_corrupt(self, payload: bytes, offset: int, reason: str) -> None:
        """Damage is refused with its offset in the file and what is wrong there."""
        error = dylink_error(payload)

        assert (error.offset, error.reason) == (offset, reason)
        assert str(error) == f"lib.so: malformed at byte {offset:#x}: {reason}"

    @pytest.mark.parametrize("second", ["dylink.0", "dylink"])
    def test_second_section(self, second: str) -> None:
        """Two sections cannot both be meant, not even in different forms."""
        data = with_dylink(MEM_INFO) + custom(second, MEM_INFO)
        with pytest.raises(DylinkError) as caught:
            parse_module(data, "lib.so")

        assert (caught.value.offset, caught.value.reason) == (25, f"a second dylink section, {second!r}")

    def test_offset_counts_from_the_start_of_the_file(self) -> None:
        """Inside a module, the offset is that of the byte in the file."""
        data = with_dylink(b"\x01\x04\x08\x20\x00\x00")
        with pytest.raises(DylinkError) as caught:
            parse_module(data, "lib.so")

        assert data[caught.value.offset] == 0x20

    def test_is_a_malformed_module(self) -> None:
        """Whoever handles malformed modules handles this too."""
        assert isinstance(dylink_error(b"\x01"), MalformedModuleError)


class TestAnyBytes:
    @settings(max_examples=500, derandomize=True)
    @given(st.binary(max_size=120), st.booleans())
    def test_random_payload(self, payload: bytes, legacy: bool) -> None:
        """Random bytes are a section or a DylinkError that points into them."""
        try:
            info = parse_dylink(payload, "lib.so", 0, legacy=legacy)
        except DylinkError as error:
            assert 0 <= error.offset <= len(payload)  # noqa: PT017 - both outcomes are right
        else:
            assert info.legacy == legacy

    @settings(max_examples=300, derandomize=True)
    @given(st.data())
    def test_mutated_payload(self, data: st.DataObject) -> None:
        """A real section with some bytes changed is a section or a DlError."""
        payload = bytearray(MEM_INFO + NEEDED + EXPORT_INFO + IMPORT_INFO + RUNTIME_PATH)
        for _ in range(data.draw(st.integers(1, 4))):
            payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
        try:
            info = parse_module(with_dylink(bytes(payload)), "lib.so").dylink
        except DlError as error:
            assert str(error).startswith("lib.so: ")  # noqa: PT017 - both outcomes are right
        else:
            assert info is not None

    def test_cut_anywhere(self) -> None:
        """A section cut at any byte is an error, unless the cut is between subsections."""
        parts = [MEM_INFO, NEEDED, EXPORT_INFO, IMPORT_INFO, RUNTIME_PATH]
        payload = b"".join(parts)
        good = {sum(map(len, parts[:count])) for count in range(len(parts) + 1)}
        for size in range(len(payload)):
            if size not in good:
                dylink_error(payload[:size])
