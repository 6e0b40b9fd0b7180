"""Changed copies of modules: compiled and run by the engine, and compared byte for byte where nothing changes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import wasmtime

import dl
from dl.errors import UnsupportedModuleError
from dl.wasm.module import parse_module
from dl.wasm.rewrite import contains_wait_instructions, rename_imports, rewrite_waits, uses_legacy_exceptions

NOTIFY, WAIT32, WAIT64 = 3, 4, 5
SLOTS: dict[str, Any] = {"notify_slot": NOTIFY, "wait32_slot": WAIT32, "wait64_slot": WAIT64}
I32, I64, FUNCREF = wasmtime.ValType.i32(), wasmtime.ValType.i64(), wasmtime.ValType.funcref()
SIGNATURES = {
    NOTIFY: wasmtime.FuncType([I32, I32], [I32]),
    WAIT32: wasmtime.FuncType([I32, I32, I64], [I32]),
    WAIT64: wasmtime.FuncType([I32, I64, I64], [I32]),
}


def assemble(text: str) -> dl.WasmModule:
    return parse_module(bytes(wasmtime.wat2wasm(text)), "test.wasm")


@pytest.fixture(name="engine", scope="module")
def _engine() -> wasmtime.Engine:
    config = wasmtime.Config()
    config.wasm_threads = config.shared_memory = config.wasm_exceptions = True
    config.wasm_multi_memory = config.wasm_memory64 = True
    return wasmtime.Engine(config)


class Run:
    """An instance whose table has recording functions in the three slots."""

    def __init__(
        self,
        engine: wasmtime.Engine,
        data: bytes,
        imports: tuple[()] = (),
        result: int = 0,
        table: str | None = "table",
    ) -> None:
        self.store = wasmtime.Store(engine)
        self.instance = wasmtime.Instance(self.store, wasmtime.Module(engine, data), list(imports))
        self.exports = self.instance.exports(self.store)
        self.calls: list[Any] = []
        self.result = result
        if table is not None:
            self.fill(self.exports[table])

    def fill(self, table: wasmtime.Table) -> None:
        for slot, signature in SIGNATURES.items():
            table.set(self.store, slot, wasmtime.Func(self.store, signature, self._recorder(slot)))

    def _recorder(self, slot: int) -> Callable[..., Any]:
        # Not of `self`: the store would keep itself until the interpreter's end, where giving it back may crash.
        calls, result = self.calls, self.result

        def record(*arguments: int) -> int:
            calls.append((slot, *arguments))
            return result

        return record

    def call(self, name: str, *arguments: int) -> Any:
        return self.exports[name](self.store, *arguments)

    def outcome(self, name: str, *arguments: int) -> int | wasmtime._trap.TrapCode:
        """Give what a call returns, or the code of its trap."""
        try:
            return self.call(name, *arguments)
        except wasmtime.Trap as trap:
            return trap.trap_code


WAITS = """
(module
  (memory (export "memory") 1 1 shared)
  (table (export "table") 8 funcref)
  (func $first (export "first") (result i32) i32.const 41)
  (func (export "wait32") (param i32 i32 i64) (result i32)
    (memory.atomic.wait32 (local.get 0) (local.get 1) (local.get 2)))
  (func (export "wait32_far") (param i32 i32 i64) (result i32)
    (memory.atomic.wait32 offset=4096 (local.get 0) (local.get 1) (local.get 2)))
  (func (export "wait64") (param i32 i64 i64) (result i32)
    (memory.atomic.wait64 (local.get 0) (local.get 1) (local.get 2)))
  (func (export "wait64_far") (param i32 i64 i64) (result i32)
    (memory.atomic.wait64 offset=0xfffffff8 (local.get 0) (local.get 1) (local.get 2)))
  (func (export "notify") (param i32 i32) (result i32)
    (memory.atomic.notify (local.get 0) (local.get 1)))
  (func (export "notify_far") (param i32 i32) (result i32)
    (memory.atomic.notify offset=100 (local.get 0) (local.get 1)))
  (func (export "two") (param i32) (result i32)
    (i32.add
      (memory.atomic.notify (local.get 0) (i32.const 1))
      (memory.atomic.wait32 (local.get 0) (i32.const 0) (i64.const 9))))
  (func $last (export "last") (result i32) (i32.add (call $first) (i32.const 1)))
  (elem (i32.const 0) $first $last))
