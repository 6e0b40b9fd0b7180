"""What the native engines have in common: how code is named and serialized, and what it depends on."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING

from dl.digests import sha256
from dl.engine.capabilities import Capabilities
from dl.engine.machine import machine_fingerprint
from dl.engine.native import stacks
from dl.engine.native.slots import new_slots
from dl.errors import EngineError
from memory import Uncopied

if TYPE_CHECKING:
    from dl.engine.protocol import CompiledModule, Slots

_NAME_BYTES = 16
"""Bytes of the digest of a module's content that its code carries as its name, in hexadecimal."""


def code_name(wasm: bytes) -> str:
    """Return what the code of a module calls itself in stack traces: the beginning of the digest of its content."""
    return sha256(wasm).hex()[: 2 * _NAME_BYTES]


class NativeEngine(Uncopied, ABC):
    """What is the same in every native engine.

    Args:
        capabilities: what it can do.
        max_stack: bytes of stack that guest code may use; None for 1 MiB, or what the stacks of new threads have room for if
            that is less.

    Attributes:
        capabilities: what it can do.
        max_stack: bytes of stack.
    """

    def __init__(self, capabilities: Capabilities, max_stack: int | None) -> None:
        self.capabilities = capabilities
        self.max_stack = max_stack or stacks.fitting()

    @abstractmethod
    def _version(self) -> str:
        """Return the engine's name, and the versions that its code depends on. Called when first needed: it may be slow."""

    @cached_property
    def fingerprint(self) -> str:
        # The stack's size is no property of the code: wasmtime's functions compare with a limit that the store holds, and
        # Wasmer's run on a stack of their own.
        settings = ",".join(name for name, able in vars(self.capabilities).items() if able)
        return f"{self._version()}; {settings}; {machine_fingerprint()}"

    def slots(self, count: int) -> Slots:
        return new_slots(count)

    def _named_code(self, name: str, native: bytes) -> bytes:
        """Return the serialized form of code: what the engine's library makes of it, which may be mapped, and its name."""
        return native + bytes.fromhex(name)

    def _split_code(self, code: bytes) -> tuple[str, bytes]:
        """Return the two parts of a serialized form."""
        return code[-_NAME_BYTES:].hex(), code[:-_NAME_BYTES]

    def map_code(self, file: int, length: int) -> CompiledModule | None:  # noqa: ARG002  engines that can have their own
        return None

    def _mapped_name(self, file: int, length: int) -> str:
        """Return the name of code that stands at the beginning of a file."""
        return os.pread(file, _NAME_BYTES, length - _NAME_BYTES).hex()

    def _check_serialization(self) -> None:
        if not self.capabilities.serialization:
            raise EngineError("this engine cannot serialize code: it was made without serialization")
