"""Linking: from the bytes of a module to code that every thread has, and back."""
