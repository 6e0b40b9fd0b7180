"""Programs that call `dl_ext`, and numbers that C programs know."""

from __future__ import annotations

from typing import Any

import dl
from dl.link.addresses import function_at
from tests.support.guest_dlfcn import (
    Caller,
    asking,
)
from tests.support.modules import pie

LAZY, NOW, GLOBAL, NOLOAD, NODELETE, DEEPBIND = (
    int(f)
    for f in (
        dl.RTLD_LAZY,
        dl.RTLD_NOW,
        dl.RTLD_GLOBAL,
        dl.RTLD_NOLOAD,
        dl.RTLD_NODELETE,
        dl.RTLD_DEEPBIND,
    )
)
DEFAULT, MAIN, NEXT = int(dl.RTLD_DEFAULT), int(dl.MAIN_HANDLE), int(dl.RTLD_NEXT)
SCRATCH = 1 << 16


def main_module(*fields: str, shared: bool = False, **info: Any) -> bytes:
    return pie(*asking(), *fields, shared=shared, memory_size=1 << 17, **info)


def caller(program: dl.Linker, handle: int = MAIN, scratch: int = SCRATCH) -> Caller:
    return Caller(program.main_group, handle, scratch)


def called(program: dl.Linker, address: int | str) -> Any:
    """What the function of type () -> i32 at a table index returns."""
    assert isinstance(address, int)
    found = function_at(program.program.state, address)
    assert found is not None
    assert found.symbol is not None
    return program.main_group.dlsym(found.module.handle, found.symbol)()
