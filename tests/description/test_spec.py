"""`dl.Spec`: a program's description as a value."""

from __future__ import annotations

import dataclasses
import inspect
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dl
from tests.support import named_functions
from tests.support.modules import calls, imports, library, module, returns
from tests.support.paths import FIXTURES, ROOT

PLUGINS = FIXTURES / "plugins" / "shared"
HERE = "tests.support.named_functions"
ASKS = module(imports("forty"), calls("ask", "forty"), returns("seven", 7))


def full(**changes: Any) -> dl.Spec:
    """A description in which every field says something."""
    fields: dict[str, Any] = {
        "main": ASKS,
        "name": "app",
        "library_path": [Path("/lib"), "libs"],
        "libraries": {"libone.so": library(returns("one", 1)), "libtwo.so": "/lib/two.so"},
        "map_name": f"{HERE}:find",
        "imports": {"env": {"forty": f"{HERE}:forty", "number": 3, "ratio": 0.5}},
        "args": ["app", "-v"],
        "env": {"HOME": "/"},
        "preopens": {"/data": Path("/srv")},
        "stdin": b"input",
        "stdout": "out.txt",
        "stderr": Path("err.txt"),
        "memory": dl.MemoryType(2, 4),
        "stack_size": 1 << 16,
        "thread_stack_size": 1 << 15,
        "side_memory": "grow",
        "interrupts": True,
        "default_files": False,
        "bind": "now",
        "guest_dlfcn": "elf",
        "preload": ["libpre.so"],
        "profiler": "perfmap",
        "engine": "wasmtime",
        "cache": "/var/cache/app",
        "limits": dl.Limits(threads=3),
        "modules": {"other": ASKS},
        "module_path": ["mods"],
        "finder": [named_functions.find],
        "isolate": True,
        "wamr": 2,
    }
    return dl.Spec(**{**fields, **changes})


class TestAsAValue:
    def test_its_fields_are_the_arguments_of_a_linker(self) -> None:
        """Whatever a linker takes can be described, and nothing else."""
        fields = [field.name for field in dataclasses.fields(dl.Spec)]

        assert set(fields) == set(inspect.signature(dl.Linker).parameters)
        assert set(fields) == set(full().to_dict())

    def test_it_compares_and_hashes_by_what_it_says(self) -> None:
        """Equal descriptions are one key; lists, tuples, paths and the order of names make no difference."""
        one = full()
        two = full(args=("app", "-v"), library_path=("/lib", Path("libs")), env={"HOME": "/"})
        libraries = dict(reversed(list(one.libraries.items())))

        assert one == two == full(libraries=libraries)
        assert {one: 1}[two] == 1
        assert one != full(args=["app"])

    def test_it_does_not_change(self) -> None:
        """Neither its fields nor the mappings in them can be assigned, and what it was made of may change later."""
        env = {"A": "1"}
        spec = dl.Spec(env=env)
        env["A"] = "2"

        assert spec.env == {"A": "1"}
        with pytest.raises(dataclasses.FrozenInstanceError):
            spec.main = b""  # type: ignore[misc]
        with pytest.raises(TypeError):
            spec.env["A"] = "3"  # type: ignore[index]

    @pytest.mark.parametrize(
        "copy",
        [
            lambda spec: pickle.loads(pickle.dumps(spec)),
            lambda spec: dl.Spec.from_dict(json.loads(json.dumps(spec.to_dict()))),
            lambda spec: spec.replace(),
        ],
        ids=["pickle", "json", "replace"],
    )
    def test_a_copy_is_equal(self, copy: Callable[[dl.Spec], dl.Spec]) -> None:
        """Pickled, or written as JSON and read again, it is the same, with the same hash and digest."""
        for spec in (dl.Spec(), full(libraries={"libone.so": library()})):
            again = copy(spec)
            assert again == spec
            assert hash(again) == hash(spec)
            assert again.digest == spec.digest

    def test_its_repr_is_short(self) -> None:
        """It shows what differs from the defaults, and bytes by their number."""
        assert repr(dl.Spec(main=b"1234", args=["a"])) == "Spec(main=<4 bytes>, args=('a',))"


