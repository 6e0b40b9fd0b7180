"""Modules made ready for other places: patched, and put together with all that they need."""
