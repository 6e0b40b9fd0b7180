"""Compiling and linking with the pinned `ziglang` package: the only place that runs a tool."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from dl.errors import BuildError

HERE = Path(__file__).resolve().parent
INCLUDE = HERE.parent / "include"
"""Headers of what this linker gives to C programs, `dlfcn.h` among them."""
WASIX_INCLUDE = HERE / "runtime" / "wasix"
"""The `dlfcn.h` of programs that have WASIX's calls only: with the numbers that they pass to the host."""

PINNED = "0.15.2"
WORKERS = 2

# `generic` already has mutable-globals, bulk-memory and sign-ext; atomics is what a shared memory needs more.
CPU = {"shared": "generic+atomics", "unshared": "generic"}

COMPILE = (
    "-target",
    "wasm32-wasi",
    "-Os",
    "-fvisibility=default",  # zig hides symbols by default; a library exports what is not hidden
    "-fno-sanitize=undefined",
    "-fdata-sections",
    "-DNDEBUG",
)

# What a host needs to give each further thread its own copy of a module's thread-local variables.
TLS_EXPORTS = {
    "shared": tuple(
        f"--export-if-defined={n}" for n in ("__tls_base", "__tls_size", "__tls_align", "__wasm_init_tls")
    ),
    "unshared": (),
}


@lru_cache(maxsize=1)
def require_toolchain() -> Path:
    """Return the folder of the `ziglang` package.

    Raises:
        BuildError: the package is missing or of another version.
    """
    remedy = f"pip install 'wasix-dl[build]', which is ziglang=={PINNED}"
    spec = importlib.util.find_spec("ziglang")
    if spec is None or spec.origin is None:
        raise BuildError(f"the toolchain is missing: {remedy}")
    zig = Path(spec.origin).parent
    found = run([str(zig / "zig"), "version"], HERE).strip()
    if found != PINNED:
        raise BuildError(f"ziglang is {found}, but {PINNED} is needed: {remedy}")
    return zig


def run(command: Sequence[str], cwd: Path) -> str:
    """Run a tool and return its standard output.

    Raises:
        BuildError: it fails, with the command and what it printed.
    """
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def compile_source(
    zig: Path,
    source: Path,
    out: Path,
    memory: str,
    flags: Sequence[str],
    *,
    pic: bool = True,
    cwd: Path = HERE,
) -> None:
    """Compile one C, C++ or assembly source to an object file.

    Args:
        zig: folder of the toolchain; no path below it gets into the object.
        source: the source, absolute or relative to `cwd`.
        out: the object file.
        memory: `shared` or `unshared`.
        flags: more flags, after the common ones.
        pic: whether the code is position independent.
        cwd: where the compiler runs.

    Raises:
        BuildError: the compiler refuses it.
    """
    common = [*COMPILE, f"-mcpu={CPU[memory]}", f"-ffile-prefix-map={zig}=zig"]
    if pic:
        common += ["-fPIC", "-ftls-model=global-dynamic"]
    if memory == "shared":
        common += ["-pthread", "-D_REENTRANT"]
    run([str(zig / "zig"), "cc", *common, *flags, "-c", str(source), "-o", str(out)], cwd)


def archive_of(zig: Path, out: Path, objects: Sequence[str]) -> Path:
    """Put objects into an archive, without times or owners, and return it."""
    run([str(zig / "zig"), "ar", "rcsD", str(out), *objects], HERE)
    return out


def make_archive(words: Sequence[str]) -> int:
    """Run the toolchain's `ar`; return its exit code.

    Raises:
        BuildError: the toolchain is missing.
    """
    command = [str(require_toolchain() / "zig"), "ar", *words]
    return subprocess.run(command, check=False).returncode  # noqa: S603  what the user asks to run


def memory_flags(memory: str) -> list[str]:
    """Return the linker flags of a memory kind; a shared memory needs a maximum, 65,536 pages being all there is."""
    return ["--shared-memory", "--max-memory=4294967296"] if memory == "shared" else []


def prefer_own_cache(work: Path) -> None:
    """Let zig keep its caches where it likes, unless the home folder cannot be written."""
    if not os.access(Path.home(), os.W_OK):
        os.environ.setdefault("ZIG_GLOBAL_CACHE_DIR", str(work / "zig-cache"))
