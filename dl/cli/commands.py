"""The commands of `dlrun` as click knows them: which one is meant, and its help."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import click
from click.shell_completion import CompletionItem, add_completion_class, shell_complete

from dl.cli.app import COMMANDS, COMPLETE
from dl.cli.modules import meant_command
from dl.cli.run import run

EXAMPLES = """\b
Examples:
  dlrun app.wasm one two            run a program with two arguments
  dlrun -L lib --dir /data::. app.wasm --verbose
                                    libraries in lib, the current directory as
                                    /data, and --verbose for the program
  dlrun --trace app.wasm            say what is linked where, and run
  dlrun --timeline t.json app.wasm  what took how long, for a trace viewer
  dlrun --profile guest app.wasm    where it spends its time, for speedscope
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
cannot be linked, 134 if it trapped, 130 for Ctrl-C, 143 for SIGTERM.

\b
A program whose name is that of a command is reached by its path: ./inspect
"""


_ATTRIBUTES = {"c++": "cxx"}
"""The names in Python of subcommands whose own are none."""


class _RunByDefault(click.Group):
    """A group whose first word is a subcommand, or else an option or argument of `run`."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(
            import_module(COMMANDS[cmd_name][0]), _ATTRIBUTES.get(cmd_name, cmd_name)
        )
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {name for parameter in self.get_params(ctx) for name in parameter.opts}
        if args and args[0] not in COMMANDS and args[0] not in own:
            meant = meant_command(args[0], list(COMMANDS))
            if meant is not None and not ctx.resilient_parsing:
                raise click.UsageError(
                    f"{args[0]!r} is neither a file nor a command; did you mean {meant!r}?", ctx
                )
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return commands, options of running, and word that files will do: the first word may be each of them.

        That word comes first, because the script for bash forgets what stood before it.
        """
        own = super().shell_complete(ctx, incomplete)
        if incomplete.startswith("-"):
            with run.make_context("run", [], parent=ctx, resilient_parsing=True) as running:
                return [
                    *own,
                    *(one for one in run.shell_complete(running, incomplete) if one.value != "--help"),
                ]
        return [CompletionItem(incomplete, type="file"), *own]

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


def command_line(words: Sequence[str]) -> int:
    """Do what a command line says; return the exit code.

    Args:
        words: those after the command's name, at least one.

    Raises:
        click.ClickException: it is wrong.
        DlError: what it asked for failed.
    """
    try:
        # Not `dlrun.main`, which has its own idea of a broken pipe and of exit codes.
        with dlrun.make_context("dlrun", list(words)) as context:
            code = dlrun.invoke(context)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    return int(code or 0)


def complete(instruction: str) -> int:
    """Answer a shell that completes a command line; return the exit code."""
    from dl.cli.completing import SHELLS  # noqa: PLC0415  only shells need it, and it knows this file

    for name, kind in SHELLS.items():
        add_completion_class(kind, name)
    return shell_complete(dlrun, {}, "dlrun", COMPLETE, instruction)
