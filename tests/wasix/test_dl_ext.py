"""`dl_ext`: dlfcn as ELF has it, called by the guest's own code."""

from __future__ import annotations

from pathlib import Path

import dl
from dl.wasix.abi import EXTENSION
from tests.support.guest_dlfcn import (
    DATA,
    FUNCTION,
    FUNCTIONS,
    INVALID,
    MEMORY_VIOLATION,
    NOENT,
    OVERFLOW,
    THREAD_LOCAL,
    UNKNOWN,
    Caller,
    asking,
)
from tests.support.modules import MEMORY, SHARED_MEMORY, calls, data, imports, library, module, returns
from tests.wasix.dl_ext_programs import (
    DEEPBIND,
    DEFAULT,
    GLOBAL,
    LAZY,
    MAIN,
    NEXT,
    NODELETE,
    NOLOAD,
    NOW,
    SCRATCH,
    called,
    caller,
    main_module,
)


class TestFlags:
    LIBS = {
        "lib.so": library(returns("f", 1)),
        "user.so": library(imports("f"), calls("g", "f")),
        "lacking.so": library(imports("one"), imports("two"), calls("g", "one")),
        "other.so": library(returns("f", 2)),
        "deep.so": library(imports("f"), calls("g", "f"), needed=["lib.so"]),
    }

    def test_local_global_and_promotion(self) -> None:
        """A library that was opened LOCAL is seen by no other; opened again with GLOBAL it is, NOLOAD or not."""
        for promoting in (NOW | GLOBAL, NOW | NOLOAD | GLOBAL):
            with dl.Linker(main_module(), libraries=self.LIBS) as program:
                guest = caller(program)
                lib = guest.dlopen("lib.so", NOW)
                assert "user.so" in str(guest.dlopen("user.so", NOW))
                assert "undefined symbol: f" in str(guest.dlsym(DEFAULT, "f"))
                assert guest.dlopen("lib.so", promoting) == lib
                user = guest.dlopen("user.so", NOW)
                assert isinstance(user, int)
                assert called(program, guest.dlsym(user, "g")) == 1
                assert called(program, guest.dlsym(DEFAULT, "f")) == 1

    def test_now_names_all_that_is_missing(self) -> None:
        """NOW refuses, with every function in the text; LAZY waits for the call."""
        with dl.Linker(main_module(), libraries=self.LIBS) as program:
            guest = caller(program)
            text = str(guest.dlopen("lacking.so", NOW))
            assert "env.one" in text
            assert "env.two" in text
            assert isinstance(guest.dlopen("lacking.so", LAZY), int)

    def test_noload(self) -> None:
        """NOLOAD finds what is loaded, counts as an open, and loads nothing."""
        with dl.Linker(main_module(), libraries=self.LIBS) as program:
            guest = caller(program)
            assert "not loaded" in str(guest.dlopen("lib.so", NOW | NOLOAD))
            handle = guest.dlopen("lib.so", NOW)
            assert isinstance(handle, int)
            assert guest.dlopen("lib.so", LAZY | NOLOAD) == handle
            assert guest.dlclose(handle) == ""
            assert isinstance(guest.module(handle), dict)
            assert guest.dlclose(handle) == ""
            assert guest.module(handle) == NOENT

    def test_nodelete(self) -> None:
        """NODELETE keeps a library, also if a later open says so."""
        with dl.Linker(main_module(), libraries=self.LIBS) as program:
            guest = caller(program)
            handle = guest.dlopen("lib.so", NOW)
            assert isinstance(handle, int)
            assert guest.dlopen("lib.so", NOW | NOLOAD | NODELETE) == handle
            assert guest.dlclose(handle) == guest.dlclose(handle) == ""
            module = guest.module(handle)
            assert isinstance(module, dict)
            assert module["flags"] == 4
            assert "not open" in guest.dlclose(handle)

    def test_deepbind(self) -> None:
        """With DEEPBIND a tree's own definition comes before the global one."""
        for flags, expected in ((NOW, 2), (NOW | DEEPBIND, 1)):
            with dl.Linker(main_module(), libraries=self.LIBS) as program:
                guest = caller(program)
                guest.dlopen("other.so", NOW | GLOBAL)
                deep = guest.dlopen("deep.so", flags)
                assert isinstance(deep, int)
                assert called(program, guest.dlsym(deep, "g")) == expected

    def test_no_binding_mode(self) -> None:
        """It must be said when to bind; bits that nobody knows are ignored, as glibc does."""
        with dl.Linker(main_module(), libraries=self.LIBS) as program:
            guest = caller(program)
            assert "invalid mode" in str(guest.dlopen("lib.so", GLOBAL))
            assert "invalid mode" in str(guest.dlopen(None, 0))
            assert isinstance(guest.dlopen("lib.so", NOW | 0x7FFFFF00), int)


