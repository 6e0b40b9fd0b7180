"""WebAssembly binaries: read a module's outside, rewrite a part of it, encode a new one.

`module` parses what a linker must know, `rewrite` makes changed copies, `types` has the types that both
and `encode` share. Nothing here knows an engine.
"""
