"""Parts of what modules say: only the exports, only what is undefined, only who defines a symbol."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from dl.cli.columns import print_columns
from dl.cli.console import shown
from dl.cli.demangling import Demangler, is_named
from dl.modules.symbols import INTERNAL_EXPORTS
from dl.records import dataclass

_LINKED = ("env", "GOT.mem", "GOT.func")
"""Import modules of the dynamic linking convention; others are the host's."""

_LINKERS_OWN = frozenset(
    {
        "memory",
        "__indirect_function_table",
        "__stack_pointer",
        "__memory_base",
        "__table_base",
        "__memory_base32",
        "__table_base32",
        "__heap_base",
        "__heap_end",
        "__stack_low",
        "__stack_high",
    }
)
"""Names in them that the linker defines for every module."""


@dataclass(frozen=True)
class Wanted:
    """What is asked for.

    Attributes:
        exports: the exports.
        imports: the imports.
        undefined: those imports that another module or the host must define.
        defined_by: the definitions of this symbol, by its name or as its author wrote it; None for all.
    """

    exports: bool
    imports: bool
    undefined: bool
    defined_by: str | None

    @property
    def any(self) -> bool:
        """Whether anything is."""
        return self.exports or self.imports or self.undefined or self.defined_by is not None

    def of(self, report: dict[str, Any], demangled: Demangler) -> dict[str, Any] | None:
        """Return what is asked for of a module's report; None if it does not define the symbol that it is to define."""
        part: dict[str, Any] = {"file": report["file"]}
        if self.defined_by is not None:
            part["defines"] = [
                entry
                for entry in report["exports"]
                if entry["name"] not in INTERNAL_EXPORTS
                and is_named(entry["name"], self.defined_by, demangled)
            ]
            if not part["defines"]:
                return None
        if self.exports:
            part["exports"] = report["exports"]
        if self.imports:
            part["imports"] = report["imports"]
        if self.undefined:
            part["undefined"] = _undefined(report)
        return part


def _undefined(report: dict[str, Any]) -> list[dict[str, Any]]:
    own = {entry["name"] for entry in report["exports"]}

    def is_open(entry: dict[str, Any]) -> bool:
        if entry["module"] not in _LINKED:
            return True
        if entry["name"] in _LINKERS_OWN or entry["kind"] in ("memory", "table"):
            return False
        return entry["module"] == "env" or entry["name"] not in own

    return [entry for entry in report["imports"] if is_open(entry)]


def print_symbols(console: Console, parts: list[dict[str, Any]], demangled: Demangler) -> None:
    """Print what was asked for: the file, and below it a line for each symbol."""
    for number, part in enumerate(parts):
        if number:
            console.print()
        console.print(Text(shown(part["file"]), style="bold"))
        for title in ("defines", "exports", "imports", "undefined"):
            entries = part.get(title, ())
            if len(part) > 2 and entries:
                console.print(Text(f"{title} ({len(entries)})", style="bold"))
            print_columns(console, [(e["kind"], _name(e, demangled), e["type"]) for e in entries])


def _name(entry: dict[str, Any], demangled: Demangler) -> str:
    name = demangled(entry["name"])
    return f"{entry['module']}.{name}" if "module" in entry else name
