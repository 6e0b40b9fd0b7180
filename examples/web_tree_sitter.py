"""tree-sitter as the npm package `web-tree-sitter` ships it, with `dl` in the place of Emscripten's loader.

`web-tree-sitter.wasm` is a position-independent main module; every grammar is a side module that the main
module calls through function pointers. What JavaScript does for the pair in a browser is done here in Python:
six host functions, and calls of the C functions that the main module exports. The conventions are those of
`web-tree-sitter.js` 0.27.1: what is larger than an integer goes through a *transfer buffer* in linear memory.

Positions count UTF-16 code units, because that is the encoding in which the main module reads its input.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import dl

PAGE = 65536

CODE_UNIT = 2
"""Bytes in a UTF-16 code unit."""

CHUNK = 10 * 1024 - CODE_UNIT
"""Bytes of source that the parser takes in one read: `INPUT_BUFFER_SIZE` of its C code, less a terminator."""


class GuestAbortError(Exception):
    """The guest called C's `abort`."""


class Node(NamedTuple):
    """One node of a syntax tree; `start` and `end` are offsets into the source in UTF-16 code units."""

    depth: int
    field: str | None
    type: str
    named: bool
    missing: bool
    start: int
    end: int


class TreeSitter:
    """The main module in a linker of its own, and every grammar that was asked for linked to it.

    Args:
        packages: the folder that holds `node_modules`.

    Raises:
        dl.DlError: the main module cannot be loaded or linked.
    """

    def __init__(self, packages: Path) -> None:
        self._modules = packages / "node_modules"
        self._functions: dict[str, dl.GuestFunction] = {}
        self._languages: dict[str, Language] = {}
        self._source = b""
        self.linker = dl.Linker(
            self._modules / "web-tree-sitter" / "web-tree-sitter.wasm",
            imports={
                "env": {
                    "_abort_js": self._abort,
                    "emscripten_resize_heap": self._resize_heap,
                    "tree_sitter_parse_callback": self._read_source,
                    "tree_sitter_log_callback": lambda _is_lex, _message: None,
                    # A result other than 0 would cancel what is going on.
                    "tree_sitter_progress_callback": lambda _offset, _has_error: 0,
                    "tree_sitter_query_progress_callback": lambda _offset: 0,
                }
            },
        )
        transfer_buffer = self.call("ts_init")
        self.call("ts_parser_new_wasm")
        self._parser, self._input_buffer = self.linker.memory.read_struct("<II", transfer_buffer)

    def close(self) -> None:
        """Closes the linker; parsers and languages are gone with its memory."""
        self.linker.close()

    def call(self, name: str, *arguments: int) -> int:
        """Calls a C function of the main module; each is looked up once."""
        function = self._functions.get(name)
        if function is None:
            function = self._functions[name] = self._function(self.linker.main, name)
        result: int = function(*arguments)
        return result

    def _function(self, module: dl.ModuleHandle, name: str) -> dl.GuestFunction:
        symbol = self.linker.main_group.dlsym(module, name)
        assert isinstance(symbol, dl.GuestFunction)
        return symbol

    def grammar(self, name: str) -> Path:
        """The path of the side module in the package `tree-sitter-<name>`."""
        return self._modules / f"tree-sitter-{name}" / f"tree-sitter-{name}.wasm"

    def language(self, name: str) -> Language:
        """A grammar, linked when it is first asked for.

        Raises:
            dl.DlError: it cannot be loaded or linked.
        """
        if name not in self._languages:
            library = self.linker.main_group.dlopen(self.grammar(name), dl.RTLD_NOW)
            self._languages[name] = Language(self, self._function(library, f"tree_sitter_{name}")())
        return self._languages[name]

    def parse(self, language: Language, source: str) -> list[Node]:
        """Parses a text; the nodes of its tree in document order, parents first.

        Raises:
            ValueError: the grammar was generated for a version of tree-sitter that this one cannot use.
        """
        if not self.call("ts_parser_set_language", self._parser, language.address):
            raise ValueError("the grammar's ABI version is not one that this tree-sitter understands")
        self._source = source.encode("utf-16-le")
        tree = self.call("ts_parser_parse_wasm", self._parser, self._input_buffer, 0, 0, 0)
        try:
            return list(self._walk(language, tree))
        finally:
            self.call("ts_tree_delete", tree)

    def reset(self) -> None:
        """Makes the parser forget a parse that an exception broke off; else the next goes on from there."""
        self.call("ts_parser_reset", self._parser)

    def _walk(self, language: Language, tree: int) -> Iterator[Node]:
        # The transfer buffer holds the root node, and from `cursor_new` on the cursor: calls read it
        # there, and those that move it write it back.
        self.call("ts_tree_root_node_wasm", tree)
        self.call("ts_tree_cursor_new_wasm", tree)
        depth = 0
        while True:
            yield Node(
                depth,
                language.field_name(self.call("ts_tree_cursor_current_field_id_wasm", tree)),
                language.type_name(self.call("ts_tree_cursor_current_node_type_id_wasm", tree)),
                bool(self.call("ts_tree_cursor_current_node_is_named_wasm", tree)),
                bool(self.call("ts_tree_cursor_current_node_is_missing_wasm", tree)),
                self.call("ts_tree_cursor_start_index_wasm", tree),
                self.call("ts_tree_cursor_end_index_wasm", tree),
            )
            if self.call("ts_tree_cursor_goto_first_child_wasm", tree):
                depth += 1
                continue
            while not self.call("ts_tree_cursor_goto_next_sibling_wasm", tree):
                if not self.call("ts_tree_cursor_goto_parent_wasm", tree):
                    self.call("ts_tree_cursor_delete_wasm", tree)
                    return
                depth -= 1

    # The host functions: what the main module imports. Their parameters are those of the C declarations.

    def _read_source(self, buffer: int, index: int, _row: int, _column: int, length: int) -> None:
        """Copies source from code unit `index` on to `buffer`, and the number of code units to `length`."""
        chunk = self._source[index * CODE_UNIT : index * CODE_UNIT + CHUNK]
        self.linker.memory.write(buffer, chunk)
        self.linker.memory.write_u32(length, len(chunk) // CODE_UNIT)

    def _resize_heap(self, size: int) -> int:
        """Grows the memory to at least `size` bytes, for `malloc`: 1 if that worked, 0 if not."""
        pages = -(-((size & 0xFFFFFFFF) - self.linker.memory.size) // PAGE)
        return int(pages <= 0 or self.linker.grow_memory(pages) is not None)

    @staticmethod
    def _abort() -> None:
        raise GuestAbortError


class Language:
    """A grammar: the address of its `TSLanguage`, and the names that it gives to node types and fields."""

    def __init__(self, runtime: TreeSitter, address: int) -> None:
        self.address = address
        self._runtime = runtime
        self._types: dict[int, str] = {}
        self._fields: dict[int, str | None] = {0: None}

    def type_name(self, symbol: int) -> str:
        """The name of a node type."""
        if symbol not in self._types:
            name = self._runtime.call("ts_language_symbol_name", self.address, symbol)
            self._types[symbol] = self._runtime.linker.memory.read_cstring(name)
        return self._types[symbol]

    def field_name(self, field: int) -> str | None:
        """The name of a field; None for field 0, which is that of nodes that stand in none."""
        if field not in self._fields:
            name = self._runtime.call("ts_language_field_name_for_id", self.address, field)
            self._fields[field] = self._runtime.linker.memory.read_cstring(name)
        return self._fields[field]
