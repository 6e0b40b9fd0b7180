"""Linear memory and table of a program, as a person reads them: what lies where, whose it is, and what is free."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dl.dlfcn import MAIN_HANDLE
from dl.link.addresses import data_range
from dl.program.table import RESERVED_TABLE_SLOTS
from dl.records import dataclass

if TYPE_CHECKING:
    from dl.groups.registry import Groups
    from dl.program.closure_slots import ClosureSlots
    from dl.program.program import Program


@dataclass(frozen=True)
class MapRegion:
    """A run of linear memory, in bytes, or of table indices.

    Attributes:
        start: its first byte or index.
        end: the one after its last.
        kind: what it is: `data`, `stack`, `thread-local`, `heap`, `block`, `free`, or `other` for what nobody has told the
            linker about; in the table `reserved`, `functions`, `host`, `closures`, `resting`, `free` or `null`.
        owner: whose it is: a module, a thread or a purpose; empty for nobody's.
    """

    start: int
    end: int
    kind: str
    owner: str = ""

    @property
    def size(self) -> int:
        """Bytes, or table indices."""
        return self.end - self.start


@dataclass(frozen=True)
class MemoryMap:
    """What lies where, at one moment; made by `Linker.memory_map`. Printed, it is a list like that of `/proc/self/maps`.

    Attributes:
        program: name of the program.
        memory: the regions of linear memory, by address, without gaps; none if the program has no memory that the host reaches.
        table: the regions of the table, by index, without gaps.
    """

    program: str
    memory: tuple[MapRegion, ...]
    table: tuple[MapRegion, ...]

    def __str__(self) -> str:
        lines = [
            f"{region.start:08x}-{region.end:08x} {region.size:>12,} bytes  {region.kind:<12} {region.owner}".rstrip()
            for region in self.memory
        ]
        lines += [
            f"table {region.start:>6}-{region.end - 1:<6} {region.size:>8,}  {region.kind:<12} {region.owner}".rstrip()
            for region in self.table
        ]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<MemoryMap of {self.program}: {len(self.memory)} regions of memory, {len(self.table)} of the table>"

    def to_html(self) -> str:
        """Return a page that shows it, self-contained: to be saved, and looked at in a browser."""
        from dl.api.memory_page import page  # noqa: PLC0415  seldom shown

        return page(self.program, self.memory, self.table, whole=True)

    def _repr_html_(self) -> str:
        """What Jupyter shows."""
        from dl.api.memory_page import page  # noqa: PLC0415  seldom shown

        return page(self.program, self.memory, self.table, whole=False)


def memory_map(program: Program, groups: Groups, slots: ClosureSlots) -> MemoryMap:
    """Return where everything lies; see `Linker.memory_map`."""
    size = program.linear.size if program.linear is not None else 0
    return MemoryMap(
        program.options.name,
        tuple(_without_gaps(_memory(program, groups, size), 0, size, "other")),
        tuple(_without_gaps(_table(program, slots), 0, program.state.table.length, "null")),
    )


def _memory(program: Program, groups: Groups, size: int) -> Iterator[MapRegion]:
    """Yield what is known of linear memory; where regions overlap, the first counts."""
    state, side = program.state, program.side_memory
    modules = state.modules.copy()
    for module in modules.values():
        first, end = data_range(module)
        if end > first:
            yield MapRegion(first, end, "data", module.name)
    stacks: dict[int, str] = {}
    for group in groups.all():
        for handle, block in group.instances.thread_local_blocks().items():
            owner = modules[handle].name if handle in modules else "a library that is closed"
            yield MapRegion(
                block.address, block.address + block.size, "thread-local", f"{owner}, {group.name}"
            )
        if group.instances.stack_top:
            stacks.setdefault(group.instances.stack_top, group.name)
    addresses = state.linker_addresses
    low, high = addresses.get("__stack_low", 0), addresses.get("__stack_high", 0)
    if high > low:
        yield MapRegion(low, high, "stack", stacks.get(high, "main"))
    if side is not None:
        for handed in side.blocks():
            end = handed.address + handed.size
            if end in stacks:
                yield MapRegion(handed.address, end, "stack", stacks[end])
            elif "stack" in handed.purpose:
                yield MapRegion(handed.address, end, "stack", handed.purpose)
            elif handed.purpose == "thread-local storage":
                yield MapRegion(
                    handed.address, end, "thread-local", "in stock, or of a thread that is ending"
                )
            else:
                yield MapRegion(handed.address, end, "block", handed.purpose)
        yield from (MapRegion(start, end, "free") for start, end in side.free_runs())
    heap = addresses.get("__heap_base", 0)
    main = modules.get(MAIN_HANDLE)
    if heap and main is not None:
        yield MapRegion(heap, size, "heap", main.name)


def _table(program: Program, slots: ClosureSlots) -> Iterator[MapRegion]:
    """Yield what is known of the table; where regions overlap, the first counts."""
    state, main = program.state, program.main
    yield MapRegion(
        0, min(RESERVED_TABLE_SLOTS, main.table_base or RESERVED_TABLE_SLOTS), "reserved", "the linker"
    )
    modules = state.modules.copy()
    for (_, name, _), address in state.host_addresses.copy().items():
        yield MapRegion(address, address + 1, "host", name)
    for module in modules.values():
        if module.elements is not None:
            yield MapRegion(module.elements.address, module.elements.end, "functions", module.name)
        if module.handle == MAIN_HANDLE:
            yield MapRegion(main.table_base, main.table_length, "functions", module.name)
    for library in state.resting.libraries:
        yield MapRegion(library.region.address, library.region.end, "resting", f"{library.name}, closed")
    used, free = slots.shares()
    for index in sorted(used | free):
        yield MapRegion(
            index, index + 1, "closures" if index in used else "free", "closure" if index in used else ""
        )
    yield from (MapRegion(start, end, "free") for start, end in state.table.free_runs())


def _without_gaps(found: Iterator[MapRegion], start: int, end: int, unknown: str) -> Iterator[MapRegion]:
    """Yield regions by their start, cut where an earlier one has the place, joined where they go on, and gaps filled."""
    taken: list[MapRegion] = []
    for region in found:
        _place(region, taken)
    at, last = start, None
    for region in taken:
        cut = MapRegion(max(region.start, start), min(region.end, end), region.kind, region.owner)
        if cut.end <= cut.start:
            continue
        if cut.start > at:
            if last is not None:
                yield last
            last = MapRegion(at, cut.start, unknown)
        if last is not None and last.end == cut.start and (last.kind, last.owner) == (cut.kind, cut.owner):
            last = MapRegion(last.start, cut.end, cut.kind, cut.owner)
        else:
            if last is not None:
                yield last
            last = cut
        at = cut.end
    if last is not None:
        yield last
    if at < end:
        yield MapRegion(at, end, unknown)


def _place(region: MapRegion, taken: list[MapRegion]) -> None:
    """Enter those parts of a region that no other one has into a list that is sorted by start."""
    place = bisect_right(taken, region.start, key=lambda one: one.start)
    if place and taken[place - 1].end > region.start:
        place -= 1
    at = region.start
    while at < region.end:
        following = taken[place] if place < len(taken) else None
        end = region.end if following is None else min(region.end, following.start)
        if at < end:
            taken.insert(place, MapRegion(at, end, region.kind, region.owner))
            place += 1
        if following is None:
            return
        at = max(at, following.end)
        place += 1