class TestLookUps:
    def test_the_program_itself(self) -> None:
        """A null or empty path is the program, whose handle stands for the global scope and can be closed any time."""
        libs = {"needed.so": library(returns("n", 5)), "late.so": library(returns("late", 6))}
        main = main_module(returns("m", 4), needed=["needed.so"])
        with dl.Linker(main, libraries=libs) as program:
            guest = caller(program)
            assert guest.dlopen(None, NOW) == guest.dlopen("", LAZY) == MAIN
            assert "undefined symbol" in str(guest.dlsym(MAIN, "late"))
            guest.dlopen("late.so", NOW | GLOBAL)
            assert [called(program, guest.dlsym(MAIN, n)) for n in ("m", "n", "late")] == [4, 5, 6]
            assert guest.dlclose(MAIN) == guest.dlclose(MAIN) == ""

    def test_breadth_first_through_what_a_handle_needs(self) -> None:
        """A handle's own symbols come first, then those of what it needs, level by level."""
        libs = {
            "top.so": library(returns("own", 1), needed=["left.so", "right.so"]),
            "left.so": library(returns("own", 2), needed=["deep.so"]),
            "right.so": library(returns("x", 3)),
            "deep.so": library(returns("x", 4), returns("own", 5), returns("y", 6)),
        }
        with dl.Linker(main_module(returns("y", 7)), libraries=libs) as program:
            guest = caller(program)
            top = guest.dlopen("top.so", NOW)
            assert isinstance(top, int)
            assert [called(program, guest.dlsym(top, n)) for n in ("own", "x", "y")] == [1, 3, 6]
            assert "undefined symbol: gone" in str(guest.dlsym(top, "gone"))

    def test_next_is_after_the_module_whose_code_asks(self) -> None:
        """Each module's import knows its module: the same call from three modules finds three definitions."""
        fields = asking("dlsym", "dlerror")
        libs = {
            "a.so": library(MEMORY, *fields, returns("f", 2)),
            "b.so": library(MEMORY, *fields, returns("f", 3)),
            "top.so": library(MEMORY, *fields, returns("f", 4), needed=["low.so"]),
            "low.so": library(MEMORY, *fields, returns("f", 5)),
        }
        main = main_module(returns("f", 1), needed=["a.so", "b.so"])
        with dl.Linker(main, libraries=libs) as program:
            group = program.main_group
            top = group.dlopen("top.so")
            by_name = {m.name: m.handle for m in program.modules}
            found = {}
            for name in ("a.so", "top.so"):
                found[name] = called(program, caller(program, by_name[name]).dlsym(NEXT, "f"))
            assert called(program, caller(program).dlsym(NEXT, "f")) == 2
            assert found == {"a.so": 3, "top.so": 5}
            for name in ("b.so", "low.so"):
                assert "undefined symbol: f" in str(caller(program, by_name[name]).dlsym(NEXT, "f"))
            # RTLD_DEFAULT too is the asking module's: the local tree is seen from within.
            assert called(program, caller(program, by_name["low.so"]).dlsym(DEFAULT, "f")) == 1
            group.dlclose(top)

    def test_hidden_data_and_functions(self) -> None:
        """Functions and data have addresses; what is not exported is not found, nor a variable of WebAssembly's own."""
        lib = library(
            MEMORY,
            returns("f", 1),
            data("d", 8),
            "(func $hidden (result i32) i32.const 1)",
            '(global (export "v") (mut i32) (i32.const 0))',
            memory_size=16,
        )
        with dl.Linker(main_module(), libraries={"lib.so": lib}) as program:
            guest = caller(program)
            handle = guest.dlopen("lib.so", NOW)
            assert isinstance(handle, int)
            base = program.program.state.modules[dl.ModuleHandle(handle)].memory_base
            assert guest.dlsym(handle, "d") == base + 8
            assert guest.dlsym(handle, "f") == program.main_group.dlsym(handle, "f").address
            for name in ("hidden", "v", ""):
                assert "undefined symbol" in str(guest.dlsym(handle, name))
            assert "invalid module handle: 77" in str(guest.dlsym(77, "f"))


