"""`dlrun compile APP.WASM [LIBRARIES]...`: code is compiled before the program runs, and kept beside its modules."""

from __future__ import annotations

import os
from pathlib import Path

import click
from rich.text import Text

from dl.cli.arguments import module_argument
from dl.cli.console import output, shown
from dl.cli.modules import complete_file, search_path
from dl.cli.named import modules_by_name
from dl.cli.params import engine_option
from dl.cli.run import library_path_option, module_path_option
from dl.engine.compiled_form import form_of, write_form
from dl.engine.private_directory import NotPrivateError, PrivateDirectory
from dl.errors import LinkerUsageError
from dl.link.ahead import Compiled, compile_ahead, compile_ordinary
from dl.modules.image import image_from_file
from dl.modules.locate import Locator
from dl.shipping.files import naming


@click.command("compile", short_help="Compile a program and its libraries before they run.")
@library_path_option
@module_path_option
@click.option(
    "-o",
    "--output",
    "directory",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write a copy of every module to this directory, with its compiled form beside it. Default: beside the modules.",
)
@click.option(
    "--interrupts/--no-interrupts",
    default=None,
    help="As for running: code that can be interrupted is other code. Default: what the program needs.",
)
@engine_option
@module_argument("program", "APP.WASM", bundles=False)
@click.argument("libraries", metavar="[LIBRARIES]...", nargs=-1, shell_complete=complete_file)
def compile(  # noqa: A001  the name of the command
    program: str,
    libraries: tuple[str, ...],
    library_path: tuple[list[Path], ...],
    module_path: tuple[list[Path], ...],
    directory: Path | None,
    interrupts: bool | None,
    engine: str | None,
) -> int:
    """Compile a program, what it needs, and libraries that it will open; keep the code beside the modules.

    Of a program that is linked by import names: the modules that it imports from.

    The form of libfoo.so is libfoo.so.compiled. It is used as long as the module has the same bytes, on the same engine,
    version and machine, if the file and its directory belong to the user and nobody else can write to them.
    """
    locator = Locator(search_path(library_path, program))
    main = image_from_file(Path(program), program)
    others = [image_from_file(Path(name), name) for name in libraries]
    assert main.path is not None
    beneath = main.path.parent
    named = modules_by_name(main, module_path)
    if named is None:
        made = compile_ahead(main, others, locator, engine=engine, interrupts=interrupts)
    else:
        made = compile_ordinary([*named, *others], engine=engine, interrupts=interrupts)
    for compiled in made:
        place, size = _write(compiled, directory, beneath)
        line = Text(shown(str(form_of(place))))
        line.append(f"  {size:,} bytes", style="dim")
        output().print(line)
    return 0


def _write(compiled: Compiled, directory: Path | None, beneath: Path) -> tuple[Path, int]:
    """Write a module's compiled form, and the module if it goes elsewhere; return where the module is, and the form's size.

    Raises:
        LinkerUsageError: somebody else can write to the directory, so that no form in it would be used.
    """
    image = compiled.image
    assert image.path is not None
    place = image.path
    if directory is not None:
        inside = image.path.is_relative_to(beneath)
        place = directory / (image.path.relative_to(beneath) if inside else image.path.name)
    try:
        private = PrivateDirectory(place.parent)
        try:
            with naming(place):
                if place.resolve() != image.path:
                    private.write(place.name, (image.path.read_bytes(),))
                size = write_form(private, place.name, image.source, compiled.engine, compiled.codes)
        finally:
            private.close()
    except NotPrivateError as error:
        raise LinkerUsageError(
            f"compiled code is only used where the user alone can write: {error}"
        ) from error
    return Path(os.path.normpath(place)), size
