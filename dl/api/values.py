"""Values that cross the border with a meaning: strings, unsigned pointers, structures; and signatures from annotations.

WebAssembly knows numbers only. Whoever calls a function of the guest, or lends it one of Python's, says with these types
what the numbers mean.
"""

from __future__ import annotations

import ctypes
import typing
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from dl.checks import instance, taken, whole, word
from dl.errors import LinkerUsageError, ValueConversionError
from dl.options import HostFunction, HostImports
from dl.records import dataclass
from dl.text import shown_integer
from dl.wasm.types import FuncType
from memory import LinearMemory

if TYPE_CHECKING:
    from typing_extensions import Self

MemoryOf = Callable[[], LinearMemory]
"""Returns the program's memory; asked when a value needs it, since there may be none before."""


@dataclass(frozen=True)
class ValueType:
    """The value type of WebAssembly that an annotated number has.

    Attributes:
        name: `i32`, `i64`, `f32`, `f64` or `v128`.
    """

    name: str


I32 = Annotated[int, ValueType("i32")]
"""An annotation: an integer of 32 bits, signed when it comes from the guest. A plain `int` means the same."""

I64 = Annotated[int, ValueType("i64")]
"""An annotation: an integer of 64 bits, signed when it comes from the guest."""

F32 = Annotated[float, ValueType("f32")]
"""An annotation: a float of 32 bits."""

F64 = Annotated[float, ValueType("f64")]
"""An annotation: a float of 64 bits. A plain `float` means the same."""

V128 = Annotated[bytes, ValueType("v128")]
"""An annotation: a vector, 16 bytes."""


class Pointer(int):
    """An address in linear memory, or an index of the table: 0 to 2**32 - 1.

    A plain i32 of 2 GiB and more is negative, as it comes from the guest; this is what it means.
    """

    __slots__ = ()

    def __new__(cls, number: int) -> Self:
        """Take a number of 32 bits, signed or unsigned.

        Raises:
            InvalidRequestError: it has more bits.
        """
        return super().__new__(cls, LinearMemory.address(number))

    def __repr__(self) -> str:
        return f"Pointer({int(self):#x})"


class CString(str):
    """A string of the guest, UTF-8 that ends with a zero byte; the text was copied, the address stays the guest's.

    Given to a function of the guest it stands for its address, so what the guest allocated can be given back to its `free`.

    Attributes:
        address: where it is in linear memory, bytes.
    """

    __slots__ = ("address",)
    address: int

    def __new__(cls, text: str, address: int) -> Self:
        """Take the text, and the address that it was read from.

        Raises:
            LinkerUsageError: one of them is of another type.
        """
        taken(word, text, "text")
        taken(whole, address, "address")
        self = super().__new__(cls, text)
        self.address = address
        return self

    def __index__(self) -> int:
        return self.address

    @classmethod
    def at(cls, memory: LinearMemory, address: int) -> Self:
        """Read the string at an address.

        Raises:
            InvalidStringError: it is not UTF-8, or no zero byte follows within 64 KiB.
            OutOfBoundsError: it does not end inside the memory.
            LinkerUsageError: `memory` is none.
        """
        taken(instance(LinearMemory), memory, "memory")
        return cls(memory.read_cstring(address), taken(whole, address, "address"))


@dataclass(frozen=True)
class Meaning:
    """What an annotation makes of a value.

    Attributes:
        kind: the value type.
        read: makes what Python sees of what came from the guest; None for the value as it is.
    """

    kind: str
    read: Callable[[MemoryOf, Any], Any] | None = None


def _read_bytes(memory: MemoryOf, number: int) -> bytes:
    return memory().read_cbytes(LinearMemory.address(number))


_MEANINGS: dict[Any, Meaning] = {
    int: Meaning("i32"),
    bool: Meaning("i32", lambda _memory, number: bool(number)),
    float: Meaning("f64"),
    Pointer: Meaning("i32", lambda _memory, number: Pointer(number)),
    CString: Meaning("i32", lambda memory, number: CString.at(memory(), LinearMemory.address(number))),
    str: Meaning("i32", lambda memory, number: memory().read_cstring(LinearMemory.address(number))),
    bytes: Meaning("i32", _read_bytes),
}
_TEXTS = (str, bytes, CString)


def meaning(annotation: Any) -> Meaning | None:
    """Return what an annotation means; None if it has no meaning here."""
    for mark in getattr(annotation, "__metadata__", ()):
        if isinstance(mark, ValueType):
            return Meaning(mark.name)
    if is_structure(annotation):
        kind: type[ctypes.Structure] = annotation
        return Meaning("i32", lambda memory, number: memory().structure(kind, LinearMemory.address(number)))
    try:
        return _MEANINGS.get(annotation)
    except TypeError:  # an annotation that cannot be hashed
        return None


