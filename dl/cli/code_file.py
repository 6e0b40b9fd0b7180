"""The linker's own code in one file: a process that imports two hundred files of Python opens one.

Finding, opening and checking a file of a few functions takes Python longer than loading its code. So the first `dlrun` puts the
code of all that it has imported into one file, and later ones load it from there. Each module is still held against its source
by time and size, as Python does it with its `.pyc` files: one that was edited is imported as usual, and then replaced.

What one process has imported is one part of the file, and is loaded whole with the first module of it: names that modules
share are in it once, so it takes two thirds of the time of loading each module's code. Who imports other modules adds a part.

The file is where Python would keep the `.pyc` of `all_code`, an empty module: installers that remove the package remove it
too, which they would not do with one of another name. It is trusted as those are: who may write there may have any code run
already. Where Python writes none (`PYTHONDONTWRITEBYTECODE`, a folder of somebody else), nor is this one written. Only a
process of `dlrun` has it: a library that changes how its users' programs import would surprise them. An archive was not
taken: Python's importer of archives does not look whether a source has changed.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType, ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TypeAlias

    _Source: TypeAlias = tuple[str, int, int, str]
    _Entry: TypeAlias = tuple[str, int, int, str, int, int]
    _Module: TypeAlias = tuple[str, _Source, CodeType]

_OWN, _EMPTY = "code_file.", "all_code."
_MADE_BY = (sys.version, "parts")
"""The version of Python, and of this file's form."""

_INDEX_LENGTH_BYTES = 4
_PACKAGE_FILE = "/__init__.py"


def path() -> str | None:
    """Return the path of this Python's file; None where Python keeps no code of this package."""
    cached = __spec__.cached
    if cached is None:
        return None
    folder, name = os.path.split(cached)
    return os.path.join(folder, name.replace(_OWN, _EMPTY, 1))


class _Loader(SourceFileLoader):
    """Loads a module whose code is known; what else loaders are asked for, such as its source, is as usual."""

    def __init__(self, name: str, path: str, code: CodeType) -> None:
        super().__init__(name, path)
        self._code: CodeType | None = code

    def get_code(self, fullname: str) -> CodeType | None:
        """Return the module's code, the first time from the file."""
        code, self._code = self._code, None
        return super().get_code(fullname) if code is None else code


