"""Descriptors, files, streams and terminals of the guest."""
