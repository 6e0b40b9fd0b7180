"""Modules as the command line names them: files, pipes and `-`, and text."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import click
    from click.shell_completion import CompletionItem

    from dl.modules.image import ModuleImage

STDIN = "-"
_BINARY_BEGINS = b"\0asm"
_TEXT_BEGINS = rb"\s*(\((module|;|@|func|import|export|memory|table|global|data|type|rec)\b|\(;|;;)"
_MOST_BYTES = 1 << 30
_reported: set[str] = set()
"""Directories that were reported as missing; what patches several files asks for each."""


def contents(name: str) -> bytes | None:
    """Return the bytes of a module that is no plain binary file: standard input, a pipe, or text. None for a plain file.

    Raises:
        LinkError: it cannot be read, or is text that stands for no module.
    """
    from dl.engine.text import binary_of  # noqa: PLC0415  only where there is text
    from dl.errors import LinkError  # noqa: PLC0415

    try:
        if name == STDIN:
            data = sys.stdin.buffer.read(_MOST_BYTES)
        elif not stat.S_ISREG(os.stat(name).st_mode):
            if os.path.isdir(name):
                return None
            with open(name, "rb") as pipe:
                data = pipe.read(_MOST_BYTES)
        else:
            with open(name, "rb") as file:
                if not _is_text(name, file.read(64)):
                    return None
                file.seek(0)
                data = file.read(_MOST_BYTES)
    except (FileNotFoundError, ValueError):
        return None  # whoever opens it says that it is not there, or no path
    except OSError as error:
        raise LinkError(name, (error.strerror or str(error)).lower()) from error
    return binary_of(data, name) if _is_text(name, data[:64]) else data


def _is_text(name: str, begin: bytes) -> bool:
    """Whether a module is text, by its name or by how it begins."""
    return name.endswith(".wat") or (
        not begin.startswith(_BINARY_BEGINS) and re.match(_TEXT_BEGINS, begin) is not None
    )


def image_of(name: str) -> ModuleImage:
    """Read and parse the module that a word of the command line names.

    Raises:
        LinkError: it cannot be opened or read.
        DlError: it is no module.
    """
    data = contents(name)
    return parsed(name if data is None else data, name)


def parsed(source: str | bytes, name: str) -> ModuleImage:
    """Parse a module: the file of a path, or what `contents` has read, since a pipe can be read only once.

    Raises:
        LinkError: it cannot be opened or read.
        DlError: it is no module.
    """
    from dl.modules.image import image_from_bytes, image_from_file  # noqa: PLC0415  the help needs nothing of the linker

    if isinstance(source, bytes):
        return image_from_bytes(source, name, f"<{name}>")
    return image_from_file(Path(source), name)


def meant_command(word: str, commands: Sequence[str]) -> str | None:
    """Return the command that a word that is neither command nor file may have meant; None if there is nothing like it."""
    if os.sep in word or "." in word or word.startswith("-") or os.path.exists(word):
        return None
    import difflib  # noqa: PLC0415  only for messages

    close = difflib.get_close_matches(word, commands, 1, 0.7)
    return close[0] if close else None


def complete_file(_context: click.Context, _parameter: Any, incomplete: str) -> list[CompletionItem]:
    """Tell a shell to complete names of files."""
    from click.shell_completion import CompletionItem  # noqa: PLC0415  running a program needs no click

    return [CompletionItem(incomplete, type="file")]


def search_path(given: tuple[list[Path], ...], program: str) -> list[Path]:
    """Return where bare library names are looked for: what the user gave, then the program's own directory.

    A directory of the user's that is not there is reported, once: nothing else says so where the libraries are elsewhere.
    """
    from dl.modules.locate import split_path  # noqa: PLC0415  the help needs nothing of the linker

    from_user = [directory for group in given for directory in group]
    for directory in from_user:
        if str(directory) not in _reported and not directory.is_dir():
            from dl.cli.console import print_warning  # noqa: PLC0415  only where something is wrong

            _reported.add(str(directory))
            print_warning(f"{directory}, where libraries are looked for, is not a directory")
    from_environment = split_path(os.environ.get("DLRUN_LIBRARY_PATH", ""))
    return [*from_user, *from_environment, Path(program).parent]


def module_directories(given: Sequence[Sequence[Path]], program: str) -> list[Path]:
    """Return where modules are looked for by name: what the user gave, then the program's own directory."""
    return [*(directory for group in given for directory in group), Path(program).parent]
