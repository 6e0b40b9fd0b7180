"""`dlrun inspect FILE`: what a module says about itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from dl.cli.arguments import module_argument
from dl.cli.columns import print_columns
from dl.cli.console import output, shown
from dl.cli.demangling import Demangler, demangle_option, demangler
from dl.cli.endings import NOT_FOUND, NOT_LINKED, report
from dl.cli.links import GOOD, links_as_json, links_of
from dl.cli.modules import image_of, search_path
from dl.cli.report import describe
from dl.cli.run import library_path_option, module_path_option
from dl.cli.selection import Wanted, print_symbols
from dl.errors import DlError

_KINDS = {
    "pie": "position-independent main module",
    "side": "side module (shared library)",
    "static": "ordinary module, without a dylink section",
}


@click.command(short_help="Show what a module or library says about itself.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; its keys are documented and stable.")
@click.option(
    "--links",
    "with_links",
    is_flag=True,
    help="Show what each import of the module, and of what it needs, would be linked to. The exit code is 127 if something "
    "is undefined or does not fit.",
)
@click.option("--exports", is_flag=True, help="Show only the exports.")
@click.option("--imports", is_flag=True, help="Show only the imports.")
@click.option(
    "--undefined", is_flag=True, help="Show only the imports that another module or the host must define."
)
@click.option(
    "--defined-by",
    "defined_by",
    metavar="SYMBOL",
    help="Show only which of the files define a symbol. The exit code is 1 if none does.",
)
@demangle_option
@library_path_option
@module_path_option
@module_argument("files", "FILE...", several=True)
def inspect(
    files: tuple[str, ...],
    as_json: bool,
    with_links: bool,
    exports: bool,
    imports: bool,
    undefined: bool,
    defined_by: str | None,
    demangle: bool | None,
    library_path: tuple[list[Path], ...],
    module_path: tuple[list[Path], ...],
) -> int:
    """Show what WebAssembly modules say about themselves.

    Their dylink sections with everything in them, imports and exports with types, memories, tables, segments, sections, and
    the features that these show. Code is not looked into. With --links, libraries are found as for a run, and the linker is
    asked; nothing is compiled or run. With several files, --json prints a list; one that is no module is reported, and the
    others are shown.
    """
    demangled = demangler(demangle or False)
    wanted = Wanted(exports, imports, undefined, defined_by)
    if wanted.any and with_links:
        raise click.UsageError("--links shows imports in its own way: without --exports and the like")
    failed = 0
    images, reports = [], []
    for file in files:
        try:
            image = image_of(file)
            described = describe(image.wasm, file)
        except DlError as error:
            if len(files) == 1:
                raise
            code = report(error)
            failed = failed or code
            continue
        images.append(image)
        reports.append(described)
    if wanted.any:
        found = [wanted.of(described, demangler(demangle)) for described in reports]
        shown_reports = [part for part in found if part is not None]
        if as_json:
            print(
                json.dumps(shown_reports if len(files) > 1 or defined_by is not None else found[0], indent=2)
            )
        else:
            print_symbols(output(), shown_reports, demangled)
        return failed or (NOT_FOUND if defined_by is not None and not shown_reports else 0)
    good = True
    if with_links:
        for image, described in zip(images, reports, strict=True):
            links = links_of(image, search_path(library_path, described["file"]), module_path)
            described["links"] = links_as_json(links)
            good = good and all(link.state in GOOD for link in links)
    if as_json:
        print(json.dumps(reports if len(files) > 1 else reports[0], indent=2))
        return failed or (0 if good else NOT_LINKED)
    for number, described in enumerate(reports):
        if number:
            output().print()
        if with_links:
            _print_links(output(), described["links"], demangled)
        else:
            _print(output(), described, demangled)
    return failed or (0 if good else NOT_LINKED)


def _print_links(console: Console, links: list[dict[str, Any]], demangled: Demangler) -> None:
    importers = dict.fromkeys(link["importer"] for link in links)
    for number, importer in enumerate(importers):
        if number:
            console.print()
        console.print(Text(shown(importer), style="bold"))
        own = [link for link in links if link["importer"] == importer]
        print_columns(
            console,
            [
                (
                    link["state"],
                    link["kind"],
                    f"{link['module']}.{demangled(link['name'])}",
                    link["meaning"],
                )
                for link in own
            ],
        )


def _print(console: Console, report: dict[str, Any], demangled: Demangler) -> None:
    console.print(Text(shown(report["file"]), style="bold"))
    print_columns(console, _summary(report))
    for title, rows in _lists(report, demangled):
        if rows:
            console.print()
            console.print(Text(f"{title} ({len(rows)})", style="bold"))
            print_columns(console, rows)


def _summary(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "kind", _KINDS[report["kind"]]
    yield "size", _bytes(report["size"])
    if report["module_name"] is not None:
        yield "own name", report["module_name"]
    if report["takes_libraries"] is not None:
        yield (
            "takes libraries",
            "yes" if report["takes_libraries"] else f"no: {report['takes_no_libraries_because']}",
        )
    if report["dylink"] is None:
        yield "dylink section", "none"
    else:
        place = report["dylink"]
        legacy = ", the form used before September 2021" if report["legacy"] else ""
        yield (
            "dylink section",
            f"{place['section']} at byte {place['offset']:#x}, {_bytes(place['size'])}{legacy}",
        )
        yield "memory", f"{_bytes(report['memory_size'])}, aligned to {_bytes(report['memory_alignment'])}"
        yield "table", f"{_elements(report['table_size'])}, aligned to {_elements(report['table_alignment'])}"
        yield "needed", ", ".join(report["needed"]) or "nothing"
        yield "run path", ":".join(report["runtime_path"]) or "none"
        if report["target_architecture"] is not None:
            yield "architecture", report["target_architecture"]
        for note in report["notes"]:
            yield "note", note
    yield "start function", "none" if report["start"] is None else f"function {report['start']}"
    yield "functions", f"{report['functions']}"
    yield "data segments", f"{report['data_segments']}"
    yield "features", ", ".join(report["features"]) or "none beyond WebAssembly 1.0"
    if report["target_features"]:
        yield "built for", " ".join(report["target_features"])
    yield "debugging information", _debugging(report["debug_information"])
    for field, made_by in report["producers"].items():
        yield field, ", ".join(f"{one['name']} {one['version']}".rstrip() for one in made_by)


def _debugging(about: dict[str, Any] | None) -> str:
    if about is None:
        return "none"
    parts = [f"{name} names {file}" for name, file in about["elsewhere"].items()]
    if about["sections"]:
        versions = " and ".join(map(str, about["line_versions"]))
        lines = f"lines of DWARF {versions}" if versions else "no lines"
        parts.insert(0, f"DWARF, {_bytes(about['size'])}, {lines}")
    return "; ".join(parts)


def _lists(report: dict[str, Any], demangled: Demangler) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    yield (
        "imports",
        [(e["kind"], f"{e['module']}.{demangled(e['name'])}", e["type"]) for e in report["imports"]],
    )
    yield (
        "exports",
        [(e["kind"], demangled(e["name"]), _with_initial_value(e)) for e in report["exports"]],
    )
    yield (
        "flags of imports",
        [
            (f"{e['module']}.{demangled(e['name'])}", " ".join(e["flags"]) or "none")
            for e in report["import_info"]
        ],
    )
    yield (
        "flags of exports",
        [(demangled(e["name"]), " ".join(e["flags"]) or "none") for e in report["export_info"]],
    )
    yield (
        "unknown dylink subsections",
        [
            (f"type {e['type']}", f"at byte {e['offset']:#x}", _bytes(e["size"]), e["data"][:64])
            for e in report["unknown_subsections"]
        ],
    )
    for title, key in (("memories", "memories"), ("tables", "tables")):
        yield title, [("imported" if e["imported"] else "defined", _sized(e)) for e in report[key]]
    yield (
        "element segments",
        [
            (
                e["mode"],
                _elements(e["functions"]),
                "" if e["offset"] is None else f"into table {e['table']} from {e['offset']} on",
            )
            for e in report["element_segments"]
        ],
    )
    yield (
        "sections",
        [
            (f"{e['offset']:#010x}", _bytes(e["size"]), f"custom {e['name']!r}" if e["custom"] else e["name"])
            for e in report["sections"]
        ],
    )


def _with_initial_value(export: dict[str, Any]) -> str:
    init = export.get("init")
    return export["type"] if init is None else f"{export['type']} = {init}"


def _sized(entry: dict[str, Any]) -> str:
    most = "no maximum" if entry["maximum"] is None else f"at most {entry['maximum']:,}"
    wide = ", 64-bit" if entry["is64"] else ""
    if "shared" in entry:
        return f"{entry['minimum']:,} pages of 64 KiB, {most}{', shared' if entry['shared'] else ''}{wide}"
    return f"{_elements(entry['minimum'])} of {entry['element']}, {most}{wide}"


def _bytes(number: int) -> str:
    return f"{number:,} byte{'' if number == 1 else 's'}"


def _elements(number: int) -> str:
    return f"{number:,} element{'' if number == 1 else 's'}"
