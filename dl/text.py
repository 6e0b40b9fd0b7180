"""Texts for messages: names from files, and lists that may be long."""

from __future__ import annotations

from collections.abc import Sequence

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
