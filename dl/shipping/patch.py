"""`dlrun patch`: change what a library says about itself, and refuse what would keep it from being linked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from dl.errors import DlError, PatchError
from dl.glue.names import EXCEPTION_TAG_NAMES, STACK_POINTER_NAME, TABLE_NAME
from dl.link.rehearse import Link
from dl.modules.image import ModuleImage, image_from_bytes
from dl.modules.symbols import INTERNAL_EXPORTS
from dl.records import dataclass, replace
from dl.text import first_of
from dl.wasm.edit import Changes, RefusedEditError, edited

RESERVED = INTERNAL_EXPORTS | {
    "memory",
    "main",
    "__main_argc_argv",
    "__main_void",
    "__heap_base",
    "__heap_end",
    "__stack_low",
    "__stack_high",
    TABLE_NAME,
    STACK_POINTER_NAME,
    *EXCEPTION_TAG_NAMES,
}
"""Names to which the linker gives a meaning: a module without them would be linked as another one, or not at all."""

_OFFSETS = ("sourceMappingURL",)
_UNLINKED = ("undefined", "refused", "late")


@dataclass(frozen=True)
class Patched:
    """A module with changes.

    Attributes:
        image: it, as it would be found in the place of the old one.
        notes: what its user should know.
    """

    image: ModuleImage
    notes: tuple[str, ...]

    @property
    def wasm(self) -> bytes:
        """Its bytes."""
        return self.image.wasm.data


def patch(
    images: Sequence[ModuleImage],
    changes: Changes,
    linked: Callable[[ModuleImage, Mapping[str, ModuleImage]], Sequence[Link]] | None,
) -> list[Patched]:
    """Return modules with changes, which are checked by linking them, each with the others as they have become.

    Args:
        images: the modules, as they were found.
        changes: what to change in each.
        linked: returns what the imports of a module, and of all that it needs, would be linked to, with some modules in the
            place of those of the same identity; None to leave that check out.

    Raises:
        PatchError: there is nothing to change in one; the result would be no module; or something that could be linked could
            not be linked any longer.
    """
    results = [_patched(image, changes) for image in images]
    if linked is None:
        return results
    become = {result.image.identity: result.image for result in results}
    checked = []
    for before, result in zip(images, results, strict=True):
        notes = _check_links(
            before, changes, partial(linked, before, {}), partial(linked, result.image, become)
        )
        checked.append(replace(result, notes=(*result.notes, *notes)))
    return checked


def _patched(image: ModuleImage, changes: Changes) -> Patched:
    _check_names(image, changes)
    try:
        wasm = edited(image.wasm, changes, RESERVED)
    except RefusedEditError as error:
        raise PatchError(image.name, str(error)) from None
    result = image_from_bytes(wasm, image.name, image.identity, image.path)
    if wasm == image.wasm.data:
        return Patched(result, ())
    kept = [section.name for section in result.wasm.sections if section.name in _OFFSETS]
    notes = [f"{name}: positions in it count from the start of the file, and have moved" for name in kept]
    signed = [s.name for s in result.wasm.sections if s.name.startswith("signature")]
    notes += [f"section {name!r} signs the bytes as they were" for name in signed]
    return Patched(result, tuple(notes))


def _check_names(image: ModuleImage, changes: Changes) -> None:
    names = [
        *changes.add_needed,
        *changes.replace_needed.values(),
        *(changes.run_path or ()),
        *changes.add_run_path,
        *changes.rename.values(),
        *changes.rename_exports.values(),
        *changes.rename_imports.values(),
    ]
    for name in names:
        if not name or "\0" in name or len(name.encode("utf-8", "surrogateescape")) > 4095:
            raise PatchError(image.name, f"{name[:80]!r} is not a name of 1 to 4095 bytes")
        try:
            name.encode()
        except UnicodeEncodeError:
            raise PatchError(image.name, f"{name[:80]!r} is not UTF-8") from None


def _check_links(
    module: ModuleImage,
    changes: Changes,
    before: Callable[[], Sequence[Link]],
    after: Callable[[], Sequence[Link]],
) -> list[str]:
    """Compare what is linked before and after; return what should be said.

    Raises:
        PatchError: the module could be linked, and cannot be any longer; or an import of it or of what it needs could.
    """
    try:
        old = open_imports(before())
    except DlError as error:
        try:
            after()
        except DlError as now:
            return [f"not checked by linking it, which was not possible before either: {now}"]
        return [f"could not be linked before: {error}"]
    try:
        new = open_imports(after())
    except DlError as error:
        raise PatchError(module.name, f"could not be linked any longer: {error}") from error
    renamed = {**changes.rename, **changes.rename_imports}
    known = {(importer, renamed.get(name, name), state) for importer, name, state in old}
    worse = [one for one in new if one not in known]
    lost = [f"{importer}: {name}" for importer, name, state in worse if state != "late"]
    if lost:
        raise PatchError(
            module.name, f"could not be linked any longer: nothing fits {first_of(lost, len(lost))}"
        )
    late = [f"{importer}: {name}" for importer, name, state in worse if state == "late"]
    return [f"nothing defines {first_of(late, len(late))}, looked for when called"] if late else []


def open_imports(links: Iterable[Link]) -> list[tuple[str, str, str]]:
    """Return the imports that are linked to nothing: importer, symbol, state."""
    return [(link.importer, link.entry.name, link.state) for link in links if link.state in _UNLINKED]
