"""Module images: the bytes of a module, parsed once.

What was parsed is kept by content and name, so a library that is opened again, also by another program of the process, costs no
second parse. Its code is kept by `dl.engine.code_cache`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path

from dl.digests import sha256
from dl.errors import LinkError
from dl.forks import in_forked_child
from dl.glue.names import EXCEPTION_TAG, EXCEPTION_TAG_NAMES
from dl.modules.beneath import NotOpenedError, OpenedFile, host_place, open_beneath
from dl.modules.reading import ReadBudget
from dl.modules.source_lines import LINE_SECTION, SOURCE_LINES, WRITTEN_FROM
from dl.recent import Recent
from dl.records import dataclass, replace
from dl.wasm.module import PARSED_ATTRIBUTES, WasmModule, parse_module
from threads import recording

_PARSED: Recent[WasmModule] = Recent(64 << 20)
in_forked_child(_PARSED.forked)
"""Parsed modules, weighed by the bytes they were parsed from."""

_LATEST: Recent[tuple[bytes, WasmModule]] = Recent(16 << 20)
in_forked_child(_LATEST.forked)
"""Digest and parsed form of what had a name and a length last: to compare bytes takes a twentieth of computing a digest."""


@dataclass(frozen=True)
class ModuleImage:
    """A module as it was found.

    Attributes:
        name: what messages call it: the path it was found under, or the name it was given.
        identity: what makes it the same module when it is asked for again: the resolved path, or the name of bytes.
        path: the resolved path; None for bytes.
        digest: of the content.
        wasm: the parsed module.
        guest_written: whether its file is where the guest can write, so that the guest may have made it.
        source: digest of the bytes of its file, which may have been changed since.
    """

    name: str
    identity: str
    path: Path | None
    digest: bytes
    wasm: WasmModule
    guest_written: bool = False
    source: bytes = b""

    @property
    def base_name(self) -> str:
        """The name other modules' needed lists use."""
        return os.path.basename(self.name) or self.name


def image_from_bytes(data: bytes, name: str, identity: str, path: Path | None = None) -> ModuleImage:
    """Parse a module.

    Raises:
        MalformedModuleError: it is not a valid module.
        UnsupportedModuleError: it needs what this linker does not handle.
    """
    data = bytes(data)
    with recording.span("load", "parse", name, bytes=len(data)):
        latest = _LATEST.find((name, len(data)))
        if latest is not None and latest[1].data == data:
            digest, wasm = latest
        else:
            digest = sha256(data)
            wasm = _PARSED.get((digest, name), lambda: parse_module(data, name), len(data))
            _LATEST.replace((name, len(data)), (digest, wasm), len(data))
    return ModuleImage(name, identity, path, digest, wasm, source=digest)


def image_from_opened(file: OpenedFile, name: str, budget: ReadBudget) -> ModuleImage:
    """Read and parse an open file.

    Args:
        file: it; what was checked when it was opened is what is read.
        name: for messages.
        budget: bounds what is read.

    Raises:
        LinkError: it cannot be read.
        ResourceLimitError: it is larger than the budget allows.
        MalformedModuleError: it is not a valid module.
        UnsupportedModuleError: it needs what this linker does not handle.
    """
    path = _path(file.path)
    latest = _LATEST.find((name, file.size))
    if latest is not None:
        digest, wasm = latest
        with recording.span("load", "compare", name, bytes=file.size):
            is_same = budget.has(file, wasm.data)
        if is_same:
            return ModuleImage(name, file.path, path, digest, wasm, file.guest_written, digest)
    with budget.reading(file, name) as data:
        image = image_from_bytes(data, name, file.path, path)
    return replace(image, guest_written=file.guest_written)


_path = lru_cache(maxsize=1024)(Path)
"""Paths by their texts: to take one apart takes as long as to open a file."""


