"""Functions at the top of a module, which other processes find by their names."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

import dl

TEN = 10
asked: list[str] = []

doubled = dl.HostFunction(lambda number: 2 * number, ("i32",), ("i32",))


def forty() -> int:
    """A host function."""
    return 40


def raise_value_error() -> NoReturn:
    """A host function that fails."""
    raise ValueError("raised here")


def find(name: str) -> bytes | None:
    """A finder that knows nothing, and remembers what it was asked for."""
    asked.append(name)
    return None


# Functions for workers.


def call(group: dl.InstanceGroup, name: str, *arguments: Any) -> Any:
    """Call a function of the program."""
    return group.library(None)[name](*arguments)


def counted(group: dl.InstanceGroup, item: object) -> tuple[object, int, int]:
    """Return an item, the number of the process, and how often the program there was called."""
    return item, os.getpid(), group.library(None).count()


def number(group: dl.InstanceGroup) -> int:
    """The number of the process."""
    return os.getpid()


def builds(group: dl.InstanceGroup) -> int:
    """Something that is another for each linker of the process."""
    return id(group.linker)


def die(group: dl.InstanceGroup, code: int) -> NoReturn:
    """End the process: with a code, or by a signal if it is negative."""
    if code < 0:
        os.kill(os.getpid(), -code)
        signal.pause()
    os._exit(code)


def die_once(group: dl.InstanceGroup, marker: str) -> int:
    """End the process at the first call; return the number of the next one."""
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return os.getpid()
    os._exit(3)


def wait_for(group: dl.InstanceGroup, path: str, then: str = "") -> str:
    """Make a file that says that this function runs, and wait until another one is there."""
    Path(f"{path}.runs").touch()
    while not Path(path).exists():
        time.sleep(0.01)
    return then


def fail(group: dl.InstanceGroup, error: BaseException) -> NoReturn:
    """Raise an exception."""
    raise error


class Held(Exception):
    """Cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("locked")
        self.lock = threading.Lock()


def fail_unpicklably(group: dl.InstanceGroup) -> NoReturn:
    """Raise an exception that cannot be pickled."""
    raise Held


def unpicklable(group: dl.InstanceGroup) -> object:
    """Return what cannot be pickled."""
    return threading.Lock()


def temporary_directory(group: dl.InstanceGroup) -> str:
    """Where the process keeps temporary files, of which it leaves one."""
    import tempfile

    descriptor, path = tempfile.mkstemp()
    os.close(descriptor)
    return str(Path(path).parent)
