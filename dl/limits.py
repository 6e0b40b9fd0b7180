"""What one program may take of the host, bounded."""

from __future__ import annotations

from dataclasses import dataclass, fields

from dl.errors import LinkerUsageError


@dataclass(frozen=True)
class Limits:
    """Bounds of one program. At each of them the operation fails with an error that names the bound, and nothing is half done.

    The guest gets an errno where it asks through a system call; the host gets `ResourceLimitError`.

    Attributes:
        memory_pages: linear memory, pages of 64 KiB, 1 to 65536.
        table_elements: elements of the table; more are refused at the latest by the engine.
        threads: threads that the guest has at a time, each of which is a thread of the host.
        libraries: modules that are loaded at a time, the main module included.
        module_bytes: bytes of one module that is read.
        load_bytes: bytes of all modules that are being read at a time.
        closures: table indices for closures, callbacks and dynamic calls that are in use at a time.
        pipe_bytes: bytes that all of the guest's pipes may hold together, each of them 64 KiB.
        descriptors: open descriptors of the guest.
    """

    memory_pages: int = 65_536
    table_elements: int = 10_000_000
    threads: int = 4096
    libraries: int = 10_000
    module_bytes: int = 1 << 30
    load_bytes: int = 1 << 30
    closures: int = 1_000_000
    pipe_bytes: int = 64 << 20
    descriptors: int = 4096

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise LinkerUsageError(f"limits: {field.name} must be a positive integer, not {value!r}")
