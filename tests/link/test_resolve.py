"""Which definition an import takes: first in order, seen through scopes that dlopen's flags make."""

from __future__ import annotations

import pytest

import dl
from tests.support.modules import (
    CALL_POINTER,
    MEMORY,
    TABLE,
    calls,
    data,
    got,
    imports,
    library,
    linker,
    pie,
    reads,
    returns,
)


class TestFirstDefinition:
    def test_dependencies_are_searched_breadth_first(self) -> None:
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

    def test_order_of_the_needed_list_decides(self) -> None:
        """Between two libraries of the same depth the one that is listed first wins."""
        both = {"a.so": library(returns("f", 1)), "b.so": library(returns("f", 2))}
        for order, expected in ((["a.so", "b.so"], 1), (["b.so", "a.so"], 2)):
            top = library(imports("f"), calls("g", "f"), needed=order)
            with linker({**both, "top.so": top}) as program:
                group = program.main_group

                assert group.dlsym(group.dlopen("top.so"), "g")() == expected

    def test_names_that_could_be_the_linkers(self) -> None:
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

    def test_a_module_can_import_what_it_exports(self) -> None:
        """An import that only the importing module itself defines is bound to its own definition."""
        own = library(imports("f"), calls("g", "f"), returns("f", 5))
        with linker({"own.so": own}) as program:
            group = program.main_group

            assert group.dlsym(group.dlopen("own.so"), "g")() == 5

    def test_the_main_module_interposes(self) -> None:
        """A function of the main module takes the place of a library's own, in that library too."""
        lib = library(imports("f"), calls("g", "f"), returns("f", 5))
        main = pie(returns("f", 1))
        with dl.Linker(main, libraries={"lib.so": lib}) as program:
            group = program.main_group
            handle = group.dlopen("lib.so")

            assert group.dlsym(handle, "g")() == 1
            assert group.dlsym(handle, "f")() == 5, "asked for by its handle, a library shows its own"

    def test_a_library_that_the_main_module_needs_interposes(self) -> None:
        """A library in the global scope comes before one that is opened later."""
        libs = {
            "first.so": library(returns("f", 1)),
            "later.so": library(imports("f"), calls("g", "f"), returns("f", 2)),
        }
        with dl.Linker(pie(needed=["first.so"]), libraries=libs) as program:
            group = program.main_group

            assert group.dlsym(group.dlopen("later.so"), "g")() == 1

    def test_the_host_interposes(self) -> None:
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

    def test_data_is_interposed_like_functions(self) -> None:
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

    def test_local_symbols_are_not_seen_by_others(self) -> None:
        """What was opened LOCAL is in no other tree's scope, nor in the default scope."""
        with linker({"lib.so": self.LIB, "user.so": self.USER}) as program:
            group = program.main_group
            group.dlopen("lib.so", dl.RTLD_NOW | dl.RTLD_LOCAL)

            with pytest.raises(dl.UnresolvedSymbolsError, match=r"env\.f"):
                group.dlopen("user.so", dl.RTLD_NOW)
            with pytest.raises(dl.SymbolNotFoundError):
                group.dlsym(dl.RTLD_DEFAULT, "f")

    def test_global_symbols_are_seen_by_later_modules(self) -> None:
        """What was opened GLOBAL is in the scope of all modules opened later, and in the default scope."""
        with linker({"lib.so": self.LIB, "user.so": self.USER}) as program:
            group = program.main_group
            group.dlopen("lib.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)

            assert group.dlsym(group.dlopen("user.so"), "g")() == 1
            assert group.dlsym(dl.RTLD_DEFAULT, "f")() == 1

    def test_reopening_global_promotes(self) -> None:
        """Opening a LOCAL module again as GLOBAL puts it and what it needs into the global scope."""
        libs = {"lib.so": library(needed=["under.so"]), "under.so": self.LIB, "user.so": self.USER}
        with linker(libs) as program:
            group = program.main_group
            local = group.dlopen("lib.so", dl.RTLD_NOW)

            assert group.dlopen("lib.so", dl.RTLD_NOW | dl.RTLD_GLOBAL) == local
            assert group.dlsym(group.dlopen("user.so"), "g")() == 1

    def test_reopening_local_does_not_demote(self) -> None:
        """A module in the global scope stays there when it is opened again as LOCAL."""
        with linker({"lib.so": self.LIB, "user.so": self.USER}) as program:
            group = program.main_group
            group.dlopen("lib.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)
            group.dlopen("lib.so", dl.RTLD_NOW | dl.RTLD_LOCAL)

            assert group.dlsym(group.dlopen("user.so"), "g")() == 1

    def test_noload_promotes_without_loading(self) -> None:
        """NOLOAD finds a loaded module, and with GLOBAL promotes it."""
        with linker({"lib.so": self.LIB, "user.so": self.USER}) as program:
            group = program.main_group
            local = group.dlopen("lib.so", dl.RTLD_NOW)

            assert group.dlopen("lib.so", dl.RTLD_NOW | dl.RTLD_NOLOAD | dl.RTLD_GLOBAL) == local
            assert group.dlsym(group.dlopen("user.so"), "g")() == 1

    def test_noload_of_what_is_not_loaded_fails(self) -> None:
        """NOLOAD never loads: it is an error for a module that is not there, and leaves nothing behind."""
        with linker({"lib.so": self.LIB}) as program:
            with pytest.raises(dl.LibraryNotFoundError, match="NOLOAD"):
                program.main_group.dlopen("lib.so", dl.RTLD_NOW | dl.RTLD_NOLOAD)
            assert program.modules == ()

    def test_two_local_trees_share_a_dependency(self) -> None:
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

    def test_global_definitions_come_before_those_of_the_tree(self) -> None:
        """Without DEEPBIND the global scope is searched before a LOCAL tree."""
        self._open_under_global(dl.RTLD_NOW, expected=1)

    @pytest.mark.parametrize("visible", [dl.RTLD_LOCAL, dl.RTLD_GLOBAL])
    def test_deepbind_prefers_the_tree(self, visible: dl.DlFlags) -> None:
        """With DEEPBIND a tree finds its own symbols before the global ones, whether it is LOCAL or GLOBAL."""
        self._open_under_global(dl.RTLD_NOW | dl.RTLD_DEEPBIND | visible, expected=2)

    def _open_under_global(self, flags: dl.DlFlags, *, expected: int) -> None:
        libs = {
            "global.so": self.LIB,
            "tree.so": library(imports("f"), calls("g", "f"), needed=["own.so"]),
            "own.so": library(returns("f", 2)),
        }
        with linker(libs) as program:
            group = program.main_group
            group.dlopen("global.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)

            assert group.dlsym(group.dlopen("tree.so", flags), "g")() == expected

    def test_default_scope_is_in_load_order(self) -> None:
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

    def test_flags_must_say_when_to_bind(self) -> None:
        """dlopen without RTLD_LAZY or RTLD_NOW is a mistake of the caller."""
        with linker({"lib.so": self.LIB}) as program:
            with pytest.raises(dl.LinkerUsageError, match="RTLD_LAZY or RTLD_NOW"):
                program.main_group.dlopen("lib.so", 0)

    def test_unknown_flags_are_refused(self) -> None:
        """Flags of another system's numbering, such as os.RTLD_GLOBAL, are not taken for nothing."""
        with linker({"lib.so": self.LIB}) as program:
            with pytest.raises(dl.LinkerUsageError, match="0x100"):
                program.main_group.dlopen("lib.so", dl.RTLD_NOW | 0x100)
