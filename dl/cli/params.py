"""The kinds of values that options take: functions from the text of an option to its value."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from dl.limits import Limits, limit_options
from dl.options import MAX_PAGES
from dl.wasm.types import PAGE_BYTES

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def size(text: str) -> int:
    """Return a number of bytes: digits, and `k`, `M` or `G` for powers of 1024, with or without `iB`.

    Raises:
        click.BadParameter: it is not one, or is more than a memory can have.
    """
    match = re.fullmatch(r"([0-9]{1,12})([kmg]?)(?:i?b)?", text.strip().lower())
    if match is None:
        raise click.BadParameter(f"{text!r} is not a size such as 65536, 512k or 16MiB")
    value = int(match[1]) * _UNITS[match[2]]
    most = MAX_PAGES * PAGE_BYTES
    if not 0 < value <= most:
        raise click.BadParameter(f"{text!r} is not between 1 and {most} bytes")
    return value


class Whole(click.IntRange):
    """A whole number in a range, called so in messages."""

    name = "whole number"


class Number(click.FloatRange):
    """A number in a range, called so in messages."""

    name = "number"


F = TypeVar("F", bound=Callable[..., Any])

_LIMIT = "limit_"


def _most(unit: str) -> tuple[str, Callable[[str], int] | Whole, str]:
    """Return how an option's value is named, read and shown, of what is counted in a unit."""
    return ("SIZE", size, " bytes") if unit in ("pages", "bytes") else ("N", Whole(1), "")


def limits_of_program(command: F) -> F:
    """Give a command one option for each attribute of `dl.Limits`; see `taken_limits`."""
    for name, about in reversed(list(limit_options().items())):
        metavar, kind, unit = _most(about["unit"])
        default = getattr(Limits(), name) * (PAGE_BYTES if about["unit"] == "pages" else 1)
        command = click.option(
            f"--{about['option']}",
            _LIMIT + name,
            type=kind,
            metavar=metavar,
            help=f"Bound the {about['what']}. Default: {default}{unit}.",
        )(command)
    return command


def taken_limits(options: Mapping[str, int | None]) -> Limits:
    """Return the limits that options of `limits_of_program` give; memory is rounded down to pages, but to one at least."""
    given = {name.removeprefix(_LIMIT): value for name, value in options.items() if value is not None}
    if "memory_pages" in given:
        given["memory_pages"] = max(given["memory_pages"] // PAGE_BYTES, 1)
    return Limits(**given)


engine_option = click.option(
    "--engine",
    metavar="NAME",
    help="Run on this engine: wasmtime or wasmer. Default: what DLRUN_ENGINE says, or wasmtime.",
)


def directories(text: str) -> list[Path]:
    """Return the directories of a colon-separated list; empty entries are left out."""
    from dl.modules.locate import split_path  # noqa: PLC0415  the help needs nothing of the linker

    return split_path(text)


def preopen(text: str) -> tuple[str, str]:
    """Return guest name and host path of `GUEST::HOST`, or of `HOST`, which the guest sees under the same name.

    Raises:
        click.BadParameter: one of them is empty, or there is no such directory.
    """
    guest, separator, host = text.partition("::")
    if not separator:
        host = guest
    if not guest or not host:
        raise click.BadParameter(f"{text!r} is not GUEST::HOST or a directory")
    if not Path(host).is_dir():
        raise click.BadParameter(f"{host!r} is not a directory")
    return guest, host


def variable(text: str) -> tuple[str, str]:
    """Return name and value of `NAME=VALUE`, or of `NAME` with the value it has here.

    Raises:
        click.BadParameter: the name is empty, or not set here.
    """
    name, separator, value = text.partition("=")
    if not name:
        raise click.BadParameter(f"{text!r} has no name")
    if separator:
        return name, value
    if name not in os.environ:
        raise click.BadParameter(f"{name!r} is not set here; give it a value with {name}=VALUE")
    return name, os.environ[name]
