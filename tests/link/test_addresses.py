"""From addresses back to modules and symbols."""

from __future__ import annotations

from typing import Any

import dl
from dl.dlfcn import AddressKind
from dl.link.addresses import Location, data_at, function_at, location_of
from dl.modules.linked_module import LinkedModule
from tests.support.modules import (
    MEMORY,
    SHARED_MEMORY,
    TABLE,
    TABLE_BASE,
    data,
    imports,
    library,
    linker,
    pie,
    returns,
    static,
)

SHARED = dl.MemoryType(minimum=20, maximum=200, shared=True)

LIB = library(
    MEMORY,
    TABLE,
    TABLE_BASE,
    '(func $own (export "own") (result i32) i32.const 1)',
    "(func $static (result i32) i32.const 2)",
    "(elem (global.get $table_base) $own $static)",
    returns("placed", 3),
    data("second", 24),
    data("first", 8),
    data("alias", 24),
    memory_size=64,
    table_size=2,
)


def seen(found: Location | None) -> tuple[str, str, str | None, int | None] | None:
    return None if found is None else (found.module.name, found.kind.value, found.symbol, found.start)


class TestFunctions:
    def test_exported_own_and_static(self) -> None:
        """A function in the module's own segment, one that the linker has placed, and one that has no symbol."""
        with linker({"other.so": LIB, "lib.so": LIB}) as program:
            group, state = program.main_group, program.program.state
            group.dlopen("other.so")
            handle = group.dlopen("lib.so")
            own, placed = (group.dlsym(handle, name).address for name in ("own", "placed"))

            assert seen(function_at(state, own)) == ("lib.so", "function", "own", own)
            assert seen(function_at(state, placed)) == ("lib.so", "function", "placed", placed)
            assert seen(function_at(state, own + 1)) == ("lib.so", "function", None, own + 1)
            for nothing in (0, placed + 1, 1 << 20, (1 << 32) - 1):
                assert function_at(state, nothing) is None

    def test_the_host_s_functions_are_no_module_s(self) -> None:
        """The table index of a callback belongs to no module, nor do those of a library that is closed."""
        with linker({"lib.so": LIB}) as program:
            group, state = program.main_group, program.program.state
            with program.callback("() -> i32", lambda: 1) as callback:
                assert function_at(state, callback.address) is None
            handle = group.dlopen("lib.so")
            address = group.dlsym(handle, "own").address
            group.dlclose(handle)
            assert function_at(state, address) is None

    def test_main_modules(self) -> None:
        """Functions of main modules of both kinds, in their own segments and placed by the linker."""
        element = "(elem (i32.const 2) $in) (func $in (result i32) i32.const 1)"
        wats = {
            "static": static(element, '(export "in" (func $in))', returns("out", 2)),
            "pie": pie(
                '(func $in (export "in") (result i32) i32.const 1)',
                "(elem (global.get $table_base) $in)",
                returns("out", 2),
                table_size=1,
            ),
        }
        for name, main in wats.items():
            with dl.Linker(main, name=name) as program:
                for symbol in ("in", "out"):
                    address = program.main_group.dlsym(dl.MAIN_HANDLE, symbol).address
                    assert seen(function_at(program.program.state, address)) == (
                        name,
                        "function",
                        symbol,
                        address,
                    )


