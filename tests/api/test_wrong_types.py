"""Arguments of the wrong type are refused by name, wherever Python gives one to a public function."""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import dl
from memory import MemoryLayoutError
from tests.support.paths import ROOT

NUMBER: list[Any] = ["x", None, 1.5, []]
TEXT: list[Any] = [5, b"x", None, []]
WRONG: dict[str, list[Any]] = {
    "int": NUMBER,
    "SupportsIndex": NUMBER,
    "str": TEXT,
    "float": ["x", [], b"x"],
    "bool": ["x", 5, None],
    "bytes | bytearray | memoryview": [5, "x", None, [1]],
}
"""Values that no parameter with such an annotation takes; what others get is said in `_wrong`."""
OF_THE_LINKER = {
    "External": {"belongs_to"},
    "Timeline": {"span", "moment", "named"},
}
"""Methods that only the linker calls."""
UNCHECKED = {
    ("write_struct", "address"),  # values are needed to get that far
    ("spectest_imports", "output"),  # called later
    ("Spec", "wamr"),  # takes a number as well
}
"""What is not refused, or not yet."""


def _wrong(annotation: str) -> list[Any]:
    """Return values of the wrong type for a parameter."""
    if annotation in ("Any", "object") or annotation.startswith("P."):
        return []
    optional = annotation.endswith(" | None")
    found = WRONG.get(annotation.removesuffix(" | None"))
    if found is None:
        found = [5, [object()]] + (["x"] if annotation.startswith(("Callable", "Listener")) else [])
    return [value for value in found if not (optional and value is None)]


def _given(
    method: str, parameters: list[inspect.Parameter], wrong: inspect.Parameter, value: Any
) -> tuple[list[Any], dict[str, Any]]:
    """Return arguments that are right, but for one."""
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for one in parameters:
        if one is wrong:
            found = value
        elif one.default is not one.empty or one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD):
            continue
        else:
            found = RIGHT.get(f"{method}.{one.name}", RIGHT.get(one.name))
        if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) and len(
            positional
        ) == parameters.index(one):
            positional.append(found)
        else:
            named[one.name] = found
    return positional, named


class _Pair(ctypes.Structure):
    _fields_ = (("first", ctypes.c_uint32), ("second", ctypes.c_uint32))


LIBRARY = (ROOT / "fixtures/plugins/shared/libadd.so").read_bytes()
RIGHT: dict[str, Any] = {
    "address": 1024,
    "length": 4,
    "size": 16,
    "value": 1,
    "layout": "<i",
    "data": b"abcd",
    "handle": 1,
    "name": "add",
    "pointer": 1024,
    "signature": "(i32) -> i32",
    "function": len,
    "kind": "(i32) -> i32",
    "new_global.kind": "i32",
    "structure.kind": _Pair,
    "minimum": 1,
    "maximum": 1,
    "symbol": "add",
    "in_module": 1,
    "library": LIBRARY,
    "module": LIBRARY,
    "what": None,
    "pages": 1,
    "count": 1,
    "workers": 1,
    "listener": len,
    "text": "x",
    "number": 1,
    "bits": 0,
    "spec": dl.Spec(),
    "main": None,
    "plain": {},
}


@pytest.fixture(scope="module")
def linker() -> Iterator[dl.Linker]:
    """A program of many threads."""
    memory = dl.MemoryType(maximum=64, shared=True)
    with dl.Linker(None, memory=memory, library_path=[ROOT / "fixtures/plugins/shared"]) as linker:
        yield linker


def _refused(
    where: str,
    call: Callable[..., Any],
    parameter: str,
    value: object,
    arguments: tuple[list[Any], dict[str, Any]],
) -> str:
    """Return what is wrong with how a call ends; nothing, if it is refused as it should be."""
    try:
        made = call(*arguments[0], **arguments[1])
        if isinstance(made, contextlib.AbstractContextManager) and not hasattr(made, "close"):
            with made:
                pass
    except (dl.DlError, MemoryLayoutError) as error:
        said = str(error)
        if parameter in said or re.search(rf"(?<!\w){re.escape(repr(value))}(?!\w)", said):
            return ""
        return f"{where}: names neither parameter nor value: {said}"
    except Exception as error:  # noqa: BLE001  what is reported
        return f"{where}: {type(error).__name__}: {error}"
    if hasattr(made, "close"):
        made.close()
    return f"{where}: accepted"


def _attempts(name: str, call: Callable[..., Any]) -> Iterator[str]:
    parameters = list(inspect.signature(call).parameters.values())
    for one in parameters:
        if (
            one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
            or (name.rpartition(".")[2], one.name) in UNCHECKED
        ):
            continue
        for value in _wrong(str(one.annotation)):
            where = f"{name}({one.name}={value!r})"
            yield _refused(
                where, call, one.name, value, _given(name.rpartition(".")[2], parameters, one, value)
            )


def _methods(held: object) -> Iterator[tuple[str, Callable[..., Any]]]:
    kind = type(held)
    skipped = {name for base in kind.__mro__ for name in OF_THE_LINKER.get(base.__name__, ())}
    for name in dir(kind):
        if not name.startswith("_") and name not in skipped and inspect.isroutine(getattr(kind, name)):
            yield f"{kind.__name__}.{name}", getattr(held, name)


def test_methods_refuse_values_of_the_wrong_type_by_name(linker: dl.Linker) -> None:
    """Each parameter of each method of what users hold: an error of this package that names the parameter or the value."""
    library = linker.main_group.library("libadd.so")
    function: Any = library.add
    alone, thread = dl.Linker(None), linker.spawn(lambda _group: None)
    with linker.allocate(64) as block, linker.callback("(i32) -> i32", abs) as callback, alone:
        held = [
            linker,
            linker.main_group,
            linker.memory,
            linker.events,
            library,
            function,
            library.table,
            block,
            callback,
            alone.new_memory(1),
            alone.new_table(),
            alone.new_global("i32", 1),
            alone.new_function("(i32) -> i32", abs),
            dl.Timeline(),
            thread,
        ]
        thread.join(30)
        faults = [
            fault for one in held for name, call in _methods(one) for fault in _attempts(name, call) if fault
        ]

    assert not faults, "\n".join(faults)


def test_makers_refuse_values_of_the_wrong_type_by_name(tmp_path: Path) -> None:
    """Each parameter of each public class and function that users call to make something, likewise."""
    makers: list[tuple[str, Callable[..., Any]]] = [
        ("CString", dl.CString),
        ("CString.at", dl.CString.at),
        ("Pointer", dl.Pointer),
        ("Limits", dl.Limits),
        ("MemoryType", dl.MemoryType),
        ("HostFunction", dl.HostFunction),
        ("host_function", dl.host_function),
        ("Timeline", dl.Timeline),
        ("WamrMode", dl.WamrMode),
        ("WamrMode.from_mode_bits", dl.WamrMode.from_mode_bits),
        ("Spec", dl.Spec),
        ("Spec.from_dict", dl.Spec.from_dict),
        ("Spec.from_file", dl.Spec.from_file),
        ("ProcessPool", dl.ProcessPool),
        ("ProgramPool", dl.ProgramPool),
    ]
    with dl.Linker(None) as linker:
        RIGHT["memory"] = linker.memory
        faults = [fault for name, make in makers for fault in _attempts(name, make) if fault]

    assert not faults, "\n".join(faults)
