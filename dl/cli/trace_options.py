"""The options of `--trace`: which categories are asked for, in which form, and where they go."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from dl.cli.modules import complete_file
from dl.cli.params import F
from dl.cli.tracing import CATEGORIES, FORMATS

ALL = "all"
_HELP = "help"


def _help_text() -> str:
    width = max(map(len, [*CATEGORIES, _HELP]))
    lines = [
        f"  {name:{width}}  {what}"
        for name, what in {
            **CATEGORIES,
            ALL: "all of these, as does --trace alone",
            _HELP: "this list",
        }.items()
    ]
    return "\n".join(
        [
            "Categories of --trace=CATEGORY,...:",
            *lines,
            "",
            "Each line has the seconds since dlrun began, the thread, and the category.",
            "--trace-format json writes objects, one a line; --trace-output FILE writes to a file,",
            "in whose name %p is the number of the process.",
        ]
    )


def _categories(context: click.Context, _option: click.Parameter, text: str | None) -> frozenset[str] | None:
    """Return the categories that were asked for; None without `--trace`.

    Raises:
        click.BadParameter: there is no such category.
    """
    if text is None or context.resilient_parsing:
        return None
    words = [word.strip() for word in text.split(",")]
    if _HELP in words:
        click.echo(_help_text())
        context.exit()
    unknown = [word for word in words if word not in (*CATEGORIES, ALL)]
    if unknown:
        raise click.BadParameter(
            f"{unknown[0]!r} is none of {', '.join(CATEGORIES)}, {ALL} and {_HELP}", param_hint="'--trace'"
        )
    return frozenset(CATEGORIES) if ALL in words else frozenset(words)


def _complete_categories(
    _context: click.Context, _option: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the categories that complete the last one of a list."""
    before, comma, last = incomplete.rpartition(",")
    return [
        CompletionItem(f"{before}{comma}{name}")
        for name in (*CATEGORIES, ALL, _HELP)
        if name.startswith(last)
    ]


class OptionalTrace(click.Command):
    """A command whose option `--trace` may have a value, after `=`; what follows a bare one is never its value."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse words, after a bare `--trace` has been given its value."""
        valued = {
            name
            for option in self.params
            if isinstance(option, click.Option) and not option.is_flag
            for name in option.opts
        }
        position = 0
        while position < len(args) and args[position].startswith("-") and args[position] not in ("-", "--"):
            if args[position] == "--trace":
                args = [*args[:position], f"--trace={ALL}", *args[position + 1 :]]
            position += 1 + (args[position] in valued)
        return super().parse_args(ctx, args)


def trace_options(command: F) -> F:
    """Give a command, an `OptionalTrace`, the options that `tracing` takes."""
    for option in (
        click.option(
            "--trace-output",
            metavar="FILE",
            shell_complete=complete_file,
            help="Write the trace to a file instead of standard error; %p in its name is the number of the process.",
        ),
        click.option(
            "--trace-format",
            type=click.Choice(FORMATS),
            default="text",
            help="Lines for people, or JSON objects, one a line. Default: text.",
        ),
        click.option(
            "--trace",
            callback=_categories,
            shell_complete=_complete_categories,
            is_eager=True,
            metavar="[=CATEGORY,...]",
            help="Write what the linker does to standard error: everything, or some categories; --trace=help lists them.",
        ),
    ):
        command = option(command)
    return command
