"""How a program is run as WAMR runs shared-everything programs: the bits of `iwasm --enable-dlopen`, as options.

Source: `wasm_multimodules_program.h` of WAMR's branch `dev/dylink`. There, two of the five bits are never read. Here each does
something that can be observed, or a program that it does not fit is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, get_args

from dl.errors import LinkerUsageError
from dl.records import dataclass

if TYPE_CHECKING:
    from typing_extensions import Self

LAZY_BINDING: Final = 1 << 0
MEMORY_FROM_ROOT: Final = 1 << 1
TABLE_CACHE: Final = 1 << 2
ASSEMBLYSCRIPT_ROOT: Final = 1 << 3
RESOLVE_CACHE: Final = 1 << 4

MOST_BITS: Final = 31

Binding = Literal["early", "lazy"]
MemoryOperations = Literal["host", "root"]


@dataclass(frozen=True)
class WamrMode:
    """The mode of a program of WAMR's kind. The defaults are those of mode 0.

    Attributes:
        binding: what `dlopen` does when its flags say neither RTLD_LAZY nor RTLD_NOW: `early` refuses a library whose functions
            are not all defined and names every one, `lazy` leaves them to their first call (bit 0: `BINDING_MODE_MASK`).
        memory_operations: who serves `malloc`, `calloc`, `realloc` and `free` that libraries import from `env`: `host`, the
            linker's allocator, for the root too if it imports them; or `root`, whose own are exported (bit 1:
            `MEM_ALLOCATOR_MASK`).
        table_cache: whether a function that was looked up at its first call is found again by the table index that the caller
            keeps; without, each call asks the linker, with the same result (bit 2: `USE_TBL_AS_CACHE_MASK`).
        assemblyscript_root: whether the root is a module of AssemblyScript: its stack pointer is `__user_stack_pointer`, its
            allocator may have AssemblyScript's names, and it may import `env.abort` (bit 3: `ROOT_IS_AS_MODULE_MASK`).
        resolve_cache: whether `dlsym` remembers what it found (bit 4: `USE_RESOLVE_CACHE_MASK`).
        load_needed: whether the needed list of a library is loaded with it (`need_load_dependencies`; no bit).
    """

    binding: Binding = "early"
    memory_operations: MemoryOperations = "host"
    table_cache: bool = False
    assemblyscript_root: bool = False
    resolve_cache: bool = False
    load_needed: bool = True

    def __post_init__(self) -> None:
        for name, choices in (
            ("binding", get_args(Binding)),
            ("memory_operations", get_args(MemoryOperations)),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise LinkerUsageError(f"WamrMode: {name} must be one of {choices}, not {value!r}")
        for name in ("table_cache", "assemblyscript_root", "resolve_cache", "load_needed"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise LinkerUsageError(f"WamrMode: {name} must be True or False, not {value!r}")

    @classmethod
    def from_mode_bits(cls, bits: int) -> Self:
        """Return the mode that a number of `--enable-dlopen` means.

        Args:
            bits: 0 to 31. Bit 0 is read as the enumeration of the header has it, 0 for early binding; a comment there says the
                opposite.

        Raises:
            LinkerUsageError: it is no such number.
        """
        if type(bits) is not int or not 0 <= bits <= MOST_BITS:
            raise LinkerUsageError(f"a mode of WAMR is a number from 0 to {MOST_BITS}, not {bits!r}")
        return cls(
            binding="lazy" if bits & LAZY_BINDING else "early",
            memory_operations="root" if bits & MEMORY_FROM_ROOT else "host",
            table_cache=bool(bits & TABLE_CACHE),
            assemblyscript_root=bool(bits & ASSEMBLYSCRIPT_ROOT),
            resolve_cache=bool(bits & RESOLVE_CACHE),
        )

    @property
    def mode_bits(self) -> int:
        """The number that means this mode; `load_needed` is not in it."""
        return (
            LAZY_BINDING * (self.binding == "lazy")
            | MEMORY_FROM_ROOT * (self.memory_operations == "root")
            | TABLE_CACHE * self.table_cache
            | ASSEMBLYSCRIPT_ROOT * self.assemblyscript_root
            | RESOLVE_CACHE * self.resolve_cache
        )
