"""`dlrun cc` and `dlrun c++`: a thin driver, with the options that compilers have, over the pinned toolchain.

What is not its own goes to the compiler as it is. It adds what a program or library of this linker must have:
position-independent code, visible symbols, a kind of memory, and for programs a C library that can open libraries.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from dl.build import cxx, libc, sysroot
from dl.build.toolchain import (
    CPU,
    HERE,
    INCLUDE,
    TLS_EXPORTS,
    memory_flags,
    prefer_own_cache,
    require_toolchain,
)
from dl.errors import BuildError
from dl.errors.linking import THREAD_FUNCTIONS
from dl.records import dataclass, field
from dl.wasm.edit import Changes, edited
from dl.wasm.module import parse_module

_C = {".c", ".s", ".S", ".i"}
_CPLUSPLUS = {".cc", ".cpp", ".cxx", ".C", ".c++", ".ii", ".cp"}
_INPUTS = {".o", ".a", ".so", ".wasm", ".lo", ".obj"}
_WITH_VALUE = {
    *(
        "-I",
        "-D",
        "-U",
        "-include",
        "-imacros",
        "-isystem",
        "-iquote",
        "-idirafter",
        "-MF",
        "-MT",
        "-MQ",
    ),
    *("-Xclang", "-mllvm", "-std", "--param", "-isysroot"),
}
_COMPILE_ONLY = {"-E", "-S", "-M", "-MM"}
_QUESTIONS = ("--version", "-dumpversion", "-dumpmachine", "-print-", "--print-", "-dumpspecs")
"""What build systems ask a compiler first; the toolchain's own answers."""

# Options of linkers for ELF that build systems give to every compiler and that mean nothing here: those without a value,
# and those with one.
_ELF_ALONE = (
    *(
        "--as-needed",
        "--no-as-needed",
        "--enable-new-dtags",
        "--disable-new-dtags",
        "--hash-style=",
        "--start-group",
    ),
    *("--end-group", "-(", "-)", "--no-copy-dt-needed-entries", "--sort-common"),
)
_ELF_WITH_VALUE = ("-soname", "--soname", "-h", "-z", "-rpath-link", "--rpath-link", "-dynamic-linker")
_RUN_PATH = ("-rpath", "--rpath", "-R")
_MOST_NESTED = 10
_INSIDE = {"c", "m", "dl", "pthread", "rt", "c++", "c++abi", "stdc++", "util", "gcc", "gcc_s", "unwind"}
"""Libraries of other systems whose functions are in the C library that every program has."""

_OPENS = (b"dlopen", b"dlsym")


@dataclass
class Order:
    """What a command line asks for.

    Attributes:
        cplusplus: whether it is `dlrun c++`.
        shared: `-shared`: a library.
        compile_only: `-c`.
        check_only: `-fsyntax-only`.
        no_link: the option that makes the compiler stop before an object file, such as `-E`; empty for none.
        pthread: `-pthread`: for a shared memory, as programs with threads have.
        export_all: `-rdynamic`: the whole C library goes into the program, for libraries that are opened later.
        show: `-###`: print the commands and run nothing.
        verbose: `-v`: print the commands.
        debug: whether debug information stays.
        strip: `-s`: whether names go, too.
        pic: whether `-fPIC` was asked for.
        out: `-o`; empty for the default.
        sources: what is compiled.
        inputs: objects, archives and libraries to link, and `-l` and `-Wl,` options, in order.
        directories: `-L`.
        run_path: `-Wl,-rpath,`: where the result looks for its libraries.
        question: what the compiler itself is asked, such as `--version`; empty for nothing.
        language: `-x`, which also says that names without a known suffix are sources; empty for what the suffixes say.
        flags: what goes to the compiler.
    """

    cplusplus: bool = False
    shared: bool = False
    compile_only: bool = False
    check_only: bool = False
    no_link: str = ""
    pthread: bool = False
    export_all: bool = False
    show: bool = False
    verbose: bool = False
    debug: bool = False
    strip: bool = False
    pic: bool = False
    out: str = ""
    sources: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    directories: list[str] = field(default_factory=list)
    run_path: list[str] = field(default_factory=list)
    question: str = ""
    language: str = ""
    flags: list[str] = field(default_factory=list)

    @property
    def memory(self) -> str:
        """The kind of memory: `shared` or `unshared`."""
        return "shared" if self.pthread else "unshared"