class TestChecks:
    @pytest.mark.parametrize(
        ("field", "value", "where"),
        [
            ("main", 3, "main"),
            ("main", "", "main"),
            ("main", "a\0b", "main"),
            ("name", b"x", "name"),
            ("library_path", "/lib", "library_path"),
            ("library_path", ["/lib", 3], "library_path[1]"),
            ("libraries", ["a"], "libraries"),
            ("libraries", {"a": 3}, "libraries['a']"),
            ("libraries", {3: b""}, "libraries"),
            ("imports", {"env": {"f": "no name"}}, "imports['env']['f']"),
            ("imports", {"env": {"f": lambda: 1}}, "imports['env']['f']"),
            ("imports", {"env": {"f": True}}, "imports['env']['f']"),
            ("imports", {"env": 3}, "imports['env']"),
            ("args", "app", "args"),
            ("args", [1], "args[0]"),
            ("env", {"A": 1}, "env['A']"),
            ("stdout", print, "stdout"),
            ("memory", 3, "memory"),
            ("stack_size", 1000, "stack_size"),
            ("stack_size", True, "stack_size"),
            ("side_memory", "none", "side_memory"),
            ("side_memory", [], "side_memory"),
            ("interrupts", 1, "interrupts"),
            ("bind", "never", "bind"),
            ("engine", object(), "engine"),
            ("limits", {"threads": 1}, "limits"),
            ("finder", "a:b", "finder"),
            ("finder", ["ab"], "finder[0]"),
            ("wamr", 99, "wamr"),
            ("wamr", "lazy", "wamr"),
        ],
    )
    def test_a_wrong_value_is_refused_by_the_name_of_its_field(
        self, field: str, value: object, where: str
    ) -> None:
        """What no linker takes is an error when the description is made, and not when it is built elsewhere."""
        with pytest.raises(dl.SpecError) as caught:
            dl.Spec(**{field: value})  # type: ignore[arg-type]

        assert caught.value.field == where
        assert str(caught.value).startswith(f"dl.Spec: {where}: ")

    @pytest.mark.parametrize(
        ("plain", "where"),
        [
            ({"mian": "a.wasm"}, "mian"),
            ({"main": {"base46": ""}}, "main"),
            ({"libraries": {"a": {"base64": "!"}}}, "libraries['a']"),
            ({"limits": {"thread": 1}}, "limits.thread"),
            ({"limits": {"threads": 0}}, "limits"),
        ],
    )
    def test_a_wrong_text_is_refused(self, plain: dict[str, Any], where: str) -> None:
        """What JSON says wrongly is an error that names the place, and the nearest field for one that there is not."""
        with pytest.raises(dl.SpecError) as caught:
            dl.Spec.from_dict(plain)

        assert caught.value.field == where
        if where == "mian":
            assert "did you mean main?" in str(caught.value)

    def test_a_change_of_a_field_that_there_is_not_is_refused(self) -> None:
        """`replace` knows its fields."""
        with pytest.raises(dl.SpecError, match="did you mean args"):
            dl.Spec().replace(arg=[])