class TestData:
    def test_nearest_symbol(self) -> None:
        """Every byte of a module's data has the nearest symbol at or before it; of two at one place the first."""
        with linker({"other.so": LIB, "lib.so": LIB}) as program:
            group, state = program.main_group, program.program.state
            group.dlopen("other.so")
            handle = group.dlopen("lib.so")
            base = next(m for m in program.modules if m.handle == handle).memory_base

            assert group.dlsym(handle, "first").address == base + 8
            for offset in range(64):
                symbol, start = (
                    (None, None) if offset < 8 else ("first", 8) if offset < 24 else ("second", 24)
                )
                at = None if start is None else base + start
                assert seen(data_at(state, base + offset)) == ("lib.so", "data", symbol, at)
            assert data_at(state, base + 64) is None
            assert data_at(state, 0) is None

    def test_main_data_and_functions_of_one_number(self) -> None:
        """A number that is a function and data of the main module is a function, unless data is asked for."""
        main = pie(
            '(func $in (export "in") (result i32) i32.const 1)',
            f"(elem (global.get $table_base) {'$in ' * 2000})",
            data("begin", 0),
            memory_size=4096,
            table_size=2000,
        )
        with dl.Linker(main, name="main") as program:
            state = program.program.state
            module = program.modules[0]
            address = module.memory_base + 16
            assert address < 2000

            assert location_of(state, address) == function_at(state, address)
            assert seen(data_at(state, address)) == ("main", "data", "begin", module.memory_base)
            assert seen(location_of(state, 4000)) == ("main", "data", "begin", module.memory_base)

    def test_static_main(self) -> None:
        """Of a main module that the linker does not lay out, the data is where its exports say."""
        fields = (data("d", 2048), data("e", 2064), data("__data_end", 3000))
        with dl.Linker(static(*fields), name="main") as program:
            state = program.program.state

            assert seen(data_at(state, 2050)) == ("main", "data", "d", 2048)
            assert seen(data_at(state, 2999)) == ("main", "data", "e", 2064)
            assert data_at(state, 2047) is None
            assert data_at(state, 3000) is None

    def test_thread_local(self) -> None:
        """A thread's own variable is found by that thread, at its own address."""
        lib = library(
            SHARED_MEMORY,
            '(import "env" "__memory_base" (global $mb i32))',
            '(global (export "__tls_base") (mut i32) (i32.const 0))',
            '(global (export "__tls_size") i32 (i32.const 32))',
            '(global (export "__tls_align") i32 (i32.const 16))',
            data("var", 16),
            '(func (export "__wasm_init_tls") (param i32) (global.set 1 (local.get 0)))',
            '(func (export "__wasm_call_ctors"))',
            memory_size=64,
            tls=["var"],
        )
        with dl.Linker(None, libraries={"lib.so": lib}, memory=SHARED) as program:
            state = program.program.state
            handle = program.main_group.dlopen("lib.so")

            def look(group: dl.InstanceGroup) -> int:
                address = group.dlsym(handle, "var").address
                assert seen(data_at(state, address + 3, group.own)) == (
                    "lib.so",
                    AddressKind.THREAD_LOCAL.value,
                    "var",
                    address,
                )
                assert seen(data_at(state, address - 16, group.own)) == ("lib.so", "thread-local", None, None)
                other = data_at(state, address + 16, group.own)
                assert other is None or other.kind is not AddressKind.THREAD_LOCAL
                return address

            addresses = {look(program.main_group), program.spawn(look).join(20), program.spawn(look).join(20)}
            assert len(addresses) >= 2


def test_a_library_in_the_midst_of_its_end_is_found() -> None:
    """A destructor's address belongs to its library while that runs, and to nobody afterwards."""
    found: list[tuple[str, str, str | None, int | None] | None] = []
    box: list[dl.Linker] = []
    at: list[int] = []

    def end() -> None:
        found.append(seen(location_of(box[0].program.state, at[0])))

    lib = library(imports("end", ""), '(func (export "_fini") call $end)')
    with dl.Linker(None, libraries={"lib.so": lib}, imports={"env": {"end": end}}) as program:
        box.append(program)
        handle = program.main_group.dlopen("lib.so")
        at.append(program.main_group.dlsym(handle, "_fini").address)
        program.main_group.dlclose(handle)

        assert found == [("lib.so", "function", "_fini", at[0])]
        assert location_of(program.program.state, at[0]) is None


class _Committed(dict[Any, LinkedModule]):
    """The modules of a program into which another thread's load is committed right after they are read, as `publish` does."""

    def __init__(self, modules: dict[Any, LinkedModule], arriving: dict[Any, LinkedModule]) -> None:
        super().__init__(modules)
        self.others = arriving

    def _commit(self) -> None:
        self.update(self.others)
        self.others.clear()

    def copy(self) -> dict[Any, LinkedModule]:
        read = super().copy()
        self._commit()
        return read

    def get(self, handle: Any, default: Any = None) -> Any:
        read = super().get(handle, default)
        self._commit()
        return read


def test_a_library_whose_load_is_committed_meanwhile_is_found() -> None:
    """A look-up without a lock finds a library by handle and by address that stops arriving while the look-up goes on."""
    with linker({"lib.so": LIB}) as program:
        group, state = program.main_group, program.program.state
        handle = group.dlopen("lib.so")
        at = group.dlsym(handle, "own").address
        library_itself = state.modules[handle]

        def arrives() -> None:
            state.arriving[handle] = library_itself
            left = {other: module for other, module in state.modules.items() if other != handle}
            state.modules = _Committed(left, state.arriving)

        arrives()
        assert state.module(handle) is library_itself
        arrives()
        assert state.module_with_function(at) is library_itself
        arrives()
        assert seen(function_at(state, at)) == ("lib.so", "function", "own", at)