def parse(words: Sequence[str], *, cplusplus: bool) -> Order:
    """Read a command line.

    Raises:
        BuildError: an option lacks its value, or asks for what cannot be done here.
    """
    order = Order(cplusplus=cplusplus)
    rest = iter(list(_expanded(words)))
    for word in rest:
        _take(order, word, rest)
    if not (order.sources or order.inputs or order.question):
        if not order.verbose:
            raise BuildError("no input files")
        order.question = "--version"  # `-v` alone, which asks for the same
    order.inputs = list(_for_linker(order))
    return order


def _expanded(words: Iterable[str], depth: int = 0) -> Iterator[str]:
    """Yield words, and those in the file for `@FILE`.

    Raises:
        BuildError: there is no such file, or it names itself.
    """
    for word in words:
        if not word.startswith("@"):
            yield word
            continue
        if depth >= _MOST_NESTED:
            raise BuildError(f"{word}: such files name each other without end")
        try:
            inner = shlex.split(Path(word[1:]).read_text())
        except (OSError, ValueError) as error:
            raise BuildError(f"{word}: {error}") from error
        yield from _expanded(inner, depth + 1)


def _for_linker(order: Order) -> Iterator[str]:
    """Yield what goes to the linker, without what only linkers for ELF know; run paths go into the order."""
    rest = iter(order.inputs)
    for word in rest:
        name, equals, value = word.partition("=")
        if name in _RUN_PATH or name in _ELF_WITH_VALUE:
            value = value if equals else next(rest, "")
            if name in _RUN_PATH:
                order.run_path += [entry for entry in value.split(":") if entry]
        elif not word.startswith(_ELF_ALONE):
            yield word


def _take(order: Order, word: str, rest: Iterator[str]) -> None:
    def value(option: str) -> str:
        found = word[len(option) :] or next(rest, "")
        if not found:
            raise BuildError(f"{option} needs a value")
        return found

    switches = {
        "-shared": "shared",
        "-c": "compile_only",
        "-fsyntax-only": "check_only",
        "-pthread": "pthread",
        "-rdynamic": "export_all",
        "-###": "show",
        "-v": "verbose",
        "-s": "strip",
    }
    if word in switches:
        setattr(order, switches[word], True)
    elif word in ("-static", "-m64", "-m32") or word.startswith(("--target", "-target", "-mcpu")):
        raise BuildError(f"{word} cannot be chosen: everything is built for wasm32 as this linker takes it")
    elif word in _COMPILE_ONLY:
        order.no_link = word
    elif word.startswith("-o"):
        order.out = value("-o")
    elif word.startswith("-L"):
        order.directories.append(value("-L"))
    elif word.startswith("-l"):
        name = value("-l")
        if name not in _INSIDE:
            order.inputs.append(f"-l{name}")
    elif word.startswith("-Wl,"):
        order.inputs += word[4:].split(",")
    elif word == "-Xlinker":
        order.inputs.append(value("-Xlinker"))
    elif word in ("-fPIC", "-fpic", "-fPIE", "-fpie", "-pie"):
        order.pic = order.pic or word in ("-fPIC", "-fpic")
    elif word.startswith("-g") and word != "-g0":
        order.debug = True
        order.flags.append(word)
    elif word.startswith(_QUESTIONS):
        order.question = word
    elif word == "-x":
        order.language = value("-x").removeprefix("none")
        order.flags += ["-x", order.language or "none"]
    elif word in _WITH_VALUE:
        order.flags += [word, value(word)]
    elif word == "-":
        order.sources.append(word)
    elif word.startswith("-"):
        order.flags.append(word)
    elif order.language or Path(word).suffix in _C | _CPLUSPLUS:
        order.sources.append(word)
    elif Path(word).suffix in _INPUTS or ".so." in word:
        order.inputs.append(word)
    else:
        raise BuildError(f"{word}: not a source, object, archive or library by its name")


