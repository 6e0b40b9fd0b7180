"""C sources that give a guest program the whole of dlfcn, for its own compiler: `dl_ext.h` and `dl_ext.c`."""

from __future__ import annotations

from pathlib import Path


def get_include() -> str:
    """Return the directory of `dl_ext.h` and `dl_ext.c`: what a C compiler gets as `-I`.

    A program and its libraries that are compiled with them have dlclose, dladdr, dlinfo, dl_iterate_phdr and RTLD_NEXT; see
    docs/dlfcn.md.
    """
    return str(Path(__file__).resolve().parent)
