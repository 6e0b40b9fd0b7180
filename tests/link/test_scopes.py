"""What `dlopen(None)`, RTLD_DEFAULT and RTLD_NEXT search, and what `preload` and `bind` change, as the host asks for it."""

from __future__ import annotations

import logging
from typing import Any

import pytest

import dl
from dl.modules.symbols import Symbol
from dl.options import Binding
from tests.support.modules import (
    SHARED_MEMORY,
    calls,
    data,
    got,
    imports,
    library,
    linker,
    module,
    pie,
    reads,
    returns,
    static,
)

GLOBAL = dl.RTLD_NOW | dl.RTLD_GLOBAL
LAZY = dl.RTLD_LAZY


def value(group: dl.InstanceGroup, handle: int, name: str, caller: int | None = None) -> Any:
    """What a function that a look-up finds returns."""
    found = group.dlsym(handle, name, caller=caller)
    assert isinstance(found, dl.GuestFunction)
    return found()


def handle_of(program: dl.Linker, name: str) -> int:
    return next(m.handle for m in program.modules if m.name == name)


class TestTheProgramItself:
    def test_its_handle_is_the_global_scope(self) -> None:
        """`dlopen(None)` gives the main module's handle, by which everything in the global scope is found, and no more."""
        libs = {
            "needed.so": library(returns("n", 2)),
            "global.so": library(returns("g", 3)),
            "local.so": library(returns("l", 4)),
        }
        with dl.Linker(pie(returns("m", 1), needed=["needed.so"]), libraries=libs) as program:
            group = program.main_group
            group.dlopen("local.so")
            group.dlopen("global.so", GLOBAL)
            handle = group.dlopen(None)

            assert handle == dl.MAIN_HANDLE
            assert [value(group, handle, name) for name in "mng"] == [1, 2, 3]
            with pytest.raises(dl.SymbolNotFoundError):
                group.dlsym(handle, "l")
            group.dlclose(handle)
            assert value(group, handle, "m") == 1

    def test_without_a_main_module(self) -> None:
        """A program of libraries only has a handle too."""
        with linker({"global.so": library(returns("g", 3))}) as program:
            group = program.main_group
            handle = group.dlopen(None, LAZY)
            with pytest.raises(dl.SymbolNotFoundError):
                group.dlsym(handle, "g")
            group.dlopen("global.so", GLOBAL)
            assert value(group, handle, "g") == 3
            group.dlclose(handle)

    def test_flags_are_checked(self) -> None:
        """`dlopen(None)` too must say when to bind."""
        with linker({}) as program, pytest.raises(dl.LinkerUsageError, match="RTLD_LAZY or RTLD_NOW"):
            program.main_group.dlopen(None, dl.RTLD_GLOBAL)