def image_from_file(path: Path, name: str, budget: ReadBudget | None = None) -> ModuleImage:
    """Read and parse a file that the host names; links are followed wherever they lead.

    Args:
        path: the file.
        name: for messages.
        budget: bounds what is read; None for `MAX_MODULE_BYTES`.

    Raises:
        LinkError: it cannot be opened or read.
        ResourceLimitError: it is larger than the budget allows.
        MalformedModuleError: it is not a valid module.
        UnsupportedModuleError: it needs what this linker does not handle.
    """
    try:
        with open_beneath(host_place(os.fspath(path), confined=False)) as file:
            return image_from_opened(file, name, budget or ReadBudget())
    except NotOpenedError as error:
        special = error.errno == errno.EINVAL
        raise LinkError(name, "not a regular file" if special else str(error)) from error


def with_interruptible_waits(
    image: ModuleImage, slots: Mapping[str, int], compiled_before: Callable[[bytes], bool] | None = None
) -> ModuleImage:
    """Return a module whose atomic waits on shared memory go through the table, for the linker to interrupt.

    Args:
        image: the module.
        slots: table indices of `notify`, `wait32` and `wait64`.
        compiled_before: whether it is known what is compiled of a module with a digest. Then the module has waits, they can
            be rewritten, and it is done only if somebody wants to see the bytes.

    Raises:
        UnsupportedModuleError: it has a wait that cannot be rewritten.
    """
    if not slots:
        return image
    key = tuple(sorted(slots.items()))
    digest = sha256(image.digest + repr(key).encode())
    place = (image.digest, image.name, key)
    wasm = _PARSED.find(place)
    if wasm is None:
        rewritten = partial(_rewritten, image.wasm, dict(slots))
        if compiled_before is not None and compiled_before(digest):
            wasm = _unchanged(image.wasm, rewritten)
        elif _contains_waits(image.wasm):
            wasm = rewritten()
        else:
            return image
        wasm = _PARSED.keep(place, wasm, len(image.wasm.data))
    if image.wasm.custom_sections(LINE_SECTION):
        wasm.derived[WRITTEN_FROM] = image.wasm
    return replace(image, wasm=wasm, digest=digest)


def _contains_waits(wasm: WasmModule) -> bool:
    from dl.wasm.rewrite import contains_wait_instructions  # noqa: PLC0415  a plan knows it

    return contains_wait_instructions(wasm)


def _rewritten(wasm: WasmModule, slots: Mapping[str, int]) -> WasmModule:
    from dl.wasm.rewrite import rewrite_waits  # noqa: PLC0415  as above

    copy = rewrite_waits(
        wasm, notify_slot=slots["notify"], wait32_slot=slots["wait32"], wait64_slot=slots["wait64"]
    )
    return parse_module(copy, wasm.name)


_REWRITTEN = frozenset({"data", "sections", "types", "functions", "code_start", "code_end"})
"""Attributes of a module that rewriting its waits changes, if it has a table."""


def _unchanged(wasm: WasmModule, rewritten: Callable[[], WasmModule]) -> WasmModule:
    """Return a module with other waits that is rewritten when somebody asks for what that changes."""
    changed = _REWRITTEN if wasm.tables else _REWRITTEN | {"tables", "imports", "import_counts"}
    if wasm.dylink is not None and wasm.dylink.unknown:
        changed |= {"dylink"}  # it knows where in the file they are
    return WasmModule.partly(
        rewritten,
        derived={} if wasm.custom_sections(LINE_SECTION) else {SOURCE_LINES: None},
        **{each: getattr(wasm, each) for each in PARSED_ATTRIBUTES if each not in changed},
    )


def with_shared_tags(image: ModuleImage) -> ModuleImage:
    """Return a module that imports the tags of C++ exceptions and `longjmp` if it defined and exported them.

    A run-time library for exceptions may define them, but the modules that need it may have been given the program's by
    then, and with two tags of a name a handler misses exceptions without a word.
    """
    wasm = image.wasm
    if len(wasm.tags) == wasm.import_counts["tag"]:
        return image
    from dl.wasm.rewrite import import_tags  # noqa: PLC0415  few libraries define the tags

    changed = import_tags(wasm, EXCEPTION_TAG_NAMES, EXCEPTION_TAG)
    if changed is wasm.data:
        return image
    digest = sha256(changed)
    parsed = _PARSED.get((digest, image.name), lambda: parse_module(changed, image.name), len(changed))
    return replace(image, wasm=parsed, digest=digest)
