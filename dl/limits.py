"""What one program may take of the host, bounded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dl.errors import LinkerUsageError, ResourceLimitError
from dl.records import dataclass, field, fields

MOST_PAGES = 65_536


def _bound(default: int, option: str, unit: str, what: str) -> Any:
    return field(default=default, metadata={"option": option, "unit": unit, "what": what})


@dataclass(frozen=True)
class Limits:
    """Bounds of one program. At each of them the operation fails with an error that names the bound, and nothing is half done.

    The guest gets an errno where it asks through a system call; the host gets `ResourceLimitError`. See docs/security.md.

    Attributes:
        memory_pages: linear memory, pages of 64 KiB, 1 to 65536.
        table_elements: elements of the table.
        threads: threads at a time beside the one that made the linker: those that the guest starts, and the host's.
        libraries: modules that are loaded at a time, the main module included.
        code_modules: compiled modules in use at a time: about three for each library, one for each signature of closures. Each
            takes 2 memory maps, of which a process of Linux has 65,530.
        instances: instances of ordinary modules, and externals that the host makes, over the program's life: none of them is
            freed before its end.
        instance_bytes: bytes of the memories of all instances, and of those that the host makes, together. Compared when one is
            made and when the host grows one; code that grows its own is bounded by memory_pages for each.
        module_bytes: bytes of one module that is read.
        load_bytes: bytes of all modules that are being read at a time.
        closures: table indices for closures, callbacks and dynamic calls that are in use at a time.
        pipe_bytes: bytes that all of the guest's pipes may hold together, each of them 64 KiB.
        descriptors: open descriptors of the guest.
    """

    memory_pages: int = _bound(MOST_PAGES, "max-memory", "pages", "linear memory, in pages of 64k")
    table_elements: int = _bound(10_000_000, "max-table-elements", "elements", "elements of the table")
    threads: int = _bound(4096, "max-threads", "threads", "threads at a time beside the first")
    libraries: int = _bound(10_000, "max-libraries", "modules", "modules loaded at a time")
    code_modules: int = _bound(
        16_000, "max-code-modules", "modules", "compiled modules in use at a time, about three a library"
    )
    instances: int = _bound(
        100_000, "max-instances", "instances", "instances of ordinary modules and externals of the host's"
    )
    instance_bytes: int = _bound(
        1 << 47, "max-instance-bytes", "bytes", "memories of instances and of the host's, together"
    )
    module_bytes: int = _bound(1 << 30, "max-module-bytes", "bytes", "bytes of one module")
    load_bytes: int = _bound(1 << 30, "max-load-bytes", "bytes", "bytes of modules being read at a time")
    closures: int = _bound(
        1_000_000, "max-closures", "indices", "table indices for closures in use at a time"
    )
    pipe_bytes: int = _bound(64 << 20, "max-pipe-bytes", "bytes", "bytes that all pipes may hold together")
    descriptors: int = _bound(4096, "max-descriptors", "descriptors", "open descriptors")

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise LinkerUsageError(f"limits: {each.name} must be a positive integer, not {value!r}")
        if self.memory_pages > MOST_PAGES:
            raise LinkerUsageError(
                f"limits: memory_pages must be at most {MOST_PAGES}, not {self.memory_pages}"
            )

    def refusal(self, name: str, subject: str, reason: str) -> ResourceLimitError:
        """Return the error for what would exceed a bound: it says what the bound is, and how to raise it.

        Args:
            name: of the attribute.
            subject: what needed more.
            reason: what it needed, or what there is already.
        """
        option = limit_options()[name]["option"]
        bound = f"the limit is {getattr(self, name)} (Limits.{name}, dlrun --{option})"
        return ResourceLimitError(subject, f"{reason}: {bound}", name)


def limit_options() -> Mapping[str, Mapping[str, str]]:
    """Return what a command line calls each bound (`option`), what it counts (`unit`) and what it bounds (`what`)."""
    return {each.name: each.metadata for each in fields(Limits)}
