"""Python functions by name: `module:qualname`, as entry points are written."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from dl.errors import SpecError
from dl.options import HostFunction

_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_function_name(text: object) -> bool:
    """Whether a value is a text of the form `module:qualname`; whether there is such a function is not asked."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def function_name(function: Callable[..., Any]) -> str:
    """Return the name by which a function is found again.

    Raises:
        ValueError: it has none: it is a lambda, a local function, or not what its name stands for.
    """
    module, qualname = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    name = f"{module}:{qualname}"
    if not isinstance(module, str) or not is_function_name(name):
        raise ValueError(f"{function!r} has no name at the top of a module, by which it could be found again")
    found: object = sys.modules.get(module)
    for part in qualname.split(".") if isinstance(qualname, str) else ():
        found = getattr(found, part, None)
    if found is not function:
        raise ValueError(f"{function!r} is not what {name} stands for")
    return name


def named_function(name: Any, where: str) -> Any:
    """Return the function that a field of a description names; its module is imported.

    Args:
        name: the name.
        where: the field.

    Raises:
        SpecError: the module cannot be imported, or has no function of this name.
    """
    module, _, qualname = str(name).partition(":")
    try:
        found: Any = import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise SpecError(where, f"there is no {name}: {error}") from error
    if not callable(found) and not isinstance(found, HostFunction):
        raise SpecError(where, f"{name} is no function, but {type(found).__name__}")
    return found
