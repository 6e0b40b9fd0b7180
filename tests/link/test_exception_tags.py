"""Exception tags across modules: whatever defines one, all modules of a program mean the same by its name."""

from __future__ import annotations

import pytest
import wasmtime

import dl

MEMORY = dl.MemoryType(1, 64, shared=True)
BOTH_TAGS = pytest.mark.parametrize("tag", ["__cpp_exception", "__c_longjmp"])

CATCH = """
  (func (export "{name}") (param i32) (result i32)
    (block $caught (result i32)
      (try_table (catch ${tag} $caught) (call $thrower (local.get 0)))
      (i32.const -1)))
"""
"""A function that catches what the import `$thrower` throws, or returns -1."""


def wasm(text: str, *needed: str) -> bytes:
    """Assemble a library that needs others."""
    needs = "(needed " + " ".join(f'"{name}"' for name in needed) + ")" if needed else ""
    return bytes(
        wasmtime.wat2wasm(f"(module (@dylink.0 (mem-info (memory 0 0) (table 0 0)) {needs}) {text})")
    )


def thrower(tag: str, *, defines: bool = False, name: str = "throw_it") -> str:
    """Give the text of a library that throws its argument with a tag that it imports, or defines and exports."""
    place = (
        f'(tag $t (export "{tag}") (param i32))'
        if defines
        else f'(import "env" "{tag}" (tag $t (param i32)))'
    )
    return f'{place} (func (export "{name}") (param i32) (throw $t (local.get 0)))'


def catcher(tag: str, *, defines: bool = False, name: str = "catch_it", calls: str = "throw_it") -> str:
    """Give the text of a library that catches, with a tag that it imports, or defines and exports."""
    imported = f'(import "env" "{calls}" (func $thrower (param i32)))'
    if defines:
        return imported + f'(tag $t (export "{tag}") (param i32))' + CATCH.format(name=name, tag="t")
    return f'(import "env" "{tag}" (tag $t (param i32)))' + imported + CATCH.format(name=name, tag="t")


@BOTH_TAGS
@pytest.mark.parametrize("thrower_defines", [False, True])
@pytest.mark.parametrize("catcher_defines", [False, True])
@pytest.mark.parametrize("catcher_first", [False, True])
def test_two_libraries_share_the_tag_whoever_defines_it(
    tag: str, thrower_defines: bool, catcher_defines: bool, catcher_first: bool
) -> None:
    """An exception crosses two libraries, each importing or defining the tag, in either order of loading, in every group."""
    libraries = {
        "thrower.so": wasm(thrower(tag, defines=thrower_defines)),
        "catcher.so": wasm(catcher(tag, defines=catcher_defines)),
    }
    order = ["catcher.so", "thrower.so"] if catcher_first else ["thrower.so", "catcher.so"]
    with dl.Linker(None, memory=MEMORY, libraries=libraries) as linker:
        for name in order:
            linker.main_group.dlopen(name, dl.RTLD_LAZY | dl.RTLD_GLOBAL)

        def catch(group: dl.InstanceGroup, value: int) -> object:
            return group.dlsym(dl.RTLD_DEFAULT, "catch_it")(value)

        assert catch(linker.main_group, 5) == 5
        assert [thread.join() for thread in [linker.spawn(catch, n) for n in (6, 7)]] == [6, 7]


@BOTH_TAGS
@pytest.mark.parametrize("main_defines", [False, True])
def test_program_shares_the_tag_with_the_library_that_defines_it(tag: str, main_defines: bool) -> None:
    """A program catches what its run-time library throws with the tag that the library defines: it imports or defines it."""
    main = '(import "env" "memory" (memory 17 64 shared))' + catcher(tag, defines=main_defines)
    libraries = {
        "libunwind.so": wasm(thrower(tag, defines=True)),
        "user.so": wasm(catcher(tag, name="user_catches", calls="main_throws"), "libunwind.so"),
    }
    main += '(func (export "main_throws") (param i32) (throw $t (local.get 0)))'
    with dl.Linker(wasm(main, "libunwind.so"), libraries=libraries) as linker:
        group = linker.main_group
        user = group.dlopen("user.so")

        assert group.dlsym(linker.main, "catch_it")(3) == 3
        assert group.dlsym(user, "user_catches")(4) == 4


