"""The linker as the guest sees it: dlopen, dlsym and dl_invalid_handle of WASIX, byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import dl
from memory import OutOfBoundsError
from tests.support.modules import (
    MEMORY,
    SHARED_MEMORY,
    calls,
    constructor,
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

WASIX = "".join(
    f'(import "wasix_32v1" "{name}" (func ${name} (param {"i32 " * count}) (result i32))) '
    for name, count in (("dlopen", 8), ("dlsym", 6), ("dl_invalid_handle", 1))
)
EXPORTS = "".join(f'(export "{name}" (func ${name})) ' for name in ("dlopen", "dlsym", "dl_invalid_handle"))
LIB = library(MEMORY, returns("f", 1), data("d", 4), memory_size=8)
LAZY, NOW = 1, 2
SUCCESS, INVALID, NOEXEC, MEMORY_VIOLATION, UNKNOWN = 0, 28, 45, 78, 79
PAGE = 65536


def wasix_imports() -> list[str]:
    return [f"(import {part}" for part in WASIX.split("(import ")[1:]]


def guest_main(**info: Any) -> bytes:
    return pie(*wasix_imports(), EXPORTS, returns("main_f", 9), data("main_d", 0), memory_size=8192, **info)


class Guest:
    """Calls the guest's interface as the C library does, with strings in the program's memory."""

    ERROR, TEXT, SEARCH, OUT = 4096, 1024, 3072, 256

    def __init__(self, program: dl.Linker) -> None:
        self.program = program
        self.memory = program.memory
        self.group = program.main_group

    def call(self, name: str, *arguments: int) -> Any:
        return self.group.dlsym(1, name)(*arguments)

    def _put(self, at: int, text: bytes | str) -> tuple[int, int]:
        raw = text if isinstance(text, bytes) else text.encode()
        self.memory.write(at, raw)
        return at, len(raw)

    def dlopen(
        self,
        path: Any,
        flags: int = NOW,
        *,
        error_size: int = 256,
        search: bytes | str = "",
        out: int = OUT,
        error: int = ERROR,
    ) -> Any:
        """Return errno, handle and error text."""
        place = (0, 0) if path is None else self._put(self.TEXT, path)
        self.memory.fill(self.ERROR, 0, 2000)
        self.memory.write_u32(self.OUT, 0xDEAD)
        searched = self._put(self.SEARCH, search)
        errno = self.call("dlopen", *place, flags, error, error_size, *searched, out)
        return errno, self.memory.read_u32(self.OUT), self.memory.read_cstring(self.ERROR, 2001)

    def dlsym(
        self, handle: int, name: bytes | str, *, error_size: int = 256, out: int = OUT, error: int = ERROR
    ) -> tuple[int, int, str]:
        """Return errno, address and error text."""
        self.memory.fill(self.ERROR, 0, 2000)
        self.memory.write_u32(self.OUT, 0xDEAD)
        errno = self.call("dlsym", handle, *self._put(self.TEXT, name), error, error_size, out)
        return errno, self.memory.read_u32(self.OUT), self.memory.read_cstring(self.ERROR, 2001)


@pytest.fixture
def opened() -> Iterator[Callable[..., Any]]:
    """Return a function that makes a program with libraries and gives its guest side."""
    programs = []

    def make(libraries: dict[str, bytes] | None = None, main: Any = None, **options: Any) -> Guest:
        program = dl.Linker(
            main or guest_main(), libraries={"lib.so": LIB} if libraries is None else libraries, **options
        )
        programs.append(program)
        return Guest(program)

    yield make
    for program in programs:
        program.close()


class TestDlopen:
    def test_success(self, opened: Callable[..., Any]) -> None:
        """dlopen gives 0 and the handle; the error text stays empty; again gives the same handle."""
        guest = opened()

        assert guest.dlopen("lib.so") == (SUCCESS, 2, "")
        assert guest.dlopen("lib.so") == (SUCCESS, 2, "")

    def test_null_path_is_the_main_module(self, opened: Callable[..., Any]) -> None:
        """A null path gives handle 1, before any string is read."""
        guest = opened()

        assert guest.dlopen(None) == (SUCCESS, 1, "")
        assert guest.call("dlopen", 0, -1, NOW, 0, 0, -5, -1, Guest.OUT) == SUCCESS

    def test_failure(self, opened: Callable[..., Any]) -> None:
        """A failure is errno 79, the reason in the buffer, and an untouched result."""
        guest = opened()
        with guest.program.events.queue() as events:
            errno, handle, text = guest.dlopen("gone.so")
            told = events.get(0)

        assert (errno, handle) == (UNKNOWN, 0xDEAD)
        assert text.startswith("failed to load module: ")
        assert "gone.so" in text
        assert told is not None
        assert (str(told.kind), told.module) == ("failed", "gone.so")

    def test_flags_are_ignored(self, opened: Callable[..., Any]) -> None:
        """Every load of a guest is global, functions that nothing defines come later, and any flags will do."""
        guest = opened(
            {
                "lib.so": library(imports("later"), calls("g", "later")),
                "later.so": library(returns("later", 3)),
            }
        )
        assert guest.dlopen("lib.so", 0) == (SUCCESS, 2, "")
        assert guest.dlopen("later.so", 0xFFFFFFFF) == (SUCCESS, 3, "")

        assert guest.group.dlsym(2, "g")() == 3
        assert guest.dlsym(0, "later")[0] == SUCCESS

    def test_data_must_be_defined(self, opened: Callable[..., Any]) -> None:
        """A variable that nothing defines fails the load, also for the guest."""
        errno, _, text = opened({"lib.so": library(got("nothing", "mem"))}).dlopen("lib.so")

        assert errno == UNKNOWN
        assert "GOT.mem.nothing" in text

    @pytest.mark.parametrize("size", [0, 1, 2, 10, 40, 255, 256])
    def test_error_text_is_cut(self, opened: Callable[..., Any], size: int) -> None:
        """An error text takes at most the buffer, its NUL included; a buffer of size 0 is not touched."""
        guest = opened()
        full = guest.dlopen("g" * 100 + ".so", error_size=256)[2]
        guest.memory.fill(Guest.ERROR, 0xAA, 256)
        guest.memory.write(Guest.TEXT, ("g" * 100 + ".so").encode())
        assert guest.call("dlopen", Guest.TEXT, 103, NOW, Guest.ERROR, size, 0, 0, Guest.OUT) == UNKNOWN

        written = guest.memory.read(Guest.ERROR, 256)
        text = full.encode()[: max(size - 1, 0)]
        assert written[: len(text)] == text
        assert written[size:] == b"\xaa" * (256 - size)
        if size:
            assert written[len(text)] == 0

    def test_error_text_is_cut_between_characters(self, opened: Callable[..., Any]) -> None:
        """A text is never cut within a character."""
        guest = opened()
        for size in range(30, 60):
            guest.memory.fill(Guest.ERROR, 0xAA, 256)
            guest.memory.write(Guest.TEXT, "äöü€😀".encode())
            size_of_name = len("äöü€😀".encode())
            guest.call("dlopen", Guest.TEXT, size_of_name, NOW, Guest.ERROR, size, 0, 0, Guest.OUT)
            text = guest.memory.read_cstring(Guest.ERROR, 256)

            assert len(text.encode()) < size
            assert len(text.encode()) >= size - 4

    def test_bad_pointers(self, opened: Callable[..., Any]) -> None:
        """Addresses outside of memory are errno 78; nothing is loaded then."""
        guest = opened()
        end = guest.memory.size
        path = guest._put(Guest.TEXT, "lib.so")
        bad = [
            (end - 2, 6, NOW, Guest.ERROR, 256, 0, 0, Guest.OUT),
            (Guest.TEXT, -1, NOW, Guest.ERROR, 256, 0, 0, Guest.OUT),
            (-1, 1, NOW, Guest.ERROR, 256, 0, 0, Guest.OUT),
            (*path, NOW, Guest.ERROR, 256, end - 1, 2, Guest.OUT),
            (*path, NOW, Guest.ERROR, 256, 0, 0, end - 3),
            (*path, NOW, Guest.ERROR, 256, 0, 0, -1),
            (0, 0, NOW, Guest.ERROR, 256, 0, 0, -4),
        ]
        for arguments in bad:
            assert guest.call("dlopen", *arguments) == MEMORY_VIOLATION, arguments
        assert len(guest.program.modules) == 1
        gone = guest._put(Guest.TEXT, "gone.so")
        assert guest.call("dlopen", *gone, NOW, end - 4, 256, 0, 0, Guest.OUT) == MEMORY_VIOLATION
        assert guest.call("dlopen", *gone, NOW, -1, 0, 0, 0, Guest.OUT) == UNKNOWN, (
            "a buffer of size 0 is no buffer"
        )

    def test_names_that_are_no_text(self, opened: Callable[..., Any]) -> None:
        """A name that is no UTF-8 is errno 28; names with NUL, without end, or empty are not found."""
        guest = opened()

        errno, _, text = guest.dlopen(b"\xff\xfe.so")
        assert errno == INVALID
        assert text.startswith("failed to load module: a name or search path is not UTF-8")
        assert text.endswith(r"\xff\xfe.so")
        assert guest.dlopen("lib.so", search=b"\xff")[0] == INVALID
        for name in ("", "li\0b.so", "x" * 2000, "./" + "y" * 1900, "\n", "..", "/", "//", "."):
            errno, handle, text = guest.dlopen(name)
            assert (errno, handle) == (UNKNOWN, 0xDEAD), name
            assert text

    def test_static_main_module(self, opened: Callable[..., Any]) -> None:
        """A program that can take no libraries gets the text the C library knows."""
        main = module(*wasix_imports(), EXPORTS, '(memory (export "memory") 1)')
        guest = opened(main=main)
        for path in ("lib.so", None):
            errno, _, text = guest.dlopen(path)
            assert errno == UNKNOWN
            assert "not a dynamically-linked instance" in text

    def test_static_main_module_with_libraries(self, opened: Callable[..., Any]) -> None:
        """A static program with a growing table opens libraries like any other."""
        guest = opened(main=static(*wasix_imports(), EXPORTS))

        assert guest.dlopen("lib.so") == (SUCCESS, 2, "")
        errno, address, _ = guest.dlsym(2, "d")
        assert errno == SUCCESS
        assert address >= 2 * PAGE

    def test_shared_memory(self, opened: Callable[..., Any]) -> None:
        """The interface is the same over shared memory."""
        main = pie(*wasix_imports(), EXPORTS, shared=True, memory_size=8192)
        guest = opened({"lib.so": library(SHARED_MEMORY, returns("f", 1))}, main=main)

        assert guest.dlopen("lib.so") == (SUCCESS, 2, "")
        assert guest.dlsym(2, "f")[0] == SUCCESS

    def test_constructor_that_traps(self, opened: Callable[..., Any]) -> None:
        """A constructor that traps is a failed dlopen, not the end of the program."""
        guest = opened({"bad.so": library(constructor("unreachable")), "lib.so": LIB})
        errno, _, text = guest.dlopen("bad.so")

        assert errno == UNKNOWN
        assert "__wasm_call_ctors failed" in text
        assert guest.dlopen("lib.so") == (SUCCESS, 3, "")

    def test_constructor_that_exits(self, opened: Callable[..., Any]) -> None:
        """A constructor that exits ends the program, through dlopen."""
        exit_ = '(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))'
        guest = opened({"lib.so": library(exit_, constructor("i32.const 7 call $exit"))})
        with pytest.raises(dl.ProgramExited) as caught:
            guest.dlopen("lib.so")

        assert caught.value.code == 7

    @pytest.mark.parametrize(
        "error",
        [KeyboardInterrupt(), ZeroDivisionError(), OutOfBoundsError(1, 2, 3), ValueError("x"), SystemExit(3)],
    )
    def test_host_exceptions_pass(self, opened: Callable[..., Any], error: Any) -> None:
        """What a host function raises in a constructor passes through the guest's dlopen, and is never taken for an errno."""

        def fail() -> None:
            raise error

        guest = opened(
            {"lib.so": library(imports("fail", ""), constructor("call $fail"))},
            imports={"env": {"fail": fail}},
        )
        with pytest.raises(type(error)) as caught:
            guest.dlopen("lib.so")

        assert caught.value is error

    def test_recursion(self, opened: Callable[..., Any]) -> None:
        """A constructor may call the guest's dlopen itself."""
        inner = library(
            MEMORY, *wasix_imports(),
            constructor(
                "(drop (call $dlopen (i32.const 2000) (i32.const 8) (i32.const 2) (i32.const 512) (i32.const 256)"
                " (i32.const 0) (i32.const 0) (i32.const 2040)))"
            ),
        )  # fmt: skip
        guest = opened({"outer.so": inner, "inner.so": LIB})
        guest.memory.write(2000, b"inner.so")

        assert guest.dlopen("outer.so") == (SUCCESS, 2, "")
        assert guest.memory.read_u32(2040) == 3


