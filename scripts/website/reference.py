"""The pages of the site that are made from the code: the reference of the API, and that of the command line."""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from functools import cache

import click

import dl
from dl.cli.commands import dlrun

INTERNAL = {
    "Linker": ("own", "parts", "program", "engine"),
    "InstanceGroup": ("own",),
    "HostThread": ("own",),
    "EventQueue": ("end", "put"),
    "External": ("source", "link_type", "belongs_to"),
    "Function": ("source", "link_type", "belongs_to", "call_bits", "in_engine"),
    "Memory": ("source", "link_type", "belongs_to", "data", "futexes", "shared"),
    "Table": ("source", "link_type", "belongs_to"),
    "Global": ("source", "link_type", "belongs_to"),
    "Tag": ("source", "link_type", "belongs_to"),
    "Module": ("image", "resolve"),
    "Limits": ("refusal",),
    "MemoryType": ("wasm",),
    "LinearMemory": ("close",),
}
"""Methods of public classes that other parts of the linker call, and nobody else should: not in the reference."""

MODULES = ("dl.cluster",)
"""Modules that are imported by themselves, since they need what an extra installs; their names are those of their `__all__`."""

OVERVIEW = "api/index.md"
COMMANDS = "command-line.md"

GROUPS = {
    "linker": ("The linker and its options", ("dl.linker", "dl.options", "dl.limits")),
    "threads": (
        "Threads, executors, asyncio and trio",
        ("dl.group", "dl.groups", "dl.api.host_thread", "dl.api.executor", "dl.tasks"),
    ),
    "libraries": (
        "Libraries, functions and handles",
        ("dl.api.library", "dl.api.guest", "dl.dlfcn", "dl.include"),
    ),
    "values": ("Values, callbacks and signatures", ("dl.api.values", "dl.api.callbacks", "dl.wasm")),
    "memory": ("Memory", ("memory", "dl.api.blocks")),
    "hosts": ("Many programs, and many processes", ("dl.description", "dl.pool")),
    "looking": ("Looking into a program", ("dl.api", "dl.program", "threads")),
    "instances": ("Instances and externals", ("dl.instances", "dl.wasm.records")),
    "wamr": ("Programs of WAMR's kind", ("dl.wamr",)),
    "errors": ("Errors", ("dl.errors",)),
    "further": ("Further names", ("dl",)),
}
"""The pages of the API: title, and the files whose names are on it. The longest prefix decides; all errors are on one page."""


def is_error(name: str) -> bool:
    """Whether a public name is a class of exceptions."""
    value = getattr(dl, name)
    return isinstance(value, type) and issubclass(value, BaseException)


@cache
def grouped() -> dict[str, list[str]]:
    """Return the public names of each page of the API, each name on one page."""
    found: dict[str, list[str]] = {page: [] for page in GROUPS}
    order = [prefix for _, prefixes in GROUPS.values() for prefix in prefixes]
    files = dl._NAMES  # noqa: SLF001  where each name is

    def rank(file: str) -> int:
        return next((number for number, prefix in enumerate(order) if file == prefix), len(order))

    for file, names in sorted(files.items(), key=lambda item: rank(item[0])):
        prefixes = [
            (prefix, page)
            for page, (_, prefixes) in GROUPS.items()
            for prefix in prefixes
            if file == prefix or file.startswith(prefix + ".")
        ]
        for name in names:
            found["errors" if is_error(name) else max(prefixes, key=lambda pair: len(pair[0]))[1]].append(
                name
            )
    missing = set(dl.__all__) - {name for names in found.values() for name in names} - {"__version__"}
    assert not missing, f"on no page of the API: {sorted(missing)}"
    return {page: names for page, names in found.items() if names}


@cache
def api_pages() -> dict[str, str]:
    """Return the pages of the API: place and text."""
    pages = {}
    for page, names in grouped().items():
        parts = [f"# {GROUPS[page][0]}\n"]
        if page == "errors":
            parts.append("What each means for you, and what to do: [Errors, and what to do](../errors.md).\n")
        if page == "errors":
            names.sort(key=lambda name: (name != "DlError", name))
        parts += [f"::: dl.{name}\n{options(name)}" for name in names]
        pages[f"api/{page}.md"] = "\n".join(parts)
    for module in MODULES:
        parts = [f"# {module}\n", f"::: {module}\n    options: {{show_root_heading: false, members: null}}\n"]
        pages[f"api/{module.rpartition('.')[2]}.md"] = "\n".join(parts)
    return pages