class Driver:
    """Runs the commands of one order.

    Args:
        order: what to do.
        say: prints a line for the user.
    """

    def __init__(self, order: Order, say: Callable[[str], object]) -> None:
        self._order = order
        self._say = say
        self._zig = require_toolchain()
        self._tool = str(self._zig / "zig")

    def run(self) -> None:
        """Compile and link.

        Raises:
            BuildError: a source is missing; or a tool failed, and what it had to say is on standard error.
        """
        order = self._order
        if order.question:
            self._call([self._tool, "cc", "-target", "wasm32-wasi", order.question])
            return
        for source in () if order.show else order.sources:
            if source != "-" and not os.path.exists(
                source
            ):  # the toolchain would say only that a check of its cache failed
                raise BuildError(f"{source}: no such file")
        with tempfile.TemporaryDirectory(prefix="dlrun-cc-") as work:
            prefer_own_cache(Path(work))
            if order.no_link:
                for source in order.sources:
                    out = ["-o", order.out] if order.out else []
                    self._call([*self._compiler(source), order.no_link, source, *out])
                return
            if order.check_only:
                # The toolchain's `-fsyntax-only` goes on to link, with libraries that it builds for it first.
                for source in order.sources:
                    self._call([*self._compiler(source), "-c", source, "-o", str(Path(work) / "checked.o")])
                return
            if order.compile_only and order.out and len(order.sources) > 1:
                raise BuildError("-o with -c names one object, but there are several sources")
            objects = []
            for number, source in enumerate(order.sources):
                name = f"{Path(source).stem.strip('-') or 'a'}.o"
                made = order.out or name if order.compile_only else str(Path(work) / f"{number}-{name}")
                self._call([*self._compiler(source), "-c", source, "-o", made])
                objects.append(made)
            if not order.compile_only:
                self._link(objects)

    def _call(self, command: list[str], remedies: Callable[[str], list[str]] | None = None) -> None:
        if self._order.show or self._order.verbose:
            self._say(shlex.join(command))
        if self._order.show:
            return
        errors = None if remedies is None else subprocess.PIPE
        done = subprocess.run(command, check=False, stderr=errors)  # noqa: S603  what the user asks to run
        said = (done.stderr or b"").decode(errors="replace").rstrip()
        if said:
            self._say(said)
        if done.returncode:
            known = f" ({'; '.join(remedies(said))})" if remedies is not None and remedies(said) else ""
            raise BuildError(f"{Path(command[0]).name} {command[1]} ended with code {done.returncode}{known}")

    def _remedies(self, said: str) -> list[str]:
        """Return what helps against what the linker has said, where that is known."""
        undefined = set(re.findall(r"undefined symbol: (\w+)", said))
        found = []
        if not self._order.pthread and any(name.startswith(THREAD_FUNCTIONS) for name in undefined):
            found.append("threads need -pthread")
        if "main" in undefined:
            found.append("a library is linked with -shared")
        return found

    def _compiler(self, source: str) -> list[str]:
        """Return the command that compiles a source, without source and output."""
        order = self._order
        cplusplus = Path(source).suffix in _CPLUSPLUS or order.cplusplus
        flags = [
            *("-target", "wasm32-wasi", f"-mcpu={CPU[order.memory]}", "-fPIC", "-ftls-model=global-dynamic"),
            "-fvisibility=default",  # the toolchain hides symbols by default; a library exports what is not hidden
            "-fno-sanitize=undefined",
            *("-fdata-sections", "-ffunction-sections"),
        ]
        if not any(flag.startswith("-O") for flag in order.flags):
            flags.append("-O1" if order.debug else "-O2")
        flags += cxx.FINAL if cplusplus else ()
        flags += [*libc.SETJMP, *libc.EMULATED]
        if not (order.shared or order.pic):
            flags.append(libc.DLFCN_EXPORTED)
        if order.pthread:
            flags += ["-pthread", "-D_REENTRANT"]
            if order.shared or order.pic:
                flags += _across(self._zig)
        # Behind the user's directories, and before those of the toolchain, which `-isystem` would come behind.
        headers = [
            "-I",
            str(HERE / "include"),
            "-I",
            str(INCLUDE),
            *(cxx.standard_flags(self._zig, order.memory) if cplusplus else ()),
        ]
        return [self._tool, "cc", *flags, *order.flags, *headers]

    def _link(self, objects: list[str]) -> None:
        order = self._order
        given = [self._found(word) for word in order.inputs]
        static = [word for word in given if not _is_library(word)]
        libraries = [word for word in given if _is_library(word)]
        cplusplus = order.cplusplus or any(Path(s).suffix in _CPLUSPLUS for s in order.sources)
        folder = sysroot.parts(
            self._zig, order.memory, cplusplus=cplusplus and not order.shared, progress=self._say
        )
        common = [
            *("--experimental-pic", *memory_flags(order.memory), *TLS_EXPORTS[order.memory]),
            *(["--strip-all"] if order.strip else [] if order.debug else ["--strip-debug"]),
        ]
        runtime = str(folder / "libcompiler_rt.a")
        out = order.out or ("a.so" if order.shared else "a.wasm")
        if order.shared:
            kind = ["-shared", "--unresolved-symbols=import-dynamic"]
            inputs = [*objects, *static, str(folder / "libdl.a"), runtime]
        else:
            # Tags that only the host defines are imported; whatever else nothing defines is an error, as for programs anywhere.
            kind = [
                "-pie",
                "--import-memory",
                "--export-dynamic",
                f"--allow-undefined-file={HERE / 'tags.txt'}",
            ]
            archives = [
                str(folder / name)
                for name in (["libc++.a"] if cplusplus else []) + ["libsetjmp.a", "libemulated.a", "libc.a"]
            ]
            if order.export_all or libraries or self._opens_libraries([*objects, *static]):
                archives = ["--whole-archive", *archives, "--no-whole-archive"]
            inputs = [
                str(folder / "crt1.o"),
                *objects,
                *static,
                *archives,
                str(folder / "libdl_program.a"),
                runtime,
            ]
        self._call(
            [self._tool, "wasm-ld", *kind, *common, "-o", out, *inputs, "-Bdynamic", *libraries],
            self._remedies,
        )
        if not order.show:
            if order.run_path:
                _set_run_path(out, tuple(order.run_path))
            os.chmod(out, 0o755 if not order.shared else 0o644)  # as compilers leave programs

    def _found(self, word: str) -> str:
        """Return the file that `-l` means; other words as they are.

        Raises:
            BuildError: no directory has it.
        """
        if not word.startswith("-l"):
            return word
        for directory in self._order.directories:
            for name in (f"lib{word[2:]}.so", f"lib{word[2:]}.a"):
                path = Path(directory) / name
                if path.is_file():
                    return str(path)
        searched = ", ".join(self._order.directories) or "no directory; give one by -L"
        raise BuildError(f"{word}: no lib{word[2:]}.so or lib{word[2:]}.a (searched {searched})")

    def _opens_libraries(self, objects: Sequence[str]) -> bool:
        """Whether some object refers to `dlopen`; what cannot be read says no, and the linker says why."""
        if self._order.show:
            return True
        for name in objects:
            path = Path(name)
            if (
                path.suffix in (".o", ".a")
                and path.is_file()
                and any(word in path.read_bytes() for word in _OPENS)
            ):
                return True
        return False


def _set_run_path(out: str, run_path: tuple[str, ...]) -> None:
    """Write a run path into what was linked, which the linker for WebAssembly cannot do."""
    path = Path(out)
    path.write_bytes(edited(parse_module(path.read_bytes(), out), Changes(run_path=run_path)))


def _is_library(word: str) -> bool:
    return not word.startswith("-") and (word.endswith(".so") or ".so." in word)


def _across(zig: Path) -> list[str]:
    """Return the flags for thread-local variables of other modules, `errno` among them.

    The compiler knows those only for the target `wasm32-emscripten`, so that is what it gets, with the headers of WASI.
    """
    headers = [str(zig / "lib/libc/include" / n) for n in ("wasm-wasi-musl", "generic-musl")]
    return [
        *("-target", "wasm32-emscripten", "-U__EMSCRIPTEN__", "-D__wasi__", "-Dmain=__main_argc_argv"),
        *(part for folder in headers for part in ("-idirafter", folder)),
    ]
