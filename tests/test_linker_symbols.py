"""What an import means: first definitions, scopes, the GOT, weak symbols, stubs, re-exports."""

from __future__ import annotations

import pytest
from support.modules import (
    MEMORY,
    MEMORY_BASE,
    TABLE,
    TABLE_BASE,
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

import dl

CALL_POINTER = (
    '(func (export "call_pointer") (param i32) (result i32) local.get 0 call_indirect (result i32))'
)


def linker(libraries, **options):
    return dl.Linker(None, libraries=libraries, **options)


class TestFirstDefinition:
    def test_dependencies_are_searched_breadth_first(self):
        """Of several definitions in a tree the first in breadth-first order of the needed lists wins, as in ELF."""
        libs = {
            "top.so": library(imports("f"), calls("g", "f"), needed=["left.so", "right.so"]),
            "left.so": library(needed=["deep.so"]),
            "right.so": library(returns("f", 2)),
            "deep.so": library(returns("f", 3)),
        }
        with linker(libs) as program:
            group = program.main_group
            top = group.dlopen("top.so")

            assert group.dlsym(top, "g")() == 2
            assert group.dlsym(top, "f")() == 2

    def test_order_of_the_needed_list_decides(self):
        """Between two libraries of the same depth the one that is listed first wins."""
        both = {"a.so": library(returns("f", 1)), "b.so": library(returns("f", 2))}
        for order, expected in ((["a.so", "b.so"], 1), (["b.so", "a.so"], 2)):
            top = library(imports("f"), calls("g", "f"), needed=order)
            with linker({**both, "top.so": top}) as program:
                group = program.main_group

                assert group.dlsym(group.dlopen("top.so"), "g")() == expected

    def test_names_that_could_be_the_linkers(self):
        """A function may be called memory, or like the table: only such memories and tables are no symbols."""
        names = ["memory", "__indirect_function_table", "main", "malloc"]
        lib = library(*(returns(n, i) for i, n in enumerate(names)))
        user = library(
            *(imports(n) for n in names), *(calls(f"get_{n}", n) for n in names), needed=["lib.so"]
        )
        with linker({"lib.so": lib}) as program:
            group = program.main_group
            handle = group.dlopen(user)

            assert [group.dlsym(handle, f"get_{n}")() for n in names] == [0, 1, 2, 3]

    def test_a_module_can_import_what_it_exports(self):
        """An import that only the importing module itself defines is bound to its own definition."""
        own = library(imports("f"), calls("g", "f"), returns("f", 5))
        with linker({"own.so": own}) as program:
            group = program.main_group

            assert group.dlsym(group.dlopen("own.so"), "g")() == 5

    def test_the_main_module_interposes(self):
        """A function of the main module takes the place of a library's own, in that library too."""
        lib = library(imports("f"), calls("g", "f"), returns("f", 5))
        main = pie(returns("f", 1))
        with dl.Linker(main, libraries={"lib.so": lib}) as program:
            group = program.main_group
            handle = group.dlopen("lib.so")

            assert group.dlsym(handle, "g")() == 1
            assert group.dlsym(handle, "f")() == 5, "asked for by its handle, a library shows its own"

    def test_a_library_that_the_main_module_needs_interposes(self):
        """A library in the global scope comes before one that is opened later."""
        libs = {
            "first.so": library(returns("f", 1)),
            "later.so": library(imports("f"), calls("g", "f"), returns("f", 2)),
        }
        with dl.Linker(pie(needed=["first.so"]), libraries=libs) as program:
            group = program.main_group

            assert group.dlsym(group.dlopen("later.so"), "g")() == 1

    def test_the_host_interposes(self):
        """A function given by the host takes the place of every module's, calls and addresses alike."""
        lib = library(
            TABLE,
            imports("f"),
            got("f", "func"),
            calls("g", "f"),
            returns("f", 5),
            reads("at", "got_func_f"),
            CALL_POINTER,
        )
        with linker({"lib.so": lib}, imports={"env": {"f": lambda: 9}}) as program:
            group = program.main_group
            handle = group.dlopen("lib.so")

            assert group.dlsym(handle, "g")() == 9
            assert group.dlsym(handle, "call_pointer")(group.dlsym(handle, "at")()) == 9

    def test_data_is_interposed_like_functions(self):
        """GOT.mem follows the same order: the main module's variable is the one everybody sees."""
        main = pie(data("x", 4), memory_size=8)
        lib = library(MEMORY, got("x", "mem"), reads("at", "got_mem_x"), data("x", 0), memory_size=8)
        with dl.Linker(main, libraries={"lib.so": lib}) as program:
            group = program.main_group
            handle = group.dlopen("lib.so")

            assert group.dlsym(handle, "at")() == group.dlsym(program.main, "x").address
            assert group.dlsym(handle, "x").address != group.dlsym(program.main, "x").address


class TestScopes:
    LIB = library(returns("f", 1))
    USER = library(imports("f"), calls("g", "f"))

    def test_local_symbols_are_not_seen_by_others(self):
        """What was opened LOCAL is in no other tree's scope, nor in the default scope."""
        with linker({"lib.so": self.LIB, "user.so": self.USER}) as program:
            group = program.main_group
            group.dlopen("lib.so", dl.RTLD_NOW | dl.RTLD_LOCAL)

            with pytest.raises(dl.UnresolvedSymbolsError, match=r"env\.f"):
                group.dlopen("user.so", dl.RTLD_NOW)
            with pytest.raises(dl.SymbolNotFoundError):
                group.dlsym(dl.RTLD_DEFAULT, "f")

    def test_global_symbols_are_seen_by_later_modules(self):
        """What was opened GLOBAL is in the scope of all modules opened later, and in the default scope."""
        with linker({"lib.so": self.LIB, "user.so": self.USER}) as program:
            group = program.main_group
            group.dlopen("lib.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)

            assert group.dlsym(group.dlopen("user.so"), "g")() == 1
            assert group.dlsym(dl.RTLD_DEFAULT, "f")() == 1

    def test_reopening_global_promotes(self):
        """Opening a LOCAL module again as GLOBAL puts it and what it needs into the global scope."""
        libs = {"lib.so": library(needed=["under.so"]), "under.so": self.LIB, "user.so": self.USER}
        with linker(libs) as program:
            group = program.main_group
            local = group.dlopen("lib.so", dl.RTLD_NOW)

            assert group.dlopen("lib.so", dl.RTLD_NOW | dl.RTLD_GLOBAL) == local
            assert group.dlsym(group.dlopen("user.so"), "g")() == 1

    def test_reopening_local_does_not_demote(self):
        """A module in the global scope stays there when it is opened again as LOCAL."""
        with linker({"lib.so": self.LIB, "user.so": self.USER}) as program:
            group = program.main_group
            group.dlopen("lib.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)
            group.dlopen("lib.so", dl.RTLD_NOW | dl.RTLD_LOCAL)

            assert group.dlsym(group.dlopen("user.so"), "g")() == 1

    def test_noload_promotes_without_loading(self):
        """NOLOAD finds a loaded module, and with GLOBAL promotes it."""
        with linker({"lib.so": self.LIB, "user.so": self.USER}) as program:
            group = program.main_group
            local = group.dlopen("lib.so", dl.RTLD_NOW)

            assert group.dlopen("lib.so", dl.RTLD_NOW | dl.RTLD_NOLOAD | dl.RTLD_GLOBAL) == local
            assert group.dlsym(group.dlopen("user.so"), "g")() == 1

    def test_noload_of_what_is_not_loaded_fails(self):
        """NOLOAD never loads: it is an error for a module that is not there, and leaves nothing behind."""
        with linker({"lib.so": self.LIB}) as program:
            with pytest.raises(dl.LibraryNotFoundError, match="NOLOAD"):
                program.main_group.dlopen("lib.so", dl.RTLD_NOW | dl.RTLD_NOLOAD)
            assert program.modules() == []

    def test_two_local_trees_share_a_dependency(self):
        """A library that two LOCAL trees need is one module that both see; a third tree does not see it."""
        libs = {
            "sub.so": library(returns("f", 4)),
            "a.so": library(imports("f"), calls("ga", "f"), needed=["sub.so"]),
            "b.so": library(imports("f"), calls("gb", "f"), needed=["sub.so"]),
            "user.so": self.USER,
        }
        with linker(libs) as program:
            group = program.main_group
            a, b = group.dlopen("a.so"), group.dlopen("b.so")

            assert (group.dlsym(a, "ga")(), group.dlsym(b, "gb")()) == (4, 4)
            assert group.dlsym(a, "f").address == group.dlsym(b, "f").address
            with pytest.raises(dl.UnresolvedSymbolsError):
                group.dlopen("user.so")

    def test_global_definitions_come_before_those_of_the_tree(self):
        """Without DEEPBIND the global scope is searched before a LOCAL tree."""
        self._open_under_global(dl.RTLD_NOW, expected=1)

    @pytest.mark.parametrize("visible", [dl.RTLD_LOCAL, dl.RTLD_GLOBAL])
    def test_deepbind_prefers_the_tree(self, visible):
        """With DEEPBIND a tree finds its own symbols before the global ones, whether it is LOCAL or GLOBAL."""
        self._open_under_global(dl.RTLD_NOW | dl.RTLD_DEEPBIND | visible, expected=2)

    def _open_under_global(self, flags, *, expected):
        libs = {
            "global.so": self.LIB,
            "tree.so": library(imports("f"), calls("g", "f"), needed=["own.so"]),
            "own.so": library(returns("f", 2)),
        }
        with linker(libs) as program:
            group = program.main_group
            group.dlopen("global.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)

            assert group.dlsym(group.dlopen("tree.so", flags), "g")() == expected

    def test_default_scope_is_in_load_order(self):
        """dlsym with RTLD_DEFAULT searches the main module, what it needs, and then what was opened GLOBAL in order."""
        libs = {f"{n}.so": library(returns(n, i), returns("f", i)) for i, n in enumerate("abc", 1)}
        main = pie(returns("main_only", 0), needed=["c.so"])
        with dl.Linker(main, libraries=libs) as program:
            group = program.main_group
            group.dlopen("b.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)
            group.dlopen("a.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)

            assert group.dlsym(dl.RTLD_DEFAULT, "f")() == 3
            assert group.dlsym(dl.RTLD_DEFAULT, "main_only")() == 0
            assert [group.dlsym(dl.RTLD_DEFAULT, n)() for n in "abc"] == [1, 2, 3]

    def test_flags_must_say_when_to_bind(self):
        """dlopen without RTLD_LAZY or RTLD_NOW is a mistake of the caller."""
        with linker({"lib.so": self.LIB}) as program:
            with pytest.raises(dl.LinkerUsageError, match="RTLD_LAZY or RTLD_NOW"):
                program.main_group.dlopen("lib.so", 0)

    def test_unknown_flags_are_refused(self):
        """Flags of another system's numbering, such as os.RTLD_GLOBAL, are not taken for nothing."""
        with linker({"lib.so": self.LIB}) as program:
            with pytest.raises(dl.LinkerUsageError, match="0x100"):
                program.main_group.dlopen("lib.so", dl.RTLD_NOW | 0x100)


class TestFunctionPointers:
    ONE = library(
        TABLE,
        TABLE_BASE,
        '(func $f (export "f") (result i32) i32.const 1)',
        "(elem (global.get $table_base) $f)",
        reads("base", "table_base"),
        table_size=1,
    )
    TWO = library(TABLE, got("f", "func"), reads("at", "got_func_f"), CALL_POINTER, needed=["one.so"])

    def test_one_function_has_one_address(self):
        """Own element segment, other modules' GOT entries and dlsym agree on a function's address."""
        with linker({"one.so": self.ONE, "two.so": self.TWO, "three.so": self.TWO}) as program:
            group = program.main_group
            two, three = group.dlopen("two.so"), group.dlopen("three.so")
            one = group.dlopen("one.so")
            address = group.dlsym(one, "f").address

            assert address == group.dlsym(one, "base")()
            assert address == group.dlsym(two, "at")() == group.dlsym(three, "at")()
            assert group.dlsym(three, "call_pointer")(address) == 1

    def test_a_function_in_no_segment_gets_an_index_at_once(self):
        """An exported function that its module never takes the address of is callable by pointer all the same."""
        caller = library(TABLE, CALL_POINTER)
        with linker({"lib.so": library(returns("f", 3)), "caller.so": caller}) as program:
            group = program.main_group
            lib, other = group.dlopen("lib.so"), group.dlopen("caller.so")

            assert group.dlsym(other, "call_pointer")(group.dlsym(lib, "f").address) == 3

    def test_thousands_of_functions(self):
        """Neither exports nor table elements of a library are limited to some thousand."""
        functions = [f'(func $f{n} (export "f{n}") (result i32) i32.const {n})' for n in range(5000)]
        placed = " ".join(f"$f{n}" for n in range(0, 5000, 2))
        lib = library(
            TABLE,
            TABLE_BASE,
            *functions,
            f"(elem (global.get $table_base) {placed})",
            CALL_POINTER,
            table_size=2500,
        )
        with linker({"lib.so": lib}) as program:
            group = program.main_group
            handle = group.dlopen("lib.so")
            addresses = [group.dlsym(handle, f"f{n}").address for n in range(5000)]

            assert len(set(addresses)) == 5000
            call = group.dlsym(handle, "call_pointer")
            assert [call(addresses[n]) for n in (0, 1, 2500, 4999)] == [0, 1, 2500, 4999]

    def test_got_entries_of_every_type(self):
        """GOT entries may be immutable, and 64 bits wide."""
        lib = library(
            MEMORY,
            '(import "GOT.mem" "d" (global $d i32))',
            '(import "GOT.func" "f" (global $f i64))',
            data("d", 4),
            returns("f", 2),
            reads("d_at", "d"),
            '(func (export "f_at") (result i64) global.get $f)',
            memory_size=8,
        )
        with linker({"lib.so": lib}) as program:
            group = program.main_group
            handle = group.dlopen("lib.so")

            assert group.dlsym(handle, "d_at")() == group.dlsym(handle, "d").address
            assert group.dlsym(handle, "f_at")() == group.dlsym(handle, "f").address

    def test_aliases_share_an_address(self):
        """Two names of one function are one pointer."""
        lib = library('(func $f (export "a") (export "b") (result i32) i32.const 1)')
        with linker({"lib.so": lib}) as program:
            group = program.main_group
            handle = group.dlopen("lib.so")

            assert group.dlsym(handle, "a").address == group.dlsym(handle, "b").address
            assert group.dlsym(handle, "b")() == 1

    def test_a_static_main_module_shares_its_pointers(self):
        """A function in a static main module's element segment keeps the index that its linker gave it."""
        main = static('(func $f (export "f") (result i32) i32.const 8)', "(elem (i32.const 2) $f)")
        lib = library(TABLE, got("f", "func"), reads("at", "got_func_f"), CALL_POINTER)
        with dl.Linker(main, libraries={"lib.so": lib}) as program:
            group = program.main_group
            handle = group.dlopen("lib.so")

            assert group.dlsym(handle, "at")() == 2 == group.dlsym(program.main, "f").address
            assert group.dlsym(handle, "call_pointer")(2) == 8

    def test_pointers_of_a_host_function(self):
        """A host function has one address for all modules, and its callers go through it to the host."""
        lib = library(
            TABLE, imports("f"), got("f", "func"), reads("at", "got_func_f"), calls("g", "f"), CALL_POINTER
        )
        with linker({"a.so": lib, "b.so": lib}, imports={"env": {"f": lambda: 12}}) as program:
            group = program.main_group
            a, b = group.dlopen("a.so"), group.dlopen("b.so")
            address = group.dlsym(a, "at")()

            assert address == group.dlsym(b, "at")() != 0
            assert group.dlsym(b, "call_pointer")(address) == 12

    def test_pointer_of_a_host_function_that_is_never_called(self):
        """Where no import states a host function's signature, dl.HostFunction does; without it the error says so."""
        lib = library(TABLE, got("f", "func"), reads("at", "got_func_f"), CALL_POINTER)
        typed = dl.HostFunction(lambda: 13, (), ("i32",))
        with linker({"lib.so": lib}, imports={"env": {"f": typed}}) as program:
            group = program.main_group
            handle = group.dlopen("lib.so")

            assert group.dlsym(handle, "call_pointer")(group.dlsym(handle, "at")()) == 13
        with linker({"lib.so": lib}, imports={"env": {"f": lambda: 13}}) as program:
            with pytest.raises(dl.UnsupportedModuleError, match="HostFunction"):
                program.main_group.dlopen("lib.so")

    def test_a_wrong_signature_traps(self):
        """A call through a pointer of another signature traps, it never runs the function."""
        caller = library(TABLE, CALL_POINTER)
        lib = library('(func (export "f") (param i64))')
        with linker({"lib.so": lib, "caller.so": caller}) as program:
            group = program.main_group
            address = group.dlsym(group.dlopen("lib.so"), "f").address

            with pytest.raises(dl.TrapError, match="indirect call type mismatch"):
                group.dlsym(group.dlopen("caller.so"), "call_pointer")(address)

    def test_null_is_nobody(self):
        """Table index 0 holds nothing, so that a call through a null pointer traps."""
        with linker(
            {"caller.so": library(TABLE, CALL_POINTER), "lib.so": library(returns("f", 1))}
        ) as program:
            group = program.main_group
            group.dlopen("lib.so")

            with pytest.raises(dl.TrapError, match="uninitialized"):
                group.dlsym(group.dlopen("caller.so"), "call_pointer")(0)


class TestReexports:
    def test_an_imported_function_that_is_exported_again(self):
        """A re-exported function is the function: same address, callable by handle and by import, over several steps."""
        libs = {
            "origin.so": library(returns("f", 6)),
            "one.so": library(imports("f"), '(export "g" (func $f))', needed=["origin.so"]),
            "two.so": library(imports("g"), '(export "h" (func $g))', needed=["one.so"]),
            "user.so": library(
                TABLE,
                imports("h"),
                got("h", "func"),
                calls("k", "h"),
                reads("at", "got_func_h"),
                needed=["two.so"],
            ),
        }
        with linker(libs) as program:
            group = program.main_group
            user = group.dlopen("user.so")
            address = group.dlsym(user, "f").address

            assert group.dlsym(user, "k")() == 6
            assert group.dlsym(user, "at")() == address
            assert [group.dlsym(user, n).address for n in "gh"] == [address, address]
            assert group.dlsym(user, "h")() == 6

    def test_a_function_exported_again_under_its_name(self):
        """A main module that only passes a library's function on does not change whose function it is."""
        lib = library(returns("f", 6), imports("g"), calls("via", "g"), returns("g", 1))
        main = pie(imports("f"), '(export "f" (func $f))', needed=["lib.so"])
        with dl.Linker(main, libraries={"lib.so": lib}) as program:
            group = program.main_group

            assert group.dlsym(program.main, "f")() == 6
            assert group.dlsym(program.main, "f").address == group.dlsym(2, "f").address

    def test_a_host_function_exported_again(self):
        """A module may pass a host function on; others import it and dlsym gives it an address."""
        libs = {
            "proxy.so": library(imports("log", "(param i32) (result i32)"), '(export "say" (func $log))'),
            "user.so": library(
                TABLE,
                imports("say", "(param i32) (result i32)"),
                '(func (export "run") (result i32) i32.const 3 call $say)',
                '(func (export "by_pointer") (param i32) (result i32) i32.const 4 local.get 0'
                " call_indirect (param i32) (result i32))",
                needed=["proxy.so"],
            ),
        }
        with linker(libs, imports={"env": {"log": lambda n: n * 10}}) as program:
            group = program.main_group
            user = group.dlopen("user.so")
            say = group.dlsym(user, "say")

            assert group.dlsym(user, "run")() == 30
            assert say(2) == 20
            assert group.dlsym(user, "by_pointer")(say.address) == 40

    def test_in_a_cycle(self):
        """A re-export of what a later module of the same cycle defines is found too."""
        libs = {
            "a.so": library(returns("f", 2), imports("h"), calls("via", "h"), needed=["b.so"]),
            "b.so": library(imports("f"), '(export "h" (func $f))', needed=["a.so"]),
        }
        with linker(libs) as program:
            group = program.main_group
            a = group.dlopen("a.so")

            assert group.dlsym(a, "via")() == 2
            assert group.dlsym(a, "h").address == group.dlsym(a, "f").address

    def test_a_global_exported_again(self):
        """A wasm variable passes through a module that re-exports it."""
        libs = {
            "origin.so": library(
                '(global $v (export "v") (mut i64) (i64.const 5))',
                '(func (export "get") (result i64) global.get $v)',
            ),
            "proxy.so": library(
                '(import "env" "v" (global $v (mut i64)))', '(export "w" (global $v))', needed=["origin.so"]
            ),
            "user.so": library(
                '(import "env" "w" (global $w (mut i64)))',
                '(func (export "set") (param i64) local.get 0 global.set $w)',
                needed=["proxy.so"],
            ),
        }
        with linker(libs) as program:
            group = program.main_group
            user = group.dlopen("user.so")
            group.dlsym(user, "set")(77)

            assert group.dlsym(user, "get")() == 77


class TestWeak:
    def test_undefined_weak_symbols_are_null(self):
        """A weak function and weak data that nothing defines have address 0, and no error is raised."""
        lib = library(
            TABLE, MEMORY, imports("wf"), got("wf", "func"), got("wd", "mem"),
            reads("function", "got_func_wf"), reads("data", "got_mem_wd"), calls("call", "wf"), weak=["wf", "wd"],
        )  # fmt: skip
        with linker({"lib.so": lib}) as program:
            group = program.main_group
            handle = group.dlopen("lib.so", dl.RTLD_NOW)

            assert (group.dlsym(handle, "function")(), group.dlsym(handle, "data")()) == (0, 0)
            with pytest.raises(dl.UnresolvedCallError, match=r"env\.wf"):
                group.dlsym(handle, "call")()

    def test_defined_weak_symbols_are_found(self):
        """A weak import of something defined is an import like any other."""
        libs = {
            "def.so": library(MEMORY, returns("wf", 3), data("wd", 4), memory_size=8),
            "lib.so": library(
                TABLE, MEMORY, got("wf", "func"), got("wd", "mem"), reads("function", "got_func_wf"),
                reads("data", "got_mem_wd"), weak=["wf", "wd"], needed=["def.so"],
            ),
        }  # fmt: skip
        with linker(libs) as program:
            group = program.main_group
            handle = group.dlopen("lib.so")

            assert group.dlsym(handle, "function")() == group.dlsym(handle, "wf").address
            assert group.dlsym(handle, "data")() == group.dlsym(handle, "wd").address

    def test_a_weak_function_defined_later(self):
        """A direct call of a weak function reaches what a later library defines; its address, taken before, stays null."""
        lib = library(
            TABLE,
            imports("wf"),
            got("wf", "func"),
            reads("at", "got_func_wf"),
            calls("call", "wf"),
            weak=["wf"],
        )
        with linker({"lib.so": lib, "later.so": library(returns("wf", 3))}) as program:
            group = program.main_group
            handle = group.dlopen("lib.so")
            group.dlopen("later.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)

            assert group.dlsym(handle, "call")() == 3
            assert group.dlsym(handle, "at")() == 0

    def test_an_own_weak_definition_is_interposable(self):
        """A module's import of its own weak function takes the first definition of all, as C++ inline functions need."""
        weak = [imports("inline_"), calls("use", "inline_")]
        libs = {
            "a.so": library(*weak, returns("inline_", 1)),
            "b.so": library(*weak, returns("inline_", 2), needed=["a.so"]),
        }
        with linker(libs) as program:
            group = program.main_group
            a = group.dlopen("a.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)
            b = group.dlopen("b.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)

            assert (group.dlsym(a, "use")(), group.dlsym(b, "use")()) == (1, 1)


class TestMissing:
    def test_all_missing_symbols_are_named_at_once(self):
        """RTLD_NOW reports every missing function and variable of the whole tree in one error, with importer and type."""
        libs = {
            "top.so": library(imports("f1", "(param i64)"), got("d1", "mem"), needed=["dep.so"]),
            "dep.so": library(imports("f2"), got("f3", "func"), imports("x", namespace="other")),
        }
        with linker(libs) as program:
            with pytest.raises(dl.UnresolvedSymbolsError) as caught:
                program.main_group.dlopen("top.so", dl.RTLD_NOW)

            error = caught.value
            missing = {(m.importer, m.namespace, m.symbol) for m in error.missing}
            assert missing == {
                ("top.so", "env", "f1"),
                ("top.so", "GOT.mem", "d1"),
                ("dep.so", "env", "f2"),
                ("dep.so", "GOT.func", "f3"),
                ("dep.so", "other", "x"),
            }
            assert error.module == "top.so"
            assert set(error.searched) == {"top.so", "dep.so"}
            text = str(error)
            assert all(name in text for name in ("f1", "(i64)", "d1", "f2", "f3", "other.x", "dep.so"))
            assert "\n" not in text

    def test_data_must_be_there_even_when_lazy(self):
        """RTLD_LAZY leaves functions to their first call, but addresses are needed at once."""
        lib = library(imports("f"), got("f", "func"), got("d", "mem"))
        with linker({"lib.so": lib}) as program:
            with pytest.raises(dl.UnresolvedSymbolsError) as caught:
                program.main_group.dlopen("lib.so", dl.RTLD_LAZY)

            assert [(m.namespace, m.symbol) for m in caught.value.missing] == [
                ("GOT.func", "f"),
                ("GOT.mem", "d"),
            ]

    def test_missing_globals_and_tags(self):
        """A variable or a tag that nothing defines is reported like a function."""
        lib = library('(import "env" "g" (global i32))', '(import "env" "t" (tag (param i64)))')
        with linker({"lib.so": lib}) as program:
            with pytest.raises(dl.UnresolvedSymbolsError) as caught:
                program.main_group.dlopen("lib.so")

            assert [m.symbol for m in caught.value.missing] == ["g", "t"]

    def test_a_program_runs_without_what_it_never_calls(self):
        """The main module's imports that nobody provides stop it only when it calls one; the error names it."""
        main = pie(
            imports("nobody", namespace="elsewhere"), imports("neither"),
            imports("fd_nothing", namespace="wasi_snapshot_preview1"),
            returns("fine", 1), calls("a", "nobody"), calls("b", "neither"), calls("c", "fd_nothing"),
        )  # fmt: skip
        with dl.Linker(main, name="prog") as program:
            group = program.main_group

            assert group.dlsym(program.main, "fine")() == 1
            for name, wanted in (
                ("a", "elsewhere.nobody"),
                ("b", "env.neither"),
                ("c", "wasi_snapshot_preview1.fd_nothing"),
            ):
                with pytest.raises(dl.UnresolvedCallError) as caught:
                    group.dlsym(program.main, name)()
                assert f"{caught.value.namespace}.{caught.value.symbol}" == wanted
                assert caught.value.importer == "prog"
            assert group.dlsym(program.main, "fine")() == 1


class TestStubs:
    USER = library(
        imports("f", "(param i32) (result i32)"),
        '(func (export "g") (param i32) (result i32) local.get 0 call $f)',
    )

    def test_bound_at_the_first_call(self):
        """A LAZY function is looked up when it is called, among what has been loaded by then, and then stays."""
        libs = {
            "user.so": self.USER,
            "late.so": library(
                '(func (export "f") (param i32) (result i32) local.get 0 i32.const 1 i32.add)'
            ),
            "later.so": library('(func (export "f") (param i32) (result i32) i32.const 0)'),
        }
        with linker(libs) as program:
            group = program.main_group
            g = group.dlsym(group.dlopen("user.so", dl.RTLD_LAZY), "g")
            with pytest.raises(
                dl.UnresolvedCallError, match=r"user\.so: call of env\.f: nothing provides it"
            ):
                g(1)
            group.dlopen("late.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)

            assert g(1) == 2
            group.dlopen("later.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)
            assert g(5) == 6

    def test_local_libraries_do_not_serve_stubs_of_others(self):
        """A stub sees what its module's scope holds: a LOCAL library of another tree is not in it."""
        late = library('(func (export "f") (param i32) (result i32) i32.const 1)')
        with linker({"user.so": self.USER, "late.so": late}) as program:
            group = program.main_group
            g = group.dlsym(group.dlopen("user.so", dl.RTLD_LAZY), "g")
            group.dlopen("late.so", dl.RTLD_NOW)

            with pytest.raises(dl.UnresolvedCallError):
                g(1)

    def test_a_definition_of_another_type(self):
        """A stub whose function turns out to have another type fails with both named, and can still be met later."""
        wrong = library('(func (export "f") (param i64))')
        with linker({"user.so": self.USER, "wrong.so": wrong}) as program:
            group = program.main_group
            g = group.dlsym(group.dlopen("user.so", dl.RTLD_LAZY), "g")
            group.dlopen("wrong.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)

            for _ in range(2):
                with pytest.raises(dl.UnresolvedCallError, match=r"wrong\.so") as caught:
                    g(1)
                assert "(i32) -> i32" in str(caught.value)

    def test_of_every_type(self):
        """A stub passes values of every type through, several results too."""
        kind = "(param i32 i64 f32 f64) (result f64 f32 i64 i32)"
        user = library(
            imports("f", kind),
            f'(func (export "g") {kind} local.get 0 local.get 1 local.get 2 local.get 3 call $f)',
        )
        late = library(f'(func (export "f") {kind} local.get 3 local.get 2 local.get 1 local.get 0)')
        with linker({"user.so": user, "late.so": late}) as program:
            group = program.main_group
            g = group.dlsym(group.dlopen("user.so", dl.RTLD_LAZY), "g")
            group.dlopen("late.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)

            assert g(-1, -(1 << 62), 0.5, 1e300) == (1e300, 0.5, -(1 << 62), -1)


class TestNumbers:
    def test_of_every_type(self):
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

    def test_zeros_and_what_is_no_number(self):
        """Negative zero stays negative, whatever was linked before, and NaN passes."""
        lib = library('(import "cfg" "n" (global $n f64))', '(func (export "n") (result f64) global.get $n)')
        results = []
        for value in (0.0, -0.0, float("nan"), 0):
            with linker({"lib.so": lib}, imports={"cfg": {"n": value}}) as program:
                group = program.main_group
                results.append(str(group.dlsym(group.dlopen("lib.so"), "n")()))

        assert results == ["0.0", "-0.0", "nan", "0.0"]

    def test_as_data_addresses(self):
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
    def test_that_do_not_fit(self, kind, value):
        """A number that the global's type cannot hold is a type error that names the import."""
        lib = library(f'(import "cfg" "n" (global $n {kind}))')
        with linker({"lib.so": lib}, imports={"cfg": {"n": value}}) as program:
            with pytest.raises(dl.ImportTypeError, match=r"cfg\.n"):
                program.main_group.dlopen("lib.so")

    def test_a_large_float_becomes_infinite(self):
        """A double too large for single precision becomes an infinity, as a C conversion makes it."""
        lib = library('(import "cfg" "n" (global $n f32))', '(func (export "n") (result f32) global.get $n)')
        with linker({"lib.so": lib}, imports={"cfg": {"n": -1e300}}) as program:
            group = program.main_group

            assert group.dlsym(group.dlopen("lib.so"), "n")() == float("-inf")

    def test_where_a_function_is_asked_for(self):
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
    def test_the_common_tags_are_the_linkers(self, tag):
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

    def test_a_tag_of_a_library(self):
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

    def test_the_main_modules_own_tag_is_everyones(self):
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

    def test_of_another_type(self):
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
    def test_mismatch(self, wanted, defined, expected):
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
            assert [m.name for m in program.modules()] == []

    def test_host_function_of_another_signature(self):
        """dl.HostFunction states a signature, which an import must have exactly."""
        typed = dl.HostFunction(lambda: 1, (), ("i64",))
        with linker({"lib.so": library(imports("f"))}, imports={"env": {"f": typed}}) as program:
            with pytest.raises(
                dl.ImportTypeError, match=r"\(\) -> i32, but the host defines it as \(\) -> i64"
            ):
                program.main_group.dlopen("lib.so")

    def test_system_function_of_another_signature(self):
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
            ('(import "env" "memory" (memory i64 0))', {}, "i64"),
        ],
    )
    def test_memory(self, field, options, expected):
        """A memory import must agree on sharing and width, and must not promise a smaller maximum."""
        with linker({"lib.so": library(field)}, **options) as program:
            with pytest.raises((dl.ImportTypeError, dl.UnsupportedModuleError), match=expected):
                program.main_group.dlopen("lib.so")

    def test_memory_within_the_maximum(self):
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
    def test_the_linkers_own(self, field):
        """Table, stack pointer, bases and GOT entries of an impossible type are refused by name."""
        with linker({"lib.so": library(field)}) as program:
            with pytest.raises((dl.ImportTypeError, dl.UnsupportedModuleError), match=r"env\.__|GOT\.mem"):
                program.main_group.dlopen("lib.so")
            assert program.modules() == []


class TestBases:
    def test_libraries_without_data_or_elements(self):
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

    def test_absolute_data(self):
        """An exported constant that is flagged absolute is not moved with the module."""
        lib = library(MEMORY, data("fixed", 99), data("moved", 4), memory_size=8, flags={"fixed": 0x200})
        with linker({"lib.so": lib}) as program:
            group = program.main_group
            handle = group.dlopen("lib.so")

            assert group.dlsym(handle, "fixed").address == 99
            assert group.dlsym(handle, "moved").address > 1024

    def test_a_library_that_was_not_linked_as_one(self):
        """A module without a dylink section is not a library, and the error says how to make one."""
        with linker({"lib.so": module(returns("f", 1))}) as program:
            with pytest.raises(dl.NotDynamicError, match="-shared"):
                program.main_group.dlopen("lib.so")
