"""Builds the library with cargo, and a wheel that serves every CPython of a platform.

Cargo's folder is outside of the checkout, so that a second build takes seconds: `CARGO_TARGET_DIR`, or
`wasix-dl-wasmer-target` in the user's folder for caches.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
LIBRARY = "libwasix_dl_wasmer.so"


def target_folder() -> Path:
    """Return where cargo builds."""
    given = os.environ.get("CARGO_TARGET_DIR")
    if given:
        return Path(given)
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "wasix-dl-wasmer-target"


def built_library() -> Path:
    """Build the library; return its path."""
    cargo = shutil.which("cargo") or str(Path.home() / ".cargo/bin/cargo")
    if not os.path.exists(cargo):
        raise SystemExit(
            "wasix-dl-wasmer is built with Rust 1.95 or newer, and there is no cargo: see https://rustup.rs"
        )
    target = target_folder()
    command = [cargo, "build", "--release", "--locked", "--manifest-path", str(HERE / "Cargo.toml")]
    subprocess.run([*command, "--target-dir", str(target)], check=True)
    return target / "release" / LIBRARY


def oldest_glibc(library: Path) -> tuple[int, int]:
    """Return the oldest glibc that a library runs with: the newest version of a symbol that it asks for."""
    versions = re.findall(rb"\0GLIBC_(\d+)\.(\d+)(?:\.\d+)?(?=\0)", b"\0" + library.read_bytes())
    return max((int(major), int(minor)) for major, minor in versions)


class BuildWithLibrary(build_py):
    """Puts the library beside the Python file."""

    def run(self) -> None:
        super().run()
        folder = Path(self.build_lib) / "wasix_dl_wasmer"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(built_library(), folder / LIBRARY)


class PlatformWheel(bdist_wheel):
    """Says that the wheel depends on the platform and on nothing of Python's."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self) -> tuple[str, str, str]:
        platform = super().get_tag()[2]
        if platform.startswith("linux_"):
            major, minor = oldest_glibc(built_library())
            platform = platform.replace("linux_", f"manylinux_{major}_{minor}_", 1)
        return "py3", "none", platform


class WithLibrary(Distribution):
    """A distribution with native code."""

    def has_ext_modules(self) -> bool:
        return True


setup(distclass=WithLibrary, cmdclass={"build_py": BuildWithLibrary, "bdist_wheel": PlatformWheel})
