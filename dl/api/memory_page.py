"""The page that shows a memory map: two strips, drawn to scale as far as small regions stay visible, and two lists."""

from __future__ import annotations

import html
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from dl.api.notebook import MOST_ROWS, shortened
from dl.records import replace

if TYPE_CHECKING:
    from dl.api.memory_map import MapRegion

_COLOURS = {
    "data": "#4e79a7",
    "stack": "#e15759",
    "thread-local": "#b07aa1",
    "heap": "#59a14f",
    "block": "#f28e2b",
    "other": "#9c9c9c",
    "reserved": "#79706e",
    "functions": "#4e79a7",
    "host": "#f28e2b",
    "closures": "#b07aa1",
    "resting": "#edc948",
    "free": "#dfe3e8",
    "null": "#eef0f2",
}

_STYLE = """
.dl-map { font: 14px/1.4 system-ui, sans-serif; color: #222; background: #fff; padding: 1.5em; max-width: 75em; margin: auto; }
.dl-map h1 { font-size: 1.3em; margin: 0 0 .2em; overflow-wrap: anywhere; }
.dl-map h2 { font-size: 1.05em; margin: 1.6em 0 .5em; }
.dl-map .strip { display: flex; height: 3em; border: 1px solid #888; border-radius: 3px; overflow: hidden; }
.dl-map .strip div { min-width: 3px; border-right: 1px solid #fff; }
.dl-map .legend span { display: inline-block; margin: .5em 1em 0 0; white-space: nowrap; }
.dl-map i { display: inline-block; width: .9em; height: .9em; border-radius: 2px; border: 1px solid #0003;
  margin-right: .4em; vertical-align: -1px; }
.dl-map table { border-collapse: collapse; width: 100%;
  table-layout: auto !important; margin-top: .8em; font-variant-numeric: tabular-nums; }
.dl-map th, .dl-map td { text-align: left !important; /* notebooks have rules of their own */
  padding: .2em .8em .2em 0; border-bottom: 1px solid #e4e4e4; vertical-align: top; }
.dl-map td.n, .dl-map th.n { text-align: right !important; white-space: nowrap;
  font-family: ui-monospace, monospace; font-size: .92em; }
.dl-map td.o { overflow-wrap: anywhere; }
"""


def page(program: str, memory: Sequence[MapRegion], table: Sequence[MapRegion], *, whole: bool) -> str:
    """Return a memory map as HTML.

    Args:
        program: the program's name.
        memory: regions of linear memory.
        table: regions of the table.
        whole: whether it is a page of its own, and not a part of one.
    """
    if not whole:  # a notebook keeps what it shows
        memory, table = [
            [replace(region, owner=shortened(region.owner)) for region in regions]
            for regions in (memory, table)
        ]
    most = sys.maxsize if whole else MOST_ROWS
    total = sum(region.size for region in memory)
    entries = sum(region.size for region in table)
    body = (
        f'<div class="dl-map"><style>{_STYLE}</style><h1>{html.escape(shortened(program))}</h1>'
        f"<div>{total:,} bytes of linear memory ({total // 65536:,} pages), a table of {entries:,} entries</div>"
        f"<h2>Linear memory</h2>{_section(memory, 'bytes', lambda number: f'{number:#010x}', most)}"
        f"<h2>Table</h2>{_section(table, 'entries', str, most)}</div>"
    )
    if not whole:
        return body
    title = html.escape(f"Memory map of {program}")
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"></head>'
        f'<body style="margin:0">{body}</body></html>\n'
    )


def _section(regions: Sequence[MapRegion], unit: str, shown: Callable[[int], str], most: int) -> str:
    """Return one part of the page; of more regions than it may have, the largest, and how many are left out."""
    if not regions:
        return "<div>none</div>"
    total = sum(region.size for region in regions)
    legend, left = _legend(regions, unit), len(regions) - most
    if left > 0:
        largest = sorted(regions, key=lambda region: region.size, reverse=True)[:most]
        regions = sorted(largest, key=lambda region: region.start)
    strip = "".join(
        f'<div style="flex:{_width(region.size, total)};background:{_COLOURS[region.kind]}"'
        f' title="{_title(region, unit, shown)}"></div>'
        for region in regions
    )
    rows = "".join(
        f'<tr><td class="n">{shown(region.start)}</td><td class="n">{shown(region.end)}</td>'
        f'<td class="n">{region.size:,}</td><td>{_swatch(region.kind)}{region.kind}</td>'
        f'<td class="o">{html.escape(region.owner)}</td></tr>'
        for region in regions
    )
    head = f'<tr><th class="n">from</th><th class="n">to</th><th class="n">{unit}</th><th>what</th><th>whose</th></tr>'
    more = f"<div>and {left:,} smaller ones more: <code>to_html()</code> has all</div>" if left > 0 else ""
    return f'<div class="strip">{strip}</div>{legend}<table>{head}{rows}</table>{more}'


def _width(size: int, total: int) -> str:
    """Return a region's share of the strip: of the square root, so that a library beside a heap can still be seen."""
    return f"{(size / total) ** 0.5 * 100:.3f} 1 0"


def _title(region: MapRegion, unit: str, shown: Callable[[int], str]) -> str:
    owner = f" of {region.owner}" if region.owner else ""
    return html.escape(
        f"{shown(region.start)} to {shown(region.end)}: {region.size:,} {unit}, {region.kind}{owner}"
    )


def _swatch(kind: str) -> str:
    return f'<i style="background:{_COLOURS[kind]}"></i>'


def _legend(regions: Iterable[MapRegion], unit: str) -> str:
    sums: dict[str, int] = {}
    for region in regions:
        sums[region.kind] = sums.get(region.kind, 0) + region.size
    parts = "".join(f"<span>{_swatch(kind)}{kind}: {size:,} {unit}</span>" for kind, size in sums.items())
    return f'<div class="legend">{parts}</div>'
