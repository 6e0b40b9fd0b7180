"""`dl_ext`: the parts of dlfcn that WASIX has no calls for, in a namespace of this linker's own.

ABI, in full in `docs/dlfcn.md`: all parameters are i32; strings are pointer and length in bytes, UTF-8; records are u32 numbers
in a row, little-endian. The result is an errno; where that is 79 (`unknown`), `dlerror` has the reason, one for each thread. A
function is another one for each module that imports it: it knows whose code calls. `dl/include/dl_ext.c` makes of these the
functions that C programs know.

What a call can cost is bounded: strings by their length, an enumeration by the number of modules it writes. Paths are those
that the guest sees; a module outside of its directories has its base name.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from dl.dlfcn import MAIN_HANDLE, AddressKind
from dl.errors import DlError
from dl.logs import logger
from dl.modules.beneath import MAX_PATH_BYTES
from dl.modules.guest_paths import MAX_SEARCH_BYTES
from dl.modules.linked_module import LinkedModule
from dl.wasix.abi import DL_EXT, Errno
from dl.wasix.adapter import running_guest
from dl.wasix.linking import ENDINGS, MAX_SYMBOL_BYTES, cut, elf_flags, not_utf8, read_text
from memory import InvalidStringError

if TYPE_CHECKING:
    from dl.wasix.adapter import Adapter, Functions
    from dl.wasix.system import System

MAX_ERROR_BYTES = 4096
"""Of a longer error text the rest is cut off."""

MOST_MODULES = 1024
"""Most handles that one call of `modules` writes."""

_KINDS = {0: None, 1: AddressKind.FUNCTION, 2: AddressKind.DATA}
_KIND_NUMBERS = {AddressKind.FUNCTION: 1, AddressKind.DATA: 2, AddressKind.THREAD_LOCAL: 3}
_IS_MAIN, _IS_GLOBAL, _STAYS, _IS_CLOSING = 1, 2, 4, 8

log = logger("dl.link")


def extension_functions(system: System, adapter: Adapter) -> Functions:
    """Return the functions of `dl_ext`."""
    calls = _Extension(system)
    linking: dict[str, Callable[..., int]] = {"dlopen": calls.dlopen, "dlsym": calls.dlsym}
    linking["dlclose"] = calls.dlclose
    asking: dict[str, Callable[..., int]] = {
        "dladdr": calls.dladdr,
        "dlerror": calls.dlerror,
        "module": calls.module,
        "modules": calls.modules,
    }
    return adapter.functions(DL_EXT, linking, takes_caller=True) | adapter.functions(
        DL_EXT, asking, takes_caller=True, blocking=False
    )


class _Extension:
    def __init__(self, system: System) -> None:
        self._system = system

    def dlopen(
        self, caller: int, path: int, path_size: int, flags: int, search: int, search_size: int, out: int
    ) -> int:
        """`dlopen`, with ELF's flags; a null or empty path is the program itself."""
        system = self._system
        system.memory.read(out, 4)

        def opened() -> int:
            honoured = elf_flags(flags)
            if not path or not path_size:
                return MAIN_HANDLE
            name = read_text(system, path, path_size, MAX_PATH_BYTES)
            first = read_text(system, search, search_size, MAX_SEARCH_BYTES) if search_size else ""
            log.debug("guest: dl_ext.dlopen(%r, %s)", name, honoured)
            system.check_dynamic()
            with running_guest():
                return system.open_library(name, first, honoured, caller)

        return self._answered(opened, out)

    def dlsym(self, caller: int, handle: int, name: int, name_size: int, out: int) -> int:
        """`dlsym`, with RTLD_DEFAULT (0) and RTLD_NEXT (-1) of the module that calls."""
        system = self._system
        system.memory.read(out, 4)

        def address() -> int:
            symbol = read_text(system, name, name_size, MAX_SYMBOL_BYTES)
            with running_guest():
                return system.address_of_symbol(handle, symbol, caller)

        return self._answered(address, out)

    def dlclose(self, _caller: int, handle: int) -> int:
        """`dlclose` of what the guest itself has opened."""

        def close() -> int:
            log.debug("guest: dl_ext.dlclose(%d)", handle)
            with running_guest():
                self._system.close_library(handle)
            return 0

        # An error of a destructor names its module, which is gone by then.
        return self._answered(close, None, self._system.module_names())

    def dlerror(self, _caller: int, buffer: int, size: int, out: int) -> int:
        """Write the text of the calling thread's last error and forget it, and its bytes, 0 for none."""
        group, memory = self._system.current_group(), self._system.memory
        text = group.dl_error
        memory.read(out, 4)
        if not text or not size:
            memory.write_u32(out, len(text.encode()))
            return Errno.SUCCESS
        raw = cut(text, size)
        memory.write(buffer, raw)
        memory.write_u32(out, len(raw) - 1)
        group.dl_error = ""
        return Errno.SUCCESS

    def dladdr(self, _caller: int, address: int, kind: int, record: int, text: int, size: int) -> int:
        """Write which module and symbol an address belongs to; `noent` if to none."""
        system = self._system
        system.memory.read(record, 24)
        if kind not in _KINDS:
            return Errno.INVAL
        found = system.location(address, _KINDS[kind])
        if found is None:
            return Errno.NOENT
        path, symbol = system.path_for_guest(found.module).encode(), (found.symbol or "").encode()
        start = 0 if found.symbol is None else found.start or 0
        numbers = (found.module.handle, found.module.memory_base, _KIND_NUMBERS[found.kind], start)
        system.memory.write_struct("6I", record, *numbers, len(path), len(symbol))
        return self._texts(text, size, path, symbol)

    def module(self, caller: int, handle: int, record: int, text: int, size: int) -> int:
        """Write what a module is; handle 0 is the one whose code calls. `noent` if there is none."""
        system = self._system
        system.memory.read(record, 44)
        module = system.module(handle or caller)
        if module is None:
            return Errno.NOENT
        path = system.path_for_guest(module)
        origin = posixpath.dirname(path).encode()
        first, end = system.data_range(module)
        block = system.thread_local_block(module)
        local = module.thread_local.size if module.thread_local is not None else 0
        elements = module.elements.size if module.elements is not None else 0
        table = module.elements.address if module.elements is not None else module.table_base
        numbers = (module.handle, _flags(module), first, end - first, table, elements)
        thread_local = (module.handle if local else 0, block, local)
        encoded = path.encode()
        system.memory.write_struct("11I", record, *numbers, *thread_local, len(encoded), len(origin))
        return self._texts(text, size, encoded, origin)

    def modules(self, _caller: int, after: int, handles: int, capacity: int, record: int) -> int:
        """Write the handles of loaded modules behind a handle, and how many were loaded and unloaded so far."""
        system = self._system
        system.memory.read(record, 12)
        capacity = min(capacity, MOST_MODULES)
        system.memory.read(handles, 4 * capacity)
        present, ever, gone = system.loaded_modules(after, capacity)
        system.memory.write_struct(f"{len(present)}I", handles, *present)
        system.memory.write_struct("3I", record, len(present), ever & 0xFFFFFFFF, gone & 0xFFFFFFFF)
        return Errno.SUCCESS

    def _answered(
        self, call: Callable[[], int], out: int | None, names: Iterable[tuple[str, str]] = ()
    ) -> int:
        """Make a call, write its result, and keep the text of its error, which may have some names, for `dlerror`.

        An older error is forgotten first, as in glibc: a name tried in vain does not stay behind the one that was found.
        """
        self._system.current_group().dl_error = ""
        try:
            result = call()
        except ENDINGS:
            raise
        except InvalidStringError as failure:
            self._system.current_group().dl_error = not_utf8(self._system, failure)
            return Errno.UNKNOWN
        except DlError as failure:
            text = self._system.text_for_guest(failure, names)
            self._system.current_group().dl_error = cut(text, MAX_ERROR_BYTES)[:-1].decode() or "failed"
            return Errno.UNKNOWN
        if out is not None:
            self._system.memory.write_u32(out, result)
        return Errno.SUCCESS

    def _texts(self, address: int, size: int, *texts: bytes) -> Errno:
        """Write texts, each with its NUL, or nothing if there is no room for all."""
        raw = b"".join(text + b"\0" for text in texts)
        if len(raw) > size:
            return Errno.OVERFLOW
        self._system.memory.write(address, raw)
        return Errno.SUCCESS


def _flags(module: LinkedModule) -> int:
    return (
        (module.handle == MAIN_HANDLE and _IS_MAIN)
        | (module.global_opens > 0 and _IS_GLOBAL)
        | (module.stays and _STAYS)
        | (module.closing and _IS_CLOSING)
    )