@BOTH_TAGS
def test_library_uses_the_tag_that_a_static_program_exports(tag: str) -> None:
    """Where the main module defines the tag and exports it, that is the tag of the program."""
    main = f"""(module
      (memory (export "memory") 1) (table (export "__indirect_function_table") 1 funcref)
      (global (export "__stack_pointer") (mut i32) (i32.const 1024))
      (tag $t (export "{tag}") (param i32))
      (func (export "throw_it") (param i32) (throw $t (local.get 0))))"""
    libraries = {
        "user.so": wasm(catcher(tag)),
        "unwind.so": wasm(catcher(tag, defines=True, name="other_catches")),
    }
    with dl.Linker(bytes(wasmtime.wat2wasm(main)), libraries=libraries) as linker:
        group = linker.main_group

        assert group.dlsym(group.dlopen("user.so"), "catch_it")(8) == 8
        assert group.dlsym(group.dlopen("unwind.so"), "other_catches")(9) == 9


@pytest.mark.parametrize("scope", [dl.RTLD_LOCAL, dl.RTLD_LOCAL | dl.RTLD_DEEPBIND])
def test_local_libraries_share_the_tag(scope: int) -> None:
    """Libraries opened with scopes of their own still use the program's one tag."""
    libraries = {
        "first.so": wasm(thrower("__cpp_exception", defines=True, name="first")),
        "second.so": wasm(
            '(import "env" "call" (func $call (param i32)))'
            + thrower("__cpp_exception", defines=True, name="second")
        ),
        "catcher.so": wasm(catcher("__cpp_exception", defines=True, calls="first"), "first.so"),
    }
    with dl.Linker(None, memory=MEMORY, libraries=libraries) as linker:
        group = linker.main_group
        group.dlopen("second.so", dl.RTLD_LAZY | scope)
        catcher_ = group.dlopen("catcher.so", dl.RTLD_NOW | scope)

        assert group.dlsym(catcher_, "catch_it")(2) == 2


def test_exception_crosses_a_stub_and_a_cycle() -> None:
    """An exception passes through the linker's own code: a stub for what came later, and a call through the table."""
    libraries = {
        "early.so": wasm(catcher("__cpp_exception", calls="late")),
        "late.so": wasm(thrower("__cpp_exception", name="late")),
        "one.so": wasm(catcher("__cpp_exception", name="one", calls="two_throws"), "two.so"),
        "two.so": wasm(thrower("__cpp_exception", name="two_throws"), "one.so"),
    }
    with dl.Linker(None, memory=MEMORY, libraries=libraries) as linker:
        group = linker.main_group
        early = group.dlopen("early.so", dl.RTLD_LAZY | dl.RTLD_GLOBAL)
        group.dlopen("late.so", dl.RTLD_NOW | dl.RTLD_GLOBAL)
        catch = group.dlsym(early, "catch_it")

        assert [catch(1), catch(2)] == [1, 2]
        assert group.dlsym(group.dlopen("two.so"), "one")(3) == 3


def test_tags_of_other_names_are_symbols() -> None:
    """A tag of any other name is bound to the library that defines it, and two libraries may each have their own."""
    own = '(tag $t (param i32)) (func (export "own") (param i32) (throw $t (local.get 0)))'
    libraries = {
        "thrower.so": wasm(thrower("my_error", defines=True)),
        "catcher.so": wasm(catcher("my_error"), "thrower.so"),
        "own.so": wasm(own),
        "misses.so": wasm(catcher("my_error", name="misses", calls="own"), "thrower.so", "own.so"),
    }
    with dl.Linker(None, memory=MEMORY, libraries=libraries) as linker:
        group = linker.main_group
        misses = group.dlopen("misses.so")

        assert group.dlsym(group.dlopen("catcher.so"), "catch_it")(11) == 11
        with pytest.raises(dl.UncaughtExceptionError) as caught:
            group.dlsym(misses, "misses")(12)

    assert (caught.value.tag, caught.value.value) == (None, 12)


