"""The command `dlrun`: which subcommand is meant, and how it ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click
from click.shell_completion import CompletionItem, shell_complete

from dl.cli.endings import report
from dl.cli.modules import meant_command
from dl.cli.run import run

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
  dlrun deps -r -u app.wasm         what is undefined, and what is needed in vain
  dlrun explain app.wasm malloc     who asks for a symbol, and who answers
  dlrun bundle app.wasm             app and its libraries as app.zip
  dlrun app.zip                     run that, anywhere
  dlrun patch --set-rpath '$ORIGIN/lib' app.wasm
                                    say where it finds its libraries
  dlrun compile app.wasm libfoo.so  compile both now, and run faster later
  dlrun graph -o app.svg app.wasm   draw its libraries and what binds them
  dlrun map -o map.html app.wasm    what lies where in memory and table
  dlrun stress --threads 64         try the linker on this machine
  dlrun cache info                  where compiled code is kept, and how much

\b
Exit codes: the program's own; 2 for a wrong command line, 127 if the program
cannot be linked, 134 if it trapped, 130 for Ctrl-C.

\b
A program whose name is that of a command is reached by its path: ./inspect
"""


_COMMANDS = {
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

_ATTRIBUTES = {"c++": "cxx"}
"""The names in Python of subcommands whose own are none."""


class _RunByDefault(click.Group):
    """A group whose first word is a subcommand, or else an option or argument of `run`."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(
            import_module(_COMMANDS[cmd_name][0]), _ATTRIBUTES.get(cmd_name, cmd_name)
        )
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {name for parameter in self.get_params(ctx) for name in parameter.opts}
        if args and args[0] not in _COMMANDS and args[0] not in own:
            meant = meant_command(args[0], list(_COMMANDS))
            if meant is not None and not ctx.resilient_parsing:
                raise click.UsageError(
                    f"{args[0]!r} is neither a file nor a command; did you mean {meant!r}?", ctx
                )
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return commands, and tell the shell to complete files: the first word may be either."""
        return [*super().shell_complete(ctx, incomplete), CompletionItem(incomplete, type="file")]

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


def _print_version(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:
        return
    import platform  # noqa: PLC0415  as costly to import as click
    from importlib.metadata import version  # noqa: PLC0415

    from dl import __version__  # noqa: PLC0415

    python = f"{platform.python_implementation()} {platform.python_version()}"
    click.echo(f"dlrun {__version__} (wasmtime {version('wasmtime')}, {python})")
    context.exit()


@click.group(
    cls=_RunByDefault,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    subcommand_metavar="APP.WASM [ARGS]...\n       dlrun COMMAND ...",
    epilog=EXAMPLES,
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version and exit.",
)
def dlrun() -> None:
    """Run WebAssembly programs that are linked to shared libraries, and look into both."""


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
        if COMPLETE in os.environ:
            return shell_complete(dlrun, {}, "dlrun", COMPLETE, os.environ[COMPLETE])
        if not words:
            words = ["--help"]
        # Not `dlrun.main`, which has its own idea of a broken pipe and of exit codes.
        with dlrun.make_context("dlrun", words) as context:
            code = dlrun.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  every ending becomes one line and a code
        return report(error)
    return int(code or 0)
