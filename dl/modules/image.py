"""Module images: the bytes of a module, parsed once.

What was parsed is kept by content and name, so a library that is opened again, also by another program of the process, costs no
second parse. Its code is kept by `dl.engine.code_cache`.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dl.errors import LinkError, ResourceLimitError
from dl.glue.names import EXCEPTION_TAG, EXCEPTION_TAG_NAMES
from dl.recent import Recent
from dl.wasm.module import WasmModule, parse_module
from dl.wasm.rewrite import contains_wait_instructions, import_tags, rewrite_waits

MAX_IMAGE_BYTES = 1 << 30
"""Largest module that is read, 1 GiB: the limit that engines and toolchains set on a binary."""

_PARSED: Recent[WasmModule] = Recent(64 << 20)
"""Parsed modules, weighed by the bytes they were parsed from."""


@dataclass(frozen=True)
class ModuleImage:
    """A module as it was found.

    Attributes:
        name: what messages call it: the path it was found under, or the name it was given.
        identity: what makes it the same module when it is asked for again: the resolved path, or the name of bytes.
        path: the resolved path; None for bytes.
        digest: of the content.
        wasm: the parsed module.
    """

    name: str
    identity: str
    path: Path | None
    digest: bytes
    wasm: WasmModule

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
    digest = hashlib.sha256(data).digest()
    wasm = _PARSED.get((digest, name), lambda: parse_module(data, name), len(data))
    return ModuleImage(name, identity, path, digest, wasm)


def image_from_file(path: Path, name: str) -> ModuleImage:
    """Read and parse a file.

    Raises:
        LinkError: it cannot be read.
        ResourceLimitError: it is larger than `MAX_IMAGE_BYTES`.
        MalformedModuleError: it is not a valid module.
        UnsupportedModuleError: it needs what this linker does not handle.
    """
    try:
        resolved = path.resolve(strict=True)
        # Looked at before it is opened: opening a pipe waits for its writer, and a device may have no end.
        if not stat.S_ISREG(resolved.stat().st_mode) and not resolved.is_dir():
            raise LinkError(name, "not a regular file")
        with resolved.open("rb") as file:
            data = file.read(MAX_IMAGE_BYTES + 1)
        if len(data) > MAX_IMAGE_BYTES:
            raise ResourceLimitError(name, f"a file of more than {MAX_IMAGE_BYTES} bytes")
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise LinkError(name, reason.lower()) from error
    return image_from_bytes(data, name, str(resolved), resolved)


def with_interruptible_waits(image: ModuleImage, slots: Mapping[str, int]) -> ModuleImage:
    """Return a module whose atomic waits on shared memory go through the table, for the linker to interrupt.

    Args:
        image: the module.
        slots: table indices of `notify`, `wait32` and `wait64`.

    Raises:
        UnsupportedModuleError: it has a wait that cannot be rewritten.
    """
    if not slots or not contains_wait_instructions(image.wasm):
        return image
    key = tuple(sorted(slots.items()))
    wasm = _PARSED.get(
        (image.digest, image.name, key),
        lambda: parse_module(
            rewrite_waits(
                image.wasm,
                notify_slot=slots["notify"],
                wait32_slot=slots["wait32"],
                wait64_slot=slots["wait64"],
            ),
            image.name,
        ),
        len(image.wasm.data),
    )
    return replace(image, wasm=wasm, digest=hashlib.sha256(image.digest + repr(key).encode()).digest())


def with_shared_tags(image: ModuleImage) -> ModuleImage:
    """Return a module that imports the tags of C++ exceptions and `longjmp` if it defined and exported them.

    A run-time library for exceptions may define them, but the modules that need it may have been given the program's by
    then, and with two tags of a name a handler misses exceptions without a word.
    """
    wasm = image.wasm
    if len(wasm.tags) == wasm.import_counts["tag"]:
        return image
    changed = import_tags(wasm, EXCEPTION_TAG_NAMES, EXCEPTION_TAG)
    if changed is wasm.data:
        return image
    digest = hashlib.sha256(changed).digest()
    parsed = _PARSED.get((digest, image.name), lambda: parse_module(changed, image.name), len(changed))
    return replace(image, wasm=parsed, digest=digest)
