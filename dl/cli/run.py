"""`dlrun APP.WASM [ARGS]...`: link a program and run it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dl.cli.endings import program_code
from dl.cli.interrupt import ending_on_interrupt
from dl.cli.live_map import held_back, live_map
from dl.cli.modules import complete_file, contents, parsed
from dl.cli.params import (
    PAGE_BYTES,
    directories,
    engine_option,
    limits_of_program,
    preopen,
    size,
    taken_limits,
    variable,
)
from dl.cli.tracing import OptionalTrace, statistics_at_end, trace_options, tracing
from dl.options import DEFAULT_STACK_BYTES, MemoryType
from dl.shipping.names import is_bundle

if TYPE_CHECKING:
    from dl.linker import Linker

_STACK_STEP = 1024


def search_path(given: tuple[list[Path], ...], program: str) -> list[Path]:
    """Return where bare library names are looked for: what the user gave, then the program's own directory."""
    from dl.modules.locate import split_path  # noqa: PLC0415  the help needs nothing of the linker

    from_environment = split_path(os.environ.get("DLRUN_LIBRARY_PATH", ""))
    return [*(directory for group in given for directory in group), *from_environment, Path(program).parent]


library_path_option = click.option(
    "-L",
    "--library-path",
    type=directories,
    multiple=True,
    metavar="DIRS",
    help="Look for libraries in these directories, separated by colons; may be repeated. Then come those of the "
    "environment variable DLRUN_LIBRARY_PATH, then the program's own.",
)

module_path_option = click.option(
    "--module-path",
    type=directories,
    multiple=True,
    metavar="DIRS",
    help="Link the program's imports by module name: NAME or NAME.wasm in these directories, separated by colons, or in its "
    "own; may be repeated.",
)


def module_directories(given: Sequence[Sequence[Path]], program: str) -> list[Path]:
    """Return where modules are looked for by name: what the user gave, then the program's own directory."""
    return [*(directory for group in given for directory in group), Path(program).parent]