class TestSearch:
    def put(self, directory: Path, name: str = "lib.so", wasm: bytes = LIB) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(wasm)

    def test_ld_library_path(self, opened: Callable[..., Any], tmp_path: Path) -> None:
        """LD_LIBRARY_PATH names directories of the guest, searched in order before the host's; empty entries are nothing."""
        self.put(tmp_path / "data" / "one", wasm=library(returns("f", 1)))
        self.put(tmp_path / "host", wasm=library(returns("f", 2)))
        for search, value in ((":/none::/data/one:", 1), ("/none", 2), ("", 2)):
            guest = opened({}, preopens={"/data": tmp_path / "data"}, library_path=[tmp_path / "host"])

            assert guest.dlopen("lib.so", search=search)[0] == SUCCESS
            assert guest.group.dlsym(2, "f")() == value

    def test_guest_paths(self, opened: Callable[..., Any], tmp_path: Path) -> None:
        """A path with a slash is the guest's: in the directories it was given, by the names it has for them."""
        self.put(tmp_path / "data" / "sub")
        guest = opened({}, preopens={"/data": tmp_path / "data"})

        assert guest.dlopen("/data/sub/lib.so") == (SUCCESS, 2, "")
        assert guest.dlopen("/data/sub/../sub/./lib.so") == (SUCCESS, 2, "")

    def test_outside(self, opened: Callable[..., Any], tmp_path: Path) -> None:
        """What the guest was not given it cannot load, nor learn whether it exists; no way with dots or links leads out."""
        self.put(tmp_path / "secret")
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "link.so").symlink_to(tmp_path / "secret" / "lib.so")
        (tmp_path / "data" / "out").symlink_to(tmp_path / "secret", target_is_directory=True)
        (tmp_path / "data" / "turn.wasm").symlink_to(tmp_path / "secret" / "lib.so")
        guest = opened({}, preopens={"/data": tmp_path / "data"})
        outside = [
            str(tmp_path / "secret" / "lib.so"),
            "/data/../secret/lib.so",
            "/data/link.so",
            "/data/out/lib.so",
            "/data/turn.so",
        ]
        for path in outside:
            errno, _, text = guest.dlopen(path)
            assert errno == UNKNOWN, path
            assert str(tmp_path / "secret") not in text.replace(path, "")
        for search in ("/data/out", str(tmp_path / "secret"), "/data/../secret"):
            assert guest.dlopen("lib.so", search=search)[0] == UNKNOWN
        assert guest.dlopen("link.so", search="/data")[0] == UNKNOWN
        exists = guest.dlopen(str(tmp_path / "secret" / "lib.so"))[2]
        absent = guest.dlopen(str(tmp_path / "secret" / "lib.sx"))[2]
        assert exists == absent.replace("lib.sx", "lib.so")

    def test_what_a_guest_wrote_cannot_reach_out(self, opened: Callable[..., Any], tmp_path: Path) -> None:
        """A library in a directory of the guest gets needed libraries from the program's directories only."""
        self.put(tmp_path / "secret", "dep.so")
        self.put(tmp_path / "host", "good.so")
        absolute = str(tmp_path / "secret" / "dep.so")
        for n, info in enumerate(({"needed": [absolute]}, {"needed": ["dep.so"], "run_path": ["$ORIGIN/../secret"]},
                                  {"needed": ["dep.so"], "run_path": [str(tmp_path / "secret")]})):  # fmt: skip
            self.put(tmp_path / "data", f"{n}.so", library(**info))
        self.put(
            tmp_path / "data", "fine.so", library(needed=["good.so", "own.so"], run_path=["$ORIGIN/sub"])
        )
        self.put(tmp_path / "data" / "sub", "own.so")
        guest = opened({}, preopens={"/data": tmp_path / "data"}, library_path=[tmp_path / "host"])
        for n in range(3):
            errno, _, text = guest.dlopen(f"/data/{n}.so", error_size=2000)
            assert errno == UNKNOWN
            assert "outside the directories" in text

        assert guest.dlopen("/data/fine.so")[0] == SUCCESS

    def test_beside_the_main_module(self, opened: Callable[..., Any], tmp_path: Path) -> None:
        """A library beside the program's file is found by its path."""
        self.put(tmp_path, "main.wasm", guest_main())
        self.put(tmp_path, "lib.so")
        guest = opened({}, main=tmp_path / "main.wasm")

        assert guest.dlopen(str(tmp_path / "lib.so")) == (SUCCESS, 2, "")


