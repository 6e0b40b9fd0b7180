"""`dlrun cache`: the compiled code that is kept on disk."""

from __future__ import annotations

import json
from dataclasses import asdict

import click
from rich.text import Text

from dl.cli.console import output, print_error, print_note
from dl.engine.disk_cache import VARIABLE, DiskCache, Usage, cache_path
from dl.engine.private_directory import NotPrivateError

_FOUND_DAMAGE = 1


@click.group(short_help="Look at compiled code that is kept on disk, check it, or remove it.")
def cache() -> None:
    """Look at the compiled code that is kept on disk, check it, or remove it.

    The code of every module that is linked is kept under the user's cache directory, or the directory that the environment
    variable DLRUN_CACHE names; DLRUN_CACHE=off turns it off, as dlrun --no-cache does for one program.
    """


_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON; its keys are stable.")


@cache.command(short_help="Say where the cache is and how much it holds.")
@_json_option
def info(as_json: bool) -> int:
    """Say where the cache is and how much it holds, or why it is not used."""
    path, kept, refusal = _open()
    used = kept.usage() if kept else None
    if as_json:
        facts = {
            "directory": None if path is None else str(path),
            "off": refusal,
            "files": used.files if used else 0,
            "bytes": used.bytes if used else 0,
            "plans": used.plans if used else 0,
        }
        print(json.dumps(facts, indent=2))
        return 0
    _line("directory", str(path) if path else "none")
    if used is None:
        _line("off", refusal or "")
    else:
        _line("holds", _amount(used))
    return 0


@cache.command(short_help="Remove all code from the cache.")
def clear() -> int:
    """Remove all code from the cache."""
    kept = _needed()
    if kept is None:
        return _FOUND_DAMAGE
    removed = kept.clear()
    _line("removed", _amount(removed))
    return 0


@cache.command(short_help="Check every file of the cache, and remove the damaged ones.")
@_json_option
def verify(as_json: bool) -> int:
    """Check every file of the cache, and remove the damaged ones; the exit code is 1 if there were any."""
    kept = _needed()
    if kept is None:
        return _FOUND_DAMAGE
    found = kept.verify()
    if as_json:
        print(json.dumps(asdict(found), indent=2))
    else:
        _line("good", f"{found.good:,} files")
        _line("removed", f"{len(found.removed):,} files")
        for name in found.removed:
            print_note(name)
    return _FOUND_DAMAGE if found.removed else 0


def _open() -> tuple[object, DiskCache | None, str | None]:
    path = cache_path()
    if path is None:
        return None, None, f"{VARIABLE} is off"
    try:
        return path, DiskCache(path), None
    except (OSError, NotPrivateError) as error:
        return path, None, str(error)


def _needed() -> DiskCache | None:
    _, kept, refusal = _open()
    if kept is None:
        print_error(f"the cache is off: {refusal}")
    return kept


def _amount(usage: Usage) -> str:
    plans = f"{usage.plans:,} {'plan' if usage.plans == 1 else 'plans'}"
    return f"{usage.files:,} files, {plans}, {usage.bytes:,} bytes"


def _line(title: str, text: str) -> None:
    line = Text(f"{title:<10}", style="cyan")
    line.append(text, style="default")
    output().print(line)
