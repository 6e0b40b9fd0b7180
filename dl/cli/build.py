"""`dlrun cc`, `dlrun c++` and `dlrun new`: programs and libraries from sources."""

from __future__ import annotations

import difflib

import click

_AS_A_COMPILER = {
    "ignore_unknown_options": True,
    "allow_interspersed_args": False,
    "help_option_names": ["--help"],
}

EPILOG = """
\b
Own options, as compilers have them; all others go to the compiler:
  -shared         make a library (.so) and not a program
  -pthread        for shared memory, as programs with threads have; a library must be of the kind of its program
  -rdynamic       put the whole C library into the program; done by itself for programs that use dlopen or libraries
  -c -o FILE -I DIR -D NAME -L DIR -l NAME -g -O LEVEL -s -Wl,OPTION
  -Wl,-rpath,DIRS look for libraries in these directories when it runs; $ORIGIN is the program's own
  -###            print the commands that would run, and run nothing
"""


def _build(words: tuple[str, ...], *, cplusplus: bool) -> None:
    from dl.build.driver import Driver, parse  # noqa: PLC0415  the help needs nothing of it

    order = parse(words, cplusplus=cplusplus)
    Driver(order, lambda line: click.echo(line, err=True)).run()


@click.command(
    "cc",
    context_settings=_AS_A_COMPILER,
    options_metavar="[OPTIONS]",
    short_help="Compile and link C.",
    epilog=EPILOG,
)
@click.argument("words", metavar="FILE...", nargs=-1, type=click.UNPROCESSED)
def cc(words: tuple[str, ...]) -> None:
    """Compile C sources and link a program or a library, with the toolchain of `pip install 'wasix-dl[build]'`."""
    _build(words, cplusplus=False)


@click.command(
    "c++",
    context_settings=_AS_A_COMPILER,
    options_metavar="[OPTIONS]",
    short_help="Compile and link C++.",
    epilog=EPILOG,
)
@click.argument("words", metavar="FILE...", nargs=-1, type=click.UNPROCESSED)
def cxx(words: tuple[str, ...]) -> None:
    """Compile C++ sources and link a program or a library, with the toolchain of `pip install 'wasix-dl[build]'`."""
    _build(words, cplusplus=True)


@click.command(
    "ar",
    context_settings=_AS_A_COMPILER,
    options_metavar="",
    short_help="Make archives of objects.",
)
@click.argument("words", metavar="KEYS ARCHIVE [FILES]...", nargs=-1, required=True, type=click.UNPROCESSED)
def ar(words: tuple[str, ...]) -> int:
    """Put objects into an archive (.a), as `ar` does, with an index that the linker can read; `dlrun ar s` is ranlib."""
    from dl.build.toolchain import make_archive  # noqa: PLC0415  as above

    return make_archive(words)


def _template(word: str) -> str:
    from dl.build.projects import TEMPLATES  # noqa: PLC0415  as above

    if word in TEMPLATES:
        return word
    close = difflib.get_close_matches(word[:100], TEMPLATES, 1, 0.5)
    said = f"did you mean {close[0]!r}?" if close else f"there is {', '.join(TEMPLATES)}"
    raise click.BadParameter(f"{word!r} is no template; {said}")


def _complete_template(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    from dl.build.projects import TEMPLATES  # noqa: PLC0415  as above

    return [name for name in TEMPLATES if name.startswith(incomplete)]


@click.command("new", short_help="Write a small project that builds and runs.")
@click.argument("template", metavar="TEMPLATE", type=_template, shell_complete=_complete_template)
@click.argument("directory", type=click.Path(path_type=str))
def new(template: str, directory: str) -> None:
    """Write a small project into a new DIRECTORY: sources, a script that builds them, a program that loads them.

    TEMPLATE is plugin-host: a program in C that opens plug-ins, in C too.
    """
    from dl.build.projects import write_project  # noqa: PLC0415

    for path in write_project(template, directory):
        click.echo(path)
