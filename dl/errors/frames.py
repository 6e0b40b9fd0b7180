"""Functions of the guest on the stack, when it trapped."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from dl.text import shown

if TYPE_CHECKING:
    from typing_extensions import Self


class SourcePlace(Protocol):
    """Where code comes from: file, and line and column from 1."""

    @property
    def file(self) -> str:
        """The source file, as the compiler names it."""

    @property
    def line(self) -> int:
        """From 1."""

    @property
    def column(self) -> int:
        """From 1; 0 if unknown."""


class Frame(str):
    """A function of the guest on the stack, as the text `module!function`, and in parts.

    File, line and column are there for modules that were compiled with `-g`, on engines that say where in its code a function
    is (wasmtime). They are looked up when they are first asked for, so that a trap that is caught costs nothing for them.

    Attributes:
        module: name of the module, without directories.
        function: name of the function, or `function` and its index if the module has no name for it.
        function_index: the function's index in its module; None if the engine does not say.
        offset: bytes from the beginning of the function's body to the instruction; None if the engine does not say.
    """

    __slots__ = ("_locate", "_place", "function", "function_index", "module", "offset")

    module: str
    function: str
    function_index: int | None
    offset: int | None
    _locate: Callable[[int, int], SourcePlace | None] | None
    _place: SourcePlace | None

    def __new__(
        cls,
        module: str,
        function: str,
        function_index: int | None = None,
        offset: int | None = None,
        locate: Callable[[int, int], SourcePlace | None] | None = None,
    ) -> Self:
        """Make a frame.

        Args:
            module: name of the module.
            function: name of the function.
            function_index: its index.
            offset: bytes from the beginning of its body.
            locate: returns the source line of index and offset.
        """
        frame = super().__new__(cls, f"{module}!{function}")
        frame.module = module
        frame.function = function
        frame.function_index = function_index
        frame.offset = offset
        frame._locate = locate
        frame._place = None
        return frame

    @classmethod
    def of(cls, text: str) -> Frame:
        """Return the frame that a text says, without more."""
        if isinstance(text, Frame):
            return text
        module, _, function = text.partition("!")
        return cls(module, function) if function else cls("?", text)

    def _found(self) -> SourcePlace | None:
        locate, self._locate = self._locate, None
        if locate is not None and self.function_index is not None and self.offset is not None:
            self._place = locate(self.function_index, self.offset)
        return self._place

    @property
    def file(self) -> str | None:
        """The source file, as the compiler names it; None if it is not known."""
        place = self._found()
        return None if place is None else place.file

    @property
    def line(self) -> int | None:
        """The line in that file, from 1; None if it is not known."""
        place = self._found()
        return None if place is None else place.line

    @property
    def column(self) -> int | None:
        """The column, from 1; 0 if the compiler does not say, None if nothing is known."""
        place = self._found()
        return None if place is None else place.column

    @property
    def source(self) -> str:
        """File and line, as `file:line`; empty if they are not known."""
        place = self._found()
        return "" if place is None else f"{shown(place.file)}:{place.line}"

    @property
    def described(self) -> str:
        """The text, with the source line if it is known: `lib.so!f at f.c:12`."""
        source = self.source
        return f"{self!s} at {source}" if source else str(self)

    def __reduce__(self) -> tuple[Any, ...]:
        # What finds the line does not travel, but the line does.
        return _restored, (self.module, self.function, self.function_index, self.offset, self._found())

    def __repr__(self) -> str:
        return f"<Frame {self.described}>"


def _restored(
    module: str, function: str, index: int | None, offset: int | None, place: SourcePlace | None
) -> Frame:
    frame = Frame(module, function, index, offset)
    frame._place = place  # noqa: SLF001  one class in two parts
    return frame
