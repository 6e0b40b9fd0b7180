"""`dlrun map APP.WASM`: what lies where in linear memory and in the table."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dl.cli.arguments import module_argument
from dl.cli.endings import program_code
from dl.cli.modules import contents, parsed, search_path
from dl.cli.run import library_path_option
from dl.dlfcn import DlFlags
from dl.modules.kind import ModuleKind, kind_of
from dl.options import MemoryType
from dl.shipping.files import naming
from dl.wasm.types import MemoryType as WasmMemoryType

if TYPE_CHECKING:
    from dl.api.memory_map import MemoryMap
    from dl.linker import Linker


@click.command(
    "map",
    context_settings={"allow_interspersed_args": False},
    short_help="Show what lies where in linear memory and in the table.",
)
@library_path_option
@click.option(
    "-o",
    "--output",
    "target",
    metavar="FILE",
    help="Write a page to be looked at in a browser, instead of text; with --json, the JSON.",
)
@click.option(
    "--run", "running", is_flag=True, help="Run the program first, with the arguments after its name."
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print JSON; its keys are documented and stable. With --run and without -o, the program writes to standard error "
    "what it writes to standard output.",
)
@module_argument("program", "APP.WASM")
@click.argument("arguments", metavar="[ARGS]...", nargs=-1, type=click.UNPROCESSED)
def map(  # noqa: A001  the name of the command
    program: str,
    arguments: tuple[str, ...],
    library_path: tuple[list[Path], ...],
    target: str | None,
    running: bool,
    as_json: bool,
) -> int:
    """Show what lies where in linear memory and in the table: data, stacks, thread-local blocks, heap, functions, what is free.

    The program, or the library, is linked with all that it needs, and constructed. With --run it is run too, and what is shown
    is what there is at its end, also if it traps; the exit code is then the program's. A running program is looked at with
    dlrun --map FILE, and from Python with Linker.memory_map().
    """
    if arguments and not running and arguments[0].startswith("-"):
        raise click.NoSuchOption(arguments[0])
    if arguments and not running:
        raise click.UsageError("arguments are for a program that is run: give --run")
    code = 0
    aside = running and as_json and target is None
    with _linked(program, arguments, search_path(library_path, program), aside=aside) as linker:
        try:
            if running:
                code = program_code(linker.main_group.run())
        finally:
            _show(linker.memory_map(), target, as_json=as_json)
    return code


def _show(found: MemoryMap, target: str | None, *, as_json: bool) -> None:
    if as_json:
        report = {
            "program": found.program,
            "memory": [asdict(region) for region in found.memory],
            "table": [asdict(region) for region in found.table],
        }
        text = json.dumps(report, indent=2)
    else:
        text = str(found) if target is None else found.to_html()
    if target is None:
        print(text)
        return
    with naming(target):
        Path(target).write_text(f"{text}\n" if as_json else text, encoding="utf-8")


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


@contextmanager
def _linked(
    file: str, arguments: tuple[str, ...], library_path: list[Path], *, aside: bool
) -> Iterator[Linker]:
    """Link a program, or a library into an empty one; `aside` for standard output to standard error."""
    from dl.linker import Linker  # noqa: PLC0415  the help needs nothing of the linker

    data = contents(file)
    source = file if data is None else data
    image = parsed(source, file)
    if kind_of(image.wasm) is not ModuleKind.SIDE:
        output = partial(_write_all, 2) if aside else None
        with Linker(
            source, name=file, library_path=library_path, args=(file, *arguments), stdout=output
        ) as linker:
            yield linker
        return
    shared = any(isinstance(e.type, WasmMemoryType) and e.type.limits.shared for e in image.wasm.imports)
    name = Path(file).resolve() if data is None else Path(file).name
    held = {} if data is None else {Path(file).name: data}
    memory = MemoryType(shared=shared)
    with Linker(None, library_path=library_path, libraries=held, memory=memory) as linker:
        linker.main_group.dlopen(name, DlFlags.LAZY)
        yield linker
