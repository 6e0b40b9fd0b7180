"""What a program needs, found as a load finds it, and what each module of it is called where they lie side by side."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from dl.errors import BundleError
from dl.modules.image import ModuleImage
from dl.modules.kind import ModuleKind, check_side_module, kind_of
from dl.modules.locate import Locator, Requester, requester_of
from dl.records import dataclass, field
from dl.shipping.names import fault_of_name
from dl.wasm.edit import Changes, edited


@dataclass(eq=False)
class Piece:
    """A module of a bundle.

    Attributes:
        image: it, as it was found.
        name: its file's name in the bundle.
        needed: what each name of its needed list means; without those that stay outside.
        origin: where it was found, for messages.
    """

    image: ModuleImage
    name: str = ""
    needed: dict[str, Piece] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        """Where it was found."""
        return str(self.image.path or self.image.name)

    def contents(self) -> bytes:
        """Return its bytes in the bundle: its libraries are named as they are there, and looked for beside it alone."""
        info = self.image.wasm.dylink
        if info is None:
            return self.image.wasm.data
        renamed = {name: piece.name for name, piece in self.needed.items() if not _leads_to(name, piece.name)}
        run_path = ("$ORIGIN",) if info.needed and not info.legacy else ()
        return edited(self.image.wasm, Changes(replace_needed=renamed, run_path=run_path))


def _leads_to(name: str, file: str) -> bool:
    """Whether a search for a name in the bundle finds a file."""
    return name == file or (name.endswith(".so") and file == f"{name.removesuffix('.so')}.wasm")


def collect(
    main: ModuleImage, opened: Iterable[str], locator: Locator, outside: Sequence[str] = ()
) -> list[Piece]:
    """Return a program and all that it needs, in the order in which a load finds them, the program first.

    Args:
        main: the program, or a library.
        opened: further libraries, by name or path, that it opens while it runs.
        locator: finds them.
        outside: patterns, as in a shell, of needed names that are not followed.

    Raises:
        LibraryNotFoundError: a library is missing; lists every path tried.
        NotDynamicError: one is no library.
        BundleError: a name cannot be one of a bundle.
    """
    known: dict[str, Piece] = {}
    by_base_name: dict[str, ModuleImage] = {}

    def piece_of(image: ModuleImage) -> Piece:
        piece = known.get(image.identity)
        if piece is None:
            if image is not main or kind_of(image.wasm) is ModuleKind.SIDE:
                check_side_module(image.wasm)
                by_base_name.setdefault(image.base_name, image)
            piece = known[image.identity] = Piece(image)
            found.append(piece)
        return piece

    found: list[Piece] = []
    followed = 0
    for opens in (None, *opened):
        piece_of(main if opens is None else locator.find(opens, Requester(), known=by_base_name.get))
        while followed < len(found):
            piece = found[followed]
            followed += 1
            needed = piece.image.wasm.dylink.needed if piece.image.wasm.dylink else ()
            for name in needed:
                if not any(fnmatchcase(name, pattern) for pattern in outside):
                    image = locator.find(name, requester_of(piece.image), known=by_base_name.get)
                    piece.needed[name] = piece_of(image)
    name_pieces(found)
    return found


def edges(pieces: Iterable[Piece]) -> dict[str, list[str]]:
    """Return for each file of a bundle the files that it needs, in order."""
    return {piece.name: [needed.name for needed in piece.needed.values()] for piece in pieces}


def name_pieces(pieces: Iterable[Piece], taken: Collection[str] = ()) -> None:
    """Give each piece the base name of its file; of several with one name, all but the first get a part of their digest too.

    Raises:
        BundleError: a name cannot be one of a bundle.
    """
    used = set(taken)
    for piece in pieces:
        base = os.path.basename(piece.image.name) if piece.image.path else _name_of_text(piece.image.name)
        fault = fault_of_name(base)
        if fault:
            raise BundleError(piece.image.name, f"its name {fault}")
        stem, suffix = os.path.splitext(base)
        name, number = base, 0
        while name in used:
            extra = piece.image.source.hex()[:8] + (f"-{number}" if number else "")
            name, number = f"{stem}-{extra}{suffix}", number + 1
        used |= {name, f"{name}.compiled"}
        piece.name = name


def _name_of_text(word: str) -> str:
    """Return the file name of a program that was read from a pipe or made from text."""
    stem = Path(word).stem if word != "-" else ""
    return f"{stem or 'main'}.wasm"
