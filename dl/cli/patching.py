"""`dlrun patch FILE...`: needed libraries, run paths, names of symbols and custom sections, changed in place."""

from __future__ import annotations

import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click
from rich.text import Text

from dl.cli.arguments import module_argument
from dl.cli.console import messages, output, print_note, shown
from dl.cli.links import links_of
from dl.cli.modules import contents, parsed, search_path
from dl.cli.params import F
from dl.cli.run import library_path_option
from dl.engine.compiled_form import form_of
from dl.link.rehearse import Link
from dl.modules.image import ModuleImage
from dl.shipping.files import is_special, replacing
from dl.shipping.patch import Patched
from dl.shipping.patch import patch as patched
from dl.wasm.edit import Changes

_STDOUT = "-"


def _pair(text: str) -> tuple[str, str]:
    """Return old and new name of `OLD=NEW`.

    Raises:
        click.BadParameter: one of them is empty.
    """
    old, separator, new = text.partition("=")
    if not (old and separator and new):
        raise click.BadParameter(f"{text!r} is not OLD=NEW")
    return old, new


def _entries(text: str) -> list[str]:
    return [entry for entry in text.split(":") if entry]


def _names(option: str, about: str) -> Callable[[F], F]:
    return click.option(option, multiple=True, metavar="NAME", help=f"{about}; may be repeated.")


def _renames(option: str, about: str) -> Callable[[F], F]:
    return click.option(
        option, type=_pair, multiple=True, metavar="OLD=NEW", help=f"{about}; may be repeated."
    )


@click.command(short_help="Change needed libraries, run path, symbol names and sections of modules.")
@_names("--add-needed", "Need one library more, the last of all")
@_names("--remove-needed", "Need a library no longer")
@_renames("--replace-needed", "Need one library in place of another")
@click.option(
    "--set-rpath",
    type=_entries,
    metavar="DIRS",
    help="Look for needed libraries in these directories, separated by colons, and no others; $ORIGIN is the module's own.",
)
@click.option(
    "--add-rpath",
    type=_entries,
    multiple=True,
    metavar="DIRS",
    help="Look in these as well, the last of all.",
)
@click.option("--remove-rpath", is_flag=True, help="Remove the run path.")
@_renames("--rename", "Rename a symbol, where it is exported and where it is imported")
@_renames("--rename-export", "Rename a symbol that the module exports")
@_renames("--rename-import", "Rename a symbol that the module imports")
@click.option(
    "--strip", is_flag=True, help="Remove names, debug information, and the names of the tools that made it."
)
@click.option("--strip-debug", is_flag=True, help="Remove debug information.")
@_names("--remove-section", "Remove a custom section")
@click.option(
    "-o",
    "--output",
    "out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the result to this file, or - for standard output, and leave the module as it is.",
)
@click.option("--no-check", is_flag=True, help="Do not try whether the result can still be linked.")
@library_path_option
@module_argument("files", "FILE...", bundles=False, several=True)
def patch(
    files: tuple[str, ...],
    add_needed: tuple[str, ...],
    remove_needed: tuple[str, ...],
    replace_needed: tuple[tuple[str, str], ...],
    set_rpath: list[str] | None,
    add_rpath: tuple[list[str], ...],
    remove_rpath: bool,
    rename: tuple[tuple[str, str], ...],
    rename_export: tuple[tuple[str, str], ...],
    rename_import: tuple[tuple[str, str], ...],
    strip: bool,
    strip_debug: bool,
    remove_section: tuple[str, ...],
    out: Path | None,
    no_check: bool,
    library_path: tuple[list[Path], ...],
) -> int:
    """Change what modules say about themselves; every other byte stays as it is.

    The result is linked, with all that it needs, as a load would do it: what could be linked before and could not any longer is
    refused, and no file is changed. A file is written aside and renamed, so that it is the old one or the new one.
    """
    if remove_rpath and set_rpath is not None:
        raise click.UsageError("--remove-rpath and --set-rpath exclude each other")
    if out is not None and len(files) > 1:
        raise click.UsageError("--output is for one file")
    changes = Changes(
        remove_needed=remove_needed,
        replace_needed=dict(replace_needed),
        add_needed=add_needed,
        run_path=() if remove_rpath else None if set_rpath is None else tuple(set_rpath),
        add_run_path=tuple(entry for entries in add_rpath for entry in entries),
        rename=dict(rename),
        rename_exports=dict(rename_export),
        rename_imports=dict(rename_import),
        strip=strip,
        strip_debug=strip_debug,
        remove_sections=remove_section,
    )
    if changes == Changes():
        raise click.UsageError("nothing to change: give at least one of the options")
    images = [_image(name, anywhere=out is not None) for name in files]

    def linked(image: ModuleImage, become: Mapping[str, ModuleImage]) -> Sequence[Link]:
        return links_of(image, search_path(library_path, image.name), instead=become)

    for before, result in zip(images, patched(images, changes, None if no_check else linked), strict=True):
        _write(before, result, out)
    return 0


def _image(name: str, *, anywhere: bool) -> ModuleImage:
    """Return the module that a word names.

    Args:
        name: the word.
        anywhere: whether it may be what cannot be replaced: a pipe or text.

    Raises:
        click.UsageError: it is such a thing, and may not be.
        DlError: it cannot be read.
    """
    data = contents(name)
    if data is not None and not anywhere:
        raise click.UsageError(f"{name} is no binary file; --output says where the result goes")
    return parsed(name if data is None else data, name)


def _write(before: ModuleImage, result: Patched, out: Path | None) -> None:
    """Write a result, unless it is what is there, and say so.

    Raises:
        OSError: it cannot be written.
    """
    place = out or Path(before.name)
    unchanged = result.wasm == before.wasm.data
    written_through = out is not None and (str(out) == _STDOUT or is_special(out))
    if str(out) == _STDOUT:
        sys.stdout.flush()
        sys.stdout.buffer.write(result.wasm)
        sys.stdout.buffer.flush()
    elif out is not None or not unchanged:
        mode = stat.S_IMODE(before.path.stat().st_mode) if before.path else None
        with replacing(place, mode) as file:
            file.write(result.wasm)
    size = f"{len(before.wasm.data):,} => {len(result.wasm):,} bytes"
    line = Text(shown(str(place)))
    line.append(f"  {'unchanged' if unchanged else size}", style="dim")
    # What reads a pipe gets the module and nothing else.
    (messages() if written_through else output()).print(line)
    for note in result.notes:
        print_note(note)
    if not (unchanged or written_through) and form_of(place).exists():
        print_note(
            f"{form_of(place)} is of the old bytes, and not used any longer; dlrun compile makes it anew"
        )
