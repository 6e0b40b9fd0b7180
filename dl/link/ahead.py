"""Compiling before a program runs: a module, what it needs, and libraries that it will open, as a load would compile them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from dl.engine import chosen_engine
from dl.engine.code_cache import Compiler, content_digest
from dl.engine.requirements import check_capabilities
from dl.errors import LinkerUsageError
from dl.link.find import as_library, compile_module, compiled_bytes
from dl.modules.image import ModuleImage, with_interruptible_waits
from dl.modules.kind import ModuleKind, check_side_module, kind_of
from dl.modules.locate import Locator, requester_of
from dl.options import DEFAULT_STACK_BYTES, MemoryType
from dl.program.main_module import MainModule, describe_main
from dl.records import dataclass
from dl.wasm.types import MemoryType as WasmMemoryType
from dl.wasm.wait_table import with_wait_table

if TYPE_CHECKING:
    from dl.engine.protocol import Engine


@dataclass(frozen=True)
class Compiled:
    """The code of one module.

    Attributes:
        image: the module as it was found.
        engine: whose code it is.
        codes: code by the digest of what was compiled.
    """

    image: ModuleImage
    engine: Engine
    codes: dict[bytes, bytes]


def compile_ahead(
    main: ModuleImage,
    libraries: Iterable[ModuleImage],
    locator: Locator,
    *,
    engine: str | None = None,
    interrupts: bool | None = None,
) -> Iterator[Compiled]:
    """Compile a module and all it needs, one after the other.

    Args:
        main: the program, or a library.
        libraries: others that it will open; what they need is compiled too.
        locator: finds what is needed.
        engine: name of the engine; None for the default one.
        interrupts: whether guest code can be interrupted, as for a linker.

    Raises:
        LinkerUsageError: the engine cannot hand out its code.
        DlError: a module is missing, is no library, or cannot be compiled.
    """
    side = kind_of(main.wasm) is ModuleKind.SIDE
    described = _described(main, library=side)
    shared = described.memory_type is not None and described.memory_type.limits.shared
    chosen = chosen_engine(engine, main.name, interrupts=interrupts, shared=shared)
    if not chosen.capabilities.serialization:
        raise LinkerUsageError(f"engine {chosen.name} cannot hand out compiled code")
    compiler = Compiler(chosen)
    for image in _all_needed([main, *libraries], locator):
        if image is main and not side:
            linked = with_interruptible_waits(image, described.wait_slots)
        else:
            check_side_module(image.wasm)
            linked = as_library(image, described.wait_slots)
        code = compile_module(compiler, linked, 0)
        digest = content_digest(compiled_bytes(linked))
        yield Compiled(image, chosen, {digest: chosen.serialize(code)})


def compile_ordinary(
    images: Iterable[ModuleImage], *, engine: str | None = None, interrupts: bool | None = None
) -> Iterator[Compiled]:
    """Compile modules that are instantiated as they are: those that import from each other by name.

    Args:
        images: the modules.
        engine: name of the engine; None for the default one.
        interrupts: whether guest code can be interrupted, as for a linker without threads.

    Raises:
        LinkerUsageError: the engine cannot hand out its code.
        DlError: a module cannot be compiled.
    """
    for image in images:
        chosen = chosen_engine(engine, image.name, interrupts=interrupts, shared=False)
        if not chosen.capabilities.serialization:
            raise LinkerUsageError(f"engine {chosen.name} cannot hand out compiled code")
        check_capabilities(chosen, image.wasm)
        waits = with_wait_table(image.wasm)
        wasm, digest = (
            (image.wasm.data, image.digest) if waits is None else (waits.wasm, content_digest(waits.wasm))
        )
        code = Compiler(chosen).compile(wasm, image.name, digest)
        yield Compiled(image, chosen, {digest: chosen.serialize(code)})


def _described(main: ModuleImage, *, library: bool) -> MainModule:
    if not library:
        return describe_main(main.wasm, memory=None, stack_size=DEFAULT_STACK_BYTES)
    shared = any(isinstance(e.type, WasmMemoryType) and e.type.limits.shared for e in main.wasm.imports)
    return describe_main(None, memory=MemoryType(shared=shared), stack_size=DEFAULT_STACK_BYTES)


def _all_needed(roots: list[ModuleImage], locator: Locator) -> Iterator[ModuleImage]:
    """Yield modules and all that their needed lists lead to, each once."""
    known: set[str] = set()
    by_base_name: dict[str, ModuleImage] = {}
    pending = roots[::-1]
    while pending:
        image = pending.pop()
        if image.identity in known:
            continue
        known.add(image.identity)
        by_base_name.setdefault(image.base_name, image)
        yield image
        needed = image.wasm.dylink.needed if image.wasm.dylink else ()
        found = [locator.find(name, requester_of(image), known=by_base_name.get) for name in needed]
        pending += found[::-1]