class TestDlsym:
    def test_functions_and_data(self, opened: Callable[..., Any]) -> None:
        """A function gives its table index, data its absolute address: those that the host's dlsym gives."""
        guest = opened()
        guest.dlopen("lib.so")

        assert guest.dlsym(2, "f") == (SUCCESS, guest.group.dlsym(2, "f").address, "")
        assert guest.dlsym(2, "d") == (SUCCESS, guest.group.dlsym(2, "d").address, "")
        assert guest.dlsym(1, "main_d") == (SUCCESS, guest.group.dlsym(1, "main_d").address, "")

    def test_default_scope(self, opened: Callable[..., Any]) -> None:
        """Handle 0 searches the main module first, then libraries in the order they were loaded."""
        guest = opened({n: library(returns("f", 1), returns("main_f", 1)) for n in ("a.so", "b.so")})
        for name in ("b.so", "a.so"):
            guest.dlopen(name)

        assert guest.dlsym(0, "main_f")[1] == guest.group.dlsym(1, "main_f").address
        assert guest.dlsym(0, "f")[1] == guest.group.dlsym(2, "f").address

    def test_only_the_module_itself(self, opened: Callable[..., Any]) -> None:
        """A handle does not stand for what its module needs."""
        guest = opened({"top.so": library(needed=["lib.so"]), "lib.so": LIB})
        guest.dlopen("top.so")

        assert guest.dlsym(3, "f")[0] == UNKNOWN
        assert guest.dlsym(2, "f")[0] == SUCCESS

    def test_failure(self, opened: Callable[..., Any]) -> None:
        """A missing symbol, an unknown handle and what has no address are errno 79 with the reason."""
        guest = opened(
            {"lib.so": library('(global (export "v") (mut i32) (i32.const 0))', '(tag (export "t"))')}
        )
        guest.dlopen("lib.so")
        for handle, name, said in (
            (2, "gone", "gone"), (0, "gone", "gone"), (77, "f", "invalid module handle: 77"), (-1, "f", "invalid module"),
            (2, "v", "v"), (2, "t", "t"), (2, "", ""), (1, "memory", "memory"), (1, "_start", "_start"),
        ):  # fmt: skip
            errno, address, text = guest.dlsym(handle, name)
            assert (errno, address) == (UNKNOWN, 0xDEAD), name
            assert text.startswith("failed to resolve symbol: ")
            assert said in text

    def test_bad_pointers(self, opened: Callable[..., Any]) -> None:
        """Addresses outside of memory are errno 78, a name that is no UTF-8 is 28."""
        guest = opened()
        end = guest.memory.size
        guest.memory.write(Guest.TEXT, b"main_f")

        assert guest.call("dlsym", 1, end - 2, 6, 0, 0, Guest.OUT) == MEMORY_VIOLATION
        assert guest.call("dlsym", 1, Guest.TEXT, 6, 0, 0, end - 3) == MEMORY_VIOLATION
        assert guest.call("dlsym", 1, Guest.TEXT, 5, end - 1, 20, Guest.OUT) == MEMORY_VIOLATION
        errno, _, text = guest.dlsym(1, b"\xff")
        assert errno == INVALID
        assert text.endswith(r"\xff")

    def test_calling_through_the_pointer(self, opened: Callable[..., Any]) -> None:
        """The address is a pointer that the guest's own code can call."""
        pointer = '(func (export "call") (param i32) (result i32) local.get 0 call_indirect (result i32))'
        guest = opened(main=pie(*wasix_imports(), EXPORTS, pointer, memory_size=8192))
        guest.dlopen("lib.so")

        assert guest.call("call", guest.dlsym(2, "f")[1]) == 1


