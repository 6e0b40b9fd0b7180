"""The C libraries that are shipped are what the recipe makes of the toolchain's sources."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from dl.build import sysroot
from dl.build.toolchain import HERE, require_toolchain

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        importlib.util.find_spec("ziglang") is None,
        reason="ziglang, the toolchain, is not installed (pip install 'wasix-dl[build]')",
    ),
]

SMALL = ("crt1.o", "libsetjmp.a", "libdl.a", "libdl_program.a")


@pytest.mark.soak
@pytest.mark.parametrize("memory", sysroot.KINDS)
def test_shipped_libraries_equal_a_fresh_build(tmp_path: Path, memory: str) -> None:
    """Byte for byte; in the short form the small ones, in the long one also libc and libc++, which take minutes."""
    wanted = sysroot.SHIPPED_PARTS if "DL_SOAK_SECONDS" in os.environ else SMALL
    sysroot.build(require_toolchain(), tmp_path / memory, memory, wanted)

    for name in wanted:
        made, shipped = tmp_path / memory / name, sysroot.SHIPPED / memory / name
        assert made.read_bytes() == shipped.read_bytes(), name


def test_what_is_not_shipped_is_built_once_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that is missing in the wheel is built into the folder that DLRUN_SYSROOT names, with one line before."""
    monkeypatch.setattr(sysroot, "SHIPPED", tmp_path / "nothing")
    monkeypatch.setattr(sysroot, "C_PARTS", ("crt1.o", "libsetjmp.a"))
    monkeypatch.setenv("DLRUN_SYSROOT", str(tmp_path / "kept"))
    said: list[str] = []
    for _ in range(2):
        folder = sysroot.parts(require_toolchain(), "shared", cplusplus=False, progress=said.append)

    assert folder == tmp_path / "kept/shared"
    assert (folder / "crt1.o").read_bytes() == (HERE / "lib/shared/crt1.o").read_bytes()
    assert said == ["building the C library for shared memory, once (about a minute)"]
