"""Generated modules, compiled: what was generated before is found by what it was generated from.

A generator is a function of plain values, so these values stand for its result, and looking them up costs less than
generating again. What is remembered is only the digest of the bytes, by which `Compiler` knows the code. What a former process
has generated for the same program is found in the same way, in the program's plan (`dl.engine.prelink`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

from dl.engine.code_cache import Compiler, content_digest
from dl.forks import in_forked_child
from dl.recent import Recent

if TYPE_CHECKING:
    from dl.engine.protocol import CompiledModule

_MOST_VALUES = 1 << 19
"""Values in all that the remembered inputs may consist of; one is about 100 bytes."""

_DIGESTS: Recent[bytes] = Recent(_MOST_VALUES)
in_forked_child(_DIGESTS.forked)


def generated(
    compiler: Compiler,
    inputs: Hashable,
    name: str,
    make: Callable[[], bytes],
    *,
    weight: int = 1,
    made_before: Callable[[bytes], CompiledModule | None] | None = None,
    starting: Callable[[], None] | None = None,
) -> CompiledModule:
    """Return the code of a generated module.

    Args:
        compiler: what compiles it.
        inputs: all that the bytes depend on, plain values that are equal if they generate the same: what generates,
            and its arguments.
        name: what to call the module if the engine refuses it.
        make: generates the bytes.
        weight: of how many values the inputs consist, about.
        made_before: returns code that lies elsewhere, by digest; see `Compiler.compile`.
        starting: called before the engine compiles; see there.

    Raises:
        InvalidModuleError: the engine refuses the module.
        ResourceLimitError: the program uses too many compiled modules.
    """
    digest = _DIGESTS.find(inputs)
    if digest is not None:
        known = compiler.find(digest)
        if known is not None:
            return known
    key = b""
    if compiler.plan is not None:
        key, planned = compiler.plan.find(inputs)
        code = None if planned is None else compiler.planned(planned, name, made_before)
        if planned is not None and code is not None:
            _DIGESTS.keep(inputs, planned.digest, weight)
            return code
    wasm = make()
    digest = content_digest(wasm)
    code = compiler.compile(wasm, name, digest, made_before, starting)
    _DIGESTS.keep(inputs, digest, weight)
    if compiler.plan is not None:
        compiler.plan.add(key, digest, code)
    return code
