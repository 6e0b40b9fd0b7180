"""Signatures from the annotations of Python functions; what is said about a misspelt import."""

from __future__ import annotations

from typing import Any

import pytest

import dl
from tests.support.modules import pie
from tests.support.text_library import Pair

pytestmark = pytest.mark.timeout(60)


class TestAnnotations:
    def test_a_callback_takes_its_signature_from_annotations(
        self, linker: dl.Linker, lib: dl.Library
    ) -> None:
        """Used as a decorator, the function becomes the pointer; values mean what the annotations say."""
        seen: list[Any] = []

        @linker.callback
        def measure(text: dl.CString) -> int:
            seen.append((text, text.address))
            return len(text)

        address = lib.data("word").address
        assert str(measure.type) == "(i32) -> i32"
        assert lib.apply(measure, address) == 4
        assert seen == [("café", address)]
        assert "measure" in repr(measure)
        measure.close()

    def test_a_function_for_imports_is_a_callback_too(self, linker: dl.Linker, lib: dl.Library) -> None:
        """What `dl.host_function` has read already is not read again."""

        @dl.host_function
        def length(text: dl.CString) -> int:
            return len(text)

        with linker.callback(length) as callback:
            assert lib.apply(callback, lib.data("word").address) == 4

    def test_structures_and_pointers_are_parameters_too(self, linker: dl.Linker, lib: dl.Library) -> None:
        """A structure is a view of the guest's memory."""

        def second(pair: Pair) -> dl.Pointer:
            pair.first = 9
            return dl.Pointer(pair.second)

        with linker.callback(second) as callback, linker.allocate(8) as block:
            block.write(b"\1\0\0\0\2\0\0\0")
            assert lib.apply(callback, block) == 2
            assert block.read()[0] == 9

    def test_missing_and_strange_annotations_are_refused_by_name(self, linker: dl.Linker) -> None:
        """The error names the function and the parameter, and says what would do."""

        def bare(a, b: int) -> int:  # type: ignore[no-untyped-def]
            return b

        def strange(a: list[int]) -> None:
            pass

        def texts() -> str:
            return ""

        def silent(a: int):  # type: ignore[no-untyped-def]
            pass

        for function, message in (
            (bare, "bare: parameter 'a' has no annotation"),
            (strange, r"strange: parameter 'a' is list\[int\], which has no type"),
            (texts, "texts: a result of type str would need memory that nobody frees"),
            (silent, "silent: the result has no annotation"),
        ):
            with pytest.raises(dl.LinkerUsageError, match=message):
                linker.callback(function)

    def test_integers_that_no_float_can_hold_are_refused_by_name(self, lib: dl.Library) -> None:
        """As those that do not fit an i32, however many digits they have."""
        for number in (10**400, -(10**400), 10**5000):
            with pytest.raises(
                dl.ValueConversionError, match="function double.*does not fit in f64: an integer of"
            ):
                lib.double(number)
            with pytest.raises(
                dl.ValueConversionError, match="function half.*does not fit in f32: an integer of"
            ):
                lib.half(number)
            with pytest.raises(
                dl.ValueConversionError, match="function same.*does not fit in i32: an integer of"
            ):
                lib.same(number)
        assert lib.double(2**60) == 2.0**61
        assert lib.half(1e300) == float("inf")

    def test_a_wrong_result_names_the_python_function(self, linker: dl.Linker, lib: dl.Library) -> None:
        """With annotations and without; the guest's caller gets the error."""

        def wrong(a: int) -> int:
            return "three"  # type: ignore[return-value]

        for callback in (linker.callback(wrong), linker.callback("(i32) -> i32", wrong)):
            with (
                callback,
                pytest.raises(dl.ValueConversionError, match="wrong .*: the result must be an integer"),
            ):
                lib.apply(callback, 1)

    def test_imports_take_annotations(self) -> None:
        """Values of an import mean what its annotations say; a module that sees it otherwise is refused by name."""
        said: list[str] = []

        @dl.host_function
        def say(text: dl.CString, times: int) -> None:
            said.extend([text] * times)

        main = pie(
            '(import "env" "say" (func $say (param i32 i32)))',
            '(func (export "_start") (call $say (global.get $memory_base) (i32.const 2)))',
            '(data (global.get $memory_base) "hi\\00")',
            memory_size=4,
        )
        with dl.Linker(main, imports={"env": {"say": say}}, memory=dl.MemoryType(2)) as linker:
            assert linker.main_group.run() == 0
        assert said == ["hi", "hi"]
        other = pie('(import "env" "say" (func $say (param i64)))', '(func (export "_start"))')
        with pytest.raises(dl.ImportTypeError, match=r"env\.say"):
            dl.Linker(other, imports={"env": {"say": say}}, memory=dl.MemoryType(2))

    def test_imports_without_a_module_name_are_refused(self) -> None:
        """The error says how imports are named."""
        with pytest.raises(
            dl.LinkerUsageError, match=r"named twice.*\{'env': \{'say': ...\}\}; 'say' is function"
        ):
            dl.Linker(None, imports={"say": lambda: None})  # type: ignore[dict-item]

    def test_an_import_that_returns_the_wrong_kind_is_named(self) -> None:
        """A plain function, too, by the name under which it is imported."""
        main = pie(
            '(import "env" "answer" (func $answer (result i32)))',
            '(func (export "_start") (drop (call $answer)))',
        )
        with dl.Linker(main, imports={"env": {"answer": lambda: "x"}}, memory=dl.MemoryType(2)) as linker:
            with pytest.raises(dl.ValueConversionError, match=r"function env\.answer .*must be an integer"):
                linker.main_group.run()


def test_a_misspelt_import_is_reported_with_the_nearest(caplog: pytest.LogCaptureFixture) -> None:
    """By a warning when the program is linked, by the error at the call; both name what was asked for and what was given."""
    main = pie('(import "env" "report" (func $report))', '(func (export "_start") (call $report))')
    with caplog.at_level("WARNING", "dl.link"):
        linker = dl.Linker(
            main, name="m.wasm", imports={"env": {"reprot": print, "other": print}}, memory=dl.MemoryType(2)
        )
    with linker:
        assert caplog.messages == ["m.wasm imports env.report, which nothing defines; imports has env.reprot"]
        with pytest.raises(
            dl.UnresolvedCallError, match=r"env\.report: .*imports has env\.reprot: did you mean"
        ):
            linker.main_group.run()