"""

IMPORTED_TABLE = WAITS.replace('(table (export "table") 8 funcref)', "").replace(
    "(module", '(module (import "env" "table" (table 8 funcref))'
)


class TestRewriteWaits:
    @pytest.mark.parametrize(
        ("name", "arguments", "call"),
        [
            ("wait32", (8, -7, -1), (WAIT32, 8, -7, -1)),
            ("wait32_far", (8, 1, 2**40), (WAIT32, 4104, 1, 2**40)),
            ("wait64", (16, -(2**63), 5), (WAIT64, 16, -(2**63), 5)),
            ("notify", (0, -1), (NOTIFY, 0, -1)),
            ("notify_far", (0, 3), (NOTIFY, 100, 3)),
        ],
    )
    def test_reach_the_functions_in_the_table(
        self,
        engine: wasmtime.Engine,
        name: str,
        arguments: tuple[int, int, int] | tuple[int, int],
        call: tuple[int, ...] | tuple[int, int, int],
    ) -> None:
        """Each instruction passes its effective address and operands on, and returns what it is given."""
        run = Run(engine, rewrite_waits(assemble(WAITS), **SLOTS), result=2)

        assert run.call(name, *arguments) == 2
        assert run.calls == [call]

    def test_operands_keep_their_order(self, engine: wasmtime.Engine) -> None:
        """Several instructions in one function run in their order."""
        run = Run(engine, rewrite_waits(assemble(WAITS), **SLOTS), result=1)

        assert run.call("two", 64) == 2
        assert run.calls == [(NOTIFY, 64, 1), (WAIT32, 64, 0, 9)]

    @pytest.mark.parametrize(
        "address", [1, 2, 3, 4, 12, 65528, 65532, 65533, 65536, 61440, 61444, -4, -8, -1, 2**31 - 1]
    )
    @pytest.mark.parametrize("name", ["wait32", "wait32_far", "wait64", "wait64_far", "notify", "notify_far"])
    def test_traps_are_the_engine_s(self, engine: wasmtime.Engine, name: str, address: int) -> None:
        """Where the instruction traps its replacement does, with the same code if there is one reason to trap."""
        # Nobody waits, and memory is all zero, so no instruction blocks: 1 is "not equal", 0 "woke nobody".
        arguments = (address, 0) if name.startswith("notify") else (address, 7, 0)
        native = Run(engine, assemble(WAITS).data).outcome(name, *arguments)
        result = 0 if name.startswith("notify") else 1
        run = Run(engine, rewrite_waits(assemble(WAITS), **SLOTS), result=result)
        rewritten = run.outcome(name, *arguments)

        trapped = isinstance(native, wasmtime.TrapCode)
        assert bool(run.calls) == (not trapped)
        assert isinstance(rewritten, wasmtime.TrapCode) == trapped
        offset = {"wait32_far": 4096, "wait64_far": 0xFFFF_FFF8, "notify_far": 100}.get(name, 0)
        if (address & 0xFFFF_FFFF) + offset < 1 << 32:
            # Beyond 32 bits an unaligned address has two reasons, and this engine asks for them in either order.
            assert rewritten == native

    def test_nothing_is_renumbered(self, engine: wasmtime.Engine) -> None:
        """Exports, element segments and calls between functions stay as they were."""
        before = assemble(WAITS)
        after = parse_module(rewrite_waits(before, **SLOTS), "after.wasm")
        run = Run(engine, after.data)

        assert run.call("last") == 42
        assert run.exports["table"].get(run.store, 1)(run.store) == 42
        assert after.exports == before.exports
        assert after.elements == before.elements
        assert after.types[: len(before.types)] == before.types
        assert after.functions[: len(before.functions)] == before.functions

    def test_one_helper_for_each_instruction_and_offset(self) -> None:
        """What is appended does not grow with the number of uses."""
        before = assemble(WAITS)
        after = parse_module(rewrite_waits(before, **SLOTS), "after.wasm")

        assert len(after.functions) - len(before.functions) == 6
        assert len(after.types) - len(before.types) == 3

    def test_no_instruction_is_left(self) -> None:
        """With an imported table, none of the three is left, and rewriting again changes nothing."""
        before = assemble(IMPORTED_TABLE)
        after = parse_module(rewrite_waits(before, **SLOTS), "after.wasm")

        assert contains_wait_instructions(before)
        assert not contains_wait_instructions(after)
        assert rewrite_waits(after, **SLOTS) is after.data

    def test_other_sections_are_the_same_bytes(self) -> None:
        """Sections other than types, functions and code are copied as they are, custom ones too."""
        before = assemble(WAITS.replace("(module", '(module $named (@custom "mine" "\\fe\\00\\02")'))
        after = parse_module(rewrite_waits(before, **SLOTS), "after.wasm")

        def others(module: dl.WasmModule) -> list[bytes]:
            return [module.data[s.start : s.end] for s in module.sections if s.id not in (1, 3, 10)]

        assert others(after) == others(before)
        assert after.module_name == "named"

    def test_empty_element_of_an_imported_table_traps(self, engine: wasmtime.Engine) -> None:
        """In a table that others fill, an empty element is a mistake and traps as an indirect call."""
        store = wasmtime.Store(engine)
        table = wasmtime.Table(store, wasmtime.TableType(FUNCREF, wasmtime.Limits(8, None)), None)
        module = wasmtime.Module(engine, rewrite_waits(assemble(IMPORTED_TABLE), **SLOTS))
        instance = wasmtime.Instance(store, module, [table])
        with pytest.raises(wasmtime.Trap) as caught:
            instance.exports(store)["wait32"](store, 0, 0, 0)

        assert caught.value.trap_code == wasmtime.TrapCode.INDIRECT_CALL_TO_NULL

    @pytest.mark.parametrize("size", ["8", "2 2", "i64 8"])
    def test_own_table_before_it_is_filled(self, engine: wasmtime.Engine, size: str) -> None:
        """A module that defines its table does as before while the elements are empty or do not exist."""
        text = WAITS.replace('"table") 8', f'"table") {size}')
        if "i64" in size:
            text = text.replace("(elem (i32.const 0)", "(elem (i64.const 0)")
        run = Run(engine, rewrite_waits(assemble(text), **SLOTS), table=None)

        assert run.call("wait32", 0, 1, -1) == 1
        assert run.call("wait32_far", 0, 0, 0) == 2
        assert run.call("wait64", 8, 0, 0) == 2
        assert run.call("notify_far", 0, 1) == 0
        assert run.outcome("wait32", 1, 0, 0) == wasmtime.TrapCode.HEAP_MISALIGNED
        assert run.outcome("wait32", -4, 0, 0) == wasmtime.TrapCode.MEMORY_OUT_OF_BOUNDS

    def test_start_function_that_notifies(self, engine: wasmtime.Engine) -> None:
        """A module with its own table whose start function notifies can be instantiated."""
        text = """(module (memory (export "memory") 1 1 shared) (table (export "table") 8 funcref)
          (func $init (drop (memory.atomic.notify (i32.const 64) (i32.const -1)))
            (i32.atomic.store (i32.const 0) (i32.const 7)))
          (func (export "notify") (result i32) (memory.atomic.notify (i32.const 64) (i32.const -1)))
          (func (export "flag") (result i32) (i32.atomic.load (i32.const 0)))
          (start $init))"""
        run = Run(engine, rewrite_waits(assemble(text), **SLOTS), result=5)

        assert run.call("flag") == 7
        assert run.call("notify") == 5
        assert run.calls == [(NOTIFY, 64, -1)]

    @pytest.mark.parametrize("imports", ["", '(import "env" "twice" (func $twice (param i32) (result i32)))'])
    def test_module_without_a_table_gets_an_import(self, engine: wasmtime.Engine, imports: str) -> None:
        """A module with no table imports one, as its last import, so that nothing is renumbered."""
        text = f"""(module {imports} (memory (export "memory") 1 1 shared)
          (func (export "wait") (result i32)
            (memory.atomic.wait32 (i32.const 8) (i32.const 0) (i64.const -1))))"""
        before = assemble(text)
        data = rewrite_waits(before, **SLOTS, table_import=("linker", "table"))
        after = parse_module(data, "after.wasm")

        assert [(i.module, i.name, i.kind) for i in after.imports[len(before.imports) :]] == [
            ("linker", "table", "table")
        ]
        store = wasmtime.Store(engine)
        table_type = wasmtime.TableType(FUNCREF, wasmtime.Limits(8, None))
        table = wasmtime.Table(store, table_type, None)
        seen = []
        table.set(store, WAIT32, wasmtime.Func(store, SIGNATURES[WAIT32], lambda *a: seen.append(a) or 2))
        twice = [wasmtime.Func(store, wasmtime.FuncType([I32], [I32]), lambda x: 2 * x)] if imports else []
        instance = wasmtime.Instance(store, wasmtime.Module(engine, data), [*twice, table])

        assert instance.exports(store)["wait"](store) == 2
        assert seen == [(8, 0, -1)]

    def test_64_bit_table(self, engine: wasmtime.Engine) -> None:
        """A table with 64-bit indices is called with them."""
        run = Run(
            engine,
            rewrite_waits(
                assemble(
                    WAITS.replace('"table") 8', '"table") i64 8').replace(
                        "(i32.const 0) $first", "(i64.const 0) $first"
                    )
                ),
                **SLOTS,
            ),
            result=1,
        )

        assert run.call("wait32", 0, 0, 0) == 1

    def test_unshared_memory_is_left_alone(self) -> None:
        """On unshared memory a wait traps and a notify wakes nobody: the engine may go on doing that."""
        module = assemble(WAITS.replace("1 1 shared", "1 1"))

        assert not contains_wait_instructions(module)
        assert rewrite_waits(module, **SLOTS) is module.data

    def test_operands_that_look_like_waits(self, engine: wasmtime.Engine) -> None:
        """The instructions' bytes inside an operand are not instructions."""
        text = """(module (memory 1 1 shared) (table (export "table") 8 funcref)
          (func (export "number") (result i64) (i64.const 0x40205037e))
          (func (export "bits") (result f32) (f32.const nan:0x0202fe))
          (func (export "text") (result i32) (f64.const 0x1p0) drop (i32.const 5)))"""
        base = bytearray(assemble(text).data)
        at = base.index(bytes.fromhex("000000000000f03f"))
        base[at : at + 8] = b"\xfe\x00\x02\xfe\x01\x02\xfe\x02"
        module = parse_module(bytes(base), "test.wasm")

        assert not contains_wait_instructions(module)
        assert rewrite_waits(module, **SLOTS) is module.data

    def test_padded_instruction(self, engine: wasmtime.Engine) -> None:
        """An instruction with padded numbers is found and replaced."""
        plain = assemble(
            """(module (memory (export "memory") 1 1 shared) (table (export "table") 8 funcref)
            (func (export "wait") (result i32)
              (memory.atomic.wait32 offset=4 (i32.const 4) (i32.const 0) (i64.const 3))))"""
        ).data
        at = plain.index(b"\xfe\x01\x02\x04")
        padded = bytearray(plain)
        padded[at : at + 4] = b"\xfe\x81\x80\x00\x82\x80\x00\x84\x00"
        code = parse_module(plain, "m").section(10)
        padded[code.start + 1] += 5
        padded[code.payload_start + 1] += 5
        module = parse_module(bytes(padded), "padded.wasm")
        wasmtime.Module.validate(engine, module.data)
        run = Run(engine, rewrite_waits(module, **SLOTS), result=1)

        assert contains_wait_instructions(module)
        assert run.call("wait") == 1
        assert run.calls == [(WAIT32, 8, 0, 3)]

    TWO_MEMORIES = """(module (memory 1) (memory $shared (export "memory") 1 1 shared)
      (table (export "table") 8 funcref)
      (func (export "wait") (param i32) (result i32)
        (memory.atomic.wait32 $shared offset=8 (local.get 0) (i32.const 0) (i64.const 1)))
      (func (export "plain") (result i32)
        (memory.atomic.notify 0 (i32.const 0) (i32.const 1))))"""

    def test_memory_other_than_the_first(self, engine: wasmtime.Engine) -> None:
        """With the shared memory's index given, its waits are sent on, and other memories' are left."""
        run = Run(engine, rewrite_waits(assemble(self.TWO_MEMORIES), **SLOTS, memory=1), result=2)

        assert run.call("wait", 16) == 2
        assert run.calls == [(WAIT32, 24, 0, 1)]
        assert run.call("plain") == 0
        assert run.outcome("wait", 65528) == wasmtime.TrapCode.MEMORY_OUT_OF_BOUNDS

    def test_unknown_shared_memory_is_refused(self) -> None:
        """A wait on a shared memory that the three functions do not know cannot be sent to them."""
        with pytest.raises(UnsupportedModuleError) as caught:
            rewrite_waits(assemble(self.TWO_MEMORIES), **SLOTS)

        assert "memory.atomic.wait32 on memory 1, not on memory 0" in caught.value.reason
        assert "in function 0 ('wait')" in caught.value.reason

    def test_64_bit_memory_is_refused(self) -> None:
        """64-bit addresses do not fit the three functions."""
        text = """(module (memory i64 1 1 shared) (func (result i32)
            (memory.atomic.notify (i64.const 0) (i32.const 1))))"""
        with pytest.raises(UnsupportedModuleError, match=r"memory\.atomic\.notify with 64-bit"):
            rewrite_waits(assemble(text), **SLOTS)

    def test_table_of_something_else_is_refused(self) -> None:
        """Table 0 must be able to hold the three functions."""
        text = WAITS.replace("8 funcref", "8 externref").replace("(elem (i32.const 0) $first $last)", "")
        with pytest.raises(UnsupportedModuleError, match="its table 0 holds externref, not funcref"):
            rewrite_waits(assemble(text), **SLOTS)

    def test_big_module(self) -> None:
        """10 MB of code, of which one function waits, takes far less than a second."""
        filler = (
            "(func (param i32) (result i32) "
            + "(local.set 0 (i32.add (local.get 0) (i32.const -98)))" * 90_000
        )
        wait = "(func (result i32) (memory.atomic.notify (i32.const 0) (i32.const 1)))"
        text = f"(module (memory 1 1 shared) (table 8 funcref) {(filler + ' local.get 0)') * 2} {wait})"
        one = parse_module(bytes(wasmtime.wat2wasm(text)), "m")
        big = one.data + b"\0\x84\x80\x80\x04\x01x" + bytes((4 << 20 << 1) + 4 - 2)
        module = parse_module(big, "big.wasm")
        began = time.thread_time()
        data = rewrite_waits(module, **SLOTS)
        renamed = rename_imports(module, [])
        elapsed = time.thread_time() - began

        assert len(data) > len(big) > 9_000_000
        assert renamed == big
        assert elapsed < 0.5


