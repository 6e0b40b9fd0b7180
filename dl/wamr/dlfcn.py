"""`dlopen`, `dlsym`, `dlclose` and `dlerror`, as functions of `env`: the interface that programs of WAMR import.

Strings end with a NUL. Flags are those of musl's `dlfcn.h`; 0, which WAMR's own example passes, leaves the binding to the mode.
A handle is the module's number: 1 is the root, 2 the first library. Handle 0 is the default scope.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from dl.dlfcn import MAIN_HANDLE, RTLD_DEFAULT, DlFlags
from dl.errors import DlError, InvalidHandleError, LinkError, ResourceLimitError
from dl.link.close import close_library
from dl.link.lookup import look_up
from dl.link.open import open_library
from dl.link.plan import LoadRequest
from dl.logs import logger
from dl.modules.beneath import MAX_PATH_BYTES
from dl.modules.locate import Requester, SearchPolicy
from dl.modules.symbols import Symbol
from dl.recent import Recent
from dl.records import dataclass
from dl.wasix.linking import ENDINGS
from memory import Block, InvalidStringError, OutOfBoundsError, Uncopied

if TYPE_CHECKING:
    from dl.groups.registry import Groups
    from dl.link.finalizers import Finalizers
    from dl.program.side_memory import SideMemory
    from dl.wamr.mode import WamrMode
    from dl.wasix.system import System

_FLAGS: Final = {
    1: DlFlags.LAZY,
    2: DlFlags.NOW,
    4: DlFlags.NOLOAD,
    256: DlFlags.GLOBAL,
    4096: DlFlags.NODELETE,
}
"""musl's numbers."""

_ERROR_BYTES: Final = 512
_MOST_CACHED: Final = 4096
_MASK: Final = 0xFFFFFFFF
_FAILED: Final = 1

log = logger("dl.link")


@dataclass(frozen=True)
class WamrStatistics:
    """What the caches of a mode have saved.

    Attributes:
        stub_requests: how often callers have asked for the function of an import that was not defined at the load.
        lookups: calls of `dlsym` that a handle of a module was given to.
        cache_hits: those of them that the cache answered.
        cached: answers that it holds.
    """

    stub_requests: int
    lookups: int
    cache_hits: int
    cached: int


class _Buffer(Uncopied):
    """Where the guest reads the text of a thread's last error; given back when the thread ends."""

    def __init__(self, source: SideMemory) -> None:
        self._source = source
        self.block: Block = source.allocate(_ERROR_BYTES, 0, "the text of dlerror")

    def __del__(self) -> None:
        block = self.__dict__.get("block")
        if block is not None:
            self._source.free_later(block)


class _Own(threading.local):
    """One thread's last error."""

    text: str | None = None
    buffer: _Buffer | None = None


class SymbolCache:
    """What `dlsym` found for a handle and a name; of answers that are too many, those go that were used longest ago.

    An answer stays right as long as the module is loaded: what a module needs never changes, and neither do their symbols. No
    handle is used twice, so an answer of a closed module is never asked for again.
    """

    def __init__(self) -> None:
        self._known: Recent[Symbol] = Recent(_MOST_CACHED)
        self.hits = 0

    def find(self, handle: int, name: str) -> Symbol | None:
        """Return the answer, if it is known."""
        found = self._known.find((handle, name))
        if found is not None:
            self.hits += 1
        return found

    def keep(self, handle: int, name: str, symbol: Symbol) -> None:
        """Remember an answer."""
        self._known.keep((handle, name), symbol, 1)

    def __len__(self) -> int:
        """Number of answers that it holds."""
        return len(self._known)