@click.command(
    cls=OptionalTrace,
    context_settings={"allow_interspersed_args": False, "help_option_names": ["-h", "--help"]},
    options_metavar="[OPTIONS]",
    short_help="Link a program and run it (the default).",
)
@library_path_option
@click.option(
    "--dir",
    "preopens",
    type=preopen,
    multiple=True,
    metavar="[GUEST::]HOST",
    help="Let the program see a directory, under another name if GUEST is given; may be repeated.",
)
@click.option(
    "--env",
    "variables",
    type=variable,
    multiple=True,
    metavar="NAME[=VALUE]",
    help="Set an environment variable, or pass on the one set here; may be repeated. The program sees no others.",
)
@click.option("--inherit-env", is_flag=True, help="Pass on all environment variables; --env comes on top.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Stop the program after this time, counted from its start; the exit code is then 124.",
)
@click.option(
    "--stack-size",
    type=size,
    metavar="SIZE",
    default=str(DEFAULT_STACK_BYTES),
    help="Bytes of the main thread's stack in linear memory, such as 512k or 8M. Default: 1M.",
)
@click.option(
    "--memory-min",
    type=size,
    metavar="SIZE",
    help="Start with at least this much linear memory, in whole pages of 64k.",
)
@click.option(
    "--memory-max",
    type=size,
    metavar="SIZE",
    help="Let linear memory grow to at most this much, in whole pages of 64k.",
)
@click.option(
    "--side-memory",
    type=click.Choice(["auto", "grow", "allocator"]),
    default="auto",
    help="Where the data of libraries goes: pages that memory grows by, blocks from the program's malloc, or what the "
    "program needs. Default: auto.",
)
@click.option(
    "--interrupts/--no-interrupts",
    default=None,
    help="Whether code that computes can be interrupted, for links and Ctrl-C. Default: on for programs with shared memory.",
)
@click.option(
    "--bind-now",
    is_flag=True,
    help="Refuse to load what needs functions that nothing defines, instead of missing them at their first call.",
)
@click.option(
    "--preload",
    "preload",
    multiple=True,
    metavar="LIBRARY",
    help="Load a library, by path or name, before those that the program needs, so that its symbols win; may be repeated.",
)
@click.option(
    "--guest-dlfcn",
    type=click.Choice(["wasix", "elf"]),
    default="wasix",
    help="Whether the program's own dlopen and dlsym ignore flags, as WASIX does, or honour them, as ELF does. Default: wasix.",
)
@click.option(
    "--no-default-files",
    is_flag=True,
    help="Do not give the program /dev/null and the like, and a /tmp of its own.",
)
@click.option(
    "--wamr-mode",
    type=click.IntRange(0, 31),
    metavar="N",
    help="Run it as a program of WAMR's that opens libraries through functions of env; N is the number of iwasm "
    "--enable-dlopen: 1 lazy binding, 2 malloc from the program, 4 table cache, 8 AssemblyScript, 16 cache of look-ups.",
)
@module_path_option
@click.option(
    "--invoke",
    "function",
    metavar="NAME",
    help="Call this function instead of running the program, with ARGS as its arguments, and print its results. $LIB$NAME is "
    "the function NAME of the library LIB.",
)
@limits_of_program
@engine_option
@click.option(
    "--no-cache",
    is_flag=True,
    help="Neither use compiled code that is kept on disk nor keep it; see dlrun cache.",
)
@trace_options
@click.option(
    "--map",
    "map_file",
    metavar="FILE",
    help="Write a page that shows memory and table when the program is linked, at each SIGUSR1, and at its end.",
)
@click.option(
    "--trust-compiled",
    is_flag=True,
    help="Use compiled code in an archive of dlrun bundle. It is run as it is: only of archives that you trust.",
)
@click.argument("program", metavar="APP.WASM", shell_complete=complete_file)
@click.argument(
    "arguments", metavar="[ARGS]...", nargs=-1, type=click.UNPROCESSED, shell_complete=complete_file
)
def run(
    program: str,
    arguments: tuple[str, ...],
    library_path: tuple[list[Path], ...],
    preopens: tuple[tuple[str, str], ...],
    variables: tuple[tuple[str, str], ...],
    inherit_env: bool,
    timeout: float | None,
    stack_size: int,
    memory_min: int | None,
    memory_max: int | None,
    side_memory: Any,
    interrupts: bool | None,
    bind_now: bool,
    preload: tuple[str, ...],
    guest_dlfcn: Any,
    no_default_files: bool,
    wamr_mode: int | None,
    module_path: tuple[list[Path], ...],
    function: str | None,
    engine: str | None,
    no_cache: bool,
    trace: frozenset[str] | None,
    trace_format: str,
    trace_output: str | None,
    map_file: str | None,
    trust_compiled: bool,
    called: str | None = None,
    **limits: int | None,
) -> int:
    """Link a program and run it.

    Everything after APP.WASM belongs to the program, also what looks like an option. APP.WASM may be what dlrun bundle made.
    """
    from dl.api.deadlines import bounded  # noqa: PLC0415  the help needs nothing of the linker
    from dl.cli.progress import SlowNotice  # noqa: PLC0415  the help prints in no colours
    from dl.linker import Linker  # noqa: PLC0415

    if timeout is not None and interrupts is False:
        raise click.UsageError(
            "--timeout needs a program that can be interrupted, which --no-interrupts forbids"
        )
    for text in (program, *arguments, *(part for pair in variables for part in pair)):
        _check_text(text)
    if called is None and is_bundle(program):
        from dl.cli.bundled import run_bundle  # noqa: PLC0415  running a program needs nothing of it

        return run_bundle(click.get_current_context(), program, trusted=trust_compiled)
    called = called or program
    given = contents(program)
    source = program if given is None else given
    named = bool(module_path) and wamr_mode is None
    by_name = named and _is_ordinary(source, program)
    memory = None if by_name else _memory(source, program, memory_min, memory_max)
    if by_name and (memory_min or memory_max or preload):
        raise click.UsageError(
            "--memory-min, --memory-max and --preload are for programs that are not linked by name"
        )
    libraries = search_path((*library_path, *module_path), program)
    with (
        held_back(map_file is not None),
        tracing(trace, trace_format, trace_output),
        ending_on_interrupt() as ctrl_c,
        SlowNotice(called, kept=not no_cache) as notice,
        Linker(
            None if by_name else source,
            name=None if by_name else called,
            library_path=libraries,
            module_path=module_directories(module_path, program) if named else (),
            args=(called,) if function else (called, *arguments),
            env={**(os.environ if inherit_env else {}), **dict(variables)},
            preopens=dict(preopens),
            stack_size=stack_size + -stack_size % _STACK_STEP,
            side_memory=side_memory,
            interrupts=True if timeout is not None else interrupts,
            engine=engine,
            cache=not no_cache,
            memory=memory,
            default_files=not no_default_files,
            bind="now" if bind_now else "lazy",
            preload=preload,
            guest_dlfcn=guest_dlfcn,
            limits=taken_limits(limits),
            wamr=wamr_mode,
        ) as linker,
        ctrl_c.to(linker.parts.process),
        statistics_at_end(linker),
        live_map(linker, map_file),
        bounded(linker, linker.main_group.own, called, timeout, None),
    ):
        notice.stop()
        if by_name:
            return run_by_name(linker, source, called, function, arguments)
        if function is not None:
            from dl.cli.invoke import function_of, invoke  # noqa: PLC0415  running needs nothing of it

            return invoke(lambda: function_of(linker, function), function, arguments)
        return program_code(linker.main_group.run())


