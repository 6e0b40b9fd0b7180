"""What the packages show, and which way their imports go."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dl
from scripts.website import reference

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(path for package in ("dl", "threads", "memory") for path in (ROOT / package).rglob("*.py"))


def room(path: Path) -> tuple[str, ...]:
    """Return the folders and the name of a source, such as `("dl", "engine", "protocol")`."""
    return path.relative_to(ROOT).with_suffix("").parts


def imported(path: Path) -> Iterator[str]:
    """Return the dotted names of all modules that a source imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield node.module or ""


def top(name: str) -> str:
    return name.partition(".")[0]


def test_public_names_are_pinned() -> None:
    """`dl.__all__` is what the project promises; a change of it is a decision."""
    assert sorted(dl.__all__) == PUBLIC


def test_public_names_exist_and_are_sorted_once() -> None:
    """Every public name can be imported, and none is listed twice."""
    assert len(set(dl.__all__)) == len(dl.__all__)
    assert [name for name in dl.__all__ if not hasattr(dl, name)] == []


def test_the_c_sources_are_where_get_include_says() -> None:
    """The folder has the header and the C file, and the distribution takes them along."""
    folder = Path(dl.get_include())

    assert {path.name for path in folder.iterdir()} >= {"dl_ext.h", "dl_ext.c", "dlfcn.h", "link.h"}
    assert '"dl.include" = ["*.h", "*.c"]' in (ROOT / "pyproject.toml").read_text()


def test_every_error_is_public() -> None:
    """Whoever has to catch an error finds its class in `dl`."""
    from dl import errors

    classes = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, dl.DlError)
    }

    assert classes <= set(dl.__all__)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: "/".join(room(path)))
def test_imports_go_one_way(path: Path) -> None:
    """`memory` and `threads` import nothing of ours but themselves, and only `dl/engine/` an engine."""
    place = room(path)
    names = set(imported(path))
    ours = {top(name) for name in names} & {"dl", "threads", "memory"}

    if place[0] in ("threads", "memory"):
        assert ours <= {place[0]}
    if place[:2] != ("dl", "engine"):
        assert "wasmtime" not in {top(name) for name in names}
    if place[:2] != ("dl", "cli"):
        assert not {"click", "rich"} & {top(name) for name in names} or place == ("dl", "__main__")
        assert place == ("dl", "__main__") or not any(name.startswith("dl.cli") for name in names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: "/".join(room(path)))
def test_only_the_command_line_prints(path: Path) -> None:
    """A library does not write to its user's terminal."""
    if room(path)[:2] == ("dl", "cli"):
        return
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]

    assert not [function for function in calls if isinstance(function, ast.Name) and function.id == "print"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: "/".join(room(path)))
def test_no_file_is_long(path: Path) -> None:
    """A file is one idea: at most 500 lines."""
    assert len(path.read_text().splitlines()) <= 500


@pytest.mark.parametrize("package", ["threads", "memory"])
def test_leaf_packages_stand_alone(package: str) -> None:
    """Importing `threads` or `memory` loads no other package of ours and no engine."""
    code = f"import sys, {package}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )

    assert {"dl", "threads", "memory", "wasmtime"} & set(done.stdout.split()) == {package}


def test_importing_dl_loads_neither_engine_nor_command_line() -> None:
    """`import dl` is cheap: the engine is loaded when a linker needs it, click and rich only by the command line."""
    code = f"import sys, dl; dl.Linker; print([n for n in {HEAVY} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )

    assert done.stdout.strip() == "[]"


HEAVY = (
    "wasmtime",
    "click",
    "rich",
    "dl.cli",
    "trio",
    "anyio",
)
"""What a linker can do without, and costs as much to import as a part of it."""