class TestAddresses:
    LIB = library(
        MEMORY,
        returns("f", 1),
        data("first", 0),
        data("second", 8),
        memory_size=16,
    )

    def test_functions_and_data(self) -> None:
        """A pointer's module, path, symbol and its start; functions and data can be told apart by who knows."""
        with dl.Linker(
            main_module(returns("m", 1)), name="app.wasm", libraries={"a.so": self.LIB}
        ) as program:
            guest = caller(program)
            handle = guest.dlopen("a.so", NOW)
            assert isinstance(handle, int)
            f, second = guest.dlsym(handle, "f"), guest.dlsym(handle, "second")
            assert isinstance(f, int)
            assert isinstance(second, int)
            assert guest.dladdr(f) == guest.dladdr(f, FUNCTION) == (handle, FUNCTION, "a.so", "f", f)
            assert guest.dladdr(second + 3) == (handle, DATA, "a.so", "second", second)
            assert guest.dladdr(second + 3, FUNCTION) == NOENT
            assert guest.dladdr(0) == guest.dladdr(0xFFFFFFFF) == NOENT
            assert guest.dladdr(f, 9) == INVALID
            main = guest.dladdr(program.main_group.dlsym(MAIN, "m").address)
            assert isinstance(main, tuple)
            assert main[:4] == (MAIN, FUNCTION, "app.wasm", "m")
            assert guest.error() == ""

    def test_room_for_texts(self) -> None:
        """Without room for all texts, none is written, and the record says how long they are."""
        with dl.Linker(main_module(), libraries={"a.so": self.LIB}) as program:
            guest = caller(program)
            handle = guest.dlopen("a.so", NOW)
            assert isinstance(handle, int)
            f = guest.dlsym(handle, "f")
            assert isinstance(f, int)
            program.memory.write(guest.scratch, b"xxxxxxxx")
            assert guest.call("dladdr", f, 0, guest.out, guest.scratch, 6) == OVERFLOW
            assert program.memory.read(guest.scratch, 8) == b"xxxxxxxx"
            assert program.memory.read_struct("6I", guest.out)[4:] == (4, 1)
            assert guest.call("dladdr", f, 0, guest.out, guest.scratch, 7) == 0
            assert program.memory.read(guest.scratch, 8) == b"a.so\0f\0x"


