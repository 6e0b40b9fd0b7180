"""`dlrun bundle APP.WASM`: a program and all that it needs, in a folder or an archive that runs elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
from rich.text import Text

from dl.cli.arguments import module_argument
from dl.cli.console import output, shown
from dl.cli.links import links_of
from dl.cli.modules import image_of, search_path
from dl.cli.named import modules_by_name
from dl.cli.params import engine_option, preopen
from dl.cli.run import library_path_option, module_path_option
from dl.engine.compiled_form import write_form
from dl.engine.private_directory import NotPrivateError, PrivateDirectory
from dl.errors import BundleError, LinkerUsageError
from dl.link.ahead import compile_ahead, compile_ordinary
from dl.link.rehearse import Link
from dl.modules.image import ModuleImage, image_from_file
from dl.modules.locate import Locator
from dl.shipping.bundle import (
    described,
    finish_archive,
    finish_folder,
    folder_aside,
    write_data,
    write_pieces,
)
from dl.shipping.collect import Piece, collect, edges, name_pieces
from dl.shipping.files import naming
from dl.shipping.names import MANIFEST, fault_of_name
from dl.shipping.patch import open_imports


@click.command(short_help="Put a program and all that it needs into a folder or archive.")
@library_path_option
@module_path_option
@click.option(
    "--library",
    "opened",
    multiple=True,
    metavar="LIBRARY",
    help="A library that the program opens while it runs, by name or path; with what it needs. May be repeated.",
)
@click.option(
    "--exclude",
    "outside",
    multiple=True,
    metavar="PATTERN",
    help="Leave out needed libraries whose name fits; they are looked for where the bundle runs. May be repeated.",
)
@click.option(
    "--data",
    type=preopen,
    multiple=True,
    metavar="[GUEST::]HOST",
    help="Take a copy of a directory, which the program sees under this name, as with --dir. May be repeated.",
)
@click.option(
    "--compile", "compiled", is_flag=True, help="Take compiled code for this machine and engine, too."
)
@click.option(
    "--interrupts/--no-interrupts",
    default=None,
    help="For --compile, as for running: code that can be interrupted is other code. Default: what the program needs.",
)
@engine_option
@click.option(
    "-o",
    "--output",
    "out",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="An archive if its name ends with .zip, else a folder. Default: the program's name with .zip, here.",
)
@click.option("--force", is_flag=True, help="Replace the bundle that is there.")
@click.option("--list", "only_list", is_flag=True, help="Print what would be in it, and write nothing.")
@module_argument("program", "APP.WASM", bundles=False)
def bundle(
    program: str,
    library_path: tuple[list[Path], ...],
    module_path: tuple[list[Path], ...],
    opened: tuple[str, ...],
    outside: tuple[str, ...],
    data: tuple[tuple[str, str], ...],
    compiled: bool,
    interrupts: bool | None,
    engine: str | None,
    out: Path | None,
    force: bool,
    only_list: bool,
) -> int:
    """Put a program and all that it needs into a folder or an archive, which runs elsewhere: dlrun OUT.

    Libraries are found as for a run. They lie beside the program, with run paths and needed names that lead nowhere else. The
    result is linked before it gets its name: what had a definition must have it still. The same files give the same archive.
    """
    main = image_of(program)
    path = search_path(library_path, program)
    named = modules_by_name(main, module_path)
    if named is None:
        pieces = collect(main, opened, Locator(path), outside)
    elif opened or outside:
        raise click.UsageError("--library and --exclude are for programs that are not linked by name")
    else:
        pieces = _by_name(named)
    by_name = named is not None
    if only_list:
        for piece in pieces:
            _print(piece.name, piece.origin)
        return 0
    place = out or Path(Path(pieces[0].name).stem + ".zip")
    with naming(place), folder_aside(place, force=force) as folder:
        write_pieces(folder, pieces)
        if by_name:
            modules_by_name(image_from_file(folder / pieces[0].name, pieces[0].name), [[folder]])
        else:
            _check(None if outside else links_of(main, path), pieces, folder, outside)
        directories = write_data(folder, data)
        if compiled:
            _compile(folder, pieces, by_name=by_name, engine=engine, interrupts=interrupts)
        manifest = described(
            folder, pieces[0].name, by_name=by_name, directories=directories, outside=outside
        )
        if place.suffix == ".zip":
            finish_archive(folder, place, [MANIFEST, *sorted(manifest.files)])
        else:
            finish_folder(folder, place)
    origins = {piece.name: piece.origin for piece in pieces}
    for name, record in sorted(manifest.files.items()):
        _print(
            f"{place}: {name}",
            f"{record.size:,} bytes" + (f" from {origins[name]}" if name in origins else ""),
        )
    return 0


def _by_name(images: Sequence[ModuleImage]) -> list[Piece]:
    """Return a program and the modules that it imports from by name, under these names.

    Raises:
        BundleError: a name cannot be that of a file in a bundle, or two modules have one name.
    """
    main, *others = images
    pieces = [Piece(main)]
    name_pieces(pieces)
    for image in others:
        name = f"{image.name.removesuffix('.wasm')}.wasm"
        fault = fault_of_name(name)
        if not fault and name == pieces[0].name:
            fault = "is the program's, too"
        if fault:
            raise BundleError(image.name, f"the name by which it is imported {fault}")
        pieces.append(Piece(image, name))
    return pieces


def _print(name: str, about: str) -> None:
    line = Text(shown(name))
    line.append(f"  {shown(about)}", style="dim")
    output().print(line)


def _check(
    before: Sequence[Link] | None, pieces: Sequence[Piece], folder: Path, outside: Sequence[str]
) -> None:
    """Find and link what is in a folder, and compare it with how it was where it came from.

    Args:
        before: what the program's imports, and those of its libraries, were linked to; None if something stays outside.
        pieces: the modules.
        folder: where they are now.
        outside: patterns of what is not there.

    Raises:
        DlError: something that is needed is not there.
        BundleError: a name leads to another file than before, or something does not fit any longer.
    """
    main, *others = (str(folder / piece.name) for piece in pieces)
    image = image_from_file(Path(main), pieces[0].name)
    found = collect(image, others, Locator([folder]), outside)
    if edges(found) != edges(pieces):
        raise BundleError(pieces[0].name, "names would lead to other libraries in it than they do now")
    if before is not None:
        names = {piece.image.name: piece.name for piece in pieces}
        now = {piece.image.name: piece.name for piece in found}
        known = {(names.get(importer), name, state) for importer, name, state in open_imports(before)}
        for importer, name, state in open_imports(links_of(image, [folder])):
            if (now.get(importer), name, state) not in known:
                raise BundleError(
                    pieces[0].name, f"nothing in it fits {importer}: {name}, which is linked now"
                )


def _compile(
    folder: Path,
    pieces: Sequence[Piece],
    *,
    by_name: bool,
    engine: str | None,
    interrupts: bool | None,
) -> None:
    """Put the compiled form of each module beside it.

    Raises:
        LinkerUsageError: somebody else can write to the folder.
        DlError: a module cannot be compiled.
    """
    images = [image_from_file(folder / piece.name, piece.name) for piece in pieces]
    made = (
        compile_ordinary(images, engine=engine, interrupts=interrupts)
        if by_name
        else compile_ahead(images[0], images[1:], Locator([folder]), engine=engine, interrupts=interrupts)
    )
    try:
        private = PrivateDirectory(folder)
        try:
            for one in made:
                assert one.image.path is not None
                write_form(private, one.image.path.name, one.image.source, one.engine, one.codes)
        finally:
            private.close()
    except NotPrivateError as error:
        raise LinkerUsageError(
            f"compiled code is only used where the user alone can write: {error}"
        ) from error