def is_structure(annotation: Any) -> bool:
    """Whether an annotation is a class of structures of ctypes."""
    return isinstance(annotation, type) and issubclass(annotation, (ctypes.Structure, ctypes.Union))


def reads_address(annotation: Any) -> bool:
    """Whether a value is read through a pointer, which must not be null."""
    return annotation in _TEXTS or is_structure(annotation)


def function_name(function: Callable[..., Any]) -> str:
    """Return what messages call a Python function."""
    return str(getattr(function, "__qualname__", None) or repr(function))


_LATE = {
    0x20: "a generator function",
    0x80: "a coroutine function",
    0x200: "an asynchronous generator function",
}
"""Bits of a function's code (`inspect.CO_GENERATOR` and so on)."""


def returns_later(function: Callable[..., Any]) -> str | None:
    """Return, in words, that a call of a function of Python only makes what would run it; None if it runs it."""
    flags = getattr(getattr(function, "__code__", None), "co_flags", 0)
    for bit, what in _LATE.items():
        if flags & bit:
            return f"{function_name(function)} is {what}; the guest, which waits for its result, needs a plain one"
    return None


class AnnotatedFunction:
    """A Python function whose annotations say its signature, and what its values mean.

    Parameters may be `int` (i32), `float` (f64), `bool`, `dl.I64`, `dl.F32`, `dl.V128`, `dl.Pointer`, `dl.CString`, `str` and
    `bytes` (pointers to what ends with a zero byte), and structures of ctypes (pointers; views of the memory, not copies).
    Results may be the numbers of these, None, or a tuple of several.

    Attributes:
        function: the Python function.
        name: what messages call it.
        type: the signature.

    Raises:
        LinkerUsageError: an annotation is missing or means nothing to WebAssembly; names function and parameter.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        import inspect  # noqa: PLC0415  slow, and seldom needed

        self.function = function
        self.name = function_name(function)
        late = returns_later(function)
        if late is not None:
            raise LinkerUsageError(late)
        try:
            hints = typing.get_type_hints(function, include_extras=True)
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError, NameError) as error:
            raise LinkerUsageError(f"{self.name}: its annotations cannot be read: {error}") from error
        self._parameters: list[tuple[str, Any, Meaning]] = []
        for parameter in parameters:
            if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty:
                    continue
                raise LinkerUsageError(
                    f"{self.name}: parameter {parameter.name!r} is not one that the guest can give"
                )
            self._parameters.append(
                (parameter.name, hints.get(parameter.name), self._meaning(hints, parameter.name, "parameter"))
            )
        self._results = self._result_meanings(hints)
        self.type = FuncType(
            tuple(meaning.kind for _, _, meaning in self._parameters), tuple(m.kind for m in self._results)
        )
        self._plain = all(meaning.read is None for _, _, meaning in self._parameters)

    def _meaning(self, hints: dict[str, Any], name: str, what: str) -> Meaning:
        if name not in hints:
            raise LinkerUsageError(
                f"{self.name}: {what} {name!r} has no annotation, so its type is not known; annotate it, or give the "
                "signature as text, such as '(i32, f64) -> i32'"
            )
        return self._known(hints[name], f"{what} {name!r}")

    def _known(self, annotation: Any, where: str) -> Meaning:
        known = meaning(annotation)
        if known is None:
            raise LinkerUsageError(
                f"{self.name}: {where} is {annotation!r}, which has no type in WebAssembly; it may be int, float, bool, "
                "dl.I64, dl.F32, dl.V128, dl.Pointer, dl.CString, str, bytes or a structure of ctypes"
            )
        return known

    def _result_meanings(self, hints: dict[str, Any]) -> list[Meaning]:
        if "return" not in hints:
            raise LinkerUsageError(f"{self.name}: the result has no annotation; write '-> None' for none")
        annotation = hints["return"]
        if annotation is type(None):
            return []
        several = typing.get_origin(annotation) is tuple
        found = []
        for each in typing.get_args(annotation) if several else (annotation,):
            if reads_address(each):
                raise LinkerUsageError(
                    f"{self.name}: a result of type {each.__name__} would need memory that nobody frees; return the address "
                    "of something that stays, as dl.Pointer"
                )
            found.append(self._known(each, "the result"))
        return found

    def bound(self, memory: MemoryOf) -> Callable[..., Any]:
        """Return the function that gets plain numbers, for a program with a memory."""
        function, parameters, plain = self.function, self._parameters, self._plain
        check = self._check_result

        def called(*numbers: Any) -> Any:
            if plain:
                return check(function(*numbers))
            values = []
            for (name, annotation, meant), number in zip(parameters, numbers, strict=True):
                if meant.read is None:
                    values.append(number)
                elif number == 0 and reads_address(annotation):
                    raise ValueConversionError(
                        self.type,
                        f"parameter {name!r} is a null pointer; declare it as dl.Pointer to see it",
                        self.name,
                    )
                else:
                    values.append(meant.read(memory, number))
            return check(function(*values))

        called.__qualname__ = called.__name__ = self.name
        return called

    def _check_result(self, value: Any) -> Any:
        return checked_result(self.type, value, self.function)


_RANGES = {"i32": (-(1 << 31), 1 << 32), "i64": (-(1 << 63), 1 << 64)}


def checked_result(kind: FuncType, value: Any, function: Callable[..., Any]) -> Any:
    """Return what a Python function returned to the guest, if it fits the signature.

    Raises:
        ValueConversionError: it does not; names the function.
    """
    expected = kind.results
    if len(expected) == 1 and type(value) is int and -(1 << 31) <= value < 1 << 31 and expected[0] in _RANGES:
        return value  # what most return, and nothing to name
    name = function_name(function)
    if len(expected) == 1:
        _check_value(kind, expected[0], value, "the result", name)
    elif not expected:
        if value is not None:
            raise ValueConversionError(kind, f"it has no result, but returned {value!r}", name)
    elif not isinstance(value, (tuple, list)) or len(value) != len(expected):
        raise ValueConversionError(kind, f"it must return {len(expected)} values, not {value!r}", name)
    else:
        for position, (each, part) in enumerate(zip(expected, value, strict=True)):
            _check_value(kind, each, part, f"result {position}", name)
    return value


def _check_value(kind: FuncType, expected: str, value: Any, where: str, name: str) -> None:
    if expected in _RANGES:
        if not hasattr(value, "__index__"):
            raise ValueConversionError(kind, f"{where} must be an integer, not {value!r}", name)
        low, end = _RANGES[expected]
        number = value.__index__()
        if not low <= number < end:
            raise ValueConversionError(
                kind, f"{where} does not fit in {expected}: {shown_integer(number)}", name
            )
    elif expected == "v128":
        if not isinstance(value, (bytes, bytearray)) or len(value) != 16:
            raise ValueConversionError(kind, f"{where} must be 16 bytes, not {value!r}", name)
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueConversionError(kind, f"{where} must be a number, not {value!r}", name)


class AnnotatedHostFunction(HostFunction):
    """A host function whose annotations say its signature and what its values mean; made by `host_function`."""

    def __init__(self, function: Callable[..., Any]) -> None:
        annotated = AnnotatedFunction(function)
        super().__init__(function, annotated.type.params, annotated.type.results)
        object.__setattr__(self, "annotated", annotated)

    annotated: AnnotatedFunction

    def __call__(self, *arguments: Any) -> Any:
        """Call the Python function itself."""
        return self.function(*arguments)

    def __repr__(self) -> str:
        return f"<host function {self.annotated.name}{self.type}>"


def host_function(function: Callable[..., Any]) -> AnnotatedHostFunction:
    """Make a Python function one for `imports`, with the signature that its annotations say.

    As a decorator, or called with the function. Parameters may be `int` (i32), `float` (f64), `bool`, `dl.I64`, `dl.F32`,
    `dl.V128`, `dl.Pointer`, `dl.CString`, `str` and `bytes` (pointers to what ends with a zero byte), and structures of ctypes
    (pointers; views of the guest's memory). The result may be a number, None, or a tuple of several.
    A module that imports it with another signature is refused when it is linked.

    Raises:
        LinkerUsageError: an annotation is missing or means nothing to WebAssembly; names function and parameter.
    """
    return AnnotatedHostFunction(function)


def bound_imports(imports: HostImports, memory: MemoryOf) -> HostImports:
    """Return imports whose annotated functions read the memory of a program.

    Raises:
        LinkerUsageError: they are not named twice, by module name and name.
    """
    for space, names in imports.items():
        if not isinstance(names, Mapping):
            raise LinkerUsageError(
                f"imports are named twice, by module name and name: {{'env': {{{space!r}: ...}}}}; {space!r} is "
                f"{type(names).__name__}, not a mapping of names"
            )

    def bound(value: Any) -> Any:
        if isinstance(value, AnnotatedHostFunction):
            return HostFunction(value.annotated.bound(memory), value.params, value.results)
        return value

    return {space: {name: bound(value) for name, value in names.items()} for space, names in imports.items()}