class TestNext:
    def test_after_a_module_of_the_start(self) -> None:
        """For the main module and what it needs, the global scope goes on behind the one that asks."""
        libs = {
            "a.so": library(returns("f", 2), returns("only_a", 20)),
            "b.so": library(returns("f", 3)),
            "late.so": library(returns("f", 4), returns("late", 40)),
        }
        with dl.Linker(pie(returns("f", 1), needed=["a.so", "b.so"]), libraries=libs) as program:
            group = program.main_group
            a, b = handle_of(program, "a.so"), handle_of(program, "b.so")

            assert value(group, dl.RTLD_NEXT, "f", dl.MAIN_HANDLE) == 2
            assert value(group, dl.RTLD_NEXT, "f", a) == 3
            with pytest.raises(dl.SymbolNotFoundError):
                group.dlsym(dl.RTLD_NEXT, "f", caller=b)
            with pytest.raises(dl.SymbolNotFoundError):
                group.dlsym(dl.RTLD_NEXT, "only_a", caller=a)
            group.dlopen("late.so", GLOBAL)
            assert value(group, dl.RTLD_NEXT, "f", b) == 4

    def test_nothing_comes_after_the_last(self, caplog: pytest.LogCaptureFixture) -> None:
        """Where no module comes behind the one that asks, neither the error nor the log names modules that were searched."""
        with dl.Linker(pie(returns("f", 1), needed=["a.so"]), libraries={"a.so": library()}) as program:
            a = handle_of(program, "a.so")
            with (
                caplog.at_level(logging.DEBUG, "dl.link.symbols"),
                pytest.raises(dl.SymbolNotFoundError) as error,
            ):
                program.main_group.dlsym(dl.RTLD_NEXT, "f", caller=a)
        assert not error.value.searched
        assert caplog.messages[-1] == "dlsym(RTLD_NEXT, f): looked for in no module: not found"

    def test_after_a_module_that_was_opened(self) -> None:
        """A library that a dlopen brought goes on in that one's tree, not in the global scope."""
        libs = {
            "top.so": library(returns("f", 1), needed=["left.so", "right.so"]),
            "left.so": library(returns("f", 2), needed=["deep.so"]),
            "right.so": library(returns("f", 3)),
            "deep.so": library(returns("f", 4), returns("deep", 40)),
            "global.so": library(returns("f", 9), returns("g", 90)),
            "other.so": library(returns("other", 5), needed=["left.so"]),
        }
        with linker(libs) as program:
            group = program.main_group
            group.dlopen("global.so", GLOBAL)
            top = group.dlopen("top.so")
            left, right = handle_of(program, "left.so"), handle_of(program, "right.so")
            group.dlopen("other.so")

            assert [value(group, dl.RTLD_NEXT, "f", caller) for caller in (top, left, right)] == [2, 3, 4]
            assert value(group, dl.RTLD_NEXT, "deep", left) == 40
            with pytest.raises(dl.SymbolNotFoundError, match=r"g \(searched left\.so, right\.so, deep\.so\)"):
                group.dlsym(dl.RTLD_NEXT, "g", caller=top)

    def test_when_the_one_that_brought_it_is_closed(self) -> None:
        """A library that outlives the open that brought it goes on in its own tree."""
        libs = {
            "top.so": library(returns("f", 1), needed=["low.so", "side.so"]),
            "low.so": library(returns("f", 2), needed=["deep.so"]),
            "side.so": library(returns("f", 3)),
            "deep.so": library(returns("f", 4)),
        }
        with linker(libs) as program:
            group = program.main_group
            top, low = group.dlopen("top.so"), group.dlopen("low.so")
            assert value(group, dl.RTLD_NEXT, "f", low) == 3
            group.dlclose(top)

            assert value(group, dl.RTLD_NEXT, "f", low) == 4

    def test_somebody_must_ask(self) -> None:
        """Without a caller, or with one that is no module or was closed, the look-up is refused."""
        with linker({"a.so": library(returns("f", 1))}) as program:
            group = program.main_group
            with pytest.raises(dl.LinkerUsageError, match="give its handle as caller"):
                group.dlsym(dl.RTLD_NEXT, "f")
            with pytest.raises(dl.InvalidHandleError):
                group.dlsym(dl.RTLD_NEXT, "f", caller=77)
            closed = group.dlopen("a.so")
            group.dlclose(closed)
            with pytest.raises(dl.InvalidHandleError, match="it was closed"):
                group.dlsym(dl.RTLD_NEXT, "f", caller=closed)
            with pytest.raises(dl.InvalidHandleError, match="it was closed"):
                group.dlsym(dl.RTLD_DEFAULT, "f", caller=closed)

    def test_the_default_scope_of_a_module(self) -> None:
        """With a caller, RTLD_DEFAULT finds what that module itself would be bound to: its local tree too."""
        libs = {
            "top.so": library(returns("f", 1), needed=["low.so"]),
            "low.so": library(returns("low", 2)),
            "global.so": library(returns("f", 9)),
        }
        with linker(libs) as program:
            group = program.main_group
            top = group.dlopen("top.so")
            low = handle_of(program, "low.so")
            with pytest.raises(dl.SymbolNotFoundError):
                group.dlsym(dl.RTLD_DEFAULT, "f")
            assert value(group, dl.RTLD_DEFAULT, "f", low) == 1
            assert value(group, dl.RTLD_DEFAULT, "low", top) == 2
            deep = group.dlopen("global.so", GLOBAL)
            assert value(group, dl.RTLD_DEFAULT, "f", low) == 9
            assert value(group, dl.RTLD_DEFAULT, "f", deep) == 9

    def test_deep_binding_turns_the_default_scope_round(self) -> None:
        """For a module that was opened with RTLD_DEEPBIND, its own tree comes first."""
        libs = {"a.so": library(returns("f", 1)), "global.so": library(returns("f", 9))}
        with linker(libs) as program:
            group = program.main_group
            group.dlopen("global.so", GLOBAL)
            a = group.dlopen("a.so", dl.RTLD_NOW | dl.RTLD_DEEPBIND)
            assert value(group, dl.RTLD_DEFAULT, "f", a) == 1
            assert value(group, dl.RTLD_DEFAULT, "f") == 9


