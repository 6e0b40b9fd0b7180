"""`dl.Spec`: a linker's description as a value."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import Self

from dl.checks import any_path, anything, by_name, taken
from dl.description import checks
from dl.description.functions import named_function
from dl.description.packing import module_bytes, packed_modules
from dl.description.text import default_of, from_plain, read_description, to_plain
from dl.limits import Limits
from dl.linker import Linker
from dl.options import (
    DEFAULT_STACK_BYTES,
    Binding,
    GuestDlfcn,
    MemoryType,
    ModuleSource,
    SideMemorySource,
)
from dl.wamr.mode import WamrMode

PathLike = str | os.PathLike[str]
NamedFunction = str | Callable[..., Any]
"""A Python function by its name, `module:qualname`; a function at the top of a module stands for its name."""


@dataclass(frozen=True, repr=False)
class Spec:
    """What a linker is made of, as data: it compares, hashes, pickles, and is checked when it is made.

    Its fields are the arguments of `Linker` with the same names; what is said here is what differs. Functions are given by
    name, and output goes to files or the host's streams: to a function by `spec.linker(stdout=...)`.

    A description is as much to be trusted as code: the functions that it names are called.

    Attributes:
        main: the main module, as a path or as bytes; None for libraries only.
        name: what messages call it.
        library_path: directories in which bare library names are looked for.
        libraries: modules by the names that open them, as paths or bytes. Those that are opened while the program runs
            belong here if it is to run on other machines.
        map_name: name of a function.
        imports: by import module and field name: the name of a function or of a `HostFunction`, or a number.
        args: the program's arguments, its name first.
        env: its environment variables.
        preopens: directories it sees, guest path to host path.
        stdin: bytes, or the path of a file.
        stdout: the path of a file.
        stderr: likewise.
        memory: the memory to provide.
        stack_size: bytes.
        thread_stack_size: bytes.
        side_memory: where side modules' data goes.
        interrupts: whether guest code can be interrupted, which bounds on its time need.
        default_files: whether a program of WASIX finds `/dev/null` and the like.
        bind: when functions that nothing defines are missed.
        guest_dlfcn: how the guest's own dlopen acts.
        preload: libraries that come first.
        profiler: the engine's profiler that gets the program's code.
        engine: its name.
        cache: the directory where compiled code is kept; True for the user's, False for none.
        limits: what the program may take of the host.
        modules: ordinary modules by the names that others import from.
        module_path: directories in which modules of other names are looked for.
        finder: names of functions that are asked for modules.
        isolate: whether each module has its own instances of those it imports from.
        wamr: its mode, for a program of WAMR's kind.

    Raises:
        SpecError: a field holds what no linker takes; the error names it.
    """

    main: ModuleSource | None = None
    name: str | None = None
    library_path: Sequence[PathLike] = ()
    libraries: Mapping[str, ModuleSource] = dataclasses.field(default_factory=dict)
    map_name: NamedFunction | None = None
    imports: Mapping[str, Mapping[str, NamedFunction | int | float]] = dataclasses.field(default_factory=dict)
    args: Sequence[str] = ()
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    preopens: Mapping[str, PathLike] = dataclasses.field(default_factory=dict)
    stdin: bytes | PathLike | None = None
    stdout: PathLike | None = None
    stderr: PathLike | None = None
    memory: MemoryType | None = None
    stack_size: int = DEFAULT_STACK_BYTES
    thread_stack_size: int = DEFAULT_STACK_BYTES // 4
    side_memory: SideMemorySource = "auto"
    interrupts: bool | None = None
    default_files: bool = True
    bind: Binding = "lazy"
    guest_dlfcn: GuestDlfcn = "wasix"
    preload: Sequence[PathLike] = ()
    profiler: str | None = None
    engine: str | None = None
    cache: bool | PathLike = True
    limits: Limits = dataclasses.field(default_factory=Limits)
    modules: Mapping[str, ModuleSource] = dataclasses.field(default_factory=dict)
    module_path: Sequence[PathLike] = ()
    finder: Sequence[NamedFunction] = ()
    isolate: bool = False
    wamr: WamrMode | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            checked = checks.checked(getattr(self, field.name), field.name)
            object.__setattr__(self, field.name, checked)

    def replace(self, **changes: Any) -> Self:
        """Return the description with other values for some fields.

        Raises:
            SpecError: there is no such field, or it does not take the value.
        """
        checks.check_names(changes, [field.name for field in dataclasses.fields(self)])
        return dataclasses.replace(self, **changes)

    def linker(self, **options: Any) -> Linker:
        """Make a linker as described.

        Args:
            options: arguments of `Linker` that take the place of fields; they need not be data.

        Raises:
            SpecError: a function that it names is not there.
            DlError: the program could not be linked.
        """
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        given["libraries"] = {
            name: module_bytes(source, name, self.limits) for name, source in self.libraries.items()
        }
        given["imports"] = {
            space: {field: self._import(space, field, value) for field, value in fields.items()}
            for space, fields in self.imports.items()
        }
        given["map_name"] = None if self.map_name is None else named_function(self.map_name, "map_name")
        given["finder"] = tuple(named_function(name, f"finder[{n}]") for n, name in enumerate(self.finder))
        return Linker(**{**given, **options})

    def _import(self, space: str, name: str, value: Any) -> Any:
        where = f"imports[{space!r}][{name!r}]"
        return named_function(value, where) if isinstance(value, str) else value

    def packed(self) -> Self:
        """Return the description with the bytes of its modules in place of their paths, and of all that they need.

        It can be built where those files are not. What is in `preopens` and `module_path`, and what functions need, is still
        looked for where it is built; so are libraries that the program opens while it runs, unless `libraries` has them.

        Raises:
            DlError: a module cannot be found or read.
            SpecError: two modules need different libraries of one name.
        """
        return dataclasses.replace(self, **packed_modules(self))

    @property
    def digest(self) -> str:
        """SHA-256 of the description, in hexadecimal: modules count by their content, wherever they lie.

        Libraries that are only found by `library_path` count for a `packed` description.

        Raises:
            DlError: a module cannot be read.
        """

        def content(source: ModuleSource) -> dict[str, str]:
            return {"sha256": hashlib.sha256(module_bytes(source, str(source), self.limits)).hexdigest()}

        plain = to_plain(self, module=content)
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are not as by default, as values that JSON has; bytes as `{"base64": TEXT}`."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """Make a description of what `to_dict` returned, or somebody wrote.

        Raises:
            SpecError: a field is not known, or holds what no linker takes.
        """
        taken(by_name(anything), plain, "plain")
        checks.check_names(plain, [field.name for field in dataclasses.fields(cls)])
        return cls(**from_plain(plain))

    @classmethod
    def from_file(cls, path: PathLike) -> Self:
        """Read a description from a file: TOML if its name ends in `.toml`, or else JSON.

        Relative paths in it begin at the file's directory. TOML needs Python 3.11.

        Raises:
            SpecError: it cannot be read, or is no description.
        """
        return cls.from_dict(read_description(Path(taken(any_path, path, "path"))))

    def __repr__(self) -> str:
        parts = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != default_of(field):
                parts.append(f"{field.name}={checks.shortened(value)}")
        return f"Spec({', '.join(parts)})"
