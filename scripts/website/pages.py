"""How the pages of the repository become those of the site: `scripts/site` calls it, and MkDocs makes HTML of what it writes.

Pages are written to be read in the repository, and their links lead to files of it. Here `README.md` becomes the home
page, what is linked and lies outside `docs/` gets a page of its own, the order of the pages is that of
`docs/README.md`, and the reference of the API and that of the command line are made from the code, so that they cannot
say anything else than it does.

It is a step of its own, and not a plug-in of MkDocs, so that another generator can take over what it writes.
"""

from __future__ import annotations

import json
import posixpath
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from scripts.website import reference  # noqa: E402  it imports what lies in this tree

INDEX = ROOT / "docs/README.md"

PLACES = {"README.md": "index.md", "docs/README.md": "pages.md", "CHANGELOG.md": "changelog.md"}
"""Where files are in the site whose place does not follow from their path."""

LANGUAGES = {".py": "python", ".c": "c", ".h": "c", ".js": "js", ".toml": "toml"}

FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def place(path: str) -> str:
    """Return where a file of the repository is in the site."""
    if path in PLACES:
        return PLACES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.endswith("/README.md"):
        return f"{posixpath.dirname(path)}.md"
    return f"source/{path}.md"


def navigation() -> list[dict[str, Any]]:
    """Return the order of the pages: sections and rows of `docs/README.md`, and what is made from the code."""
    sections: dict[str, list[Any]] = {}
    for title, rows in re.findall(
        r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", INDEX.read_text("utf-8"), re.MULTILINE | re.DOTALL
    ):
        sections[title] = re.findall(r"^\| \[[^]]+\]\(([^)]+)\) \|", rows, re.MULTILINE)
    for needed in ("Start", "Reference", "Internals"):
        if not sections.get(needed):
            raise SystemExit(f"docs/README.md has no section {needed!r} with a table of pages")
    pages: dict[str, list[Any]] = {
        title: [place(posixpath.normpath(f"docs/{path}")) for path in paths]
        for title, paths in sections.items()
    }
    pages["Start"] = ["index.md", *pages["Start"]]
    pages["Reference"] += [{"API": [reference.OVERVIEW, *reference.api_pages()]}, reference.COMMANDS]
    pages["Internals"] += ["pages.md", "changelog.md"]
    return [{title: paths} for title, paths in pages.items()]


def written_pages() -> dict[str, str]:
    """Return the pages of the site: place and text."""
    made = {
        **reference.api_pages(),
        reference.OVERVIEW: reference.overview(),
        reference.COMMANDS: reference.commands(),
    }
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
    for page in (file.relative_to(ROOT).as_posix() for file in pages):
        text = (ROOT / page).read_text("utf-8")
        made[place(page)] = for_the_site(page, text)
        for target in linked(page, text):
            uri = place(target)
            if target.startswith("docs") or uri in made or not (ROOT / target).exists():
                continue
            if target.endswith(".md"):
                made[uri] = for_the_site(target, (ROOT / target).read_text("utf-8"))
            else:
                made[uri] = source_page(target)
    return made


def linked(page: str, text: str) -> list[str]:
    """Return the files of the repository that a page links to."""
    targets = re.findall(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)", text)
    return [
        posixpath.normpath(posixpath.join(posixpath.dirname(page), target)).rstrip("/")
        for target in targets
        if not re.match(r"[a-z]+:", target)
    ]


def source_page(path: str) -> str:
    """Return a file or folder of the repository as a page."""
    file = ROOT / path
    if file.is_dir():
        entries = sorted(entry for entry in file.iterdir() if entry.suffix in LANGUAGES)
        parts = [f"## {entry.name}\n\n{fenced(entry)}" for entry in entries]
        return f"# {path}\n\n" + "\n".join(parts)
    return f"# {path}\n\n{fenced(file)}"


def title(file: Path) -> str:
    """Return the first heading of a page."""
    found = re.search(r"^# (.+)$", file.read_text("utf-8"), re.MULTILINE)
    return found[1] if found else file.name


