"""A program is linked and run, as the command line says: everything behind its parsing."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from dl.api.deadlines import bounded
from dl.cli.endings import program_code
from dl.cli.interrupt import ending_on_interrupt
from dl.cli.live_map import held_back, live_map
from dl.cli.modules import contents, module_directories, parsed, search_path
from dl.cli.profiling import parts_of, profiling
from dl.cli.progress import SlowNotice
from dl.cli.readers import ending_with_readers
from dl.cli.timelines import timeline
from dl.cli.whole_process import release_collector
from dl.limits import Limits
from dl.linker import Linker
from dl.options import DEFAULT_STACK_BYTES, GuestDlfcn, MemoryType, SideMemorySource
from dl.records import dataclass, field
from dl.shipping.names import is_bundle

if TYPE_CHECKING:
    import click

    from dl.api.timeline import Timeline

_STACK_STEP = 1024


@dataclass(frozen=True)
class Running:
    """What the options of `dlrun` say; without any, it is the default of each."""

    library_path: tuple[list[Path], ...] = ()
    preopens: tuple[tuple[str, str], ...] = ()
    variables: tuple[tuple[str, str], ...] = ()
    inherit_env: bool = False
    timeout: float | None = None
    stack_size: int = DEFAULT_STACK_BYTES
    memory_min: int | None = None
    memory_max: int | None = None
    side_memory: SideMemorySource = "auto"
    interrupts: bool | None = None
    bind_now: bool = False
    preload: tuple[str, ...] = ()
    guest_dlfcn: GuestDlfcn = "wasix"
    no_default_files: bool = False
    wamr_mode: int | None = None
    module_path: tuple[list[Path], ...] = ()
    function: str | None = None
    engine: str | None = None
    no_cache: bool = False
    trace: frozenset[str] | None = None
    trace_format: str = "text"
    trace_output: str | None = None
    timeline_file: str | None = None
    profile: str | None = None
    map_file: str | None = None
    trust_compiled: bool = False
    limits: Limits = field(default_factory=Limits)


def run_program(program: str, arguments: tuple[str, ...], options: Running, called: str | None = None) -> int:
    """Link a program and run it; return the exit code.

    Args:
        program: as the command line names it: a module, or a bundle.
        arguments: the program's, without its name.
        options: all else.
        called: what messages and the program itself call it; None for `program`, which may be a bundle only then.

    Raises:
        click.UsageError: the options contradict each other, or the program.
        DlError: it cannot be linked, or ended by an error.
    """
    if options.timeout is not None and math.isnan(options.timeout):
        raise usage_error("--timeout must be a number of seconds, not nan")
    if options.timeout is not None and options.interrupts is False:
        raise usage_error("--timeout needs a program that can be interrupted, which --no-interrupts forbids")
    try:
        profiler, samples_file = parts_of(options.profile)
    except ValueError as error:
        raise usage_error(str(error)) from None
    if samples_file is not None and options.interrupts is False:
        raise usage_error("--profile guest takes its samples at interrupts, which --no-interrupts forbids")
    for text in (program, *arguments, *(part for pair in options.variables for part in pair)):
        _check_text(text)
    if called is None and is_bundle(program):
        from dl.cli.bundled import run_bundle  # noqa: PLC0415  running a module needs nothing of it

        return run_bundle(program, arguments, options)
    called = called or program
    given = contents(program)
    source = program if given is None else given
    named = bool(options.module_path) and options.wamr_mode is None
    by_name = named and _is_ordinary(source, program)
    memory = None if by_name else _memory(source, program, options.memory_min, options.memory_max)
    if by_name and (options.memory_min or options.memory_max or options.preload):
        raise usage_error(
            "--memory-min, --memory-max and --preload are for programs that are not linked by name"
        )
    libraries = search_path((*options.library_path, *options.module_path), program)
    with (
        held_back(options.map_file is not None),
        _tracing(options) as recorded,
        timeline(options.timeline_file, program),
        ending_on_interrupt() as ctrl_c,
        SlowNotice(called, kept=not options.no_cache) as notice,
        Linker(
            None if by_name else source,
            name=None if by_name else called,
            library_path=libraries,
            module_path=module_directories(options.module_path, program) if named else (),
            args=(called,) if options.function else (called, *arguments),
            env={
                **(_inherited(dict(options.variables)) if options.inherit_env else {}),
                **dict(options.variables),
            },
            preopens=dict(options.preopens),
            stack_size=options.stack_size + -options.stack_size % _STACK_STEP,
            side_memory=options.side_memory,
            interrupts=True
            if options.timeout is not None or samples_file is not None
            else options.interrupts,
            engine=options.engine,
            cache=not options.no_cache,
            memory=memory,
            default_files=not options.no_default_files,
            bind="now" if options.bind_now else "lazy",
            preload=options.preload,
            guest_dlfcn=options.guest_dlfcn,
            limits=options.limits,
            wamr=options.wamr_mode,
            profiler=profiler,
        ) as linker,
        ctrl_c.to(linker.parts.process),
        ending_with_readers(linker.parts.process),
        _statistics(linker, recorded),
        profiling(linker, samples_file, f"dlrun {os.path.basename(program)}"),
        live_map(linker, options.map_file),
        bounded(linker, linker.main_group.own, called, options.timeout, None),
    ):
        notice.stop()
        release_collector()
        if by_name:
            return run_by_name(linker, source, called, options.function, arguments)
        function = options.function
        if function is not None:
            from dl.cli.invoke import function_of, invoke  # noqa: PLC0415  running needs nothing of it

            return invoke(lambda: function_of(linker, function), function, arguments)
        return program_code(linker.main_group.run())


def usage_error(message: str) -> click.UsageError:
    """Return the error for what the command line cannot mean."""
    import click  # noqa: PLC0415  as slow to import as a third of the linker

    return click.UsageError(message)


@contextmanager
def _tracing(options: Running) -> Iterator[Timeline | None]:
    """Write what the linker does while the block runs, if that is asked for; see `dl.cli.tracing`."""
    if options.trace is None and options.trace_output is None:
        yield None
        return
    from dl.cli.tracing import tracing  # noqa: PLC0415  `logging` is slow to import

    with tracing(options.trace, options.trace_format, options.trace_output) as recorded:
        yield recorded


def _statistics(linker: Linker, recorded: Timeline | None) -> AbstractContextManager[object]:
    """Tell at the end of the block what a program has taken, if that is traced."""
    if recorded is None:
        return nullcontext()
    from dl.cli.tracing import statistics_at_end  # noqa: PLC0415  as above

    return statistics_at_end(linker, recorded)


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
    from dl.cli.invoke import invoke, with_similar  # noqa: PLC0415  running needs nothing of it
    from dl.errors import SymbolNotFoundError  # noqa: PLC0415

    try:
        found = instance.lookup(function)
    except SymbolNotFoundError as error:
        raise with_similar(error, function, instance.exports) from None
    return invoke(lambda: (found, found.type), function, arguments)


def _inherited(given: dict[str, str]) -> dict[str, str]:
    """Return the variables of this process that a program can get, and report the others that are not given anew."""
    passed = {name: value for name, value in os.environ.items() if _is_utf8(name) and _is_utf8(value)}
    left = [name for name in os.environ if name not in passed and name not in given]
    if left:
        from dl.cli.console import print_warning  # noqa: PLC0415  only where something is wrong
        from dl.text import first_of, shown  # noqa: PLC0415  as above

        names = first_of([shown(name) for name in left], len(left))
        print_warning(f"not UTF-8, which programs take, and so not passed on by --inherit-env: {names}")
    return passed


def _is_utf8(text: str) -> bool:
    """Whether a text of the system's was UTF-8: what was not has surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_text(text: str) -> None:
    """Check that the program can get a text: WASI passes UTF-8.

    Raises:
        click.UsageError: it cannot.
    """
    if not _is_utf8(text):
        raise usage_error(f"{os.fsencode(text)!r} is not UTF-8, which programs take")


def _memory(source: str | bytes, program: str, least: int | None, most: int | None) -> MemoryType | None:
    """Return the memory to provide, from the type of the one that the program imports.

    Raises:
        click.UsageError: the program defines its own, or the sizes contradict each other.
        DlError: the program cannot be read.
    """
    if least is None and most is None:
        return None
    from dl.wasm.types import PAGE_BYTES  # noqa: PLC0415  seldom asked for
    from dl.wasm.types import MemoryType as WasmMemoryType  # noqa: PLC0415  as above

    imported = next(
        (e.type for e in parsed(source, program).wasm.imports if isinstance(e.type, WasmMemoryType)),
        None,
    )
    if imported is None:
        raise usage_error(f"{program} defines its own memory: --memory-min and --memory-max have no effect")
    pages = [None if value is None else -(-value // PAGE_BYTES) for value in (least, most)]
    if pages[0] is not None and pages[1] is not None and pages[0] > pages[1]:
        raise usage_error("--memory-min is more than --memory-max")
    return MemoryType(pages[0] or 0, pages[1], imported.limits.shared)