class TestModules:
    def test_enumeration(self) -> None:
        """Handles come in order, a part at a time; what was loaded and unloaded so far is counted."""
        libs = {name: library(returns("f", 1)) for name in ("a.so", "b.so", "c.so")}
        with dl.Linker(main_module(), libraries=libs) as program:
            guest = caller(program)
            a, b, c = (guest.dlopen(name, NOW) for name in libs)
            assert isinstance(b, int)
            assert guest.modules() == ([MAIN, a, b, c], 4, 0)
            assert guest.dlclose(b) == ""
            assert guest.modules() == ([MAIN, a, c], 4, 1)
            assert guest.modules(b) == ([c], 4, 1)
            assert guest.modules(0, 2) == ([MAIN, a], 4, 1)
            assert guest.modules(MAIN, 0) == ([], 4, 1)
            assert guest.modules(0xFFFFFFFF) == ([], 4, 1)

    def test_what_a_module_is(self) -> None:
        """Bases, sizes, flags and thread-local storage, of others and of the module that asks."""
        libs = {
            "a.so": library(
                MEMORY, *asking("module"), returns("f", 1), memory_size=64, memory_align=4, table_size=3
            )
        }
        with dl.Linker(main_module(), name="app.wasm", libraries=libs) as program:
            guest = caller(program)
            handle = guest.dlopen("a.so", NOW | GLOBAL)
            assert isinstance(handle, int)
            linked = program.program.state.modules[dl.ModuleHandle(handle)]
            assert guest.module(handle) == {
                "handle": handle,
                "flags": 2,
                "base": linked.memory_base,
                "size": 64,
                "table": linked.table_base,
                "elements": 5,
                "tls": 0,
                "tls_at": 0,
                "tls_size": 0,
                "path": "a.so",
                "origin": "",
            }
            assert caller(program, handle).module() == guest.module(handle)
            own = guest.module()
            assert isinstance(own, dict)
            assert (own["handle"], own["flags"], own["path"]) == (MAIN, 7, "app.wasm")
            assert guest.module(99) == NOENT

    def test_paths_are_the_guest_s(self, tmp_path: Path) -> None:
        """In a directory that the guest sees, a module has its path there; elsewhere its base name: nothing of the host's."""
        seen, hidden, main = tmp_path / "seen" / "sub", tmp_path / "hidden", tmp_path / "main.wasm"
        seen.mkdir(parents=True)
        hidden.mkdir()
        (seen / "a.so").write_bytes(library(returns("f", 1)))
        (hidden / "b.so").write_bytes(library(returns("g", 1)))
        main.write_bytes(main_module())
        with dl.Linker(main, library_path=[hidden], preopens={"/lib": tmp_path / "seen"}) as program:
            guest = caller(program)
            texts = []
            for name, path, origin in (
                ("/lib/sub/a.so", "/lib/sub/a.so", "/lib/sub"),
                ("b.so", "b.so", ""),
                (None, "main.wasm", ""),
            ):
                handle = guest.dlopen(name, NOW)
                assert isinstance(handle, int)
                module = guest.module(handle)
                assert isinstance(module, dict)
                assert (module["path"], module["origin"]) == (path, origin)
                texts.append(str(guest.dlsym(handle, "gone")))
            texts += [str(guest.dlopen("gone.so", NOW)), guest.dlclose(77)]
            host = program.main_group.dlopen(hidden / "b.so")
            guest.dlclose(host)
            texts.append(guest.dlclose(host))
            assert all(texts)
            assert not any(str(tmp_path) in text for text in texts)

    def test_a_destructor_s_error_names_no_path_of_the_host(self, tmp_path: Path) -> None:
        """A library that the host loaded from elsewhere, and that the guest closes last, is named without its path."""
        (tmp_path / "a.so").write_bytes(library(needed=["b.so"], run_path=["$ORIGIN"]))
        (tmp_path / "b.so").write_bytes(library('(func (export "_fini") unreachable)'))
        with dl.Linker(main_module()) as program:
            guest, group = caller(program), program.main_group
            handle = group.dlopen(tmp_path / "a.so")
            assert guest.dlopen("a.so", NOW) == handle
            group.dlclose(handle)
            text = guest.dlclose(handle)
            assert "b.so" in text
            assert "_fini" in text
            assert str(tmp_path) not in text
            assert len(program.modules) == 1


class TestErrors:
    def test_the_text_waits_for_who_asks_and_goes(self) -> None:
        """dlerror gives the last failure's text once, cut to the buffer; a success in between forgets it, as in glibc."""
        with dl.Linker(main_module(), libraries={"a.so": library(returns("f", 1))}) as program:
            guest = caller(program)
            assert guest.error() == ""
            names = SCRATCH + 8192  # texts are written before
            program.memory.write(names, b"first.sosecond.soa.so")
            for at, size in ((0, 8), (8, 9)):
                assert guest.call("dlopen", names + at, size, NOW, 0, 0, guest.out) == UNKNOWN
            assert "second.so" in guest.error()
            assert guest.call("dlopen", names, 8, NOW, 0, 0, guest.out) == UNKNOWN
            assert guest.call("dlopen", names + 17, 4, NOW, 0, 0, guest.out) == 0
            assert guest.take_error(0) == ""
            assert guest.call("dlopen", names, 8, NOW, 0, 0, guest.out) == UNKNOWN
            assert len(guest.take_error(0)) > 20
            assert len(guest.take_error(16)) == 15
            assert program.memory.read(SCRATCH + 15, 1) == b"\0"
            assert guest.take_error(16) == ""

    def test_each_thread_has_its_own(self) -> None:
        """Threads that fail at the same time read their own texts."""
        main = main_module(shared=True)
        with dl.Linker(main, memory=dl.MemoryType(20, 200, shared=True)) as program:

            def fail(group: dl.InstanceGroup, number: int) -> bool:
                own = Caller(group, MAIN, SCRATCH + 4096 * number)
                for turn in range(30):
                    text = own.dlopen(f"gone{number}-{turn}.so", NOW)
                    assert f"gone{number}-{turn}.so" in str(text)
                return own.error() == ""

            threads = [program.spawn(fail, number) for number in range(1, 5)]
            assert all(thread.join(60) for thread in threads)
            assert fail(program.main_group, 0)

    def test_bad_pointers(self) -> None:
        """Every address is checked, each string's length is bounded, and nothing is loaded or written then."""
        with dl.Linker(main_module(), libraries={"a.so": library(returns("f", 1))}) as program:
            guest, end = caller(program), program.memory.size
            out, text = guest.out, guest.scratch
            program.memory.write(text, b"a.so")
            for name, arguments in (
                ("dlopen", (end - 2, 4, NOW, 0, 0, out)),
                ("dlopen", (text, -1, NOW, 0, 0, out)),
                ("dlopen", (text, 4, NOW, end, 1, out)),
                ("dlopen", (text, 4, NOW, 0, 0, end - 3)),
                ("dlopen", (0, 0, NOW, 0, 0, -4)),
                ("dlsym", (0, end, 1, out)),
                ("dlsym", (0, text, 1, end - 2)),
                ("dladdr", (1, 0, end - 23, text, 10)),
                ("dlerror", (text, 10, end - 3)),
                ("module", (0, end - 43, text, 100)),
                ("module", (0, out, end - 3, 100)),
                ("modules", (0, end - 4, 2, out)),
                ("modules", (0, text, 2, end - 11)),
            ):
                assert guest.call(name, *arguments) == MEMORY_VIOLATION, (name, arguments)
            assert len(program.modules) == 1
            assert guest.call("dlopen", text, 5000, NOW, 0, 0, out) == UNKNOWN
            assert "more than 4095 bytes" in guest.error()
            assert guest.call("dlsym", 0, text, 65537, out) == UNKNOWN or program.memory.size < 65537 + text
            guest.error()
            program.memory.write(text, b"\xff\xfe")
            for name, arguments in (("dlopen", (text, 2, NOW, 0, 0, out)), ("dlsym", (0, text, 2, out))):
                program.memory.write(text, b"\xff\xfe")
                assert guest.call(name, *arguments) == UNKNOWN
                said = guest.error()
                assert "not UTF-8" in said
                assert said.endswith(r"\xff\xfe")
            # capacity is bounded by what one call writes, not by what the guest says
            assert guest.call("modules", 0, text, -1, out) == 0


