"""Every function name that the guest's system interfaces know, with its signature; and their error numbers.

Sources: the `wasi_snapshot_preview1` witx definitions (see `dl.engine.preview1`); `__wasixlibc_real.c` of wasix-libc, whose
prototypes show how the WASIX functions are lowered; `lib/wasix/src/lib.rs` of Wasmer for the names each namespace has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dl.engine.preview1 import FUNCTIONS as PREVIEW1_FUNCTIONS
from dl.engine.preview1 import PREVIEW1, UNSTABLE, WASIX, signature
from dl.program.host_symbols import ATOMICS
from dl.wasm.types import FuncType

if TYPE_CHECKING:
    from enum import IntEnum
else:
    IntEnum = int

WASI_THREADS = "wasi"

DL_EXT = "dl_ext"
"""A namespace of this linker's own: what dlfcn has and WASIX has not. `docs/dlfcn.md` has its ABI."""


class Errno(IntEnum):
    """Error numbers that functions of ours answer with; preview 1's, and from 78 on those that WASIX adds.

    An enumeration to type checkers. At run time they are numbers of this class that have a name: making the members of an
    enumeration takes half a millisecond.
    """

    SUCCESS = 0
    ACCES = 2
    AGAIN = 6
    BADF = 8
    BUSY = 10
    CHILD = 12
    DQUOT = 19
    EXIST = 20
    FAULT = 21
    FBIG = 22
    INTR = 27
    INVAL = 28
    IO = 29
    ISDIR = 31
    LOOP = 32
    MFILE = 33
    NAMETOOLONG = 37
    NFILE = 41
    NOENT = 44
    NOEXEC = 45
    NOMEM = 48
    NOSPC = 51
    NOSYS = 52
    NOTDIR = 54
    NOTSOCK = 57
    NOTSUP = 58
    NOTTY = 59
    NXIO = 60
    OVERFLOW = 61
    PERM = 63
    PIPE = 64
    RANGE = 68
    ROFS = 69
    SPIPE = 70
    SRCH = 71
    STALE = 72
    TIMEDOUT = 73
    TXTBSY = 74
    NOTCAPABLE = 76
    MEMVIOLATION = 78
    UNKNOWN = 79


if not TYPE_CHECKING:
    for _name, _number in tuple(vars(Errno).items()):
        if _name.isupper():  # and not a number that the interpreter keeps about the class
            _member = Errno(_number)
            _member.name = _name
            setattr(Errno, _name, _member)


class ErrnoError(Exception):
    """A call of the guest's cannot be done.

    Attributes:
        errno: what the guest gets.
    """

    def __init__(self, errno: Errno) -> None:
        super().__init__(errno)
        self.errno = errno


def _table(compact: str) -> dict[str, FuncType]:
    return {name: signature(kind) for name, kind in zip(*[iter(compact.split())] * 2, strict=True)}


_BASE = PREVIEW1_FUNCTIONS | _table("proc_exit i  sched_yield :i")

LINKING = _table("""
call_dynamic iiiiii:i           closure_allocate i:i            closure_free i:i
closure_prepare iiiiiii:i       dl_invalid_handle i:i           dlopen iiiiiiii:i
dlsym iiiiii:i                  reflect_signature iiiiii:i
""")
"""Functions of `wasix_32v1` that concern the linker."""

THREADS = _table("""
futex_wait iiii:i               futex_wake ii:i                 futex_wake_all ii:i
proc_exit2 i                    thread_exit i                   thread_id i:i
thread_join i:i                 thread_parallelism i:i          thread_signal ii:i
thread_sleep I:i                thread_spawn ii:i               thread_spawn_v2 ii:i
""")
"""Functions of `wasix_32v1` that concern threads."""