class TestPreload:
    NEEDED = library(returns("f", 2), returns("g", 20), imports("h"), calls("calls_h", "h"))
    FIRST = library(returns("f", 1), returns("h", 100))

    def test_it_wins_where_elf_s_does(self) -> None:
        """A preloaded library comes behind the main module and before all that this needs, for all of them."""
        main = pie(imports("f"), calls("calls_f", "f"), returns("h", 7), needed=["needed.so"])
        libs = {"needed.so": self.NEEDED, "first.so": self.FIRST}
        with dl.Linker(main, libraries=libs, preload=["first.so"], bind="now") as program:
            group = program.main_group
            assert value(group, dl.MAIN_HANDLE, "calls_f") == 1
            assert (
                value(group, dl.MAIN_HANDLE, "calls_h") == 7
            )  # the main module's own definition comes first
            assert value(group, dl.RTLD_DEFAULT, "f") == 1
            assert value(group, dl.RTLD_DEFAULT, "g") == 20
            assert value(group, dl.RTLD_NEXT, "f", handle_of(program, "first.so")) == 2
            assert [m.name for m in program.program.state.global_scope[1:]] == ["first.so", "needed.so"]

        with dl.Linker(main, libraries=libs) as program:
            assert value(program.main_group, dl.MAIN_HANDLE, "calls_f") == 2

    def test_data_and_addresses_are_those_of_the_preloaded_one(self) -> None:
        """Data, function addresses and later libraries see the preloaded definition, with what it needs behind the needed."""
        main = pie(got("v", "mem"), reads("at", "got_mem_v"), needed=["needed.so"])
        memory = '(import "env" "memory" (memory 0))'
        libs = {
            "needed.so": library(memory, data("v", 0), returns("deep", 1), memory_size=16),
            "first.so": library(memory, data("v", 8), memory_size=16, needed=["deep.so"]),
            "deep.so": library(returns("deep", 2), returns("f", 3)),
            "later.so": library(imports("deep"), calls("calls_deep", "deep")),
        }
        with dl.Linker(main, libraries=libs, preload=["first.so"]) as program:
            group = program.main_group
            first = next(m for m in program.modules if m.name == "first.so")
            assert value(group, dl.MAIN_HANDLE, "at") == first.memory_base + 8
            later = group.dlopen("later.so")
            assert value(group, later, "calls_deep") == 1
            assert value(group, dl.RTLD_DEFAULT, "f") == 3
            names = [m.name for m in program.program.state.global_scope]
            assert names[1:] == ["first.so", "needed.so", "deep.so"]

    def test_several_and_the_same_twice(self) -> None:
        """They come in the order given; one that is needed as well, or named twice, is there once."""
        libs = {
            "a.so": library(returns("f", 1)),
            "b.so": library(returns("f", 2), returns("g", 3)),
            "c.so": library(returns("f", 4)),
        }
        main = pie(needed=["c.so", "a.so"])
        with dl.Linker(main, libraries=libs, preload=["b.so", "a.so", "b.so"]) as program:
            names = [m.name for m in program.program.state.global_scope]
            assert names[1:] == ["b.so", "a.so", "c.so"]
            assert value(program.main_group, dl.RTLD_NEXT, "f", handle_of(program, "b.so")) == 1

    def test_they_are_loaded_where_needed_lists_are_left_alone(self) -> None:
        """A program that is told not to load what its list names has what it is told to preload."""
        with dl.Linker(
            pie(needed=["nowhere.so"]),
            libraries={"first.so": self.FIRST},
            preload=["first.so"],
            wamr=dl.WamrMode(load_needed=False),
        ) as program:
            assert value(program.main_group, dl.RTLD_DEFAULT, "f") == 1

    def test_they_stay(self) -> None:
        """A preloaded library is never unloaded, as little as a needed one."""
        with dl.Linker(pie(), libraries={"first.so": self.FIRST}, preload=["first.so"]) as program:
            group = program.main_group
            handle = group.dlopen("first.so")
            group.dlclose(handle)
            assert value(group, dl.RTLD_DEFAULT, "f") == 1

    def test_without_a_main_module(self) -> None:
        """A program of libraries only has them from the start, in order, in the global scope, for good."""
        libs = {
            "a.so": library(returns("f", 1), imports("later"), calls("calls_later", "later")),
            "b.so": library(returns("f", 2), returns("later", 5)),
            "user.so": library(imports("f"), calls("calls_f", "f")),
        }
        with linker(libs, preload=["a.so", "b.so"]) as program:
            group = program.main_group
            assert value(group, group.dlopen("user.so"), "calls_f") == 1
            assert value(group, dl.RTLD_DEFAULT, "calls_later") == 5
            a = group.dlopen("a.so")
            group.dlclose(a)
            assert value(group, dl.RTLD_DEFAULT, "f") == 1

    def test_what_cannot_be_preloaded_is_an_error(self) -> None:
        """A missing library ends the program's making, as does one for a program that can take none, or a text for the list."""
        for main in (None, pie()):
            with pytest.raises(dl.LibraryNotFoundError, match=r"gone\.so"):
                dl.Linker(main, preload=["gone.so"])
        alone = module('(memory (export "memory") 1)')
        with pytest.raises(dl.NotDynamicError, match="preload"):
            dl.Linker(alone, libraries={"a.so": self.FIRST}, preload=["a.so"])
        with pytest.raises(dl.LinkerUsageError, match="preload: it takes a list"):
            dl.Linker(None, preload="a.so")

    def test_a_static_main_module(self) -> None:
        """The stubs of a main module that brings memory and table reach what is preloaded, with every function demanded too."""
        main = static(imports("f"), calls("calls_f", "f"))
        bindings: tuple[Binding, ...] = ("lazy", "now")
        for bind in bindings:
            with dl.Linker(main, libraries={"a.so": self.FIRST}, preload=["a.so"], bind=bind) as program:
                assert value(program.main_group, dl.MAIN_HANDLE, "calls_f") == 1