class GuestLinking:
    """The functions, for one program. Any thread of the program may call them.

    Args:
        mode: the program's.
    """

    def __init__(self, mode: WamrMode) -> None:
        self._mode = mode
        self._own = _Own()
        self.cache = SymbolCache() if mode.resolve_cache else None
        self.lookups = 0

    def connect(self, groups: Groups, finalizers: Finalizers, system: System) -> None:
        """Set what they work on, once, before the program runs."""
        self._groups = groups
        self._finalizers = finalizers
        self._system = system

    def dlopen(self, path: int, flags: int) -> int:
        """Open a library, or the root for a null path; return its handle, or 0."""
        path &= _MASK
        if not path:
            return MAIN_HANDLE
        name = self._text(path)
        if name is None:
            return 0
        wanted = self._flags(flags & _MASK, name)
        if wanted is None:
            return 0
        return int(self._guarded(lambda: self._open(name, wanted), 0))

    def _open(self, name: str, flags: DlFlags) -> int:
        log.debug("guest: dlopen(%r, %s)", name, flags)
        with self._groups.program.events.telling_failure(name):
            return self._open_or_fail(name, flags)

    def _open_or_fail(self, name: str, flags: DlFlags) -> int:
        program = self._groups.program
        program.check_dynamic(name)
        policy = SearchPolicy.of_guest("", self._system.guest_paths(), name)
        image = program.locator.find(name, Requester(), policy, program.state.image_by_base_name)
        main = program.main_module
        if main is not None and image.identity == main.image.identity:
            raise LinkError(name, "it is the program itself; dlopen(NULL) opens that")
        request = LoadRequest(flags, policy=policy, load_needed=self._mode.load_needed)
        return open_library(self._groups, self._groups.current(), image, request)

    def _flags(self, flags: int, name: str) -> DlFlags | None:
        wanted = DlFlags.LOCAL
        for bit, flag in _FLAGS.items():
            if flags & bit:
                wanted |= flag
        unknown = flags & ~sum(_FLAGS)
        if unknown:
            self._own.text = f"cannot open {name}: flags {unknown:#x} are none of dlopen's"
            return None
        if not wanted & (DlFlags.LAZY | DlFlags.NOW):
            wanted |= DlFlags.LAZY if self._mode.binding == "lazy" else DlFlags.NOW
        return wanted

    def dlsym(self, handle: int, name: int) -> int:
        """Return a function's table index or the address of data; 0 if there is none."""
        symbol = self._text(name & _MASK)
        if symbol is None:
            return 0
        return int(self._guarded(lambda: self._address(handle & _MASK, symbol), 0))

    def _address(self, handle: int, name: str) -> int:
        group, state = self._groups.current(), self._groups.program.state
        group.synchronize()
        if handle == RTLD_DEFAULT:
            return group.address_of(look_up(state, handle, name))
        self.lookups += 1
        module = state.module(handle)
        if module is None or module.closing:
            raise InvalidHandleError(handle, "it was closed" if 0 < handle < state.next_handle else "")
        found = None if self.cache is None else self.cache.find(handle, name)
        if found is None:
            found = look_up(state, handle, name)
            if self.cache is not None:
                self.cache.keep(handle, name, found)
        return group.address_of(found)

    def dlclose(self, handle: int) -> int:
        """Take back one `dlopen`; return 0, or another number if no library has this handle or a destructor failed."""

        def close() -> int:
            close_library(self._groups, self._finalizers, self._groups.current(), handle & _MASK)
            return 0

        return int(self._guarded(close, _FAILED))

    def dlerror(self) -> int:
        """Return the address of the text of the thread's last error, and forget it; 0 if there was none since."""
        own = self._own
        text, own.text = own.text, None
        if text is None:
            return 0
        program = self._groups.program
        if own.buffer is None:
            if program.side_memory is None:
                return 0  # the root keeps its memory to itself
            try:
                own.buffer = _Buffer(program.side_memory)
            except ResourceLimitError:
                log.info("guest: no memory for the text of dlerror: %s", text)
                return 0
        raw = text.encode(errors="replace")[: _ERROR_BYTES - 1].decode(errors="ignore").encode()
        program.memory.write(own.buffer.block.address, raw + b"\0")
        return own.buffer.block.address

    def _guarded(self, action: Callable[[], Any], failed: int) -> Any:
        try:
            return action()
        except ENDINGS:
            raise
        except DlError as error:
            self._own.text = self._system.text_for_guest(error)
            return failed

    def _text(self, address: int) -> str | None:
        try:
            return self._groups.program.memory.read_cstring(address, MAX_PATH_BYTES)
        except (OutOfBoundsError, InvalidStringError) as error:
            self._own.text = f"no string at {address:#x}: {error}"
            return None
