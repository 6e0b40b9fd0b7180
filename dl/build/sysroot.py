"""The C library and the run-time library of C++ that programs are linked with: shipped ready, or built once.

They lie in `dl/build/lib`, in a folder for each kind of memory, where `scripts/sysroot` puts them. What is missing there is
built at first use into the user's cache, by the same recipe.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from platformdirs import user_cache_path

from dl.build import cxx, libc
from dl.build.toolchain import HERE, INCLUDE, PINNED, prefer_own_cache
from dl.errors import BuildError

KINDS = ("unshared", "shared")
C_PARTS = (
    "crt1.o",
    "libc.a",
    "libsetjmp.a",
    "libemulated.a",
    "libcompiler_rt.a",
    "libdl.a",
    "libdl_program.a",
)
CXX_PARTS = ("libc++.a",)
SHIPPED = HERE / "lib"
SHIPPED_PARTS = C_PARTS + CXX_PARTS

Progress = Callable[[str], object]


def recipe_digest() -> str:
    """Return what tells one recipe of the libraries from another: the toolchain, and the sources that lie here."""
    digest = hashlib.sha256(PINNED.encode())
    sources = [*HERE.glob("*.py")]
    for folder in (HERE / "runtime", HERE / "emulated", INCLUDE):
        sources += folder.rglob("*")
    for path in sorted(path for path in sources if path.suffix in {".py", ".c", ".S", ".h"}):
        if path.name in {"driver.py", "projects.py", "sysroot.py", "__init__.py"}:
            continue  # do not change what is built
        digest.update(path.relative_to(HERE.parent).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def kept_in() -> Path:
    """Return the folder in the user's cache for what the wheel does not have."""
    root = os.environ.get("DLRUN_SYSROOT")
    return Path(root) if root else user_cache_path("wasix-dl") / f"sysroot-{recipe_digest()}"


def parts(zig: Path, memory: str, *, cplusplus: bool, progress: Progress) -> Path:
    """Return the folder with the libraries of a memory kind; builds what is missing.

    Args:
        zig: folder of the toolchain.
        memory: `shared` or `unshared`.
        cplusplus: whether `libc++.a` is needed.
        progress: gets a line before something long begins.

    Raises:
        BuildError: they cannot be built.
    """
    wanted = [*C_PARTS, *(CXX_PARTS if cplusplus else ())]
    for root in (SHIPPED, kept_in()):
        folder = root / memory
        if all((folder / name).is_file() for name in wanted):
            return folder
    folder = kept_in() / memory
    if not all((folder / name).is_file() for name in C_PARTS):
        progress(f"building the C library for {memory} memory, once (about a minute)")
        build(zig, folder, memory, C_PARTS)
    if cplusplus and not all((folder / name).is_file() for name in CXX_PARTS):
        progress(f"building the C++ library for {memory} memory, once (some minutes)")
        build(zig, folder, memory, CXX_PARTS)
    return folder


def build(zig: Path, folder: Path, memory: str, wanted: Sequence[str]) -> None:
    """Build parts into a folder; each appears there complete or not at all.

    Raises:
        BuildError: a source cannot be compiled, or the folder cannot be written.
    """
    makers = {
        "crt1.o": libc.start_object,
        "libc.a": libc.program_archive,
        "libdl.a": libc.dlfcn_library,
        "libdl_program.a": libc.program_dlfcn_library,
        "libcompiler_rt.a": libc.compiler_runtime,
        "libsetjmp.a": libc.setjmp_library,
        "libemulated.a": libc.emulated_library,
        "libc++.a": cxx.standard_library,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="building-", dir=folder) as work:
            prefer_own_cache(Path(work))
            for name in wanted:
                made = makers[name](zig, Path(work), memory)
                shutil.move(made, Path(work) / name)
                (Path(work) / name).replace(folder / name)
    except OSError as error:
        raise BuildError(
            f"the C library cannot be kept in {folder}: {error}; set DLRUN_SYSROOT to a folder that can be written"
        ) from error