class CodeFile:
    """Finds modules of the linker in one file; an element of `sys.meta_path`, for whatever is imported after it was made.

    The file has the length of its index, the index, and the parts. The index has who made it; of each part, where it
    begins and how long it is (bytes, behind the index); and of each module: the path of its source, when that was changed
    (nanoseconds since 1970) and its size, the path of its `.pyc`, and the numbers of its part and of its place in that.

    Args:
        path: the file; it need not exist.
        packages: the packages whose modules it has.
    """

    def __init__(self, path: str, packages: tuple[str, ...] = ("dl", "memory", "threads")) -> None:
        self._path = path
        self._prefixes = tuple(f"{package}." for package in packages)
        self._before = frozenset(sys.modules)
        self._index: dict[str, _Entry] = {}
        self._parts: Sequence[tuple[int, int]] = ()
        self._loaded: dict[int, list[CodeType | None]] = {}
        with contextlib.suppress(OSError):
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115  for the process's life
            if not self._read_index():
                self._file.close()

    def _read_index(self) -> bool:
        """Read the index; return whether the file is whole, and of this Python."""
        number = self._file.fileno()
        size = os.fstat(number).st_size
        length = int.from_bytes(os.pread(number, _INDEX_LENGTH_BYTES, 0), "little")
        self._parts_at = _INDEX_LENGTH_BYTES + length
        if self._parts_at > size:
            return False
        try:
            made_by, parts, index = marshal.loads(os.pread(number, length, _INDEX_LENGTH_BYTES))  # noqa: S302  as above
        except (EOFError, TypeError, ValueError):  # not one of ours
            return False
        if made_by != _MADE_BY or size != self._parts_at + sum(length for _, length in parts):
            return False
        self._parts, self._index = parts, index
        return True

    def _part(self, number: int) -> list[CodeType | None]:
        """Load the code of a part's modules."""
        at, length = self._parts[number]
        content = os.pread(self._file.fileno(), length, self._parts_at + at)
        return list(marshal.loads(content))  # noqa: S302  as above

    def _take_code(self, part: int, place: int) -> CodeType | None:
        """Return a module's code, once: a module that is imported again is imported as usual, and nothing is kept for it."""
        codes = self._loaded.get(part)
        if codes is None:
            codes = self._loaded.setdefault(part, self._part(part))
        code, codes[place] = codes[place], None
        return code

    def find_spec(
        self, name: str, path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how a module is loaded; None if its code is not here, or that of another source."""
        entry = self._index.get(name)
        if entry is None or not path or not self._is_current(entry):
            return None
        source, _, _, cached, part, place = entry
        is_package = source.endswith(_PACKAGE_FILE)
        folder = source[: -len(_PACKAGE_FILE)] if is_package else source
        if folder[: folder.rfind("/")] != path[0]:  # the package is another one than it was
            return None
        code = self._take_code(part, place)
        if code is None:
            return None
        spec = ModuleSpec(name, _Loader(name, source, code), origin=source)
        spec.has_location, spec.cached = True, cached
        if is_package:
            spec.submodule_search_locations = [folder]
        return spec

    @staticmethod
    def _is_current(entry: _Entry) -> bool:
        try:
            found = os.stat(entry[0])
        except OSError:
            return False
        return (found.st_mtime_ns, found.st_size) == entry[1:3]

    def update(self) -> None:
        """Write the file again if modules were imported that it does not have; does nothing where that cannot be."""
        missing = [
            (name, module)
            for name, module in sys.modules.copy().items()
            if name.startswith(self._prefixes)
            and name not in self._before
            and type(getattr(module, "__loader__", None)) is SourceFileLoader
        ]
        if missing and not sys.dont_write_bytecode:
            # A source may have become what is no Python since it was imported.
            with contextlib.suppress(OSError, SyntaxError, ValueError, ImportError):
                self._write(missing)

    def _write(self, missing: Iterable[tuple[str, ModuleType]]) -> None:
        temporary = f"{self._path}.{os.getpid()}"
        with open(temporary, "xb", opener=_opened) as file:  # fails at once where nothing may be written
            try:
                index: dict[str, _Entry] = {}
                contents, parts, at = [], [], 0
                for part, modules in enumerate((*self._kept(), [*_codes(missing)])):
                    index |= {name: (*of, part, place) for place, (name, of, _) in enumerate(modules)}
                    content = marshal.dumps(tuple([code for _, _, code in modules]))
                    contents.append(content)
                    parts.append((at, len(content)))
                    at += len(content)
                head = marshal.dumps((_MADE_BY, parts, index))
                file.writelines((len(head).to_bytes(_INDEX_LENGTH_BYTES, "little"), head, *contents))
                file.flush()
                os.replace(temporary, self._path)
            except BaseException:
                os.unlink(temporary)
                raise

    def _kept(self) -> Iterator[list[_Module]]:
        """Return what of each part is still the code of its source; a part of which nothing is left is none."""
        codes = [self._part(number) for number in range(len(self._parts))]
        parts: list[list[_Module]] = [[] for _ in codes]
        for name, entry in self._index.items():
            *_, part, place = entry
            code = codes[part][place]
            if code is not None and self._is_current(entry):
                parts[part].append((name, entry[:4], code))
        return filter(None, parts)


def _opened(path: str, flags: int) -> int:
    """Open a file that nobody else may write, whatever the process's mask lets others do."""
    return os.open(path, flags, 0o644)


def _codes(modules: Iterable[tuple[str, ModuleType]]) -> Iterator[_Module]:
    """Return modules' code, as Python's own loader has it, and the sources that it is no older than."""
    for name, module in modules:
        spec = module.__spec__
        if spec is None or spec.origin is None or spec.cached is None:
            continue
        found = os.stat(spec.origin)
        code = SourceFileLoader(name, spec.origin).get_code(name)
        if code is not None:
            yield name, (spec.origin, found.st_mtime_ns, found.st_size, spec.cached), code
