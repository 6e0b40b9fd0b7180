"""What a program says about itself: modules, symbols, addresses, and why imports are bound where they are."""

from __future__ import annotations

import pytest

import dl
from tests.support.modules import (
    MEMORY,
    TABLE,
    calls,
    data,
    got,
    imports,
    library,
    module,
    pie,
    reads,
    returns,
    static,
)


def maker(value: int, **options: object) -> bytes:
    """A library that defines a function and data."""
    return library(MEMORY, TABLE, returns("f", value), data("d", 8), memory_size=64, table_size=2, **options)


class TestModules:
    def test_a_module_says_what_it_is_and_where_it_lies(self) -> None:
        """Handle, name, bases, sizes, counts, flags and state are those of the library."""
        with dl.Linker(None, libraries={"a.so": maker(7)}) as linker:
            group = linker.main_group
            handle = group.dlopen("a.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)
            group.dlopen("a.so")
            (module,) = linker.modules
            assert (module.handle, module.name, module.path) == (handle, "a.so", None)
            assert module.memory_size == 64
            assert module.memory_base == group.dlsym(handle, "d").address - 8
            assert module.table_size == 3
            assert module.table_base <= group.dlsym(handle, "f").address < module.table_base + 3
            assert (module.opens, module.is_global, module.flags) == (2, True, dl.RTLD_GLOBAL)
            assert (module.state, module.is_constructed, module.is_main) == ("constructed", True, False)
            assert "a.so: handle 2, constructed, GLOBAL, opened 2 times" in repr(module)
            assert module == linker.module(handle) == linker.modules[0]
            assert len({module, linker.module(handle)}) == 1

            group.dlclose(handle)
            group.dlclose(handle)
            assert (module.state, module.is_loaded, module.name) == ("unloaded", False, "a.so")
            assert linker.modules == ()
            with pytest.raises(dl.InvalidHandleError, match="it was closed"):
                linker.module(handle)

    def test_who_needs_whom_and_who_is_bound_to_whom(self) -> None:
        """Needed lists, scopes and bindings can be read in both directions, with the symbols; late bindings too."""
        libs = {
            "top.so": library(
                imports("f"), imports("late"), calls("g", "f"), calls("h", "late"), needed=["low.so"]
            ),
            "low.so": maker(3),
            "late.so": library(returns("late", 9)),
        }
        with dl.Linker(None, libraries=libs) as linker:
            group = linker.main_group
            top = group.dlopen("top.so", dl.RTLD_LAZY)
            low = next(module for module in linker.modules if module.name == "low.so")
            module = linker.module(top)
            assert [m.name for m in module.needs] == ["low.so"]
            assert [m.name for m in low.needed_by] == ["top.so"]
            assert [m.name for m in module.scope] == ["top.so", "low.so"]
            assert [str(b) for b in module.bound_to] == ["low.so: f"]
            assert [str(b) for b in low.bound_by] == ["top.so: f"]
            assert module.unresolved == ("late",)
            group.dlopen("late.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)
            assert group.dlsym(top, "h")() == 9
            assert not module.unresolved
            assert [str(b) for b in module.bound_to] == ["low.so: f", "late.so: late"]
            assert "late.so: late" in module._repr_html_()

    def test_the_main_module_is_there(self) -> None:
        """The main module is global, never unloaded, and has no opens of its own."""
        with dl.Linker(pie(returns("answer", 42), memory_size=32)) as linker:
            (module,) = linker.modules
            assert (module.handle, module.is_main) == (dl.MAIN_HANDLE, True)
            assert dl.RTLD_NODELETE in module.flags
            assert dl.RTLD_GLOBAL in module.flags

    def test_symbols_have_kind_type_and_address(self) -> None:
        """Functions have a table index, data a place in memory, thread-local variables, globals and tags have neither."""
        lib = library(
            MEMORY,
            returns("f", 1),
            data("d", 8),
            data("t", 4),
            '(global (export "v") (mut i64) (i64.const 0))',
            '(tag (export "x") (param f64))',
            memory_size=64,
            tls=["t"],
        )
        with dl.Linker(None, libraries={"a.so": lib}) as linker:
            handle = linker.main_group.dlopen("a.so")
            symbols = {symbol.name: symbol for symbol in linker.module(handle).symbols()}
            base = linker.module(handle).memory_base
            function = linker.main_group.dlsym(handle, "f").address
            assert symbols["f"] == dl.ModuleSymbol("f", "function", "() -> i32", function)
            assert symbols["d"] == dl.ModuleSymbol("d", "data", None, base + 8)
            assert {name: (s.kind, s.address) for name, s in symbols.items() if name in "tvx"} == {
                "t": ("thread-local", None),
                "v": ("global", None),
                "x": ("tag", None),
            }
            assert str(symbols["f"]) == f"function f () -> i32 at table index {function}"
            with linker.main_group.library("a.so") as opened:
                assert opened.symbols() == linker.module(handle).symbols()
                assert opened.module.handle == handle


class TestAddresses:
    def test_functions_and_data_lead_back_to_their_symbols(self) -> None:
        """A function's index gives its symbol, an address in data the nearest symbol before it; others give nothing."""
        with dl.Linker(None, libraries={"a.so": maker(7)}) as linker:
            group = linker.main_group
            handle = group.dlopen("a.so")
            function, variable = group.dlsym(handle, "f"), group.dlsym(handle, "d")
            found = linker.dladdr(function)
            assert found is not None
            assert (found.kind, found.symbol, found.start) == (
                dl.AddressKind.FUNCTION,
                "f",
                function.address,
            )
            assert (found.module.handle, found.path, found.offset) == (handle, "a.so", 0)
            assert linker.dladdr(function.address, "function") == found == group.dladdr(function)
            found = linker.dladdr(variable.address + 5, "data")
            assert found is not None
            assert (found.symbol, found.start, found.offset) == ("d", variable.address, 5)
            assert str(found) == f"data {variable.address + 5:#x}: d+0x5 in a.so"
            assert linker.dladdr(0) is None
            with pytest.raises(dl.LinkerUsageError, match="'heap'"):
                linker.dladdr(8, "heap")  # type: ignore[arg-type]
            group.dlclose(handle)
            assert linker.dladdr(found.address) is None

    def test_a_callback_belongs_to_no_module(self) -> None:
        """What the host has placed in the table has no module."""
        with dl.Linker(None) as linker, linker.callback("() -> ()", lambda: None) as callback:
            assert linker.dladdr(callback.address, "function") is None


class TestExplain:
    def test_the_first_definition_in_the_global_scope(self) -> None:
        """The winner, its address, and for each other definition why it lost."""
        libs = {
            "first.so": maker(1),
            "second.so": maker(2),
            "hidden.so": maker(3),
            "user.so": library(imports("f"), got("d", "mem"), calls("g", "f")),
            "after.so": maker(4),
        }
        with dl.Linker(None, libraries=libs) as linker:
            group = linker.main_group
            group.dlopen("first.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)
            group.dlopen("second.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)
            group.dlopen("hidden.so")
            user = group.dlopen("user.so")
            group.dlopen("after.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)
            told = linker.explain("f", user)
            (entry,) = told.imports
            assert (entry.provider, entry.rule) == ("first.so", "the first definition in the global scope")
            assert {other.provider: other.reason for other in entry.others} == {
                "second.so": "it comes after first.so in the search order",
                "hidden.so": "user.so does not see it: it was opened with RTLD_LOCAL, by another dlopen",
                "after.so": "it comes after first.so in the search order",
            }
            assert "user.so: env.f () -> i32 is that of first.so" in str(told)
            (entry,) = linker.explain("d", user).imports
            assert entry.address == group.dlsym(linker.modules[0].handle, "d").address

    def test_local_trees_and_deepbind(self) -> None:
        """A library opened locally sees the global scope first, and with DEEPBIND its own tree."""
        libs = {
            "global.so": maker(1),
            "own.so": maker(2),
            "user.so": library(imports("f"), calls("g", "f"), needed=["own.so"]),
            "deep.so": library(imports("f"), calls("g", "f"), needed=["own.so"]),
            "only.so": library(imports("o"), calls("h", "o"), needed=["o.so"]),
            "o.so": library(returns("o", 5)),
        }
        with dl.Linker(None, libraries=libs) as linker:
            group = linker.main_group
            group.dlopen("global.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)
            (plain,) = linker.explain("f", group.dlopen("user.so")).imports
            (deep,) = linker.explain("f", group.dlopen("deep.so", dl.RTLD_NOW | dl.RTLD_DEEPBIND)).imports
            (only,) = linker.explain("o", group.dlopen("only.so")).imports
            assert (plain.provider, deep.provider, only.provider) == ("global.so", "own.so", "o.so")
            assert "RTLD_DEEPBIND" in deep.rule
            assert "in the tree of only.so" in only.rule

    def test_host_linker_and_nobody(self) -> None:
        """What the host gives comes first, memory and bases are the linker's, and what nothing defines says so."""
        libs = {
            "maker.so": maker(1),
            "user.so": library(
                MEMORY,
                imports("f"),
                imports("none"),
                '(import "wasi_snapshot_preview1" "sched_yield" (func (result i32)))',
                got("weak", "mem"),
                calls("g", "f"),
                calls("n", "none"),
                reads("w", "got_mem_weak"),
                weak=["weak"],
            ),
        }
        with dl.Linker(
            None, libraries=libs, imports={"env": {"f": dl.HostFunction(lambda: 9, (), ("i32",))}}
        ) as linker:
            group = linker.main_group
            group.dlopen("maker.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)
            user = group.dlopen("user.so", dl.RTLD_LAZY)

            def told(symbol: str) -> tuple[str, str]:
                (entry,) = linker.explain(symbol, user).imports
                return entry.provider, entry.rule

            assert told("f") == ("the host", "given by `imports`, which come before every module")
            assert linker.explain("f", user).imports[0].others[0].reason == "what `imports` give comes first"
            assert told("memory")[0] == "the linker"
            assert told("sched_yield") == (
                "the host",
                "the system interface wasi_snapshot_preview1, as no module that it sees defines it",
            )
            assert told("none") == ("nobody", "nothing defines it yet; it is looked for at the first call")
            assert told("weak") == ("nobody", "it is weak, and nothing defined it: the null pointer")
            with pytest.raises(dl.SymbolNotFoundError, match="does not import it; it defines it itself"):
                linker.explain("g", user)
            group.dlopen(library(returns("none", 4)), dl.RTLD_NOW | dl.RTLD_GLOBAL, name="now.so")
            assert group.dlsym(user, "n")() == 4
            assert told("none") == (
                "now.so",
                "bound at its first call: the first definition in the global scope",
            )

    def test_imports_that_name_whose_they_mean(self) -> None:
        """An import from a needed library by its name, and one from an ordinary module, say so, and have no rivals."""
        libs = {
            "low.so": maker(3),
            "other.so": maker(4),
            "user.so": library(
                imports("f", namespace="low.so"),
                imports("A1", namespace="mA"),
                calls("g", "f"),
                calls("h", "A1"),
                needed=["low.so"],
            ),
        }
        with dl.Linker(None, libraries=libs, modules={"mA": module(returns("A1", 11))}) as linker:
            group = linker.main_group
            group.dlopen("other.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)
            user = group.dlopen("user.so")
            assert (group.dlsym(user, "g")(), group.dlsym(user, "h")()) == (3, 11)
            (named,) = linker.explain("f", user).imports
            assert (named.provider, named.rule) == ("low.so", "the import names the module that it means")
            (instance,) = linker.explain("A1", user).imports
            assert instance.provider == "mA"
            assert instance.rule == "the import names the instance that it means"
            assert named.others == instance.others == ()

    def test_a_symbol_loaded_later_is_no_candidate(self) -> None:
        """A weak import that was null when it was bound says that a definition came later."""
        libs = {
            "user.so": library(MEMORY, got("d", "mem"), reads("w", "got_mem_d"), weak=["d"]),
            "m.so": maker(1),
        }
        with dl.Linker(static(), libraries=libs) as linker:
            group = linker.main_group
            user = group.dlopen("user.so")
            group.dlopen("m.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)
            (entry,) = linker.explain("d", user).imports
            assert [other.reason for other in entry.others] == ["it was loaded after the import was bound"]
