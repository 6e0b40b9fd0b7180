"""Every name of the system interfaces links; what is not supported answers with an error and says so once."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

import dl
from dl.engine.preview1 import WASIX
from dl.wasix.abi import ABSENT, CONTEXTS, NAMESPACES
from dl.wasm.module import parse_module
from dl.wasm.types import FuncType
from tests.support.modules import imports, module

EVERY = Path(__file__).resolve().parents[2] / "fixtures" / "wasix" / "unshared" / "every.wasm"


def signature_text(kind: FuncType) -> str:
    params = " ".join(f"(param {p})" for p in kind.params)
    return params + "".join(f" (result {r})" for r in kind.results)


def command(*fields: str) -> bytes:
    return module('(memory (export "memory") 1)', *fields)


def test_the_tables_are_what_a_c_compiler_makes_of_the_prototypes() -> None:
    """The names and signatures of every namespace are those that the fixture declares in C, no more and no fewer."""
    wasm = parse_module(EVERY.read_bytes(), "every.wasm")
    declared: dict[str, dict[str, FuncType]] = {}
    for entry in wasm.imports:
        if entry.module in NAMESPACES:
            assert isinstance(entry.type, FuncType)
            declared.setdefault(entry.module, {})[entry.name] = entry.type

    assert declared == NAMESPACES


@pytest.mark.parametrize("namespace", sorted(NAMESPACES))
def test_every_function_of_a_namespace_links(namespace: str) -> None:
    """A module that imports a whole namespace, with the signatures of the ABI, is instantiated and runs."""
    fields = [
        f'(import "{namespace}" "{name}" (func {signature_text(kind)}))'
        for name, kind in NAMESPACES[namespace].items()
    ]
    with dl.Linker(command(*fields, '(func (export "_start"))')) as linker:
        assert linker.main_group.run() == 0


@pytest.mark.parametrize(
    ("name", "errno"),
    [
        (
            name,
            {"stack_checkpoint": 58, "proc_snapshot": 58}.get(name, 6 if name.startswith("context_") else 52),
        )
        for name, kind in (ABSENT | CONTEXTS).items()
        if kind.results
    ],
)
def test_what_is_not_supported_says_so_once(name: str, errno: int, caplog: pytest.LogCaptureFixture) -> None:
    """An unsupported function answers with its errno each time and is logged by `dl.wasix` the first time only."""
    kind = (ABSENT | CONTEXTS)[name]
    zeros = " ".join(f"({p}.const 0)" for p in kind.params)
    call = f"(call ${name} {zeros})"
    fields = (
        imports(name, signature_text(kind), WASIX),
        f'(func (export "both") (result i32) (i32.add (i32.mul {call} (i32.const 100)) {call}))',
    )
    with caplog.at_level(logging.DEBUG, "dl.wasix"), dl.Linker(command(*fields)) as linker:
        both = linker.main_group.dlsym(linker.main, "both")
        assert isinstance(both, dl.GuestFunction)
        assert both() == 101 * errno

    messages = [record.getMessage() for record in caplog.records if record.name == "dl.wasix"]
    assert len(messages) == 1
    assert f"{WASIX}.{name} is not supported: it answers {errno}" in messages[0]


@pytest.mark.parametrize("name", ["proc_exec", "proc_exec2", "stack_restore"])
def test_what_must_not_return_ends_the_program(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """A function without a result that cannot be done ends the program with exit code 45 (`noexec`), and says why."""
    kind = (ABSENT | CONTEXTS)[name]
    zeros = " ".join(f"({p}.const 0)" for p in kind.params)
    start = f'(func (export "_start") (call ${name} {zeros}) unreachable)'
    with caplog.at_level(logging.DEBUG, "dl.wasix"):
        with dl.Linker(command(imports(name, signature_text(kind), WASIX), start)) as linker:
            assert linker.main_group.run() == 45

    assert f"{WASIX}.{name} is not supported: the program ends" in caplog.text


def test_the_trace_names_what_a_program_wants_and_does_not_get() -> None:
    """`dlrun --trace` shows each unsupported function that the program calls, once."""
    done = subprocess.run(
        [sys.executable, "-m", "dl", "--trace", str(EVERY)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    refused = [line for line in done.stderr.splitlines() if "is not supported" in line]
    assert done.returncode == 0
    assert len(refused) == sum(1 for kind in (ABSENT | CONTEXTS).values() if kind.results) + 1  # sock_accept
    assert len(set(refused)) == len(refused)
    assert all(" system: wasix_32v1." in line for line in refused)


def test_the_documentation_has_every_name() -> None:
    """`docs/wasix.md` names every function of every namespace."""
    text = (EVERY.parents[3] / "docs" / "wasix.md").read_text()

    missing = {name for table in NAMESPACES.values() for name in table if f"`{name}`" not in text}
    assert missing == set()
