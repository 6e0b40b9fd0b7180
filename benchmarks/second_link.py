"""Times linking in a new process whose code is on disk: from the plan of a former process, and without one, in turns.

    python benchmarks/second_link.py [--json FILE] [--packages FOLDER]

Both find all compiled code on disk. What a plan saves is generating, rewriting and reading small files. Times are CPU time of a
process of its own for each sample, from before `dl.Linker` until all is linked; starting Python and importing are outside.
With `--packages`, the folder that holds `node_modules` with web-tree-sitter and its grammars, these are linked as well.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import click
from common import ROOT, engine_option, report, spread, take_turns
from rich.table import Table

PROGRAMS = {
    "threads fixture": ["threads/shared/main.wasm"],
    "whole libc (plugins fixture)": ["plugins/shared/main.wasm"],
    "C++ (cpp fixture)": ["cpp/shared/main.wasm"],
}
GRAMMARS = ("json", "python")

CHILD = """
import gc, os, sys, time
gc.disable()
import dl, dl.linker, dl.assembly
with_plan, main, *libraries = sys.argv[1:]
if with_plan == "without":
    dl.assembly.open_plan = lambda *_: None
dl.Linker(None, cache=False).close()  # imports what linking imports
begin = time.process_time()
linker = dl.Linker(main, library_path=[os.path.dirname(main)], imports=IMPORTS, stdout=os.devnull)
for library in libraries:
    linker.main_group.dlopen(library, dl.RTLD_NOW)
print((time.process_time() - begin) * 1000)
linker.close()
"""
TREE_SITTER = """
import sys
sys.path.insert(0, "examples")
from web_tree_sitter import TreeSitter
from pathlib import Path
"""


def milliseconds(script: str, arguments: list[str], environment: dict[str, str]) -> float:
    """The last line that a new process prints."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        timeout=120,
        cwd=ROOT,
    )
    return float(done.stdout.split()[-1])


def scripts(packages: Path | None) -> dict[str, tuple[str, list[str]]]:
    """What is linked, by name: a script and its arguments."""
    found = {
        name: (CHILD.replace("IMPORTS", "None"), [str(ROOT / "fixtures" / path) for path in paths])
        for name, paths in PROGRAMS.items()
    }
    for grammar in GRAMMARS if packages else ():
        script = TREE_SITTER + CHILD.replace(
            "linker = dl.Linker(main, library_path=[os.path.dirname(main)], imports=IMPORTS, stdout=os.devnull)",
            "runtime = TreeSitter(Path(main)); linker = runtime.linker; libraries = [runtime.grammar(libraries[0])]",
        )
        found[f"web-tree-sitter and {grammar}"] = (script, [str(packages), grammar])
    return {name: each for name, each in found.items() if Path(each[1][0]).exists()}


@click.command()
@engine_option
@click.option("--rounds", default=15, show_default=True, help="Processes of each kind.")
@click.option("--packages", type=click.Path(path_type=Path), help="Folder that holds node_modules.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the numbers there as well.")
def main(rounds: int, packages: Path | None, json_file: Path | None) -> None:
    """Print what linking costs in a second process, with and without a plan."""
    table = Table(
        "program",
        "without, ms",
        "with, ms",
        "fastest",
        "median",
        title="linking in a second process, CPU time",
    )
    samples: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as directory:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONPYCACHEPREFIX": f"{directory}/python",
        }
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for name, (script, arguments) in scripts(packages).items():
            ways: dict[str, Callable[[], float]] = {}
            for kind in ("without", "with"):
                own = {**environment, "DLRUN_CACHE": f"{directory}/{kind}"}

                def way(kind: str = kind, own: dict[str, str] = own) -> float:
                    return milliseconds(script, [kind, *arguments], own)  # noqa: B023  called in this turn

                way()
                ways[kind] = way
            found = samples[name] = take_turns(ways, rounds)
            least = min(found["with"]) / min(found["without"])
            median = statistics.median(found["with"]) / statistics.median(found["without"])
            table.add_row(
                name, spread(found["without"], 1), spread(found["with"], 1), f"{least:.2f}", f"{median:.2f}"
            )
    report([table], {"link_ms": samples}, json_file)


if __name__ == "__main__":
    main()
