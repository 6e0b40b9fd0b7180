"""What `scripts/website/` makes of pages and code; `scripts/site`, which `scripts/lint` calls, checks links and anchors."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

import dl
from dl.cli.commands import dlrun
from scripts.website import pages, reference


def flat(entries: list[object]) -> list[str]:
    """Return the pages of a navigation, in order."""
    found: list[str] = []
    for entry in entries:
        if isinstance(entry, str):
            found.append(entry)
        else:
            assert isinstance(entry, dict)
            for below in entry.values():
                found += flat(below)
    return found


def test_each_page_is_in_the_navigation_once() -> None:
    """Whoever adds a page sees it in the site, and in one place."""
    shown = flat(list(pages.navigation()))
    written = {uri for uri in pages.written_pages() if not uri.startswith("source/")}

    assert sorted(shown) == sorted(written)


def test_a_page_without_a_row_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An index without the sections that the site needs is refused with the name of the section."""
    index = tmp_path / "README.md"
    index.write_text("# All pages\n\n## Start\n\n| page | |\n| --- | --- |\n| [a.md](a.md) | a |\n")
    monkeypatch.setattr(pages, "INDEX", index)

    with pytest.raises(SystemExit, match="no section 'Reference'"):
        pages.navigation()


def test_each_public_name_is_on_one_page_of_the_api() -> None:
    """The reference has what `dl.__all__` promises, each name once."""
    text = "\n".join(reference.api_pages().values())
    named = re.findall(r"^::: (dl\.\w+)$", text, re.MULTILINE)

    assert sorted(name.removeprefix("dl.") for name in named if name not in reference.MODULES) == sorted(
        set(dl.__all__) - {"__version__"}
    )


def test_what_the_reference_leaves_out_exists() -> None:
    """Each method that is called internal is one of a public class, and not one that the pages lead to."""
    for name, members in reference.INTERNAL.items():
        for member in members:
            shown = hasattr(getattr(dl, name), member) or member in (reference.documented(getattr(dl, name)))
            assert shown, (name, member)


def test_the_reference_of_the_command_line_has_each_option() -> None:
    """Each command that `dlrun` lists has its section, and each of its options a row."""
    text = reference.commands()
    context = click.Context(dlrun, info_name="dlrun")
    for name in dlrun.list_commands(context):
        command = dlrun.get_command(context, name)
        assert command is not None
        section = re.search(rf"^## dlrun {re.escape(name)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
        assert section is not None, name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert all(option in section[1] for option in parameter.opts), (name, parameter.opts)


def test_links_of_the_repository_lead_to_pages_of_the_site() -> None:
    """A link to a file outside `docs/` leads to the page made of it, and its text is what a reader knows it by."""
    text = "[calling.md](calling.md#memory), [the example](../examples/asgi.py), [web](https://example.org)"
    linked = pages.for_the_site("docs/threads.md", text)

    assert linked == (
        "[Calling the guest from Python](calling.md#memory), "
        "[the example](source/examples/asgi.py.md), [web](https://example.org)"
    )
    assert "source/examples/asgi.py.md" in pages.written_pages()


def test_pages_that_docstrings_name_are_links() -> None:
    """A docstring names pages as files of the repository; one that does not exist stops the build."""
    assert pages.link_docstrings("See docs/security.md.") == 'See <a href="../security.html">Security</a>.'
    with pytest.raises(SystemExit, match="docs/nowhere.md"):
        pages.link_docstrings("docs/nowhere.md")


def test_threads_of_public_trackers_are_links() -> None:
    """`owner/repository#number` leads to that thread."""
    assert pages.for_the_site("docs/threads.md", "see extism/go-sdk#63.") == (
        "see [extism/go-sdk#63](https://github.com/extism/go-sdk/issues/63)."
    )


def test_names_of_the_api_lead_to_their_reference() -> None:
    """In backquotes, `dl.Linker` and the methods of public classes are links, what is no name of the API is not."""
    text = "`dl.Linker`, `Linker.executor`, `Linker.nothing`, `memory`, `TrapError`\n\n```python\n`dl.Linker`\n```\n"
    linked = pages.for_the_site("docs/threads.md", text)

    assert linked == (
        "[`dl.Linker`][dl.Linker], [`Linker.executor`][dl.Linker.executor], `Linker.nothing`, `memory`, "
        "[`TrapError`][dl.TrapError]\n\n```python\n`dl.Linker`\n```\n"
    )