def options(name: str) -> str:
    """Return what the reference of one name is made with."""
    chosen: dict[str, object] = {}
    if is_error(name):
        chosen["show_bases"] = True
    if name in INTERNAL:
        chosen["filters"] = ["!^_", f"!^({'|'.join(INTERNAL[name])})$"]
    return f"    options: {json.dumps(chosen)}\n" if chosen else ""


def overview() -> str:
    """Return the page that lists all public names with their first lines."""
    parts = [
        "# API reference\n",
        "`import dl` gives these names, and they are all that is promised. Names that begin with an underscore, and whatever "
        "else can be imported, may change without notice.\n",
    ]
    for page, names in grouped().items():
        parts.append(f"\n## [{GROUPS[page][0]}]({page}.md)\n\n| name | |\n| --- | --- |")
        parts += [f"| [`{name}`][dl.{name}] | {first_line(name)} |" for name in names]
    parts += [f"\n## [{module}]({module.rpartition('.')[2]}.md)\n" for module in MODULES]
    return "\n".join(parts) + "\n"


def first_line(name: str) -> str:
    """Return what the documentation of a public name begins with; of a constant, its value."""
    value = getattr(dl, name)
    if not callable(value) and not isinstance(value, type):
        return f"`{value!r}`"
    text = documented(value).partition("\n\n")[0].replace("\n", " ").replace("|", "\\|")
    return "" if text.startswith(f"{name}(") else text


def documented(value: object) -> str:
    """Return a class's or function's documentation; from its source, where instances have documentation of their own."""
    if isinstance(value, type) and not isinstance(vars(value).get("__doc__"), str):
        node = ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]
        assert isinstance(node, ast.ClassDef)
        return ast.get_docstring(node) or ""
    return inspect.getdoc(value) or ""


@cache
def _members() -> frozenset[str]:
    """Return what has an anchor in the reference: public names, and methods and properties of their classes."""
    names = set(dl.__all__) - {"__version__"}
    for name in list(names):
        value = getattr(dl, name)
        if isinstance(value, type):
            for member in dir(value):
                kind = inspect.getattr_static(value, member)
                if (
                    not member.startswith("_")
                    and member not in INTERNAL.get(name, ())
                    and (inspect.isfunction(kind) or isinstance(kind, property))
                ):
                    names.add(f"{name}.{member}")
    return frozenset(names)


def linked_name(match: re.Match[str]) -> str:
    """Return a name in backquotes as a link to its reference, if it is one of the API: `dl.Linker`, `Linker.executor`."""
    name = match[1].removeprefix("dl.")
    known = name in _members() and (match[1] != name or "." in name or is_error(name))
    return f"[{match[0]}][dl.{name}]" if known else match[0]


def commands() -> str:
    """Return the reference of the command line: each command with its usage, its text and its options."""
    context = _context(dlrun, "dlrun")
    parts = [
        "# Command line: all options\n",
        "What `--help` says, made from the command line itself. [dlrun](cli.md) explains exit codes, messages and JSON.\n",
    ]
    for name in ["run", *sorted(set(dlrun.list_commands(context)) - {"run"})]:
        command = dlrun.get_command(context, name)
        assert command is not None
        parts.append(command_section(command, _context(command, name, context), 2))
    return "\n".join(parts)


def _context(command: click.Command, name: str, parent: click.Context | None = None) -> click.Context:
    """Return a context with the command's own settings: commands keep the options for help that they first have."""
    return click.Context(command, info_name=name, parent=parent, **command.context_settings)


def command_section(command: click.Command, context: click.Context, level: int) -> str:
    """Return one command, and those below it."""
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    parts = [
        f"{'#' * level} {context.command_path}\n",
        f"```text\n{usage}\n```\n",
        cleaned(command.help or ""),
    ]
    rows = [
        record for parameter in command.params if (record := parameter.get_help_record(context)) is not None
    ]
    if rows:
        parts.append("| option | |\n| --- | --- |")
        parts += [f"| `{option}` | {cell(text)} |" for option, text in rows]
        parts.append("")
    if command.epilog:
        parts.append(cleaned(command.epilog))
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            parts.append(command_section(below, _context(below, name, context), level + 1))
    return "\n".join(parts)


def cell(text: str) -> str:
    """Return text for one cell of a table, in which nothing is markup."""
    return re.sub(r"([|<>*_\[\]`])", r"\\\1", " ".join(text.split()))


def cleaned(text: str) -> str:
    """Return a text of click as Markdown: what click must not wrap becomes a block."""
    parts = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith("\b"):
            parts.append("```text\n" + paragraph.removeprefix("\b").strip("\n") + "\n```")
        else:
            parts.append(cell(paragraph))
    return "\n\n".join(parts) + "\n"
