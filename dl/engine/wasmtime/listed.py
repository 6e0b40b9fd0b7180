"""The imports of an instance as the engine takes them without names: an array of externals, filled by positions.

What an external looks like is in `wasmtime/extern.h`. A function is its store's number and a pointer, the one that the engine
puts into the slots of calls: `wasmtime_func_from_raw` makes one of the other, in a call for each, so it is asked for one
function of the process, and must agree; the others are put together here.
"""

from __future__ import annotations

import ctypes
import functools
from array import array
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from dl.engine.import_list import CHUNK, FEW, ImportList, TableFunctions
from dl.engine.native.arguments import address_argument, size_argument
from dl.engine.native.calls import raw_callable
from dl.engine.wasmtime import c
from dl.engine.wasmtime.errors import check
from dl.errors import EngineError, InstantiationError

if TYPE_CHECKING:
    from dl.engine.wasmtime.instance import WasmtimeInstance
    from dl.engine.wasmtime.store import WasmtimeStore

_WORDS = ctypes.sizeof(c.Extern) // 8
_STORE_ID = c.Extern.of.offset // 8
_FUNCTION = _STORE_ID + 1
"""Words of an external, and at which of them a function's store and pointer are. The kind is in the first: 0 for a function."""

assert c.EXTERN_FUNC == 0

_SLOT_WORDS = 2
"""Words of a slot of a call; a function reference is in the first."""


@functools.cache
def number_type(*, mutable: bool) -> int:
    """Return the native type of a global of type i32; it belongs to no engine, and stays."""
    made: int = c.globaltype_new(c.valtype_new(c.VALUE_KINDS["i32"]), mutable)
    return made


def new_number(context: int, value: int, *, mutable: bool) -> c.Extern:
    """Make a global of type i32 in a store."""
    content, extern = c.Val(c.VALUE_KINDS["i32"]), c.Extern(c.EXTERN_GLOBAL)
    content.of.i32 = value
    made, given = ctypes.addressof(extern.of.global_), ctypes.addressof(content)
    check(c.global_new(context, number_type(mutable=mutable), given, made))
    return extern


class _Slots:
    """The slots of one call of the reader."""

    def __init__(self) -> None:
        self.words = array("Q", bytes(8 * _SLOT_WORDS * CHUNK))
        self.arguments = address_argument(self.words.buffer_info()[0]), size_argument(CHUNK)


class TableReader:
    """Takes functions from a table that an instance exports.

    Args:
        store: the store.
        instance: the instance.
        table: under which name it exports the table.
        reader: and a function of type (i32) -> funcref, `CHUNK` times, that returns the elements at an index and behind it;
            None for no function.
    """

    def __init__(
        self, store: WasmtimeStore, instance: WasmtimeInstance, table: str, reader: str | None
    ) -> None:
        self._context = store.context()
        self._table = instance.table(table)
        self.store_id = int(self._table.of.table.head.store_id)
        self._slots = _Slots()
        self._read: Callable[[Any], None] | None = None
        if reader is not None:
            func = c.Func.from_buffer_copy(instance.export(reader, c.EXTERN_FUNC).of.func)
            call, called = c.call_with_arguments, (self._context, ctypes.addressof(func))
            self._read = raw_callable(store, call, called, func, calls_back=False)

    @property
    def reads_chunks(self) -> bool:
        """Whether it has a function that reads."""
        return self._read is not None

    def functions(self, functions: TableFunctions, base: int) -> array[int]:
        """Return functions in the order of the imports that they are; 0 where there is none.

        Args:
            functions: where they are.
            base: the table index from which their offsets count.
        """
        if len(functions.positions) <= FEW:
            return self._each([base + offset for offset in functions.offsets])
        return array("Q", functions.pick(self._chunks(functions.starts, base)))

    def _chunks(self, starts: tuple[int, ...], base: int) -> array[int]:
        """Return the functions at chunks of table indices one behind the other; 0 where there is none.

        Args:
            starts: where chunks begin.
            base: what is added to each.
        """
        last = int(c.table_size(self._context, ctypes.addressof(self._table.of.table))) - CHUNK
        words = array("Q")
        for start in starts:
            first = base + start
            if first <= last:
                words += self._chunk(first)
                continue
            # The table ends within it.
            rest = self._chunk(last)[first - last :] if last >= 0 else self._each(range(first, last + CHUNK))
            words += rest + array("Q", bytes(8 * (CHUNK - len(rest))))
        return words

    def _chunk(self, first: int) -> array[int]:
        slots = self._slots
        slots.words[0] = first
        assert self._read is not None
        self._read(slots)
        functions = slots.words[::_SLOT_WORDS]
        if functions[0]:
            _check_layout(self._context, self.store_id, functions[0])
        return functions

    def _each(self, indices: Iterable[int]) -> array[int]:
        """Return elements one by one."""
        value, table = c.Val(), ctypes.addressof(self._table.of.table)
        words = array("Q")
        for index in indices:
            found = c.table_get(self._context, table, index, ctypes.addressof(value))
            words.append(int(value.of.func.private or 0) if found and value.of.func.store_id else 0)
        return words


@functools.cache
def _agreed() -> list[bool]:
    """Return whether the engine was asked; a list that is empty until then."""
    return []


def _check_layout(context: int, store_id: int, pointer: int) -> None:
    """Ask the engine once what it makes of a function reference.

    Raises:
        EngineError: it is something else than what is made here.
    """
    if _agreed():
        return
    func = c.Func()
    c.func_from_raw(context, pointer, ctypes.addressof(func))
    if (func.store_id, func.private) != (store_id, pointer):
        raise EngineError("this version of the engine has another layout of functions than version 50")
    _agreed().append(True)


def externals(
    store: WasmtimeStore, name: str, imports: ImportList, generated: WasmtimeInstance | None
) -> array[int]:
    """Return the externals of an instance that is to be made, in the order of its imports.

    Raises:
        InstantiationError: a table index holds no function, or nothing is known by a name.
    """
    words = array("Q", bytes(8 * _WORDS * imports.count))
    for functions, base in imports.placed:
        reader = store.table_reader
        assert reader is not None
        found = reader.functions(functions, base)
        if 0 in found:  # which the engine would take for a function
            raise InstantiationError(name, f"the table holds no function for import {found.index(0)}")
        store_id = array("Q", (reader.store_id,))
        for first, end, begin in functions.rows:
            count = end - first
            words[first * _WORDS + _FUNCTION : end * _WORDS : _WORDS] = found[begin : begin + count]
            words[first * _WORDS + _STORE_ID : end * _WORDS : _WORDS] = store_id * count
    for position, namespace, wanted in imports.named:
        _put(words, position, store.known_extern(namespace, wanted))
    for position, mutable, value in imports.numbers:
        _put(words, position, new_number(store.context(), value, mutable=mutable))
    for position, export in imports.generated:
        assert generated is not None
        _put(words, position, generated.export(export))
    return words


def _put(words: array[int], position: int, extern: c.Extern) -> None:
    words[position * _WORDS : (position + 1) * _WORDS] = array("Q", bytes(extern))
