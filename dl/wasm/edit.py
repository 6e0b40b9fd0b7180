"""Change what a module says about itself, and keep every other byte.

That is needed libraries, run path, names of symbols, and custom sections. An edit is a list of places in the file with what
comes there instead. The sections, and subsections of `dylink.0`, that hold one get another length, written in as many bytes as
before; nothing is decoded and encoded again that is not asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from dl.records import NamedTuple, dataclass, field, replace
from dl.wasm.dylink import LEGACY_SECTION_NAME, SECTION_NAME
from dl.wasm.encode import name_bytes, padded, vector
from dl.wasm.module import WasmModule
from dl.wasm.reader import Reader
from dl.wasm.records import SECTION_CUSTOM, SECTION_EXPORT, SECTION_IMPORT, Section
from dl.wasm.sections import walk_imports

_MEM_INFO, _NEEDED, _EXPORT_INFO, _IMPORT_INFO, _RUNTIME_PATH = 1, 2, 3, 4, 5

SYMBOL_NAMESPACES = ("env", "GOT.func", "GOT.mem")
"""Module names of the imports that mean symbols of other modules."""

_DEBUG = (".debug_", "reloc..debug_")
_DEBUG_NAMES = frozenset({"external_debug_info", "sourceMappingURL"})
_LINKING = ("reloc.",)
_OTHER_NAMES = frozenset({"name", "producers", "linking"})


class RefusedEditError(Exception):
    """A change that cannot be made to this module; the text says why."""


@dataclass(frozen=True)
class Changes:
    """What is to be changed in a module.

    Attributes:
        remove_needed: names to take out of the needed list.
        replace_needed: old to new names in it.
        add_needed: names to put at its end, unless they are in it.
        run_path: the new run path; None to leave it, and empty to remove it.
        add_run_path: directories to put at its end, unless they are in it.
        rename: old to new names of symbols, where the module exports them and where it imports them.
        rename_exports: old to new names of exports.
        rename_imports: old to new names of the imports that mean symbols, those of `SYMBOL_NAMESPACES`.
        strip_debug: whether debug information is removed.
        strip: whether names, producers and what only linkers of objects read are removed, too.
        remove_sections: names of further custom sections to remove.
    """

    remove_needed: tuple[str, ...] = ()
    replace_needed: Mapping[str, str] = field(default_factory=dict)
    add_needed: tuple[str, ...] = ()
    run_path: tuple[str, ...] | None = None
    add_run_path: tuple[str, ...] = ()
    rename: Mapping[str, str] = field(default_factory=dict)
    rename_exports: Mapping[str, str] = field(default_factory=dict)
    rename_imports: Mapping[str, str] = field(default_factory=dict)
    strip_debug: bool = False
    strip: bool = False
    remove_sections: tuple[str, ...] = ()

    @property
    def of_needed(self) -> bool:
        """Whether the needed list is to be changed."""
        return bool(self.remove_needed or self.replace_needed or self.add_needed)

    @property
    def of_run_path(self) -> bool:
        """Whether the run path is to be changed."""
        return self.run_path is not None or bool(self.add_run_path)


class _Splice(NamedTuple):
    """Bytes that come in the place of those from `start` to `end`, offsets in the file."""

    start: int
    end: int
    data: bytes


class _Subsection(NamedTuple):
    """A subsection of `dylink.0`, as it lies in the file."""

    type: int
    start: int
    size_start: int
    body: int
    end: int


def edited(module: WasmModule, changes: Changes, reserved: Collection[str] = ()) -> bytes:
    """Return a module with changes; its own bytes if there is nothing to change.

    Args:
        module: the module.
        changes: what to change.
        reserved: names of exports and imports that the linker itself asks for, which cannot be renamed.

    Raises:
        RefusedEditError: it has nothing to change there, or would not be a module any longer.
        DylinkError: the dylink section is corrupt.
    """
    if any(section.name == "linking" for section in module.sections) and module.dylink is None:
        raise RefusedEditError("it is an object file, which only a linker should change; link it first")
    changes = _resolved(module, changes)
    for old, new in (*changes.rename_exports.items(), *changes.rename_imports.items()):
        for name in (old, new):
            if name in reserved:
                raise RefusedEditError(f"{name!r} is a name that the linker itself gives a meaning")
    splices = [*_dylink_splices(module, changes), *_export_splices(module, changes.rename_exports)]
    splices += _import_splices(module, changes.rename_imports)
    return _built(module, splices, _removed(module, changes))


def _resolved(module: WasmModule, changes: Changes) -> Changes:
    """Return changes that say of each symbol whether it is renamed as an export or as an import."""
    if not changes.rename:
        return changes
    imported = {entry.name for entry in module.imports if entry.module in SYMBOL_NAMESPACES}
    for old in changes.rename:
        if old not in module.exports and old not in imported:
            raise RefusedEditError(f"it has no symbol {old!r}")
    exports = {old: new for old, new in changes.rename.items() if old in module.exports}
    imports = {old: new for old, new in changes.rename.items() if old in imported}
    return replace(
        changes,
        rename={},
        rename_exports=exports | dict(changes.rename_exports),
        rename_imports=imports | dict(changes.rename_imports),
    )


def _removed(module: WasmModule, changes: Changes) -> set[Section]:
    """Return the custom sections to leave out.

    Raises:
        RefusedEditError: one that is named is not there, or is what the linker lives on.
    """

    def unwanted(name: str) -> bool:
        debug = name.startswith(_DEBUG) or name in _DEBUG_NAMES
        return (
            (debug and (changes.strip_debug or changes.strip))
            or (changes.strip and (name.startswith(_LINKING) or name in _OTHER_NAMES))
            or name in changes.remove_sections
        )

    custom = [section for section in module.sections if section.id == SECTION_CUSTOM]
    for name in changes.remove_sections:
        if name in (SECTION_NAME, LEGACY_SECTION_NAME):
            raise RefusedEditError(f"without its {name} section it would be no library")
        if not any(section.name == name for section in custom):
            have = ", ".join(dict.fromkeys(section.name for section in custom)) or "none"
            raise RefusedEditError(f"it has no custom section {name!r} (it has {have})")
    return {section for section in custom if unwanted(section.name)}


def _dylink_splices(module: WasmModule, changes: Changes) -> list[_Splice]:
    if not (changes.of_needed or changes.of_run_path or changes.rename_exports or changes.rename_imports):
        return []
    section = next(
        (one for one in module.sections if one.name in (SECTION_NAME, LEGACY_SECTION_NAME) and not one.id),
        None,
    )
    info = module.dylink
    if section is None or info is None:
        if changes.of_needed or changes.of_run_path:
            raise RefusedEditError(
                "it has no dylink.0 section, in which needed libraries and run paths stand: it was not linked as a "
                "position-independent program or library"
            )
        return []
    needed = _new_needed(info.needed, changes)
    run_path = info.runtime_path if changes.run_path is None else changes.run_path
    run_path = _with(run_path, changes.add_run_path)
    if info.legacy:
        if run_path != info.runtime_path:
            raise RefusedEditError(
                "its section is the old `dylink`, in which a run path has no place; link it again with a linker of "
                "September 2021 or later"
            )
        return [] if needed == info.needed else [_legacy_splice(module, section, needed)]
    lists: dict[int, Sequence[str]] = {}
    if needed != info.needed:
        lists[_NEEDED] = needed
    if run_path != info.runtime_path:
        lists[_RUNTIME_PATH] = run_path
    return _subsection_splices(module, section, lists, changes)


def _new_needed(old: tuple[str, ...], changes: Changes) -> tuple[str, ...]:
    for name in (*changes.remove_needed, *changes.replace_needed):
        if name not in old:
            have = ", ".join(old) or "nothing"
            raise RefusedEditError(f"it does not need {name!r} (it needs {have})")
    kept = tuple(changes.replace_needed.get(name, name) for name in old if name not in changes.remove_needed)
    if changes.replace_needed:  # perhaps by one that it needs already
        kept = tuple(dict.fromkeys(kept))
    return _with(kept, changes.add_needed)


def _with(names: tuple[str, ...], more: Iterable[str]) -> tuple[str, ...]:
    """Return names with those that are not among them yet."""
    return (*names, *(name for name in dict.fromkeys(more) if name not in names))


def _legacy_splice(module: WasmModule, section: Section, needed: tuple[str, ...]) -> _Splice:
    reader = Reader(module.data, section.payload_start, section.end, module.name)
    for _ in range(4):
        reader.u32("a size of the dylink section")
    return _Splice(reader.pos, section.end, vector([name_bytes(name) for name in needed]))


def _subsection_splices(
    module: WasmModule, section: Section, lists: Mapping[int, Sequence[str]], changes: Changes
) -> list[_Splice]:
    """Return what changes in a `dylink.0` section.

    Args:
        module: the module.
        section: its section.
        lists: new contents of the lists of names, by the type of their subsection.
        changes: what symbols are called from now on.
    """
    found = list(_subsections(module, section))
    splices: list[_Splice] = []
    for kind, names in lists.items():
        body = vector([name_bytes(name) for name in names]) if names else None
        own = [one for one in found if one.type == kind]
        for number, one in enumerate(own):
            # A list may be in several parts; all of it comes where the first was.
            splices.append(_with_body(module, one, body if not number else None))
        if not own and body is not None:
            place = next((one.start for one in found if one.type > kind), section.end)
            new = bytes([kind]) + padded(len(body), 1) + body
            splices.append(_Splice(place, place, new))
    renames: dict[int, Callable[[Reader], Iterator[_Splice]]] = {
        _EXPORT_INFO: lambda reader: _flags_of_exports(reader, changes.rename_exports),
        _IMPORT_INFO: lambda reader: _flags_of_imports(reader, changes.rename_imports),
    }
    for one in found:
        if one.type in renames:
            inner = list(renames[one.type](Reader(module.data, one.body, one.end, module.name)))
            if inner:
                body = _spliced(module.data, one.body, one.end, inner)
                splices.append(_with_body(module, one, body))
    return splices


def _subsections(module: WasmModule, section: Section) -> Iterator[_Subsection]:
    reader = Reader(module.data, section.payload_start, section.end, module.name)
    while reader.pos < section.end:
        start = reader.pos
        kind = reader.byte("a dylink subsection")
        size_start = reader.pos
        size = reader.u32("the length of a dylink subsection")
        body = reader.pos
        reader.skip(size, "a dylink subsection")
        yield _Subsection(kind, start, size_start, body, reader.pos)


def _with_body(module: WasmModule, one: _Subsection, body: bytes | None) -> _Splice:
    """Return a subsection with another body; None removes it."""
    if body is None:
        return _Splice(one.start, one.end, b"")
    head = module.data[one.start : one.size_start] + padded(len(body), one.body - one.size_start)
    return _Splice(one.start, one.end, head + body)


def _flags_of_exports(reader: Reader, names: Mapping[str, str]) -> Iterator[_Splice]:
    for _ in range(reader.count("exported symbols", item_bytes=2)):
        yield from _renamed(reader, names, "an exported symbol")
        reader.u32("a symbol's flags")


def _flags_of_imports(reader: Reader, names: Mapping[str, str]) -> Iterator[_Splice]:
    reader.u32("the number of imported symbols")  # which some tools write too low
    while reader.pos < reader.end:
        module = reader.name("an imported symbol's module")
        yield from _renamed(reader, names if module in SYMBOL_NAMESPACES else {}, "an imported symbol")
        reader.u32("a symbol's flags")


def _renamed(reader: Reader, names: Mapping[str, str], what: str) -> Iterator[_Splice]:
    """Take a name; yield what comes there instead."""
    start = reader.pos
    name = reader.name(what)
    if name in names:
        yield _Splice(start, reader.pos, name_bytes(names[name]))


def _export_splices(module: WasmModule, names: Mapping[str, str]) -> list[_Splice]:
    if not names:
        return []
    for old, new in names.items():
        if old not in module.exports:
            raise RefusedEditError(f"it exports no {old!r}")
        if new in module.exports and new not in names:
            raise RefusedEditError(f"it exports {new!r} already")
    if len(set(names.values())) != len(names):
        raise RefusedEditError("two exports would have one name")
    section = module.section(SECTION_EXPORT)
    assert section is not None
    reader = Reader(module.data, section.payload_start, section.end, module.name)
    splices: list[_Splice] = []
    for _ in range(reader.count("exports", item_bytes=3)):
        splices += _renamed(reader, names, "an export's name")
        reader.byte("an export's kind")
        reader.u32("an export's index")
    return splices


def _import_splices(module: WasmModule, names: Mapping[str, str]) -> list[_Splice]:
    if not names:
        return []
    section = module.section(SECTION_IMPORT)
    there = {entry.name for entry in module.imports if entry.module in SYMBOL_NAMESPACES}
    for old in names:
        if old not in there:
            raise RefusedEditError(f"it imports no symbol {old!r}")
    assert section is not None
    reader = Reader(module.data, section.payload_start, section.end, module.name)
    return [
        _Splice(entry.name_start, entry.name_end, name_bytes(names[entry.name]))
        for entry in walk_imports(reader, module.types)
        if entry.name in names and entry.module in SYMBOL_NAMESPACES
    ]


def _spliced(data: bytes, start: int, end: int, splices: Iterable[_Splice]) -> bytes:
    """Return a part of the data with other bytes at some places in it, which do not overlap."""
    parts, at = [], start
    for splice in sorted(splices):
        assert at <= splice.start <= splice.end <= end
        parts += [data[at : splice.start], splice.data]
        at = splice.end
    return b"".join([*parts, data[at:end]])


def _built(module: WasmModule, splices: Iterable[_Splice], removed: Collection[Section]) -> bytes:
    data = module.data
    parts = [data[: module.sections[0].start] if module.sections else data]
    left = sorted(splices, reverse=True)
    for section in module.sections:
        own = []
        while left and left[-1].start <= section.end:
            own.append(left.pop())
        if section in removed:
            continue
        if not own:
            parts.append(data[section.start : section.end])
            continue
        reader = Reader(data, section.start + 1, section.end, module.name)
        reader.u32("a section's length")
        payload = _spliced(data, reader.pos, section.end, own)
        size = padded(len(payload), reader.pos - section.start - 1)
        parts += [data[section.start : section.start + 1], size, payload]
    return b"".join(parts)
