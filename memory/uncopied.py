"""What cannot be copied: objects that stand for something that exists once."""

from __future__ import annotations

from typing import NoReturn, SupportsIndex

__all__ = ["Uncopied"]


class Uncopied:
    """Base of classes whose objects own something outside of Python, or stand for what does: each copy would free it once more.

    `copy.copy`, `copy.deepcopy` and `pickle` raise TypeError. Defined one by one: a class's `__getattr__`, which `copy` asks on
    some versions of CPython, must not answer for them.
    """

    __slots__ = ()

    def __copy__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} cannot be copied: what it stands for exists once")

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} cannot be copied: what it stands for exists once")

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} cannot be pickled: it belongs to this process")
