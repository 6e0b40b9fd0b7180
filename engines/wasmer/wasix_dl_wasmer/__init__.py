"""Wasmer, compiling with Cranelift, as a library for `wasix-dl`, which calls it: nothing here is for users.

`pip install 'wasix-dl[wasmer]'` installs it, and `Linker(engine="wasmer")` uses it.
"""

from __future__ import annotations

from pathlib import Path

LIBRARY = str(Path(__file__).with_name("libwasix_dl_wasmer.so"))
"""The path of the library."""