def test_help_loads_no_linker() -> None:
    """`dlrun --help` imports the command line, and neither the linker nor what prints in colours."""
    code = (
        "import sys; from dl.cli import main; main(['--help']); "
        "print([n for n in ('dl.linker', 'dl.program.program', 'rich', 'wasmtime') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )

    assert done.stdout.splitlines()[-1] == "[]"


PUBLIC = [
    "AddressInfo",
    "AddressKind",
    "AsyncLinker",
    "BoundImport",
    "BuildError",
    "BundleError",
    "CString",
    "Callback",
    "DlError",
    "DlFlags",
    "DylinkError",
    "EngineError",
    "EngineNotFoundError",
    "Event",
    "EventKind",
    "EventQueue",
    "EventSubscription",
    "Events",
    "Explanation",
    "Export",
    "External",
    "F32",
    "F64",
    "FinalizationError",
    "Frame",
    "FuncType",
    "Function",
    "Global",
    "GlobalType",
    "GroupEndedError",
    "GuestBlock",
    "GuestData",
    "GuestExecutor",
    "GuestFunction",
    "GuestThreadError",
    "GuestTimeoutError",
    "HostFunction",
    "HostThread",
    "I32",
    "I64",
    "INVALID_HANDLE",
    "Import",
    "ImportCycleError",
    "ImportSource",
    "ImportTypeError",
    "InitializationError",
    "Instance",
    "InstanceGroup",
    "InstantiationError",
    "InternalError",
    "InvalidHandleError",
    "InvalidModuleError",
    "InvalidRequestError",
    "InvalidStringError",
    "Library",
    "LibraryNotFoundError",
    "Limits",
    "LinearMemory",
    "LinkError",
    "Linker",
    "LinkerClosedError",
    "LinkerStatistics",
    "LinkerUsageError",
    "LoadedModule",
    "MAIN_HANDLE",
    "MalformedModuleError",
    "MapRegion",
    "Memory",
    "MemoryClosedError",
    "MemoryMap",
    "MemoryMovesError",
    "MemoryType",
    "MissingSymbol",
    "Module",
    "ModuleBinding",
    "ModuleHandle",
    "ModuleSymbol",
    "NotDynamicError",
    "OtherDefinition",
    "OutOfBoundsError",
    "PatchError",
    "Pointer",
    "PoolFullError",
    "ProcessPool",
    "Profile",
    "ProgramDeadlockedError",
    "ProgramExited",
    "ProgramForkedError",
    "ProgramOutcome",
    "ProgramPool",
    "RTLD_DEEPBIND",
    "RTLD_DEFAULT",
    "RTLD_GLOBAL",
    "RTLD_LAZY",
    "RTLD_LOCAL",
    "RTLD_NEXT",
    "RTLD_NODELETE",
    "RTLD_NOLOAD",
    "RTLD_NOW",
    "RemoteError",
    "RendezvousStatistics",
    "ReplayFailedError",
    "ResourceLimitError",
    "Spec",
    "SpecError",
    "StalePointerError",
    "SymbolNotFoundError",
    "Table",
    "TableType",
    "Tag",
    "TagType",
    "ThreadExited",
    "Timeline",
    "TimelineEvent",
    "TrapError",
    "TrioLinker",
    "TypedFunction",
    "UncaughtExceptionError",
    "UnresolvedCallError",
    "UnresolvedSymbolsError",
    "UnsupportedModuleError",
    "V128",
    "ValueConversionError",
    "WamrMode",
    "WamrStatistics",
    "WorkerLostError",
    "__version__",
    "get_include",
    "host_function",
    "open_linker",
]


def test_the_linker_that_users_hold_is_short() -> None:
    """What a user holds passes calls on and does little itself: at most 250 lines."""
    assert len((ROOT / "dl" / "linker.py").read_text().splitlines()) <= 250


def test_help_shows_users_what_is_theirs() -> None:
    """Methods that only the linker's own parts call are no attributes of what a user holds, but for `own`."""
    for name in ("open", "close_library", "look_up", "run", "view", "viewing"):
        assert not hasattr(dl.Linker, name), name
    assert not hasattr(dl.InstanceGroup, "replica")
    shown = {name for name in dir(dl.HostThread) if not name.startswith("_")}
    assert shown == {"own", "name", "join", "is_alive", "cancel"}
    assert {name for name in dir(dl.Events) if not name.startswith("_")} == {"subscribe", "queue"}
    for kind in (dl.Linker, dl.InstanceGroup, dl.Library, dl.GuestFunction, dl.GuestBlock):
        methods = [name for name in dir(kind) if not name.startswith("_") and callable(getattr(kind, name))]
        assert all(getattr(kind, name).__doc__ for name in methods), kind


def test_every_error_has_its_remedy_on_the_page() -> None:
    """`docs/errors.md` has a row for each error that a user can meet, and none that there is not."""
    page = (ROOT / "docs/errors.md").read_text()
    named = {
        name
        for row in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row)
    }
    errors = {
        name
        for name in dl.__all__
        if isinstance(getattr(dl, name), type) and issubclass(getattr(dl, name), Exception)
    }

    assert named == errors - {"DlError"}


def test_what_a_user_receives_is_public() -> None:
    """Classes of ours that methods and properties of public classes return, or their fields hold, can be named by users."""
    internal = reference.INTERNAL
    ours = {name for path in SOURCES for name in re.findall(r"^class (\w+)", path.read_text(), re.MULTILINE)}
    left = set()
    for name in dl.__all__:
        kind = getattr(dl, name)
        if not isinstance(kind, type):
            continue
        texts = (
            [str(field.type) for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
        )
        for member in set(dir(kind)) - set(internal.get(name, ())):
            held = inspect.getattr_static(kind, member)
            function = held.fget if isinstance(held, property) else getattr(held, "__func__", held)
            if not member.startswith("_") and inspect.isfunction(function):
                texts.append(str(function.__annotations__.get("return")))
        left |= {word for text in texts for word in re.findall(r"\b[A-Z]\w+", text)} & ours

    assert sorted(left - set(dl.__all__)) == []