class TestBuilding:
    def test_a_linker_is_made_of_it(self) -> None:
        """Functions are found by name, and options that are not data take the place of fields."""
        spec = dl.Spec(main=ASKS, imports={"env": {"forty": named_functions.forty}}, default_files=False)
        assert spec.imports["env"]["forty"] == f"{HERE}:forty"

        with spec.linker() as linker:
            assert linker.main_group.library(None).ask() == 40
        with spec.linker(imports={"env": {"forty": lambda: 41}}) as linker:
            assert linker.main_group.library(None).ask() == 41

    def test_libraries_may_be_paths_or_bytes(self, tmp_path: Path) -> None:
        """A library is known by its name in the description, wherever it comes from."""
        (tmp_path / "x").write_bytes(library(returns("two", 2)))
        spec = dl.Spec(libraries={"libone.so": library(returns("one", 1)), "libtwo.so": tmp_path / "x"})

        with spec.linker() as linker:
            group = linker.main_group
            assert (group.library("libone.so").one(), group.library("libtwo.so").two()) == (1, 2)

    def test_a_host_function_with_a_signature_may_be_named(self) -> None:
        """A name may stand for a `HostFunction`."""
        main = module(
            imports("twice", "(param i32) (result i32)"),
            '(func (export "four") (result i32) i32.const 2 call $twice)',
        )
        with dl.Spec(main=main, imports={"env": {"twice": f"{HERE}:doubled"}}).linker() as linker:
            assert linker.main_group.library(None).four() == 4

    @pytest.mark.parametrize("name", ["no_module_of_this_name:f", f"{HERE}:missing", f"{HERE}:TEN"])
    def test_a_function_that_is_not_there_is_an_error_of_its_field(self, name: str) -> None:
        """Where a description is built, a name that stands for no function is reported with its place."""
        spec = dl.Spec(main=ASKS, imports={"env": {"forty": name}})
        with pytest.raises(dl.SpecError) as caught:
            spec.linker()

        assert caught.value.field == "imports['env']['forty']"
        spec = dl.Spec(map_name=name)
        for build in (spec.linker, spec.packed):
            with pytest.raises(dl.SpecError) as caught:
                build()
            assert caught.value.field == "map_name"

    def test_a_library_that_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        """A path with nothing behind it is an error of linking that says where."""
        with pytest.raises(dl.LinkError, match=r"nothing\.so"):
            dl.Spec(libraries={"a": tmp_path / "nothing.so"}).linker()

    def test_a_finder_is_found_by_name(self) -> None:
        """Finders are named functions, asked as those of a linker are."""
        with dl.Spec(finder=[named_functions.find]).linker() as linker:
            with pytest.raises(dl.LibraryNotFoundError):
                linker.main_group.dlopen("libmissing.so")

        assert "libmissing.so" in named_functions.asked


class TestDigest:
    def test_it_is_that_of_the_content(self, tmp_path: Path) -> None:
        """A path and the bytes that it leads to count the same; other bytes count otherwise, and so does each option."""
        path = tmp_path / "app.wasm"
        path.write_bytes(ASKS)
        digest = dl.Spec(main=ASKS).digest

        assert dl.Spec(main=path).digest == digest
        path.write_bytes(module(returns("seven", 8)))
        assert dl.Spec(main=path).digest != digest
        assert dl.Spec(main=ASKS, args=["x"]).digest != digest
        assert dl.Spec(main=ASKS, libraries={"a": library()}).digest != digest

    def test_it_is_the_same_in_every_process(self) -> None:
        """It depends on no order of hashes."""
        code = f"import dl; print(dl.Spec(main={ASKS!r}, env={{'A': '1', 'B': '2'}}).digest)"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
        )

        assert done.stdout.strip() == dl.Spec(main=ASKS, env={"B": "2", "A": "1"}).digest


