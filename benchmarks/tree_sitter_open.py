"""Times how long it takes to open a tree-sitter grammar: `dl` against web-tree-sitter in Node, in one run.

    npm ci --ignore-scripts --prefix examples/node
    python benchmarks/tree_sitter_open.py

Every sample of *main module* and *cold* comes from a process of its own, and the two programs take turns, so
that they meet the same machine. Process start and the import of the library are outside the times.

* *main module*: link `web-tree-sitter.wasm` and make a parser.
* *cold*: the first time the process opens the grammar.
* *warm*: the same file again in the same process. Node loads it into the same main module once more; a `dl`
  linker opens a file only once, so each time is in a new linker, and only the grammar's opening is timed.

*linked* ends when the grammar is linked and initialised; *ready* when every node and field name of it has
been read too, by some hundreds of guest calls, as `Language.load` does.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import click
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
LANGUAGES = ("json", "python", "javascript")

sys.path.insert(0, str(EXAMPLES))

from web_tree_sitter import Language, TreeSitter  # noqa: E402

import dl  # noqa: E402


class Opening(NamedTuple):
    """Milliseconds from the start of an opening."""

    linked: float
    ready: float


class Sample(NamedTuple):
    """What one process measured, in milliseconds."""

    main: float
    cold: Opening
    warm: list[Opening]


def milliseconds_since(start: float) -> float:
    return (time.perf_counter() - start) * 1000


def read_names(tree_sitter: TreeSitter, language: Language) -> None:
    """Reads what web-tree-sitter's `Language` reads at once: the names of visible nodes and of fields."""
    for symbol in range(tree_sitter.call("ts_language_symbol_count", language.address)):
        if tree_sitter.call("ts_language_symbol_type", language.address, symbol) < 2:
            language.type_name(symbol)
    for field in range(tree_sitter.call("ts_language_field_count", language.address) + 1):
        language.field_name(field)


def open_grammar(tree_sitter: TreeSitter, name: str) -> Opening:
    start = time.perf_counter()
    tree_sitter.linker.main_group.dlopen(tree_sitter.grammar(name), dl.RTLD_NOW)
    linked = milliseconds_since(start)
    read_names(tree_sitter, tree_sitter.language(name))
    return Opening(linked, milliseconds_since(start))


def measure_here(packages: Path, name: str, rounds: int) -> Sample:
    """Measures `dl` in this process, which must not have opened the grammar before."""
    # `import dl` imports a file when it is first used: a linker of nothing has most of them imported.
    dl.Linker(None).close()
    start = time.perf_counter()
    with closing(TreeSitter(packages)) as tree_sitter:
        main = milliseconds_since(start)
        cold = open_grammar(tree_sitter, name)
    warm = []
    for _ in range(rounds):
        with closing(TreeSitter(packages)) as tree_sitter:
            warm.append(open_grammar(tree_sitter, name))
    return Sample(main, cold, warm)


def measure(*command: str | Path) -> Sample:
    """The sample that a program prints as JSON."""
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=300).stdout
    sample = json.loads(output)
    return Sample(sample["main"], Opening(*sample["cold"]), [Opening(*opening) for opening in sample["warm"]])


def spread(times: list[float]) -> str:
    """The median, and between which bounds all samples lie."""
    return f"{statistics.median(times):.2f} ({min(times):.2f}-{max(times):.2f})"


@click.command()
@click.option(
    "--packages",
    type=click.Path(file_okay=False, path_type=Path),
    default=EXAMPLES / "node",
    show_default="examples/node",
    help="Folder that holds node_modules.",
)
@click.option("--processes", default=7, show_default=True, help="Fresh processes a grammar and program.")
@click.option("--rounds", default=5, show_default=True, help="Warm openings in each process.")
@click.option("--only", help="Measure `dl` with this grammar in this very process and print JSON.")
def main(packages: Path, processes: int, rounds: int, only: str | None) -> None:
    """Print how long opening each grammar takes, with `dl` and with web-tree-sitter."""
    if not (packages / "node_modules" / "web-tree-sitter").is_dir():
        raise click.ClickException(
            f"no packages in {packages}: npm ci --ignore-scripts --prefix examples/node"
        )
    if only is not None:
        click.echo(json.dumps(measure_here(packages, only, rounds)._asdict()))
        return
    table = Table(title="Opening a grammar, milliseconds: median (fastest-slowest)")
    for heading in ("grammar", "KB", "loader", "main module"):
        table.add_column(heading)
    for heading in ("cold, linked", "cold, ready", "warm, linked", "warm, ready"):
        table.add_column(heading, justify="right")
    for name in LANGUAGES:
        commands: dict[str, list[str | Path]] = {
            "Node": ["node", EXAMPLES / "node" / "time_open.mjs", packages, name, str(rounds)],
            "dl": [sys.executable, __file__, "--packages", packages, "--only", name, "--rounds", str(rounds)],
        }
        samples: dict[str, list[Sample]] = {loader: [] for loader in commands}
        for _ in range(processes):
            for loader, command in commands.items():
                samples[loader].append(measure(*command))
        size = (packages / "node_modules" / f"tree-sitter-{name}" / f"tree-sitter-{name}.wasm").stat().st_size
        for loader, taken in samples.items():
            warm = [opening for sample in taken for opening in sample.warm]
            table.add_row(
                name,
                f"{size / 1000:.0f}",
                loader,
                spread([sample.main for sample in taken]),
                spread([sample.cold.linked for sample in taken]),
                spread([sample.cold.ready for sample in taken]),
                spread([opening.linked for opening in warm]),
                spread([opening.ready for opening in warm]),
            )
        table.add_section()
    console = Console()
    # A table that is cut off to fit says nothing; what reads a pipe can take long lines.
    Console(width=max(console.width, 150)).print(table)


if __name__ == "__main__":
    main()
