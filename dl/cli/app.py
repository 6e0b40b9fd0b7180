"""The command `dlrun`: which subcommand is meant, and how it ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import click

from dl.cli.cache import cache
from dl.cli.deps import deps
from dl.cli.endings import report
from dl.cli.inspection import inspect
from dl.cli.run import run
from dl.cli.stress import stress

EXAMPLES = """\b
Examples:
  dlrun app.wasm one two            run a program with two arguments
  dlrun -L lib --dir /data::. app.wasm --verbose
                                    libraries in lib, the current directory as
                                    /data, and --verbose for the program
  dlrun --trace app.wasm            say what is linked where, and run
  dlrun inspect libfoo.so           what a library says about itself
  dlrun inspect --json libfoo.so    the same for programs
  dlrun deps app.wasm               the tree of libraries, like ldd
  dlrun stress --threads 64         try the linker on this machine
  dlrun cache info                  where compiled code is kept, and how much

\b
Exit codes: the program's own; 2 for a wrong command line, 127 if the program
cannot be linked, 134 if it trapped, 130 for Ctrl-C.

\b
A program whose name is that of a command is reached by its path: ./inspect
"""


class _RunByDefault(click.Group):
    """A group whose first word is a subcommand, or else an option or argument of `run`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {name for parameter in self.get_params(ctx) for name in parameter.opts}
        if args and args[0] not in self.commands and args[0] not in own:
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Options for running"):
            formatter.write_dl(
                [
                    record
                    for p in run.params
                    if isinstance(p, click.Option) and (record := p.get_help_record(ctx))
                ]
            )
        super().format_options(ctx, formatter)


def _version() -> str:
    try:
        return version("wasix-dl")
    except PackageNotFoundError:
        return "unknown (not installed)"


@click.group(
    cls=_RunByDefault,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    subcommand_metavar="APP.WASM [ARGS]...\n       dlrun COMMAND ...",
    epilog=EXAMPLES,
)
@click.version_option(_version(), prog_name="dlrun", message="%(prog)s %(version)s")
def dlrun() -> None:
    """Run WebAssembly programs that are linked to shared libraries, and look into both."""


dlrun.add_command(run)
dlrun.add_command(inspect)
dlrun.add_command(deps)
dlrun.add_command(stress)
dlrun.add_command(cache)


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
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  for the process's life
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code.

    Args:
        arguments: the words after the command's name; None for those of this process.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    _open_standard_streams()
    try:
        if not words:
            raise click.UsageError("no program given")
        # Not `dlrun.main`, which has its own idea of a broken pipe and of exit codes.
        with dlrun.make_context("dlrun", words) as context:
            code = dlrun.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  every ending becomes one line and a code
        return report(error)
    return int(code or 0)
