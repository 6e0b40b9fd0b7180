"""Random graphs of libraries, built for ELF with the system's compiler and as WebAssembly, and driven by the same operations.

A graph says everything once; `build` turns graphs into shared objects and programs, `run_elf` and `run_wasm` return what each
world made of it, line by line, in the same words.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

import dl
from tests.support.modules import MEMORY, MEMORY_BASE, TABLE, got, imports, library, pie, returns

SYMBOLS = ("fa", "fb", "fc", "fd")
MAIN = 99
"""The number of the main module, beside those of the libraries."""
_BUILDERS = 2


@dataclass(frozen=True)
class Part:
    """A library of a graph, or its main module.

    Attributes:
        number: what its functions return and its data holds.
        directory: where its file lies.
        name: base name of the file, and soname.
        needed: base names, in order.
        run_path: its run path.
        functions: functions that it defines; the value says whether weakly.
        data: data that it defines, named after these functions; likewise.
        uses: how it uses each function: `call`, `weak call` or `weak address`.
        reads: how it uses the data of each name: `data` or `weak data`.
        asks: what its own code looks up by name: `next` or `default`, and the function, with a space between.
    """

    number: int
    directory: str
    name: str
    needed: tuple[str, ...] = ()
    run_path: tuple[str, ...] = ()
    functions: dict[str, bool] = field(default_factory=dict)
    data: dict[str, bool] = field(default_factory=dict)
    uses: dict[str, str] = field(default_factory=dict)
    reads: dict[str, str] = field(default_factory=dict)
    asks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Operation:
    """One line for the driver: `open` a name with flags into a slot, `close` a slot, or look a symbol up (-1: RTLD_DEFAULT).

    With the flag QUIET, only new libraries are called and read afterwards.
    """

    what: str
    name: str
    flags: tuple[str, ...] = ()
    slot: int = -1


@dataclass(frozen=True)
class Graph:
    """Libraries, the main module that needs some of them, and what is done with them.

    Attributes:
        preload: files that are preloaded, in order.
        bind_now: whether everything is bound at each load.
    """

    seed: int
    main: Part
    parts: tuple[Part, ...]
    operations: tuple[Operation, ...]
    preload: tuple[str, ...] = ()
    bind_now: bool = False


def random_graph(seed: int) -> Graph:
    """Return the graph of a seed."""
    rng = Random(seed)
    # Some sparse in definitions, so that much stays undefined for a while; some dense, so that much overlaps.
    density = rng.choice([0.15, 0.3, 0.5])
    names = [f"x{n}.so" for n in range(rng.randint(2, 6))]
    files = [("d0", name) for name in names]
    files += [(d, name) for d in ("d1", "d2") for name in names if rng.random() < 0.25]
    parts = tuple(_random_part(rng, n, *file, names, density) for n, file in enumerate(files))
    main = _random_part(rng, MAIN, ".", "main", names, density * 0.5)
    main = Part(MAIN, ".", "main", main.needed if rng.random() < 0.5 else (), (), main.functions, main.data)
    return Graph(seed, main, parts, tuple(_random_operations(rng, files)))


def _random_part(
    rng: Random, number: int, directory: str, name: str, names: Sequence[str], density: float
) -> Part:
    needed = tuple(rng.sample(names, min(len(names), rng.choice([0, 0, 1, 1, 2, 3]))))
    entries = ["$ORIGIN", "${ORIGIN}/../d1", "$ORIGIN/../d2", "/nowhere"]
    run_path = tuple(rng.sample(entries, rng.choice([0, 1, 2])))
    return Part(
        number,
        directory,
        name,
        tuple(n for n in needed if n != name),
        run_path,
        {s: rng.random() < 0.3 for s in SYMBOLS if rng.random() < density},
        {s: rng.random() < 0.3 for s in SYMBOLS if rng.random() < density},
        {s: rng.choice(["call", "call", "weak call", "weak address"]) for s in SYMBOLS if rng.random() < 0.6},
        {
            s: "data" if rng.random() < 0.1 else "weak data"
            for s in SYMBOLS
            if rng.random() < 0.4
        },
    )  # fmt: skip


def _random_operations(rng: Random, files: Sequence[tuple[str, str]]) -> Iterable[Operation]:
    for slot in range(rng.randint(3, 8)):
        directory, name = rng.choice(files)
        flags = [rng.choice(["LAZY", "LAZY", "NOW"]), rng.choice(["LOCAL", "LOCAL", "GLOBAL"])]
        flags += [flag for flag, often in (("NOLOAD", 0.15), ("DEEPBIND", 0.15)) if rng.random() < often]
        path = name if directory == "d0" and rng.random() < 0.6 else f"{directory}/{name}"
        yield Operation("open", path, tuple(flags), slot)
        for _ in range(rng.choice([0, 1, 2])):
            kind = rng.choice(["function", "data"])
            yield Operation(kind, rng.choice(SYMBOLS), (), rng.choice([-1, *range(slot + 1)]))


# ELF

_DRIVER = Path(__file__).with_name("elf_driver.c")


def _c_source(part: Part) -> str:
    weak = {False: "", True: "__attribute__((weak)) "}
    lines = [f"{weak[w]}int {s}(void) {{ return {part.number}; }}" for s, w in part.functions.items()]
    lines += [f"{weak[w]}int d_{s} = {part.number};" for s, w in part.data.items()]
    uses = []
    for symbol, how in part.uses.items():
        lines.append(f"extern {weak[how.startswith('weak')]}int {symbol}(void);")
        if how == "weak address":
            lines.append(f"static void *use_{symbol}(void) {{ return (void *){symbol}; }}")
            uses.append(f"{{\"{how} {symbol}\", 'p', use_{symbol}, 0, 0}}")
        else:
            lines.append(f"static int use_{symbol}(void) {{ return {symbol}(); }}")
            uses.append(f"{{\"{how} {symbol}\", 'c', 0, use_{symbol}, 0}}")
    for symbol, how in part.reads.items():
        lines.append(f"extern {weak[how.startswith('weak')]}int d_{symbol};")
        lines.append(f"static void *read_{symbol}(void) {{ return &d_{symbol}; }}")
        uses.append(f"{{\"{how} {symbol}\", 'd', read_{symbol}, 0, 0}}")
    if part.asks:
        lines.append("extern void *dlsym(void *, const char *);")
    for ask in part.asks:
        where, symbol = ask.split()
        handle = {"next": "(void *)-1", "default": "(void *)0"}[where]
        lines.append(f'static void *ask_{where}_{symbol}(void) {{ return dlsym({handle}, "{symbol}"); }}')
        uses.append(f"{{\"ask {ask}\", 'p', ask_{where}_{symbol}, 0, 0}}")
    if part.number != MAIN:
        lines += [
            "struct use { const char *label; int kind; void *(*address)(void); int (*call)(void); int bound; };",
            f"static struct use uses[] = {{ {' '.join(use + ',' for use in uses)} {{0}} }};",
            "extern void enter(int, struct use *), leave(int, struct use *);",
            f"__attribute__((constructor)) static void construct(void) {{ enter({part.number}, uses); }}",
            f"__attribute__((destructor)) static void destroy(void) {{ leave({part.number}, uses); }}",
        ]
    return "\n".join(lines) + "\n"


def _skip_without_tools() -> None:
    missing = [tool for tool in ("gcc", "ld") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"no {' and no '.join(missing)} to build for ELF with")


def build(graphs: Sequence[Graph], root: Path) -> None:
    """Build graphs for both worlds, each in `root/SEED/WORLD`; skips the test where the system has no compiler or linker."""
    _skip_without_tools()
    stubs = root / "stubs"
    stubs.mkdir(parents=True)
    (stubs / "nothing.c").write_text("")
    shutil.copy(_DRIVER, stubs / "driver.c")
    _run(["gcc", "-c", "-fPIC", "-w", "nothing.c", "driver.c"], stubs)
    # What a linker wants to see of a needed library: its soname. So a cycle needs no order to be built in.
    for name in {part.name for graph in graphs for part in graph.parts}:
        _run(["ld", "-shared", "-soname", name, "nothing.o", "-o", name], stubs)
    sources: list[Path] = []
    links: list[tuple[list[str], Path]] = []
    for graph in graphs:
        for world, suffix in (("elf", ".o"), ("wasm", "")):
            for part in (graph.main, *graph.parts):
                file = root / str(graph.seed) / world / part.directory / part.name
                file.parent.mkdir(parents=True, exist_ok=True)
                if not suffix:
                    file.write_bytes(_wasm(part))
                    continue
                sources.append(root / f"{graph.seed}_{part.number}.c")
                sources[-1].write_text(_c_source(part))
                links.append((_link(part, f"{sources[-1].stem}.o", file, stubs), root))
    with ThreadPoolExecutor(_BUILDERS) as builders:
        batches = [sources[n :: 2 * _BUILDERS] for n in range(min(len(sources), 2 * _BUILDERS))]
        list(
            builders.map(
                lambda batch: _run(["gcc", "-c", "-fPIC", "-O0", "-w", *map(str, batch)], root), batches
            )
        )
        list(builders.map(lambda link: _run(*link), links))


def _link(part: Part, source: str, file: Path, stubs: Path) -> list[str]:
    needed = [str(stubs / name) for name in part.needed]
    if part.number == MAIN:
        options = ["-rdynamic", "-Wl,-z,lazy", "-Wl,--no-as-needed", "-Wl,--allow-shlib-undefined"]
        return ["gcc", *options, str(stubs / "driver.o"), source, *needed, "-o", str(file)]
    run_path = ["--enable-new-dtags", "-rpath", ":".join(part.run_path)] if part.run_path else []
    options = ["-shared", "-z", "lazy", "--no-as-needed", "-soname", part.name, *run_path]
    return ["ld", *options, source, *needed, "-o", str(file)]


def _run(command: Sequence[str], directory: Path) -> None:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{' '.join(command)[:300]}: {done.stderr}"


def run_elf(graph: Graph, root: Path) -> list[str]:
    """Return what the ELF program says, line by line; one line if it does not even start."""
    home = root / str(graph.seed) / "elf"
    script = "".join(
        f"{o.what} {home / o.name if '/' in o.name else o.name} {o.slot} {' '.join(o.flags)}\n"
        for o in graph.operations
    )
    done = subprocess.run(
        [str(home / "main")],
        input=script,
        env={"LD_LIBRARY_PATH": str(home / "d0")}
        | ({"LD_PRELOAD": ":".join(str(home / name) for name in graph.preload)} if graph.preload else {})
        | ({"LD_BIND_NOW": "1"} if graph.bind_now else {}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode == 127 and not done.stdout:
        return ["did not start"]
    assert done.returncode == 0, done.stderr
    return done.stdout.replace(f"{home}/", "").splitlines()


# WebAssembly


def _wasm(part: Part) -> bytes:
    number, name = part.number, f"u{part.number}"
    fields = [returns(symbol, number) for symbol in part.functions]
    weak, cells = [], dict.fromkeys((*part.functions, *part.data))
    for symbol, how in part.uses.items():
        if how.startswith("weak"):
            weak.append(symbol)
        if how == "weak address":
            body = (
                f"(if (result i32) (global.get $got_func_{symbol}) (then global.get $got_func_{symbol} "
                "call_indirect (result i32)) (else i32.const -1))"
            )
            fields.append(got(symbol, "func"))
        else:
            body = f"call ${symbol}"
            fields.append(imports(symbol))
        fields.append(f'(func (export "{name} {how} {symbol}") (result i32) {body})')
    for symbol, how in part.reads.items():
        variable = f"d_{symbol}"
        if how.startswith("weak"):
            weak.append(variable)
        fields.append(got(variable, "mem"))
        fields.append(
            f'(func (export "{name} {how} {symbol}") (result i32) (if (result i32) (global.get $got_mem_{variable}) '
            f"(then global.get $got_mem_{variable} i32.load) (else i32.const -1)))"
        )
    for offset, symbol in enumerate(cells):
        if symbol in part.data:
            fields.append(f'(global (export "d_{symbol}") i32 (i32.const {4 * offset}))')
    fields.append(
        f'(data (global.get $memory_base) "{f"{chr(92)}{number:02x}{chr(92)}00{chr(92)}00{chr(92)}00" * len(cells)}")'
    )
    size = 4 * len(cells)
    if part.asks:
        fields.append(imports("dlsym", "(param i32 i32 i32 i32) (result i32)", "dl_ext"))
    for ask in part.asks:
        where, symbol = ask.split()
        at = [f"(i32.add (global.get $memory_base) (i32.const {size + offset}))" for offset in (0, 4)]
        handle = {"next": -1, "default": 0}[where]
        fields.append(
            f'(func (export "{name} ask {ask}") (result i32) '
            f"(if (result i32) (call $dlsym (i32.const {handle}) {at[1]} (i32.const {len(symbol)}) {at[0]}) "
            f"(then i32.const -1) (else {at[0]} i32.load call_indirect (result i32))))"
        )
        fields.append(f'(data (i32.add (global.get $memory_base) (i32.const {size + 4})) "{symbol}")')
        size += 8
    if number == MAIN:
        fields.append('(func (export "_start"))')
        return pie(*fields, needed=part.needed, memory_size=size, memory_align=2)
    fields += [
        MEMORY,
        TABLE,
        MEMORY_BASE,
        '(import "host" "enter" (func $enter (param i32)))',
        '(import "host" "leave" (func $leave (param i32)))',
        f'(func (export "__wasm_call_ctors") i32.const {number} call $enter)',
        f'(func (export "_fini") i32.const {number} call $leave)',
    ]
    return library(
        *fields,
        needed=part.needed,
        run_path=part.run_path,
        weak=weak,
        memory_size=size,
        memory_align=2,
    )


@dataclass
class _Ran:
    """What constructors and destructors have told: the numbers of their libraries, in order."""

    constructed: list[int] = field(default_factory=list)
    destroyed: list[int] = field(default_factory=list)

    def since(self) -> tuple[int, int]:
        return len(self.constructed), len(self.destroyed)


def run_wasm(graph: Graph, root: Path) -> list[str]:
    """Return what this linker makes of a graph, line by line; checks that dependencies were constructed first."""
    home = root / str(graph.seed) / "wasm"
    lines: list[str] = []
    ran = _Ran()
    try:
        program = dl.Linker(
            home / "main",
            library_path=[home / "d0"],
            imports={"host": {"enter": ran.constructed.append, "leave": ran.destroyed.append}},
            stack_size=1024,
            preload=[home / name for name in graph.preload],
            bind="now" if graph.bind_now else "lazy",
        )
    except dl.DlError:
        return ["did not start"]
    with program:
        lines.append("started")
        _report(graph, program, ran, (0, 0), lines)
        slots: dict[int, dl.ModuleHandle] = {}
        for operation in graph.operations:
            _operate(graph, program, operation, slots, ran, lines)
    return lines


def _operate(
    graph: Graph,
    program: dl.Linker,
    operation: Operation,
    slots: dict[int, dl.ModuleHandle],
    ran: _Ran,
    lines: list[str],
) -> None:
    group, home, name = program.main_group, Path(program.modules[0].name).parent, operation.name
    first = ran.since()
    if operation.what == "open":
        flags = dl.DlFlags(0)
        for flag in set(operation.flags) - {"QUIET"}:
            flags |= dl.DlFlags[flag]
        try:
            slots[operation.slot] = group.dlopen(home / name if "/" in name else name, flags)
        except dl.DlError:
            lines.append(f"open {name} failed")
        else:
            lines.append(f"open {name} ok")
        _report(graph, program, ran, first, lines, quiet="QUIET" in operation.flags)
        return
    if operation.what == "close":
        handle = slots.pop(operation.slot, None)
        if handle is not None:
            used = _uses(graph, program)
            group.dlclose(handle)
            check_ends(ran.destroyed[first[1] :], used)
        lines.append(f"close {operation.slot} {'no handle' if handle is None else 'ok'}")
        _report(graph, program, ran, first, lines, quiet="QUIET" in operation.flags)
        return
    if operation.slot >= 0 and operation.slot not in slots:
        lines.append(f"{name} no handle")
        return
    symbol = f"d_{name}" if operation.what == "data" else name
    handle = dl.RTLD_DEFAULT if operation.slot < 0 else slots[operation.slot]
    try:
        found = group.dlsym(handle, symbol)
    except dl.SymbolNotFoundError:
        lines.append(f"{symbol} none")
        return
    if operation.what == "data":
        lines.append(f"{symbol} {program.memory.read_u32(found.address)}")
    else:
        lines.append(f"{symbol} {found()}")


def _report(
    graph: Graph,
    program: dl.Linker,
    ran: _Ran,
    first: tuple[int, int],
    lines: list[str],
    *,
    quiet: bool = False,
) -> None:
    constructed, destroyed = ran.constructed[first[0] :], ran.destroyed[first[1] :]
    lines.append(" constructed" + "".join(f" {number}" for number in constructed))
    if destroyed:
        lines.append(" destroyed" + "".join(f" {number}" for number in destroyed))
    modules = {_number(graph, m.image.path): m for m in program.program.state.modules.values()}
    check_order([modules[number] for number in constructed])
    for number in sorted(set(constructed) if quiet else modules.keys() - {MAIN}):
        part = graph.parts[number]
        labels = [f"{how} {symbol}" for symbol, how in (*part.uses.items(), *part.reads.items())]
        for label in (*labels, *(f"ask {ask}" for ask in part.asks)):
            use = program.main_group.dlsym(modules[number].handle, f"u{number} {label}")
            try:
                lines.append(f"  {number} {label} {use()}")
            except dl.UnresolvedCallError:
                lines.append(f"  {number} {label} unresolved")


def _number(graph: Graph, path: Path | None) -> int:
    assert path is not None
    file = (path.parent.name, path.name)
    return next((part.number for part in graph.parts if (part.directory, part.name) == file), MAIN)


def check_order(constructed: Sequence[dl.LinkedModule]) -> None:
    """Check that each was constructed after what it needs, unless that needs it in turn."""
    for position, module in enumerate(constructed):
        for later in constructed[position + 1 :]:
            assert not _needs(module, later) or _needs(later, module), f"{module} before {later}"


def _uses(graph: Graph, program: dl.Linker) -> dict[int, set[int]]:
    """Return what each library needs or is bound to, by their numbers."""
    modules = program.program.state.modules
    numbers = {handle: _number(graph, module.image.path) for handle, module in modules.items()}
    return {
        numbers[handle]: {
            numbers[h]
            for h in (
                *(needed.handle for needed in module.needed),
                *module.bound_to(),
            )
            if h in numbers
        }
        for handle, module in modules.items()
    }


def check_ends(destroyed: Sequence[int], used: dict[int, set[int]]) -> None:
    """Check that each was destroyed before what it used, directly or not, unless that used it in turn."""

    def reached(start: int) -> set[int]:
        seen: set[int] = set()
        waiting = [start]
        while waiting:
            new = used[waiting.pop()] - seen
            seen |= new
            waiting += new
        return seen

    for position, number in enumerate(destroyed):
        for later in destroyed[position + 1 :]:
            assert number not in reached(later) or later in reached(number), f"{number} before {later}"


def _needs(module: dl.LinkedModule, other: dl.LinkedModule) -> bool:
    seen, waiting = {module.handle}, [module]
    while waiting:
        for needed in waiting.pop().needed:
            if needed is other:
                return True
            if needed.handle not in seen:
                seen.add(needed.handle)
                waiting.append(needed)
    return False
