"""`dlrun graph APP.WASM`: libraries and bindings as a picture: Graphviz text, or SVG."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click

from dl.cli.arguments import module_argument
from dl.cli.demangling import Demangler, demangle_option, demangler
from dl.cli.links import links_of
from dl.cli.modules import image_of, search_path
from dl.cli.run import library_path_option
from dl.link.plan import LinkPlan
from dl.link.rehearse import Link
from dl.shipping.files import naming

_HOST, _NOBODY = "the host", "undefined functions"
_MOST_NAMES = 5
_SUFFIXES = {".dot": "dot", ".gv": "dot", ".svg": "svg"}
_LINKERS = ("memory", "table")
"""Kinds of imports that every module has, and the linker defines: no news in a picture."""


@click.command(short_help="Draw libraries and bindings: Graphviz text, or SVG.")
@library_path_option
@demangle_option
@click.option(
    "-o", "--output", "target", metavar="FILE", help="Write to a file: .dot and .gv are text, .svg is an SVG."
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["dot", "svg"]),
    help="What to write. Default: what the file's name says, or dot. SVG needs the program `dot` of Graphviz.",
)
@module_argument("file", "APP.WASM")
def graph(
    file: str,
    library_path: tuple[list[Path], ...],
    demangle: bool | None,
    target: str | None,
    kind: str | None,
) -> int:
    """Draw the libraries of a program, what they need (dashed) and what they are bound to, with the symbols.

    The program or library and all that it needs are linked as at its start, and nothing is compiled or run.
    """
    kind = kind or _kind_of(target)
    needs: list[tuple[str, str]] = []
    names: list[str] = []

    def visit(plan: LinkPlan) -> None:
        names.extend(module.name for module in plan.new)
        needs.extend((module.name, needed.name) for module in plan.new for needed in module.needed)

    links = links_of(image_of(file), search_path(library_path, file), visit=visit)
    text = dot_of(names, needs, links, demangler(demangle))
    data = _svg(text) if kind == "svg" else text.encode()
    if target is None:
        click.echo(data, nl=False)
    else:
        with naming(target):
            Path(target).write_bytes(data)
    return 0


def _kind_of(target: str | None) -> str:
    """Return what to write into a file, by its name; a name without a suffix says nothing.

    Raises:
        click.UsageError: its suffix is that of something else.
    """
    suffix = "" if target is None else Path(target).suffix.lower()
    if suffix not in ("", *_SUFFIXES):
        raise click.UsageError(
            f"nothing is drawn for the suffix {suffix}: there are {', '.join(_SUFFIXES)}; --format says what is written "
            "into a file of any name"
        )
    return _SUFFIXES.get(suffix, "dot")


def _svg(text: str) -> bytes:
    """Have Graphviz draw.

    Raises:
        click.UsageError: it is not installed.
    """
    program = shutil.which("dot")
    if program is None:
        raise click.UsageError(
            "an SVG is drawn by `dot` of Graphviz, which is not installed; --format dot needs nothing"
        )
    done = subprocess.run(  # noqa: S603  the user's own Graphviz
        [program, "-Tsvg"], input=text.encode(), capture_output=True, timeout=600, check=False
    )
    if done.returncode:
        raise OSError(f"dot cannot draw it: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def dot_of(names: list[str], needs: list[tuple[str, str]], links: list[Link], demangled: Demangler) -> str:
    """Return the picture as text of Graphviz.

    Args:
        names: the modules, in the order of their loads.
        needs: who needs whom, by name.
        links: what imports are bound to.
        demangled: makes symbols readable.
    """
    return "\n".join(_lines(names, needs, links, demangled)) + "\n"


def _provider(link: Link) -> str | None:
    """Return who provides an import, for the picture; None for globals that the linker defines."""
    if link.state != "linked":
        return _NOBODY
    return link.provider or (_HOST if link.entry.kind == "func" else None)


def _lines(
    names: list[str], needs: list[tuple[str, str]], links: list[Link], demangled: Demangler
) -> Iterator[str]:
    bound: dict[tuple[str, str], dict[str, None]] = {}
    for link in links:
        if link.entry.kind in _LINKERS:
            continue
        provider = _provider(link)
        if provider is not None and provider != link.importer:
            bound.setdefault((link.importer, provider), {})[demangled(link.entry.name)] = None
    yield "digraph libraries {"
    yield '  graph [rankdir=TB, fontname="sans-serif", nodesep=0.4, ranksep=0.8];'
    yield '  node [shape=box, style="rounded,filled", fillcolor="#eef3fb", color="#4a6fa5", fontname="sans-serif"];'
    yield '  edge [color="#4a6fa5", fontname="sans-serif", fontsize=10];'
    for name in names:
        colour = ', fillcolor="#dbe8d0", color="#5b8a3c"' if name == names[0] else ""
        yield f"  {_quoted(name)} [label={_quoted(os.path.basename(name) or name)}, tooltip={_quoted(name)}{colour}];"
    others = {provider for _, provider in bound}
    if _HOST in others:
        yield f'  {_quoted(_HOST)} [label="host", shape=component, style=filled, fillcolor="#f2f2f2", color="#777777"];'
    if _NOBODY in others:
        yield f'  {_quoted(_NOBODY)} [label="undefined", style="dashed", color="#c0392b", fontcolor="#c0392b"];'
    for needer, needed in needs:
        if (needer, needed) not in bound:
            yield f'  {_quoted(needer)} -> {_quoted(needed)} [style=dashed, color="#999999", tooltip="needed"];'
    for (importer, provider), symbols in bound.items():
        listed = list(symbols)
        label = "\n".join(listed[:_MOST_NAMES])
        if len(listed) > _MOST_NAMES:
            label += f"\n{len(listed) - _MOST_NAMES} more"
        if provider == _HOST:
            label = f"{len(listed)} functions" if len(listed) > 1 else listed[0]
        colour = ', color="#c0392b", fontcolor="#c0392b"' if provider == _NOBODY else ""
        tooltip = _quoted(", ".join(listed[:200]))
        yield f"  {_quoted(importer)} -> {_quoted(provider)} [label={_quoted(label)}, tooltip={tooltip}{colour}];"
    yield "}"


def _quoted(text: str) -> str:
    """Return text as a string of Graphviz; line ends are line breaks, other control characters are shown as escapes."""
    shown = "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in text
    )
    return '"' + shown.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
