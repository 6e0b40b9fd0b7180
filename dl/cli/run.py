"""`dlrun APP.WASM [ARGS]...`: link a program and run it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dl.cli.modules import complete_file
from dl.cli.params import (
    Number,
    Whole,
    directories,
    engine_option,
    limits_of_program,
    preopen,
    size,
    taken_limits,
    variable,
)
from dl.cli.trace_options import OptionalTrace, trace_options
from dl.options import DEFAULT_STACK_BYTES

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
    type=Number(min=0),
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
    help="Do not give a program of WASIX /dev/null and the like, and a /tmp of its own.",
)
@click.option(
    "--wamr-mode",
    type=Whole(0, 31),
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
    "--timeline",
    "timeline_file",
    metavar="FILE",
    help="Write what threads, loads and barriers took as a Chrome trace, for a trace viewer; %p in its name is the process.",
)
@click.option(
    "--profile",
    metavar="KIND[,FILE]",
    help="guest: take samples of the program's stacks, for speedscope, or with FILE.folded for flame graphs. perfmap, jitdump: "
    "write down where code is, for perf.",
)
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
    timeline_file: str | None,
    profile: str | None,
    map_file: str | None,
    trust_compiled: bool,
    **limits: int | None,
) -> int:
    """Link a program and run it.

    Everything after APP.WASM belongs to the program, also what looks like an option. APP.WASM may be what dlrun bundle made.
    """
    from dl.cli.running import Running, run_program  # noqa: PLC0415  the help needs nothing of the linker

    said = Running(
        library_path=library_path,
        preopens=preopens,
        variables=variables,
        inherit_env=inherit_env,
        timeout=timeout,
        stack_size=stack_size,
        memory_min=memory_min,
        memory_max=memory_max,
        side_memory=side_memory,
        interrupts=interrupts,
        bind_now=bind_now,
        preload=preload,
        guest_dlfcn=guest_dlfcn,
        no_default_files=no_default_files,
        wamr_mode=wamr_mode,
        module_path=module_path,
        function=function,
        engine=engine,
        no_cache=no_cache,
        trace=trace,
        trace_format=trace_format,
        trace_output=trace_output,
        timeline_file=timeline_file,
        profile=profile,
        map_file=map_file,
        trust_compiled=trust_compiled,
        limits=taken_limits(limits),
    )
    return run_program(program, arguments, said)