class TestBindNow:
    USER = library(imports("nothing"), imports("nor_this"), calls("g", "nothing"))

    def test_every_load_demands_all_functions(self) -> None:
        """With `bind="now"` RTLD_LAZY is RTLD_NOW, the main module's load is strict too, and all that is missing is named."""
        with linker({"user.so": self.USER}, bind="now") as program:
            with pytest.raises(dl.UnresolvedSymbolsError) as caught:
                program.main_group.dlopen("user.so", LAZY)
            assert {m.symbol for m in caught.value.missing} == {"nothing", "nor_this"}
            assert program.modules == ()
        with linker({"user.so": self.USER}) as program:
            program.main_group.dlopen("user.so", LAZY)
            with pytest.raises(dl.UnresolvedSymbolsError):
                program.main_group.dlopen(self.USER, dl.RTLD_NOW)

    def test_the_main_module(self) -> None:
        """A main module with functions that nothing defines links when bound lazily, and is refused when bound now."""
        main = pie(imports("nothing"), calls("g", "nothing"), returns("f", 1))
        with dl.Linker(main) as program:
            assert value(program.main_group, dl.MAIN_HANDLE, "f") == 1
        with pytest.raises(dl.UnresolvedSymbolsError, match="nothing"):
            dl.Linker(main, bind="now")

    def test_addresses_and_weak_functions(self) -> None:
        """The address of a missing function is an error as well; weak ones may be missing."""
        with linker(
            {
                "address.so": library(got("f", "func"), imports("f")),
                "weak.so": library(imports("f"), calls("g", "f"), weak=["f"]),
            },
            bind="now",
        ) as program:
            with pytest.raises(dl.UnresolvedSymbolsError):
                program.main_group.dlopen("address.so", LAZY)
            program.main_group.dlopen("weak.so", LAZY)

    def test_another_word_is_refused(self) -> None:
        """Only the two ways exist."""
        with pytest.raises(dl.LinkerUsageError, match="bind must be one of"):
            dl.Linker(None, bind="later")  # type: ignore[arg-type]