class TestHandles:
    def test_dl_invalid_handle(self, opened: Callable[..., Any]) -> None:
        """0 means that a handle is that of a loaded library; 45 means that it is not, the main module's included."""
        guest = opened()
        guest.dlopen("lib.so")

        assert guest.call("dl_invalid_handle", 2) == SUCCESS
        for handle in (0, 1, 3, -1, 0x7FFFFFFF):
            assert guest.call("dl_invalid_handle", handle) == NOEXEC

    def test_after_a_failed_load(self, opened: Callable[..., Any]) -> None:
        """A load that failed leaves no handle that dlsym takes."""
        guest = opened({"bad.so": library(constructor("unreachable"), returns("f", 1))})
        guest.dlopen("bad.so")

        for handle in (2, 3):
            assert guest.call("dl_invalid_handle", handle) == NOEXEC
            assert guest.dlsym(handle, "f")[0] == UNKNOWN
        assert guest.dlopen("bad.so")[0] == UNKNOWN, "opening the name again fails again"


class TestCalls:
    def test_mixed_recursion(self, opened: Callable[..., Any]) -> None:
        """Guest, host and libraries may call each other in turn, many levels deep."""
        box: list[Any] = []
        step = "(param i32) (result i32)"
        lib = library(
            imports("host", step), '(func (export "down") (param i32) (result i32) local.get 0 call $host)'
        )
        guest = opened({"lib.so": lib}, imports={"env": {"host": lambda n: box[0](n - 1) + 1 if n else 100}})
        guest.dlopen("lib.so")
        box.append(guest.group.dlsym(2, "down"))

        assert box[0](60) == 160

    def test_got_of_the_main_module(self, opened: Callable[..., Any]) -> None:
        """A library that a guest opens sees the main module's data and functions."""
        lib = library(got("main_d", "mem"), got("main_f", "func"), imports("main_f"), reads("d", "got_mem_main_d"),
                      reads("f", "got_func_main_f"), calls("g", "main_f"))  # fmt: skip
        guest = opened({"lib.so": lib})
        guest.dlopen("lib.so")

        assert guest.group.dlsym(2, "d")() == guest.dlsym(1, "main_d")[1]
        assert guest.group.dlsym(2, "f")() == guest.dlsym(1, "main_f")[1]
        assert guest.group.dlsym(2, "g")() == 9
