"""`dlrun compile`, and compiled forms: used if they are of these bytes, this engine, and the user's alone; else refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import dl
from dl.engine import default_engine
from dl.engine.compiled_form import MAGIC, form_of
from tests.support.command_line import DlRun
from tests.support.modules import MEMORY, calls, imports, library, module, returns
from tests.support.paths import FIXTURES

if TYPE_CHECKING:
    from dl.engine.wasmtime.engine import WasmtimeEngine as OneEngine
else:
    OneEngine = type(default_engine())


class Counting(OneEngine):
    """The engine of this run, which counts what it compiles and what it is given as code."""

    def __init__(self) -> None:
        super().__init__(interrupts=False)
        self.compiled = 0
        self.loaded = 0

    def compile(self, wasm: bytes) -> Any:
        """Count, and compile."""
        self.compiled += 1
        return super().compile(wasm)

    def deserialize(self, code: bytes) -> Any:
        """Count, and take the code."""
        self.loaded += 1
        return super().deserialize(code)


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A directory of the user's alone, with a library and what it needs."""
    directory = tmp_path / "own"
    directory.mkdir(mode=0o700)
    (directory / "low.so").write_bytes(library(MEMORY, returns("low", 3)))
    (directory / "top.so").write_bytes(
        library(MEMORY, imports("low"), calls("top", "low"), needed=("low.so",))
    )
    return directory


def opened(
    directory: Path, caplog: pytest.LogCaptureFixture, **options: object
) -> tuple[Counting, list[str]]:
    """Open the library with an engine that has compiled nothing; return that, and what the log says of forms."""
    engine = Counting()
    caplog.clear()
    caplog.set_level("INFO", logger="dl.cache")
    with dl.Linker(None, library_path=[directory], engine=engine, **options) as linker:  # type: ignore[arg-type]
        top = linker.main_group.dlsym(linker.main_group.dlopen("top.so"), "top")
        assert isinstance(top, dl.GuestFunction)
        assert top() == 3
    return engine, [message for message in caplog.messages if message.startswith("compiled form")]


def compiled(dlrun: DlRun, directory: Path) -> None:
    done = dlrun("compile", str(directory / "top.so"))
    assert done.returncode == 0, done.stderr
    assert [Path(line.split("  ")[0]).name for line in done.stdout.splitlines()] == [
        "top.so.compiled",
        "low.so.compiled",
    ]