class TestThreadLocals:
    def test_dlsym_gives_the_calling_thread_s_address(self) -> None:
        """A thread-local variable has an address of its own in each thread, by handle, by RTLD_DEFAULT and by RTLD_NEXT."""
        lib = library(
            SHARED_MEMORY,
            '(global (export "__tls_base") (mut i32) (i32.const 0))',
            '(global (export "__tls_size") i32 (i32.const 32))',
            data("var", 16),
            '(func (export "__wasm_init_tls") (param i32) (global.set 0 (local.get 0)))',
            tls=["var"],
        )
        top = library(SHARED_MEMORY, needed=["tls.so"])
        shared = dl.MemoryType(minimum=20, maximum=200, shared=True)
        with dl.Linker(None, libraries={"tls.so": lib, "top.so": top}, memory=shared) as program:
            handle = program.main_group.dlopen("top.so", GLOBAL)

            def addresses(group: dl.InstanceGroup) -> set[int]:
                found = (
                    group.dlsym(handle, "var"),
                    group.dlsym(dl.RTLD_DEFAULT, "var"),
                    group.dlsym(dl.RTLD_NEXT, "var", caller=handle),
                )
                return {f.address for f in found}

            threads = [program.spawn(addresses) for _ in range(2)]
            seen = [thread.join(20) for thread in threads]
            assert all(len(s) == 1 for s in seen)


def test_the_last_handle_is_not_that_of_rtld_next() -> None:
    """When every number has been given, an open is refused: none comes again, and none is one with a meaning of its own."""
    libs = {"a.so": library(returns("f", 1)), "b.so": library(returns("f", 2))}
    with linker(libs) as program:
        group = program.main_group
        program.program.state.next_handle = dl.RTLD_NEXT - 1
        last = group.dlopen("a.so")
        assert last == dl.RTLD_NEXT - 1
        assert value(group, last, "f") == 1
        with pytest.raises(dl.ResourceLimitError, match="every module handle"):
            group.dlopen("b.so")
        group.dlclose(last)
        with pytest.raises(dl.ResourceLimitError, match="every module handle"):
            group.dlopen("a.so")


class TestMeanwhile:
    """A look-up sees what is committed, whatever its own group has made so far."""

    LIB = library(
        SHARED_MEMORY,
        '(global (export "__tls_base") (mut i32) (i32.const 0))',
        '(global (export "__tls_size") i32 (i32.const 32))',
        data("var", 16),
        returns("f", 7),
        '(func (export "__wasm_init_tls") (param i32) (global.set 0 (local.get 0)))',
        tls=["var"],
    )

    def test_a_library_that_comes_during_a_look_up(self) -> None:
        """What another thread has just opened is found, called, and has this thread's variables."""
        shared = dl.MemoryType(minimum=20, maximum=200, shared=True)
        with dl.Linker(None, libraries={"t.so": self.LIB}, memory=shared) as program:
            own = program.main_group.own

            def look_up() -> Symbol:
                program.spawn(lambda group: group.dlopen("t.so", GLOBAL)).join(20)
                return program.own.look_up(dl.RTLD_DEFAULT, "var")

            symbol = own.found(look_up)
            assert own.address_of(symbol) == program.main_group.dlsym(dl.RTLD_DEFAULT, "var").address
            assert value(program.main_group, dl.RTLD_DEFAULT, "f") == 7

    def test_a_library_that_goes_during_a_look_up(self) -> None:
        """What was found and is closed before the group has followed is looked for again."""
        shared = dl.MemoryType(minimum=20, maximum=200, shared=True)
        with dl.Linker(None, libraries={"t.so": self.LIB}, memory=shared) as program:
            opened: list[int] = []

            def look_up() -> Symbol:
                if not opened:
                    opened.append(program.spawn(lambda group: group.dlopen("t.so", GLOBAL)).join(20))
                    found = program.own.look_up(dl.RTLD_DEFAULT, "f")
                    program.spawn(lambda group: group.dlclose(opened[0])).join(20)
                    return found
                return program.own.look_up(dl.RTLD_DEFAULT, "f")

            with pytest.raises(dl.SymbolNotFoundError):
                program.main_group.own.found(look_up)
            assert len(opened) == 1
