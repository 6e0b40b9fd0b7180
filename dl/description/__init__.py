"""A program as data: what a linker is made of, described so that it can be kept, compared, sent and built elsewhere."""
