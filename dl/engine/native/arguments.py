"""Arguments of native calls that are made once and passed many times.

ctypes converts each argument of a function that has `argtypes` at each call: five of them take half of a short call. What
`from_param` returns is passed as it is by a function that has none.
"""

from __future__ import annotations

import ctypes
from typing import Any

NativeArgument = Any
"""What `from_param` of a type of ctypes returns. It holds a value, refers to nothing, and does not change."""


def address_argument(address: int) -> NativeArgument:
    """Return an address as an argument."""
    return ctypes.c_void_p.from_param(address)


def size_argument(size: int) -> NativeArgument:
    """Return a number of bytes or of elements as an argument."""
    return ctypes.c_size_t.from_param(size)


def taking_arguments(library: ctypes.CDLL, name: str, result: Any) -> Any:
    """Return a function of a library that takes arguments of this module, and no others.

    Args:
        library: the library.
        name: the function's name.
        result: the type of its result.
    """
    function = library[name]  # another object than the attribute of that name, which may have `argtypes`
    function.restype = result
    return function
