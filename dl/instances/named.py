"""Modules by the names that other modules import from: what is registered, what is found, and each of them once.

A name is looked for among `modules=`, then as `NAME`, `NAME.wasm` in the directories of the module path, then by the finders in
their order. A name may have slashes, and leads nowhere outside a directory of the path, by `..` or by a link. What a file
stands for is its resolved path, so two names of one file are one module.

Whatever a finder gave is released once, when the linker is closed, or at once if it is no module.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dl.errors import LinkError, LinkerUsageError
from dl.instances.instance import Instance, Module
from dl.modules.beneath import NotOpenedError, Place, open_beneath
from dl.modules.image import ModuleImage, image_from_bytes, image_from_file, image_from_opened
from dl.modules.locate import Locator
from dl.options import Finder, ModuleSource, listed
from dl.text import shown

if TYPE_CHECKING:
    from dl.instances.program_instances import ProgramInstances

_SUFFIX = ".wasm"
_SOURCES = (bytes, bytearray, memoryview, str, os.PathLike)


class NamedModules:
    """The named modules of one program.

    Args:
        program: makes modules of images.
        locator: bounds what is read.
        modules: modules by name.
        module_path: directories to look in.
        finders: who to ask then.

    `_lock` guards `_modules` and `_images` against two modules for one file, and `_libraries`; a leaf. Nothing is read while it
    is held.

    Attributes:
        first: the names that come before what is built in.
        registered: instances by name.
    """

    def __init__(
        self,
        program: ProgramInstances,
        locator: Locator,
        modules: Mapping[str, ModuleSource] | None,
        module_path: Sequence[str | os.PathLike[str]],
        finders: Sequence[Finder] | Finder,
    ) -> None:
        self._program = program
        self._locator = locator
        self._given = dict(modules or {})
        self._path = [os.path.abspath(os.fspath(one)) for one in listed("module_path", module_path)]
        self._finders: tuple[Finder, ...] = (finders,) if callable(finders) else listed("finder", finders)
        self._lock = threading.Lock()
        self._modules: dict[str, Module] = {}
        self._images: dict[str, Module] = {}
        self._libraries: dict[str, bytes | str] = {}
        self._release = ExitStack()
        self.first = frozenset(self._given)
        self.registered: dict[str, Instance] = {}
        for one in self._finders:
            if not callable(one):
                raise LinkerUsageError(f"a finder is a function, not {one!r}")

    # names that were given

    def register(self, name: str, what: Instance | Module, *, replace: bool) -> None:
        """Give a name to an instance or a module; see `Linker.register`."""
        for value, kinds in ((name, (str,)), (what, (Instance, Module))):
            if not isinstance(value, kinds):
                raise LinkerUsageError(
                    f"a name and an instance or module are needed, not {name!r} and {what!r}"
                )
        if self._program.built_in.is_reserved(name):
            raise LinkerUsageError(f"{name!r} is the name of what is built in")
        reach = self._program.made.reach
        if isinstance(what, Instance) and not all(one.belongs_to(reach) for one in what.exports.values()):
            raise LinkerUsageError(f"{what.name} is an instance of another program; register its module")
        with self._lock:
            module = what.module if isinstance(what, Instance) else what
            other = self.registered[name].module if name in self.registered else self._modules.get(name)
            if other is not None and other is not module and not replace:
                raise LinkerUsageError(
                    f"{name!r} is the name of another module, {other.name}; give replace=True"
                )
            if isinstance(what, Instance):
                self.registered[name] = what
            elif what.registered_as not in (None, name):
                raise LinkerUsageError(f"{what.name} is registered as {what.registered_as!r} already")
            else:
                what.registered_as = name
                if replace:
                    self.registered.pop(name, None)
                self._modules[name] = what

    def find(self, name: str) -> Module | None:
        """Return the module of a name: registered, or found for another module; None if there is none yet."""
        instance = self.registered.get(name)
        return instance.module if instance is not None else self._modules.get(name)

    # names that are looked for

    def is_used(self) -> bool:
        """Whether any name may lead to a module."""
        return bool(self._given or self._path or self._finders or self._modules or self.registered)

    def open(self, name: str) -> Module | None:
        """Return the module that a name means, reading it at its first use; None if there is none.

        Raises:
            DlError: it is there and cannot be read, or a finder failed.
        """
        known = self._modules.get(name)
        if known is not None:
            return known
        found = self._image(name)
        if found is None:
            return None
        image, release = found
        with release, self._lock:
            known = self._modules.get(name)
            if known is None:
                known = self._modules[name] = self._images.setdefault(
                    image.identity, Module(self._program, image)
                )
                self._release.push(release.pop_all())
        return known

    def library(self, name: str) -> bytes | str | None:
        """Return what a finder gives for a library that was not found otherwise: bytes, or a path; None for nothing.

        A finder is asked once for each name that it knows; what it gave is released with the rest, or at once if it is no
        module.

        Raises:
            DlError: it gave something else, or bytes that are no module.
        """
        known = self._libraries.get(name)
        if known is not None or not self._finders:
            return known
        found = self._ask(name)
        if found is None:
            return None
        source, release = found
        with release:
            if isinstance(source, (bytes, bytearray, memoryview)):
                source = bytes(source)
                image_from_bytes(source, name, f"<finder>/{name}")
            else:
                source = os.fspath(source)
            with self._lock:
                known = self._libraries.setdefault(name, source)
                if known is source:
                    self._release.push(release.pop_all())
        return known

    def _image(self, name: str) -> tuple[ModuleImage, ExitStack] | None:
        given = self._given.get(name)
        if given is not None:
            return self._read(given, name), ExitStack()
        image = self._in_path(name)
        if image is not None:
            return image, ExitStack()
        found = self._ask(name)
        if found is None:
            return None
        source, release = found
        with release:
            return self._read(source, name), release.pop_all()

    def _ask(self, name: str) -> tuple[Any, ExitStack] | None:
        """Return what the first finder that knows a name gives for it, and what releases that; None if none does."""
        for finder in self._finders:
            answer: Any = finder(name)
            if answer is None:
                continue
            with ExitStack() as release:
                # In this order: a path of `pathlib` was once a context manager, and a memoryview still is.
                if not isinstance(answer, _SOURCES) and isinstance(answer, AbstractContextManager):
                    answer = release.enter_context(answer)
                if not isinstance(answer, _SOURCES):
                    raise LinkError(name, f"a finder gave {answer!r}, which is neither bytes nor a path")
                return answer, release.pop_all()
        return None

    def _read(self, source: Any, name: str) -> ModuleImage:
        if isinstance(source, (bytes, bytearray, memoryview)):
            return image_from_bytes(bytes(source), name, f"<module>/{name}")
        return image_from_file(Path(source), name, self._locator.budget)

    def _in_path(self, name: str) -> ModuleImage | None:
        if not name or "\0" in name or name.startswith("/"):
            return None
        for directory in self._path:
            for spelled in (name, name + _SUFFIX):
                place = Place(directory, spelled, shown=os.path.join(directory, spelled), guest=spelled)
                try:
                    with open_beneath(place) as file:
                        return image_from_opened(file, name, self._locator.budget)
                except NotOpenedError:
                    continue
        return None

    def places(self, name: str) -> list[str]:
        """Return where a name was looked for, for messages."""
        files = [os.path.join(directory, shown(name) + _SUFFIX) for directory in self._path]
        return [*files, *(f"finder {getattr(one, '__name__', repr(one))}" for one in self._finders)]

    def close(self) -> None:
        """Release what the finders gave, in reverse order; idempotent."""
        self._release.close()
