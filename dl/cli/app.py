"""The command `dlrun`: how it begins, and how it ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from dl.cli.endings import report
from dl.cli.whole_process import release_collector

COMMANDS = {
    "ar": ("dl.cli.build", "Make archives of objects."),
    "bundle": ("dl.cli.bundling", "Put a program and all that it needs into a folder or archive."),
    "cache": ("dl.cli.cache", "Look at compiled code that is kept on disk, check it, or remove it."),
    "c++": ("dl.cli.build", "Compile and link C++."),
    "cc": ("dl.cli.build", "Compile and link C."),
    "compile": ("dl.cli.compiling", "Compile a program and its libraries before they run."),
    "deps": ("dl.cli.deps", "Show the tree of libraries that a module needs, like ldd."),
    "explain": ("dl.cli.explaining", "Show who asks for a symbol, who answers, and who else could."),
    "graph": ("dl.cli.graph", "Draw libraries and bindings: Graphviz text, or SVG."),
    "inspect": ("dl.cli.inspection", "Show what a module or library says about itself."),
    "map": ("dl.cli.mapping", "Show what lies where in linear memory and in the table."),
    "patch": ("dl.cli.patching", "Change needed libraries, run path, symbol names and sections of modules."),
    "new": ("dl.cli.build", "Write a small project that builds and runs."),
    "run": ("dl.cli.run", "Link a program and run it (the default)."),
    "stress": ("dl.cli.stress", "Try the linker with many threads, and compare them."),
}
"""The file of each subcommand, where it has its own name, and its line in the help. Running a program imports only its own."""


COMPLETE = "_DLRUN_COMPLETE"
"""Asks for completion: set by the script that `_DLRUN_COMPLETE=bash_source dlrun` prints, and the like for zsh and fish."""


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _open_standard_streams() -> None:
    """Give the process the standard streams that its starter has closed: empty input, and output that goes nowhere.

    Otherwise the next file or socket that is opened would take their numbers, and the program would read and write that.
    """
    for number in range(3):
        if not _is_open(number):
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115  for the process's life
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  for the process's life
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def is_plain(words: Sequence[str]) -> bool:
    """Whether a command line has nothing but a program and its arguments, so that there is nothing to parse.

    Importing click takes as long as a third of the linker.
    """
    first = words[0]
    return not first.startswith("-") and first not in COMMANDS and os.path.isfile(first)


def run(words: list[str]) -> int:
    """Run the words after the command's name; return the exit code."""
    _open_standard_streams()
    try:
        if COMPLETE in os.environ:
            from dl.cli.commands import complete  # noqa: PLC0415  as below

            return complete(os.environ[COMPLETE])
        if words and is_plain(words):
            from dl.cli.running import Running, run_program  # noqa: PLC0415  the help needs nothing of the linker

            code = run_program(words[0], tuple(words[1:]), Running())
        else:
            from dl.cli.commands import command_line  # noqa: PLC0415  and this needs nothing of click

            release_collector()
            code = command_line(words or ["--help"])
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  every ending becomes one line and a code
        return report(error)
    return code