PROCESS = _table("""
callback_signal ii              chdir ii:i                      clock_time_set iI:i
fd_dup ii:i                     fd_dup2 iiii:i                  fd_event Iii:i
fd_fdflags_get ii:i             fd_fdflags_set ii:i             fd_pipe ii:i
getcwd ii:i                     path_open2 iiiiiIIiii:i         proc_id i:i
proc_join iii:i                 proc_parent ii:i                proc_raise_interval iIi:i
proc_signal ii:i                proc_signals_get i:i            proc_signals_sizes_get i:i
tty_get i:i                     tty_set i:i
""")
"""Functions of `wasix_32v1` for descriptors, directory, signals and terminal of the process."""

CONTEXTS = _table("""
context_create ii:i             context_destroy I:i             context_switch I:i
continuation_context ii:i       continuation_delete i:i         continuation_new ii:i
continuation_switch i:i         stack_checkpoint ii:i           stack_restore iI
""")
"""Functions of `wasix_32v1` that need to save and restore a stack, which engines here cannot do."""

ABSENT = _table("""
epoll_create i:i                epoll_ctl iiii:i                epoll_wait iiiIi:i
port_addr_add i:i               port_addr_clear :i              port_addr_list ii:i
port_addr_remove i:i            port_bridge iiiii:i             port_dhcp_acquire :i
port_gateway_set i:i            port_mac i:i                    port_route_add iiii:i
port_route_clear :i             port_route_list ii:i            port_route_remove i:i
port_unbridge :i                proc_exec iiii                  proc_exec2 iiiiii
proc_exec3 iiiiiiiii:i          proc_exec4 iiiiiiiii:i          proc_fork ii:i
proc_fork_env i:i               proc_snapshot :i                proc_spawn iiiiiiiiiiiii:i
proc_spawn2 iiiiiiiiiiiiii:i    proc_spawn3 iiiiiiiiiiiiii:i    resolve iiiiii:i
sock_accept_v2 iiii:i           sock_addr_local ii:i            sock_addr_peer ii:i
sock_bind ii:i                  sock_connect ii:i               sock_get_opt_flag iii:i
sock_get_opt_size iii:i         sock_get_opt_time iii:i         sock_join_multicast_v4 iii:i
sock_join_multicast_v6 iii:i    sock_leave_multicast_v4 iii:i   sock_leave_multicast_v6 iii:i
sock_listen ii:i                sock_open iiii:i                sock_pair iiiii:i
sock_recv_from iiiiiii:i        sock_send_file iiIIi:i          sock_send_to iiiiii:i
sock_set_opt_flag iii:i         sock_set_opt_size iiI:i         sock_set_opt_time iii:i
sock_status ii:i
""")
"""Functions of `wasix_32v1` that are not supported: other processes, sockets, epoll and network ports."""

WAITING = _table("""
notify ii:i                     wait32 iiI:i                    wait64 iII:i
""")
"""Functions that stand in for the instructions `memory.atomic.notify`, `wait32` and `wait64` (threads proposal)."""

_SPAWN = _table("thread-spawn i:i")
# The older interface has no sock_accept; in WASIX that name means the second version, which also tells the address.
_SNAPSHOT0 = {name: kind for name, kind in _BASE.items() if name != "sock_accept"}

NAMESPACES: dict[str, dict[str, FuncType]] = {
    PREVIEW1: _BASE | _SPAWN,
    UNSTABLE: _SNAPSHOT0 | _SPAWN,
    WASI_THREADS: dict(_SPAWN),
    WASIX: _BASE
    | LINKING
    | THREADS
    | PROCESS
    | CONTEXTS
    | ABSENT
    | {"sock_accept": ABSENT["sock_accept_v2"]},
}
"""Namespace to function name to signature: all that a program may import from a system interface."""

EXTENSION = _table("""
dladdr iiiii:i                  dlclose i:i                     dlerror iii:i
dlopen iiiiii:i                 dlsym iiii:i                    module iiii:i
modules iiii:i
""")
"""Functions of `dl_ext`."""

SIGNATURES: dict[str, dict[str, FuncType]] = NAMESPACES | {DL_EXT: EXTENSION, ATOMICS: WAITING}
"""The same, with this linker's own, and with what only generated and rewritten code calls."""