def test_thread_local_addresses_are_the_calling_thread_s() -> None:
    """dlsym, dladdr and module name each thread's own block."""
    lib = library(
        SHARED_MEMORY,
        '(global (export "__tls_base") (mut i32) (i32.const 0))',
        '(global (export "__tls_size") i32 (i32.const 32))',
        data("var", 16),
        '(func (export "__wasm_init_tls") (param i32) (global.set 0 (local.get 0)))',
        tls=["var"],
    )
    main = main_module(shared=True)
    with dl.Linker(main, libraries={"t.so": lib}, memory=dl.MemoryType(20, 200, shared=True)) as program:
        handle = caller(program).dlopen("t.so", NOW)
        assert isinstance(handle, int)

        def look(group: dl.InstanceGroup, number: int) -> int:
            own = Caller(group, MAIN, SCRATCH + 4096 * number)
            address = own.dlsym(handle, "var")
            assert isinstance(address, int)
            assert own.dladdr(address + 2) == (handle, THREAD_LOCAL, "t.so", "var", address)
            module = own.module(handle)
            assert isinstance(module, dict)
            assert (module["tls"], module["tls_at"], module["tls_size"]) == (handle, address - 16, 32)
            return address

        threads = [program.spawn(look, number) for number in (1, 2)]
        assert len({thread.join(30) for thread in threads} | {look(program.main_group, 0)}) >= 2


def test_every_function_is_there_with_and_without_libraries() -> None:
    """The namespace links in each kind of program; one that can take no libraries still knows itself."""
    assert set(FUNCTIONS) == set(EXTENSION)
    alone = module('(memory (export "memory") 3)', *asking())
    with dl.Linker(alone, name="alone.wasm") as program:
        guest = caller(program)
        assert guest.dlopen(None, NOW) == MAIN
        assert "alone.wasm" in str(guest.dlopen("a.so", NOW))
        own = guest.module()
        assert isinstance(own, dict)
        assert own["path"] == "alone.wasm"
        assert guest.modules()[0] == [MAIN]


def test_bindings_serve_a_library_that_comes_again() -> None:
    """The code of the glue is kept for the next load, and the next load has its own handle all the same."""
    libs = {"a.so": library(MEMORY, *asking("module")), "b.so": library(returns("f", 1))}
    with dl.Linker(main_module(), libraries=libs) as program:
        group = program.main_group
        seen = []
        for _ in range(3):
            handle = group.dlopen("a.so")
            own = caller(program, handle).module()
            assert isinstance(own, dict)
            assert own["handle"] == handle
            seen.append(handle)
            group.dlclose(handle)
        assert len(set(seen)) == 3
