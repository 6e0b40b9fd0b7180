"""The pages of the documentation, and the blocks of code in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from tests.support.paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("[a-z]*/README.md"))]
PAGES = list(dict.fromkeys(PAGES))


class Block(NamedTuple):
    """A block of code in a page.

    Attributes:
        page: the page.
        where: page and line.
        language: the first word behind the fence.
        file: the name that follows it: the block is a file of this name, in the folder in which the page's commands run.
        code: its lines.
    """

    page: Path
    where: str
    language: str
    file: str
    code: str

    @property
    def is_sketch(self) -> bool:
        """Whether its first line is a comment that says, visible to readers, that it is not run, and why."""
        return re.match(r"(#|//) sketch: \S", self.code) is not None


def blocks(pages: list[Path] = PAGES) -> list[Block]:
    """Return the blocks of pages."""
    found = []
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            words = str(match[1]).split()
            language, file, *_ = [*words, "", ""]
            where = f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}"
            found.append(Block(page, where, language, file, match[2]))
    return found