def test_tag_that_nobody_defines_is_reported() -> None:
    """A tag of any other name that nothing defines fails the load by name."""
    with (
        dl.Linker(None, memory=MEMORY, libraries={"a.so": wasm(thrower("nobodys"))}) as linker,
        pytest.raises(dl.UnresolvedSymbolsError, match=r"env\.nobodys"),
    ):
        linker.main_group.dlopen("a.so", dl.RTLD_LAZY)


def test_tag_of_a_library_that_comes_later_is_refused() -> None:
    """There is no indirection for tags, so in a cycle the one that is instantiated first cannot use the other's."""
    libraries = {
        "defines.so": wasm(thrower("my_error", defines=True), "uses.so"),
        "uses.so": wasm(thrower("my_error", name="also"), "defines.so"),
    }
    with dl.Linker(None, memory=MEMORY, libraries=libraries) as linker:
        before = linker.statistics()
        with pytest.raises(
            dl.UnsupportedModuleError, match=r"defined by defines\.so, which is instantiated later"
        ):
            linker.main_group.dlopen("defines.so")

        after = linker.statistics()
    assert (after.modules, after.next_handle, after.table_elements, after.side_bytes) == (
        before.modules,
        before.next_handle,
        before.table_elements,
        before.side_bytes,
    )


@pytest.mark.parametrize("defined", [False, True], ids=["the linker's", "a library's"])
def test_tag_of_another_type_is_refused(defined: bool) -> None:
    """An import of `__cpp_exception` with another type names both types."""
    other = '(import "env" "__cpp_exception" (tag $t (param i64)))'
    libraries = {"a.so": wasm(thrower("__cpp_exception", defines=defined)), "b.so": wasm(other, "a.so")}
    with (
        dl.Linker(None, memory=MEMORY, libraries=libraries) as linker,
        pytest.raises(
            dl.ImportTypeError, match="__cpp_exception is .*i64.*, but .* defines it as .*i32"
        ) as caught,
    ):
        linker.main_group.dlopen("b.so")

    assert caught.value.provider == ("a.so" if defined else "the linker")


def test_tag_of_another_type_that_a_library_defines_stays_its_own() -> None:
    """A library's own `__cpp_exception` of another type is left alone: its modules agree on it among themselves."""
    text = """(tag $t (export "__cpp_exception") (param i64)) (func $throw (param i64) (throw $t (local.get 0)))
      (func (export "round") (param i64) (result i64)
        (block $caught (result i64) (try_table (catch $t $caught) (call $throw (local.get 0))) (i64.const -1)))"""
    with dl.Linker(None, memory=MEMORY, libraries={"a.so": wasm(text)}) as linker:
        group = linker.main_group

        assert group.dlsym(group.dlopen("a.so"), "round")(1 << 40) == 1 << 40


def test_tags_behind_others_keep_their_numbers() -> None:
    """A library with several tags, imported, shared and its own, throws and catches each of them as it did alone."""
    text = """(import "env" "__cpp_exception" (tag $cpp (param i32)))
      (tag $jump (export "__c_longjmp") (param i32))
      (tag $own (param i32 i32))
      (func $throw (param i32)
        (if (i32.eqz (local.get 0)) (then (throw $cpp (i32.const 10))))
        (if (i32.eq (local.get 0) (i32.const 1)) (then (throw $jump (i32.const 20))))
        (throw $own (i32.const 30) (i32.const 1)))
      (func (export "which") (param i32) (result i32)
        (block $cpp (result i32)
          (block $jump (result i32)
            (block $own (result i32 i32)
              (try_table (catch $cpp $cpp) (catch $jump $jump) (catch $own $own) (call $throw (local.get 0)))
              unreachable)
            (return (i32.add)))
          (return (i32.add (i32.const 1)))))
      (func (export "jump") (param i32) (throw $jump (local.get 0)))"""
    libraries = {"many.so": wasm(text), "user.so": wasm(catcher("__c_longjmp", calls="jump"), "many.so")}
    with dl.Linker(None, memory=MEMORY, libraries=libraries) as linker:
        group = linker.main_group
        user = group.dlopen("user.so")

        assert [group.dlsym(user, "which")(n) for n in range(3)] == [10, 21, 31]
        assert group.dlsym(user, "catch_it")(40) == 40
