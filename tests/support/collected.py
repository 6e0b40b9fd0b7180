"""What pytest collects from a file of tests, read without importing it."""

from __future__ import annotations

import ast
import functools
from pathlib import Path


@functools.cache
def functions(path: Path) -> set[str]:
    """Return the test functions of a file, as `name`, and those of classes as `Class::name` too; none if there is no file."""
    if not path.is_file():
        return set()
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        within = node.body if isinstance(node, ast.ClassDef) and node.name.startswith("Test") else [node]
        prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        for item in within:
            if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef) and item.name.startswith("test_"):
                found |= {prefix + item.name, item.name}
    return found


def classes(path: Path) -> set[str]:
    """Return the classes of tests of a file."""
    return {name.partition("::")[0] for name in functions(path) if "::" in name}
