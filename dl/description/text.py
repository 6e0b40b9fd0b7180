"""Descriptions as plain values, which JSON and TOML have."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import errno
import json
import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dl.description.checks import check_names
from dl.errors import LinkerUsageError, SpecError
from dl.limits import Limits
from dl.options import MemoryType, ModuleSource
from dl.wamr.mode import WamrMode

if TYPE_CHECKING:
    from dl.description.spec import Spec

_RECORDS: Mapping[str, type[Any]] = {"memory": MemoryType, "limits": Limits, "wamr": WamrMode}
_MODULES = ("libraries", "modules")
_PATHS = ("main", "stdin", "stdout", "stderr", "cache")
_LISTS_OF_PATHS = ("library_path", "module_path", "preload")
_NAMED_PATHS = ("libraries", "modules", "preopens")


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Return what a field of a dataclass holds when nothing is said."""
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def _base64(data: bytes) -> dict[str, str]:
    return {"base64": base64.b64encode(data).decode("ascii")}


def to_plain(spec: Spec, module: Callable[[ModuleSource], object] | None = None) -> dict[str, Any]:
    """Return the fields of a description that are not as by default.

    Args:
        spec: the description.
        module: returns what stands for a module; None for its path or its bytes.
    """
    as_module = module or _plain
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if value == default_of(field):
            continue
        if field.name == "main":
            plain["main"] = as_module(value)
        elif field.name in _MODULES:
            plain[field.name] = {name: as_module(source) for name, source in value.items()}
        else:
            plain[field.name] = _plain(value)
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return _base64(value)
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if dataclasses.is_dataclass(value):
        return {
            field.name: getattr(value, field.name)
            for field in dataclasses.fields(value)
            if getattr(value, field.name) != field.default
        }
    return value


def from_plain(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a description from plain values; what they hold is checked when it is made.

    Raises:
        SpecError: a record has a field that it does not know, or a text is not base64.
    """
    fields = dict(plain)
    for name in ("main", "stdin"):
        if name in fields:
            fields[name] = _from_base64(fields[name], name)
    for name in _MODULES:
        if isinstance(fields.get(name), Mapping):
            fields[name] = {
                key: _from_base64(value, f"{name}[{key!r}]") for key, value in fields[name].items()
            }
    for name, kind in _RECORDS.items():
        if isinstance(fields.get(name), Mapping):
            check_names(
                (f"{name}.{key}" for key in fields[name]),
                [f"{name}.{field.name}" for field in dataclasses.fields(kind)],
            )
            try:
                fields[name] = kind(**fields[name])
            except (LinkerUsageError, TypeError) as error:
                raise SpecError(name, str(error)) from error
    return fields


def _from_base64(value: Any, field: str) -> Any:
    if not isinstance(value, Mapping):
        return value
    if list(value) != ["base64"]:
        raise SpecError(field, 'bytes are written as {"base64": TEXT}')
    try:
        return base64.b64decode(value["base64"], validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise SpecError(field, f"not base64: {error}") from error


def read_description(path: Path) -> dict[str, Any]:
    """Return what a file of TOML or JSON says; its relative paths begin at the file's directory.

    Raises:
        SpecError: it cannot be read, is no TOML or JSON, or not a table.
    """
    kinds = "a description is TOML in a file whose name ends in .toml, or else JSON"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SpecError("", f"{path}: {os.strerror(error.errno or errno.EIO).lower()}; {kinds}") from error
    try:
        if path.suffix == ".toml":
            if sys.version_info < (3, 11):
                raise SpecError("", f"{path} is TOML, which needs Python 3.11; JSON does not")
            plain = import_module("tomllib").loads(data.decode())
        else:
            plain = json.loads(data)
    except ValueError as error:  # of both formats, and of UTF-8
        raise SpecError("", f"{path}: {error}; {kinds}") from error
    if not isinstance(plain, dict):
        raise SpecError("", f"{path} holds no table of fields")
    return _from_directory(plain, path.parent)


def _from_directory(plain: dict[str, Any], directory: Path) -> dict[str, Any]:
    def placed(value: Any) -> Any:
        return os.path.normpath(directory / value) if isinstance(value, str) else value

    fields = dict(plain)
    for name in _PATHS:
        if name in fields:
            fields[name] = placed(fields[name])
    for name in _LISTS_OF_PATHS:
        if isinstance(fields.get(name), list):
            bare = name == "preload"  # a bare name is looked for
            fields[name] = [one if bare and "/" not in str(one) else placed(one) for one in fields[name]]
    for name in _NAMED_PATHS:
        if isinstance(fields.get(name), Mapping):
            fields[name] = {key: placed(value) for key, value in fields[name].items()}
    return fields