class TestRenameImports:
    TEXT = """(module
      (type (func (param i32)))
      (import "env" "memory" (memory 1))
      (import "env" "call" (func (param i32)))
      (import "GOT.mem" "data" (global (mut i32)))
      (import "env" "tag" (tag (param i32)))
      (table (export "table") 2 funcref)
      (func (export "run") (call 0 (i32.const 7)))
      (@custom "after" "\\01\\02"))"""

    def test_names_change_and_types_stay(self) -> None:
        """Every import gets its new name; its kind, type and index stay."""
        before = assemble(self.TEXT)
        names = [("m2", "memory"), ("m3", "x" * 300), ("m3", ""), ("\u00e4", "tag")]
        after = parse_module(rename_imports(before, names), "after.wasm")

        assert [(i.module, i.name) for i in after.imports] == names
        assert [(i.kind, i.type, i.index) for i in after.imports] == [
            (i.kind, i.type, i.index) for i in before.imports
        ]

    def test_everything_else_is_the_same_bytes(self) -> None:
        """Before and behind the import section not a byte changes."""
        before = assemble(self.TEXT)
        after = parse_module(rename_imports(before, [("longer", "name")] * 4), "after.wasm")
        old, new = before.section(2), after.section(2)

        assert after.data[: new.start] == before.data[: old.start]
        assert after.data[new.end :] == before.data[old.end :]

    def test_same_names_give_the_same_module(self) -> None:
        """Names that stay give the bytes of the original."""
        module = assemble(self.TEXT)

        assert rename_imports(module, [(i.module, i.name) for i in module.imports]) == module.data

    def test_engine_links_by_the_new_names(self, engine: wasmtime.Engine) -> None:
        """The engine sees the new names, and calls go where they went."""
        text = '(module (import "a" "b" (func (param i32))) (func (export "run") (call 0 (i32.const 7))))'
        data = rename_imports(assemble(text), [("host", "print")])
        store, linker = wasmtime.Store(engine), wasmtime.Linker(engine)
        seen: list[Any] = []
        linker.define_func("host", "print", wasmtime.FuncType([I32], []), seen.append)
        linker.instantiate(store, wasmtime.Module(engine, data)).exports(store)["run"](store)

        assert seen == [7]

    def test_compact_imports_become_plain_ones(self) -> None:
        """Imports that shared a module name or type in the file can be told apart afterwards."""
        section = b"\x02\x12\x01\x03env\x00\x7e\x00\x00\x03\x01a\x01b\x01c"
        data = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0" + section[:1] + bytes([len(section) - 2]) + section[2:]
        before = parse_module(data, "m")
        after = parse_module(rename_imports(before, [("x", "a"), ("y", "b"), ("x", "c")]), "m")

        assert [(i.module, i.name, i.index) for i in after.imports] == [
            ("x", "a", 0),
            ("y", "b", 1),
            ("x", "c", 2),
        ]
        assert after.functions == before.functions

    def test_wrong_number_of_names(self) -> None:
        """A list of another length is refused, whatever the module."""
        with pytest.raises(ValueError, match="1 names for 4 imports"):
            rename_imports(assemble(self.TEXT), [("a", "b")])
        with pytest.raises(ValueError, match="1 names for 0 imports"):
            rename_imports(assemble("(module)"), [("a", "b")])

    def test_no_imports(self) -> None:
        """A module without imports is its own copy."""
        module = assemble("(module)")

        assert rename_imports(module, []) == module.data


