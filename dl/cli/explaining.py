"""`dlrun explain APP.WASM SYMBOL`: who asks for a symbol, who answers, and who else could."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from dl.api.explain import explain as explained
from dl.cli.arguments import module_argument
from dl.cli.console import output, print_note, shown
from dl.cli.demangling import Demangler, demangle_option, demangler, is_named
from dl.cli.endings import NOT_FOUND, NOT_LINKED
from dl.cli.links import GOOD, links_of
from dl.cli.modules import image_of, search_path
from dl.cli.run import library_path_option
from dl.link.plan import LinkPlan
from dl.link.rehearse import Link
from dl.link.sources import described
from dl.link.why import BoundImport


@click.command(short_help="Show who asks for a symbol, who answers, and who else could.")
@library_path_option
@demangle_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON; its keys are documented and stable.")
@module_argument("file", "APP.WASM")
@click.argument("symbol", metavar="SYMBOL")
def explain(
    file: str, symbol: str, library_path: tuple[list[Path], ...], demangle: bool | None, as_json: bool
) -> int:
    """Show who asks for a symbol, who answers, and who else could.

    The program or library and all that it needs are linked as at its start, and nothing is compiled or run. SYMBOL is its name
    in the modules or, with a demangler, as its author wrote it, with or without arguments. The exit code is 0 if everybody
    who asks gets an answer, 127 if somebody gets none, 1 if no module imports or defines the symbol.
    """
    demangled = demangler(demangle)
    asked: list[tuple[str, BoundImport]] = []
    defined: list[tuple[str, str, str]] = []

    def visit(plan: LinkPlan) -> None:
        for module in plan.new:
            names = dict.fromkeys(
                entry.name for entry in module.wasm.imports if is_named(entry.name, symbol, demangled)
            )
            for name in names:
                asked.extend(
                    (module.name, entry) for entry in explained(plan.program, name, module, plan).imports
                )
            defined.extend(
                (module.name, name, described(found))
                for name, found in module.symbols.items()
                if is_named(name, symbol, demangled)
            )

    links = links_of(image_of(file), search_path(library_path, file), visit=visit)
    states = {(link.importer, link.entry.module, link.entry.name): link for link in links}
    answers = [
        (importer, entry, states[importer, entry.namespace, entry.symbol]) for importer, entry in asked
    ]
    if as_json:
        print(json.dumps(_as_json(symbol, answers, defined), indent=2))
    else:
        _print(answers, defined, demangled)
    if not answers and not defined:
        print_note(f"no module of {file} imports or defines {symbol}")
        return NOT_FOUND
    return 0 if all(link.state in GOOD for _, _, link in answers) else NOT_LINKED


def _as_json(
    symbol: str, answers: list[tuple[str, BoundImport, Link]], defined: list[tuple[str, str, str]]
) -> dict[str, Any]:
    return {
        "symbol": symbol,
        "asked": [
            {
                "importer": importer,
                "module": entry.namespace,
                "name": entry.symbol,
                "type": entry.type,
                "state": link.state,
                "provider": entry.provider,
                "rule": _rule(entry, link),
                "others": [
                    {"provider": other.provider, "what": other.what, "reason": other.reason}
                    for other in entry.others
                ],
            }
            for importer, entry, link in answers
        ],
        "defined": [{"module": module, "name": name, "what": what} for module, name, what in defined],
    }


def _rule(entry: BoundImport, link: Link) -> str:
    return link.meaning if link.state in ("undefined", "refused") else entry.rule


def _print(
    answers: list[tuple[str, BoundImport, Link]], defined: list[tuple[str, str, str]], demangled: Demangler
) -> None:
    console = output()
    for importer, entry, link in answers:
        line = Text(shown(importer), style="bold")
        line.append(
            f" asks for {shown(f'{entry.namespace}.{demangled(entry.symbol)}')}, {entry.type}", "default"
        )
        console.print(line)
        good = link.state in GOOD
        answer = Text(
            f"  {shown(entry.provider)}" if good else f"  {link.state}", "green" if good else "bold red"
        )
        answer.append(f": {shown(_rule(entry, link))}", "default")
        console.print(answer)
        for other in entry.others:
            console.print(Text(f"  not {shown(str(other))}", "dim"))
    if not answers:
        for module, name, what in defined:
            console.print(
                Text(f"{shown(module)} defines {shown(demangled(name))}, {what}; no module asks for it")
            )
