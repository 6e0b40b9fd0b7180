"""`dlrun`: the linker's command line. The only part of the package that prints."""

from dl.cli.app import main, process

__all__ = ["main", "process"]
