"""Modules as arguments of commands that look into them: a shell completes their names, and a bundle stands for its program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from dl.cli.modules import complete_file
from dl.cli.params import F
from dl.shipping.names import is_bundle


def module_argument(
    name: str, metavar: str, *, bundles: bool = True, several: bool = False
) -> Callable[[F], F]:
    """Give a command an argument that names a module, or several.

    Args:
        name: the parameter.
        metavar: what the help calls it.
        bundles: whether a bundle stands for its program.
        several: whether there may be more than one.
    """
    return click.argument(
        name,
        metavar=metavar,
        nargs=-1 if several else 1,
        required=True,
        shell_complete=complete_file,
        callback=_opened if bundles else None,
    )


def _opened(context: click.Context, _parameter: click.Parameter, given: Any) -> Any:
    """Return the programs of bundles in place of their paths; an archive is unpacked until the command line is done.

    Its directory has all that it needs, and libraries are looked for in a program's directory.
    """
    if context.resilient_parsing or given is None:
        return given
    return (
        tuple(_program(context, one) for one in given)
        if isinstance(given, tuple)
        else _program(context, given)
    )


def _program(context: click.Context, path: str) -> str:
    if not is_bundle(path):
        return path
    from dl.shipping.archive import opened_bundle  # noqa: PLC0415  most look at modules

    # The root's, which ends whatever becomes of this command's own: that is still being made.
    bundle = context.find_root().with_resource(opened_bundle(path, trusted=False))
    return str(bundle.program)