class TestPacked:
    def test_it_holds_all_that_is_needed(self) -> None:
        """Packed, a program is linked with none of its files there: what it needs, and what that needs, came along."""
        spec = dl.Spec(
            main=FIXTURES / "diamond/unshared/main.wasm", library_path=[FIXTURES / "diamond/unshared"]
        )
        packed = spec.packed()

        assert isinstance(packed.main, bytes)
        assert packed.name == "main.wasm"
        assert all(isinstance(source, bytes) for source in packed.libraries.values())
        with packed.replace(library_path=()).linker() as away, spec.linker() as here:
            names = [[Path(m.name).name for m in linker.modules] for linker in (away, here)]
        assert names[0] == names[1]
        assert len(names[0]) > 2

    def test_packing_again_changes_nothing(self) -> None:
        """A packed description is its own."""
        packed = dl.Spec(main=PLUGINS / "main.wasm", libraries={"libadd.so": PLUGINS / "libadd.so"}).packed()

        assert packed.packed() == packed
        assert packed.digest == packed.packed().digest

    def test_preloaded_libraries_come_along(self, tmp_path: Path) -> None:
        """A library that is preloaded by its path is one of the libraries, and still the first."""
        (tmp_path / "pre.so").write_bytes(library(returns("seven", 70)))
        packed = dl.Spec(main=PLUGINS / "main.wasm", preload=[tmp_path / "pre.so"]).packed()
        (tmp_path / "pre.so").unlink()

        with packed.linker() as linker:
            assert linker.modules[0].name == "main.wasm"
            assert linker.main_group.library(None).seven() == 70

    def test_one_name_for_two_libraries_is_refused(self, tmp_path: Path) -> None:
        """Where two modules find different libraries under one name, no single bundle can stand for both."""
        for side, value in (("a", 1), ("b", 2)):
            (tmp_path / side).mkdir()
            (tmp_path / side / "libx.so").write_bytes(library(returns("x", value)))
            needing = library(needed=["libx.so"], run_path=["$ORIGIN"])
            (tmp_path / side / f"lib{side}.so").write_bytes(needing)
        packed = dl.Spec(preload=[tmp_path / "a/liba.so"]).packed()
        spec = dl.Spec(libraries={"libx.so": packed.libraries["libx.so"]}, preload=[tmp_path / "b/libx.so"])

        with pytest.raises(dl.SpecError, match=r"libx\.so stands for two modules"):
            spec.packed()


class TestFiles:
    @pytest.mark.parametrize("kind", ["json", "toml"])
    def test_a_description_is_read_from_a_file(self, kind: str, tmp_path: Path) -> None:
        """TOML and JSON say the same; paths in them begin at the file."""
        if kind == "toml" and sys.version_info < (3, 11):
            pytest.skip("no TOML before Python 3.11")
        (tmp_path / "app.wasm").write_bytes(ASKS)
        text = {
            "json": '{"main": "app.wasm", "imports": {"env": {"forty": "%s:forty"}}, "limits": {"threads": 2}}',
            "toml": 'main = "app.wasm"\n[imports.env]\nforty = "%s:forty"\n[limits]\nthreads = 2\n',
        }[kind]
        file = tmp_path / f"app.{kind}"
        file.write_text(text % HERE)
        spec = dl.Spec.from_file(file)

        assert spec.main == str(tmp_path / "app.wasm")
        assert spec.limits == dl.Limits(threads=2)
        with spec.linker() as linker:
            assert linker.main_group.library(None).ask() == 40

    @pytest.mark.parametrize("text", ["[1]", "{", "\xff"])
    def test_a_file_that_is_no_description_is_refused(self, text: str, tmp_path: Path) -> None:
        """The error names the file."""
        (tmp_path / "app.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(dl.SpecError, match=r"app\.json"):
            dl.Spec.from_file(tmp_path / "app.json")

    @pytest.mark.parametrize(
        ("name", "fault"), [("nope.toml", "no such file"), ("folder.json", "is a directory"), ("app.c", "")]
    )
    def test_what_is_read_as_a_description_is_told(self, name: str, fault: str, tmp_path: Path) -> None:
        """A file that is not there, or of another kind, is refused by name, with what kinds of file are read."""
        (tmp_path / "folder.json").mkdir()
        (tmp_path / "app.c").write_text("int main(void) { return 0; }")
        with pytest.raises(
            dl.SpecError, match=rf"{name}: {fault}.*; a description is TOML .* \.toml, or else JSON"
        ):
            dl.Spec.from_file(tmp_path / name)