def _is_ordinary(source: str | bytes, program: str) -> bool:
    """Whether a program is an ordinary module with a memory of its own, and not a main module that libraries are linked to.

    Raises:
        DlError: it cannot be read.
    """
    from dl.engine.preview1 import WASIX  # noqa: PLC0415  the help needs nothing of the linker

    wasm = parsed(source, program).wasm
    needs_program = any(e.module == WASIX or (e.module, e.kind) == ("env", "memory") for e in wasm.imports)
    return wasm.dylink is None and not needs_program


def run_by_name(
    linker: Linker, source: str | bytes, program: str, function: str | None, arguments: Sequence[str]
) -> int:
    """Link a program by import names, and run it or call one of its functions, or `$module$function`; return the exit code.

    Raises:
        DlError: it cannot be linked, or ended by an error.
    """
    instance = linker.instantiate(source, name=program)
    if function is None:
        return program_code(instance.run())
    from dl.cli.invoke import invoke  # noqa: PLC0415  running needs nothing of it

    found = instance.lookup(function)
    return invoke(lambda: (found, found.type), function, arguments)


def _check_text(text: str) -> None:
    """Check that the program can get a text: WASI passes UTF-8.

    Raises:
        click.UsageError: it cannot.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise click.UsageError(f"{os.fsencode(text)!r} is not UTF-8, which programs take") from None


def _memory(source: str | bytes, program: str, least: int | None, most: int | None) -> MemoryType | None:
    """Return the memory to provide, from the type of the one that the program imports.

    Raises:
        click.UsageError: the program defines its own, or the sizes contradict each other.
        DlError: the program cannot be read.
    """
    if least is None and most is None:
        return None
    from dl.wasm.types import MemoryType as WasmMemoryType  # noqa: PLC0415

    imported = next(
        (e.type for e in parsed(source, program).wasm.imports if isinstance(e.type, WasmMemoryType)),
        None,
    )
    if imported is None:
        raise click.UsageError(
            f"{program} defines its own memory: --memory-min and --memory-max have no effect"
        )
    pages = [None if value is None else -(-value // PAGE_BYTES) for value in (least, most)]
    if pages[0] is not None and pages[1] is not None and pages[0] > pages[1]:
        raise click.UsageError("--memory-min is more than --memory-max")
    return MemoryType(pages[0] or 0, pages[1], imported.limits.shared)
