"""Imports as the user gives them: in order, by name, or whole instances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dl.errors import LinkerUsageError
from dl.instances.externals import External
from dl.instances.instance import Given, Instance
from dl.wasm.records import Import


class GivenImports:
    """What was given for the imports of one module.

    Args:
        given: a sequence in the order of the imports, in which None stands for an import that is not given; a mapping by
            (module, field); a mapping by module name, of mappings by field, or of instances; or None.
        imports: the module's imports.
        name: the module's, for messages.

    Raises:
        LinkerUsageError: it is none of these, or a sequence is longer than the imports.
    """

    def __init__(self, given: Given, imports: Sequence[Import], name: str) -> None:
        self._by_position: Sequence[Any] = ()
        self._by_name: dict[tuple[str, str], Any] = {}
        self._by_module: dict[str, Any] = {}
        if given is None:
            return
        other: object = given  # callers need not hold to its type
        if isinstance(given, Mapping):
            for key, value in given.items():
                self._add(key, value, name)
        elif isinstance(other, Sequence) and not isinstance(other, (str, bytes)):
            if len(other) > len(imports):
                raise LinkerUsageError(f"{name} has {len(imports)} imports, but {len(other)} were given")
            self._by_position = other
        else:
            raise LinkerUsageError(f"imports must be a list or a mapping, not {given!r}")

    def _add(self, key: Any, value: Any, name: str) -> None:
        if isinstance(key, tuple) and len(key) == 2 and all(isinstance(part, str) for part in key):
            self._by_name[key] = value
        elif isinstance(key, str) and isinstance(value, (Instance, Mapping)):
            self._by_module[key] = value.exports if isinstance(value, Instance) else value
        else:
            raise LinkerUsageError(
                f"imports of {name}: {key!r} must be (module, field), or a module's name with an instance or a mapping by field"
            )

    def find(self, position: int, entry: Import) -> Any:
        """Return what was given for an import; None for nothing."""
        if position < len(self._by_position):
            return self._by_position[position]
        found = self._by_name.get((entry.module, entry.name))
        return self._by_module.get(entry.module, {}).get(entry.name) if found is None else found

    def provider(self, position: int, entry: Import) -> str:
        """Return what messages call who gave an import."""
        value = self.find(position, entry)
        return "what was given" if isinstance(value, External) else "the value that was given"
