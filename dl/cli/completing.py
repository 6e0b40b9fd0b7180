"""Completion in shells, beyond what click does: values behind `--option=`, which shells hand over in different ways."""

from __future__ import annotations

import os
from typing import Any

from click.shell_completion import BashComplete, CompletionItem, FishComplete, ShellComplete, ZshComplete

from dl.cli.app import COMMANDS


class _Valued(ShellComplete):
    """Completes values behind `--option=`, of the command that is meant, which is `run` if none is named."""

    replaces_word = True
    """Whether the shell puts what it is given in place of the whole word, and not of what is behind `=`."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[str]]:
        if args[-1:] == ["="]:  # as bash takes words apart
            option, equals, value = args[-2], "=", incomplete
            args = args[:-2]
        elif incomplete == "=" and args:
            option, equals, value = args[-1], "=", ""
            args = args[:-1]
        else:
            option, equals, value = incomplete.partition("=")
        if not equals or not option.startswith("--"):
            return super().get_completions(args, incomplete)
        named = args if args and args[0] in COMMANDS else ["run", *args]
        found = super().get_completions(named, f"{option}={value}")
        if not self.replaces_word:
            return found
        return [
            CompletionItem(f"{option}={text}", help=one.help)
            for one in found
            for text in ([one.value] if one.type == "plain" else _files(value, one.type))
        ]


def _files(begun: str, kind: str) -> list[str]:
    """Return the paths that begin with a text; with `/` behind directories."""
    folder, _, start = begun.rpartition("/")
    folder += "/" if "/" in begun else ""
    try:
        entries = sorted(os.scandir(folder or "."), key=lambda entry: entry.name)
    except OSError:
        return []
    return [
        f"{folder}{entry.name}{'/' if entry.is_dir() else ''}"
        for entry in entries
        if entry.name.startswith(start) and (entry.is_dir() or kind == "file")
    ]


class _Bash(_Valued, BashComplete):
    replaces_word = False


class _Zsh(_Valued, ZshComplete):
    pass


class _Fish(_Valued, FishComplete):
    pass


SHELLS: dict[str, type[Any]] = {"bash": _Bash, "zsh": _Zsh, "fish": _Fish}