def fenced(file: Path) -> str:
    """Return a file as a block of code."""
    return f"````{LANGUAGES.get(file.suffix, 'text')}\n{file.read_text('utf-8')}````\n"


def for_the_site(path: str, text: str) -> str:
    """Return a page with links that hold in the site, and with links from names of the API to their reference."""
    uri = place(path)

    def link(match: re.Match[str]) -> str:
        text, target, fragment = match[1], match[2], match[3] or ""
        if re.match(r"[a-z]+:", target):
            return match[0]
        resolved = posixpath.normpath(posixpath.join(posixpath.dirname(path), target)).rstrip("/")
        if resolved.startswith("docs/") and not resolved.endswith(".md"):
            where = resolved.removeprefix("docs/")  # a picture
        else:
            where = place("docs/README.md" if resolved == "docs" else resolved)
        if re.fullmatch(r"[\w./-]+\.md", text):
            text = title(ROOT / resolved)  # whoever reads the site does not see files
        return f"[{text}]({posixpath.relpath(where, posixpath.dirname(uri) or '.')}{fragment})"

    def prose(text: str) -> str:
        text = re.sub(r"\[([^][]*)\]\(([^)\s#]+)(#[^)\s]*)?\)", link, text)
        text = re.sub(
            r"(?<![\w/])([\w.-]+/[\w.-]+)#(\d+)\b", r"[\1#\2](https://github.com/\1/issues/\2)", text
        )
        if uri == "changelog.md":  # names what there was, too
            return text
        return re.sub(r"(?<!\[)`([\w.]+)(?:\(\.*\))?`(?!\])", reference.linked_name, text)

    if uri == "cli.md":
        all_options = f"All options, as `--help` has them, are in the [reference]({reference.COMMANDS})."
        text = text.replace("\n\n", f"\n\n{all_options}\n\n", 1)
    return outside_fences(text, prose, titled)


def titled(match: re.Match[str]) -> str:
    """Return a block of code with the name of its file, if it has one, above it."""
    language, *words = match[1].split()
    title = f' title="{words[-1]}"' if words else ""
    return f"```{language}{title}\n{match[2]}```"


def outside_fences(markdown: str, prose: Callable[[str], str], block: Callable[[re.Match[str]], str]) -> str:
    """Return a page with its prose and its blocks of code changed by two functions."""
    parts, end = [], 0
    for match in FENCE.finditer(markdown):
        parts += [prose(markdown[end : match.start()]), block(match)]
        end = match.end()
    return "".join([*parts, prose(markdown[end:])])


def link_docstrings(html: str) -> str:
    """Return a page of the API's reference in which pages that docstrings name, as files of the repository, are links."""

    def link(match: re.Match[str]) -> str:
        page = ROOT / match[0]
        if not page.exists():
            raise SystemExit(f"a docstring names {match[0]}, which does not exist")
        return f'<a href="../{match[1]}.html">{title(page)}</a>'

    return re.sub(r"\bdocs/([\w-]+)\.md\b", link, html)


def finish(site: Path) -> None:
    """Do what is left to do when MkDocs has made its pages."""
    for page in sorted((site / "api").glob("*.html")):
        page.write_text(link_docstrings(page.read_text("utf-8")), "utf-8")


def main(folder: Path) -> None:
    """Write the pages, the pictures, and a configuration that has the order of the pages, into a folder."""
    pages = folder / "pages"
    shutil.rmtree(pages, ignore_errors=True)
    for uri, text in written_pages().items():
        file = pages / uri
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    for file in (ROOT / "docs").rglob("*"):
        if file.is_file() and file.suffix != ".md":
            copy = pages / file.relative_to(ROOT / "docs")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    shutil.copyfile(ROOT / "scripts/website/site.css", pages / "site.css")
    configuration = {
        "INHERIT": str(ROOT / "scripts/website/mkdocs.yml"),
        "docs_dir": str(pages),
        "nav": navigation(),
    }
    (folder / "mkdocs.yml").write_text(json.dumps(configuration, indent=1), "utf-8")  # JSON is YAML


if __name__ == "__main__":
    {"write": main, "finish": finish}[sys.argv[1]](Path(sys.argv[2]).resolve())
