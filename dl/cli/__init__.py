"""`dlrun`: the linker's command line. The only part of the package that prints."""

from dl.cli.app import main

__all__ = ["main"]
