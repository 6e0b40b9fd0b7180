"""Where the code of a module comes from, by what its compiler has written down (`-g`)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from dl.errors import MalformedModuleError
from dl.wasm.module import WasmModule, parse_module
from threads import found_in

if TYPE_CHECKING:
    from dl.wasm.instructions import Body
    from dl.wasm.lines import LineTable, SourceLine

LINE_SECTION, _LINE_STRINGS, _STRINGS = ".debug_line", ".debug_line_str", ".debug_str"
SOURCE_LINES = "source lines"
WRITTEN_FROM = "written from"
"""Under which a rewritten module has, in `derived`, the one that its debugging information is about."""


class SourceLines:
    """The source lines of a module. From any thread.

    `_lock` guards the reading of the table, which takes a while the first time, and of the bodies; a leaf.

    Args:
        module: the module as its debugging information has it.
        compiled: the same as it was compiled, with other code for some instructions; None if it was not changed.
    """

    def __init__(self, module: WasmModule, compiled: WasmModule | None = None) -> None:
        self._module = module
        self._compiled = compiled
        self._lock = threading.Lock()
        self.table: LineTable | None = None
        self._bodies: tuple[list[Body], list[Body]] = ([], [])
        self._known: dict[tuple[int, int], SourceLine | None] = {}

    def __call__(self, function: int, offset: int) -> SourceLine | None:
        """Return where an instruction comes from; None if nothing says, also for what is no proper debugging information.

        Args:
            function: index of the function.
            offset: bytes from the beginning of its body, which is behind its length, to the instruction.
        """
        with self._lock:
            if (function, offset) not in self._known:
                if len(self._known) >= _MOST_KNOWN:
                    self._known.clear()
                self._known[function, offset] = self._find(function, offset)
            return self._known[function, offset]

    def _find(self, function: int, offset: int) -> SourceLine | None:
        if self.table is None:
            from dl.wasm.instructions import walk_bodies  # noqa: PLC0415  only where something traps
            from dl.wasm.lines import LineTable  # noqa: PLC0415  as above

            self.table = LineTable(*(self._section(name) for name in (LINE_SECTION, _LINE_STRINGS, _STRINGS)))
            try:
                changed = [] if self._compiled is None else list(walk_bodies(self._compiled))
                self._bodies = (list(walk_bodies(self._module)), changed)
            except MalformedModuleError:
                self._bodies = ([], [])
        position = function - self._module.import_counts["func"]
        bodies, changed = self._bodies
        if not 0 <= position < len(bodies):
            return None  # one that the linker has added
        body = bodies[position]
        at = body.code + offset
        if self._compiled is not None:
            from dl.wasm.rewrite import position_before_rewriting  # noqa: PLC0415  as above

            at = position_before_rewriting(self._module, body, self._compiled, changed[position], offset)
        return self.table.find(at - self._module.code_start)

    def _section(self, name: str) -> bytes:
        for section in self._module.custom_sections(name):
            return self._module.data[section.payload_start : section.end]
        return b""


_MOST_KNOWN = 1024


def source_lines_of_copy(module: WasmModule, copy: bytes) -> SourceLines | None:
    """Return the source lines of a copy of a module, with other code for its waits; None if it has no line table."""
    return None if source_lines(module) is None else SourceLines(module, parse_module(copy, module.name))


def source_lines(module: WasmModule) -> SourceLines | None:
    """Return the source lines of a module as it is compiled; None if it has no line table."""
    if SOURCE_LINES not in module.derived:
        written_from = found_in(module.derived, WRITTEN_FROM)
        has_lines = any(section.name == LINE_SECTION for section in module.sections)
        if not has_lines:
            module.derived[SOURCE_LINES] = None
        elif written_from is None:
            module.derived[SOURCE_LINES] = SourceLines(module)
        else:
            module.derived[SOURCE_LINES] = SourceLines(written_from, module)
    known: SourceLines | None = module.derived[SOURCE_LINES]
    return known
