"""Texts for messages: names from files, and lists that may be long."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module

MOST_LISTED = 100
_MOST_SHOWN = 400
_MOST_IN_CIRCLE = 4


def shown(name: str) -> str:
    """Return a name from a file as a message may show it: on one line, and not without end."""
    name = str(name)  # what a caller gave may be no text, which the message had better show too
    if len(name) > _MOST_SHOWN:
        name = f"{name[:_MOST_SHOWN]}... ({len(name)} characters)"
    return name if name.isprintable() else repr(name)[1:-1]


def first_of(texts: Sequence[str], count: int) -> str:
    """Join texts for a message; of more than can be read, the first."""
    listed = ", ".join(texts[:MOST_LISTED])
    return f"{listed} and {count - MOST_LISTED} more" if count > MOST_LISTED else listed


def runs(frames: Sequence[str]) -> list[str]:
    """Return the frames of a stack, with what repeats once: one frame, or up to four that call each other in a circle."""
    found: list[str] = []
    start = 0
    while start < len(frames):
        length, count = 1, 1
        for size in range(1, _MOST_IN_CIRCLE + 1):
            circle = frames[start : start + size]
            times = 1
            while frames[start + times * size : start + (times + 1) * size] == circle:
                times += 1
            if times > 1:
                length, count = size, times
                break
        text = " < ".join(frames[start : start + length])
        start += length * count
        least = "at least " if start >= len(frames) else ""  # an engine may have left out those further out
        found.append(f"{text}, {least}{count} times" if count > 1 else text)
    return found


_MOST_BITS_SHOWN = 256


def shown_integer(number: int) -> str:
    """Return an integer for a message; of a very long one its size, as Python refuses to write out all digits."""
    bits = number.bit_length()
    return str(number) if bits <= _MOST_BITS_SHOWN else f"an integer of {bits} bits"


_DEMANGLER = "pydemumble"
"""LLVM's own demanglers, for C++, Rust and others."""
_BACK_REFERENCE = re.compile(r"[ST][0-9A-Z]*_")
_BITS_OF_REFERENCE, _MOST_BITS_WRITTEN = 0.531, 26
"""How much a reference to an earlier part of a mangled name can lengthen what is written: threefold for three is the worst.
A name of some hundred bytes could otherwise mean one of gigabytes."""
_LENGTH = re.compile(r"[1-9]\d{0,3}")


@cache
def demangle_function() -> Callable[[str], str] | None:
    """Return what makes of a symbol's name the one that its author wrote; None if there is no library that can.

    It returns the empty string for what is no such name, and for one that might be longer than 64 MiB when written out.
    """
    try:
        demangle: Callable[[str], str] = import_module(_DEMANGLER).demangle
    except ModuleNotFoundError:
        return None

    def bounded(name: str) -> str:
        references = len(_BACK_REFERENCE.findall(name))
        if len(name).bit_length() + references * _BITS_OF_REFERENCE > _MOST_BITS_WRITTEN:
            return ""
        return demangle(name)

    return bounded


def type_as_written(mangled: str) -> str:
    """Return a C++ type as its author wrote it, from the name that its type information has.

    Without the library, names of classes in namespaces only; any other stays as it is.
    """
    demangle = demangle_function()
    if demangle is not None:
        written = demangle(f"_ZTS{mangled}")
        return (
            written.removeprefix("typeinfo name for ")
            if written.startswith("typeinfo name for ")
            else mangled
        )
    return class_as_written(mangled)


def class_as_written(mangled: str) -> str:
    """Return the name of a class, in namespaces or not, from the one that C++ gives it in symbols; others stay as they are."""
    nested = mangled.startswith("N") and mangled.endswith("E")
    inner = mangled[1:-1] if nested else mangled
    rest = inner.removeprefix("St")
    parts = [] if rest == inner else ["std"]
    while rest:
        digits = _LENGTH.match(rest)
        start = digits.end() if digits else 0
        end = start + int(digits[0]) if digits else 0
        if not start < end <= len(rest):
            return mangled
        parts.append(rest[start:end])
        rest = rest[end:]
    return "::".join(parts) if parts else mangled
