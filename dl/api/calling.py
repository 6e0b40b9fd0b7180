"""Memory of the guest, and functions of Python for it, as methods of the linker."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, overload

from dl.api.linker_base import LinkerBase
from dl.errors import LinkerUsageError
from dl.wasm.types import FuncType

if TYPE_CHECKING:
    from dl.api.blocks import BlockSource, GuestBlock
    from dl.api.callbacks import Callback


class Calling(LinkerBase):
    """The methods of `Linker` that give the guest memory, and functions of Python."""

    def allocate(self, size: int, align: int = 16, *, source: BlockSource = "linker") -> GuestBlock:
        """Reserve a block of the guest's memory, zeroed; in a `with` it is given back at the end.

        Args:
            size: bytes, at least 1.
            align: a power of two, up to 65536; for `source="program"` what its `malloc` gives, up to 16.
            source: "linker", or "program" for its C library's `malloc`: then the guest may `free` it, and the block must not
                be closed. The latter runs guest code, in the calling thread.

        Raises:
            ResourceLimitError: there is no room.
            LinkerUsageError: size or alignment are out of range; the program's memory cannot be reached; or the calling
                thread has no group, where guest code must run.
            SymbolNotFoundError: the program has no `malloc`.
        """
        from dl.api.blocks import allocated  # noqa: PLC0415  few programs get memory from the host

        self._check_open()
        return allocated(self, size, align, source, "a block of the host's")

    @overload
    def callback(self, signature: FuncType | str, function: Callable[..., Any], /) -> Callback: ...

    @overload
    def callback(self, function: Callable[..., Any], /) -> Callback: ...

    def callback(
        self, signature: FuncType | str | Callable[..., Any], function: Callable[..., Any] | None = None, /
    ) -> Callback:
        """Make a Python function a function pointer of the guest, valid in every instance group, also in later ones.

        Args:
            signature: as text, such as `"(i32, f64) -> i32"`, or as a `FuncType`; then the function gets and returns plain
                values. Without one, so also as a decorator, the function's annotations say it: see `dl.host_function`.
            function: gets and returns values as `imports` do: int, float, 16 bytes for v128, a tuple for several
                results. Called in the thread of the caller, which may call the guest in turn. What it raises unwinds the
                guest.

        Returns:
            The callback: its `address` is the pointer. Close it when the guest no longer calls it, or use it in a `with`.

        Raises:
            LinkerUsageError: the text is no signature; an annotation is missing or has no type in WebAssembly; or the function
                takes another number of arguments, or is a coroutine's or a generator's.
            ValueConversionError: the signature has values that Python code cannot hold.
            NotDynamicError: the program's table cannot take functions.
            ResourceLimitError: the table is full.
        """
        self._check_open()
        if function is None:
            if isinstance(signature, (str, FuncType)) or not callable(signature):
                raise LinkerUsageError(f"a callback needs a function, beside the signature {signature!r}")
            from dl.api.values import AnnotatedFunction, AnnotatedHostFunction  # noqa: PLC0415  as above

            read = isinstance(signature, AnnotatedHostFunction) and signature.annotated
            annotated = read or AnnotatedFunction(signature)
            return self.parts.callbacks().make(
                annotated.type, annotated.bound(lambda: self.memory), signature
            )
        if not isinstance(signature, (str, FuncType)):
            raise LinkerUsageError(
                f"the signature of a callback is text such as '(i32) -> i32', not {signature!r}"
            )
        return self.parts.callbacks().make(signature, function)