LEGACY = {
    "try": "try nop end",
    "catch": "try nop catch $t drop end",
    "catch_all": "try nop catch_all nop end",
    "delegate": "try nop delegate 0",
    "rethrow": "try nop catch_all rethrow 0 end",
}


class TestLegacyExceptions:
    @pytest.mark.parametrize("code", LEGACY.values(), ids=LEGACY.keys())
    def test_old_encoding(self, code: str) -> None:
        """Each instruction of the old encoding is recognised."""
        assert uses_legacy_exceptions(assemble(f"(module (tag $t (param i32)) (func) (func {code}))"))

    def test_current_encoding(self) -> None:
        """Exceptions in the current encoding are not taken for old ones, nor are operands of the same value."""
        text = """(module (tag $t (param i32))
          (func (result i32) (block $h (result i32)
            (try_table (catch $t $h) (throw $t (i32.const 6))) (i32.const 25)))
          (func (param i32 i32 i32 i32 i32 i32 i32) (result i32) (local.get 6)))"""

        assert not uses_legacy_exceptions(assemble(text))

    def test_imported_tag(self) -> None:
        """A module that only imports its tag is looked into as well."""
        text = '(module (import "env" "__cpp_exception" (tag (param i32))) (func try nop catch_all nop end))'

        assert uses_legacy_exceptions(assemble(text))

    def test_module_without_tags(self) -> None:
        """Code that only cleans up catches all and needs no tag."""
        assert uses_legacy_exceptions(assemble("(module (func try nop catch_all rethrow 0 end))"))
        assert not uses_legacy_exceptions(assemble("(module (func))"))