class TestUse:
    def test_forms_are_used(self, dlrun: DlRun, private: Path, caplog: pytest.LogCaptureFixture) -> None:
        """With forms beside them, neither library is compiled, and the log says which form was used."""
        plain, said = opened(private, caplog)
        assert (plain.loaded, said) == (0, [])
        compiled(dlrun, private)
        fast, said = opened(private, caplog)
        assert fast.loaded == 2
        assert fast.compiled == plain.compiled - 2
        assert sorted(said) == [
            f"compiled form {private / name}.compiled used" for name in ("low.so", "top.so")
        ]

    def test_without_a_cache_they_are_not(
        self, dlrun: DlRun, private: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """`cache=False` turns the forms off as well."""
        compiled(dlrun, private)
        engine, said = opened(private, caplog, cache=False)
        assert (engine.loaded, said) == (0, [])

    def test_a_program_with_threads_and_one_without(self, dlrun: DlRun, tmp_path: Path) -> None:
        """A bundle of a program in a new directory runs from there, with its forms."""
        for memory in ("shared", "unshared"):
            source = FIXTURES / "hello" / memory
            bundle = tmp_path / memory
            done = dlrun("compile", str(source / "main.wasm"), "-o", str(bundle))
            assert done.returncode == 0, done.stderr
            assert sorted(p.name for p in bundle.iterdir()) == [
                "libgreet.so",
                "libgreet.so.compiled",
                "main.wasm",
                "main.wasm.compiled",
            ]
            ran = dlrun("--trace", str(bundle / "main.wasm"))
            assert ran.returncode == 0
            assert ran.stdout == dlrun(str(source / "main.wasm")).stdout
            assert ran.stderr.count("compiled form ") == ran.stderr.count(".compiled used") == 2

    def test_modules_that_are_linked_by_name(
        self, dlrun: DlRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A program linked by import names is compiled with the modules that it imports from, and all three forms are used."""
        bundle = tmp_path / "bundle"
        done = dlrun("compile", str(FIXTURES / "multimodule/unshared/mC.wasm"), "-o", str(bundle))
        assert done.returncode == 0, done.stderr
        assert sorted(p.name for p in bundle.glob("*.compiled")) == [f"m{x}.wasm.compiled" for x in "ABC"]
        caplog.set_level("INFO", logger="dl.cache")
        with dl.Linker(None, module_path=[bundle], engine=Counting()) as linker:
            assert linker.instantiate(bundle / "mC.wasm").lookup("$mB$B2")() == 11
        assert sum(message.endswith(".compiled used") for message in caplog.messages) == 3
        (bundle / "mA.wasm").unlink()
        assert dlrun("compile", str(bundle / "mC.wasm")).returncode == 127

    def test_an_ordinary_module_that_waits(
        self, dlrun: DlRun, private: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What is compiled of it is the copy that is run, whose waits are the linker's."""
        path = private / "user.wasm"
        (private / "one.wasm").write_bytes(module(returns("one", 1)))
        wait = "(memory.atomic.wait32 (i32.const 0) (call $one) (i64.const -1))"
        path.write_bytes(
            module(
                '(import "one" "one" (func $one (result i32)))',
                f'(memory 1 1 shared) (func (export "f") (result i32) {wait})',
            )
        )
        assert dlrun("compile", "--module-path", str(private), str(path)).returncode == 0
        caplog.set_level("INFO", logger="dl.cache")
        with dl.Linker(None, engine=Counting(), module_path=[private]) as linker:
            assert linker.instantiate(path)["f"]() == 1
        assert sum(message.endswith(".compiled used") for message in caplog.messages) == 2


class TestRefusal:
    def refused(
        self, directory: Path, caplog: pytest.LogCaptureFixture, reason: str, **options: object
    ) -> None:
        """The form of top.so is not used, for a reason; the program runs all the same."""
        engine, said = opened(directory, caplog, **options)
        assert engine.loaded <= 1
        assert any("top.so.compiled not used" in line and reason in line for line in said), said

    def test_of_other_bytes(self, dlrun: DlRun, private: Path, caplog: pytest.LogCaptureFixture) -> None:
        """A form of other bytes is refused, whether the module was changed or the form is another module's."""
        compiled(dlrun, private)
        top = private / "top.so"
        top.write_bytes(top.read_bytes() + b"\0\2\1x")  # a custom section more
        self.refused(private, caplog, "other bytes")
        compiled(dlrun, private)
        shutil.copy(form_of(private / "low.so"), form_of(top))
        self.refused(private, caplog, "other bytes")

    def test_of_another_engine(self, dlrun: DlRun, private: Path, caplog: pytest.LogCaptureFixture) -> None:
        """A form for an engine with other settings is refused."""
        done = dlrun("compile", "--interrupts", str(private / "top.so"))
        assert done.returncode == 0, done.stderr
        self.refused(private, caplog, "another engine")

    def test_for_other_programs(self, dlrun: DlRun, private: Path, caplog: pytest.LogCaptureFixture) -> None:
        """A form that has only the code for programs of another kind is refused, and one form can hold several."""
        waits = (
            '(import "env" "memory" (memory 0 65536 shared))',
            '(func (export "top") (result i32)'
            " (drop (memory.atomic.wait32 (i32.const 2048) (i32.const 1) (i64.const 0))) (i32.const 3))",
        )
        (private / "top.so").write_bytes(library(*waits))
        main = private / "main.wasm"
        main.write_bytes(
            module(
                '(import "env" "memory" (memory 20 65536 shared))',
                '(table (export "__indirect_function_table") 7 funcref)',
            )
        )
        done = dlrun("compile", "--no-interrupts", str(main), str(private / "top.so"))
        assert done.returncode == 0, done.stderr
        shared = dl.MemoryType(minimum=20, shared=True)
        self.refused(private, caplog, "other kinds of program", memory=shared)
        done = dlrun("compile", "--no-interrupts", str(private / "top.so"))
        assert done.returncode == 0, done.stderr
        engine, _ = opened(private, caplog, memory=shared)
        assert engine.loaded == 1
        with dl.Linker(main, library_path=[private], engine=engine) as linker:
            linker.main_group.dlopen("top.so")
        assert engine.loaded == 3  # the program, and the library's other code

    def test_every_damage(self, dlrun: DlRun, private: Path, caplog: pytest.LogCaptureFixture) -> None:
        """A form that is cut off or has a changed byte is refused before the engine sees it, wherever that is."""
        compiled(dlrun, private)
        form = form_of(private / "top.so")
        whole = form.read_bytes()
        assert whole.startswith(MAGIC)
        places = [0, 7, 8, 12, 16, 40, 80, 112, 120, 150, 200, len(whole) // 2, len(whole) - 1]
        for place in places:
            form.write_bytes(whole[:place])
            self.refused(private, caplog, "")
            form.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            self.refused(private, caplog, "")
        form.write_bytes(whole + b"x")
        self.refused(private, caplog, "damaged")

    def test_others_can_write(self, dlrun: DlRun, private: Path, caplog: pytest.LogCaptureFixture) -> None:
        """A form is refused that others can write, that is a link, or that lies where others can write."""
        compiled(dlrun, private)
        form = form_of(private / "top.so")
        form.chmod(0o666)
        self.refused(private, caplog, "can be written by others")
        form.chmod(0o600)
        private.chmod(0o777)
        self.refused(private, caplog, "can be written by others")
        done = dlrun("compile", str(private / "top.so"))
        assert done.returncode == 127
        assert "the user alone can write" in done.stderr
        private.chmod(0o700)
        elsewhere = form.with_name("elsewhere")
        form.rename(elsewhere)
        form.symlink_to(elsewhere)
        self.refused(private, caplog, "")
        form.unlink()
        form.mkdir()
        self.refused(private, caplog, "")
        form.rmdir()
        os.mkfifo(form)
        self.refused(private, caplog, "not a regular file")

    def test_where_the_guest_can_write(
        self, dlrun: DlRun, private: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Forms in a directory that the program was given are not looked at: its guest could have written them."""
        compiled(dlrun, private)
        engine, said = opened(private, caplog, preopens={"/": private.parent})
        assert engine.loaded == 0
        assert len(said) == 2
        assert all("guest can write there" in line for line in said)


def test_what_cannot_be_compiled(dlrun: DlRun, private: Path) -> None:
    """A missing needed library and a module that is no library end the command with what is wrong."""
    (private / "low.so").unlink()
    done = dlrun("compile", str(private / "top.so"))
    assert done.returncode == 127
    assert "low.so" in done.stderr
    hello, other = FIXTURES / "hello/shared/main.wasm", FIXTURES / "multimodule/unshared/mA.wasm"
    done = dlrun("compile", "-o", str(private / "out"), str(hello), str(other))
    assert done.returncode == 127
    assert "no dylink.0 section" in done.stderr
