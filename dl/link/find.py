"""The first phase of a load: its modules found, read, parsed, rewritten and compiled, before any lock is taken."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from dl.engine.code_cache import Compiler
from dl.engine.compiled_form import leave_form, load_form
from dl.engine.requirements import check_capabilities
from dl.errors import (
    InvalidModuleError,
    MalformedModuleError,
    UnsupportedModuleError,
)
from dl.glue.generated import generated
from dl.glue.imports import import_places
from dl.glue.names import BASE_NAMESPACE, TABLE_NAME
from dl.link.plan import LoadRequest
from dl.logs import logger
from dl.modules.image import ModuleImage, with_interruptible_waits, with_shared_tags
from dl.modules.kind import check_side_module
from dl.modules.linked_module import LinkedModule
from dl.modules.locate import requester_of
from dl.modules.symbols import PLACE, functions_without_index, places_itself
from dl.program.program import Program
from dl.records import dataclass, field
from memory import Block
from threads import uninterrupted

if TYPE_CHECKING:
    from dl.engine.protocol import CompiledModule

log = logger("dl.link")

LEGACY_EXCEPTIONS = (
    "legacy exception handling (try, catch): recompile with clang -mllvm -wasm-use-legacy-eh=false (Emscripten: "
    "-sWASM_LEGACY_EXCEPTIONS=0), or convert with wasm-opt --translate-to-exnref"
)
"""Short, with the remedy in front: a guest's buffer for dlerror holds some 250 bytes."""


@dataclass(eq=False)
class FoundModule:
    """A module of a tree, as it was found.

    Attributes:
        image: its bytes, parsed and rewritten.
        main: whether it is the main module.
        loaded: the module of the program that it is; None when it is new. As it was when the tree was found: the plan checks
            it again under the link lock.
        needed: the modules in its needed list, in that order; only of new modules.
        copy: which of the modules of equal content it is, from 0; only of new modules.
        code: its compiled code; only of new modules.
        block: linear memory reserved for its data; None while there is none.
    """

    image: ModuleImage
    main: bool = False
    loaded: LinkedModule | None = None
    needed: list[FoundModule] = field(default_factory=list)
    copy: int = 0
    code: CompiledModule | None = None
    block: Block | None = None


@dataclass
class FoundTree:
    """A module and all it needs.

    Attributes:
        root: the module that is opened.
        new: the modules that are not loaded, dependencies first.
    """

    root: FoundModule
    new: list[FoundModule] = field(default_factory=list)


def find_tree(program: Program, image: ModuleImage, request: LoadRequest) -> FoundTree:
    """Find a library and all it needs.

    Raises:
        LinkError: a needed library is missing or broken.
        MalformedModuleError: one is not a valid module.
        NotDynamicError: one is not a shared library, or has a memory of its own.
    """
    root = _found(program, image)
    tree = FoundTree(root)
    if root.loaded is None:
        _find_needed(program, tree, root, request)
    return tree


def find_main(program: Program, image: ModuleImage, request: LoadRequest) -> FoundTree:
    """Find the main module and all it needs; the main module comes first, since it is instantiated first."""
    linked = with_interruptible_waits(image, program.main.wait_slots, _compiled_before(program.compiler))
    root = FoundModule(linked, main=True)
    tree = FoundTree(root)
    _find_needed(program, tree, root, request)
    tree.new.remove(root)
    tree.new.insert(0, root)
    return tree


def _find_needed(program: Program, tree: FoundTree, root: FoundModule, request: LoadRequest) -> None:
    """Find what a module needs: all names of one list before those of the next, breadth first, as ELF does.

    The order shows where a name is found through run paths, or means a file that is there already under its base name.
    """
    known = {root.image.identity: root}
    coming = {} if root.main else {root.image.base_name: root.image}
    # What is preloaded is the first that the main module needs: so a search finds it where ELF's does, and it stays.
    preload = dict.fromkeys(program.options.preload if root.main else ())

    def by_base_name(name: str) -> ModuleImage | None:
        return program.state.image_by_base_name(name) or coming.get(name)

    found = [root]
    for module in found:  # which grows meanwhile
        requester = requester_of(module.image)
        first = preload if module is root else ()
        for name in (*first, *(_needed(module) if request.load_needed else ())):
            image = program.locator.find(name, requester, request.policy, by_base_name)
            needed = known.get(image.identity)
            if needed is None:
                needed = known[image.identity] = _found(program, image)
                if needed.loaded is None:
                    coming.setdefault(needed.image.base_name, needed.image)
                    found.append(needed)
            if not (preload and module is root and needed in module.needed):
                module.needed.append(needed)
    tree.new += _dependencies_first(root)


def _dependencies_first(root: FoundModule) -> Iterator[FoundModule]:
    """Yield the new modules of a tree, depth first; a cycle is cut where it closes.

    Iterative: the depth of a chain is bounded by memory.
    """
    seen = {root.image.identity}
    open_: list[tuple[FoundModule, Iterator[FoundModule]]] = [(root, iter(root.needed))]
    while open_:
        module, rest = open_[-1]
        needed = next(rest, None)
        if needed is None:
            open_.pop()
            yield module
        elif needed.loaded is None and needed.image.identity not in seen:
            seen.add(needed.image.identity)
            open_.append((needed, iter(needed.needed)))


def _needed(module: FoundModule) -> Iterator[str]:
    """Return the names of what a module needs, each once, in order."""
    info = module.image.wasm.dylink
    return iter(dict.fromkeys(info.needed if info else ()))


def _found(program: Program, image: ModuleImage) -> FoundModule:
    loaded = program.state.loaded(image.identity)
    if loaded is not None:
        return FoundModule(loaded.image, loaded=loaded)
    check_side_module(image.wasm)
    return FoundModule(as_library(image, program.main.wait_slots, _compiled_before(program.compiler)))


def form_reader(program: Program, image: ModuleImage) -> Callable[[bytes], CompiledModule | None] | None:
    """Return what looks into a module's compiled form; None if it can have none that is to be trusted."""
    path, options = image.path, program.options
    if path is None or not options.compiled_forms:
        return None
    if image.guest_written or options.paths.reaches(str(path)):
        # Whoever can write there writes as the user, also the guest.
        return lambda _digest: leave_form(path, "the program's guest can write there")
    return lambda digest: load_form(program.engine, path, image.source, digest)


def compile_module(
    compiler: Compiler,
    image: ModuleImage,
    copy: int,
    made_before: Callable[[bytes], CompiledModule | None] | None = None,
    starting: Callable[[], None] | None = None,
) -> CompiledModule:
    """Compile a module, or return the code that was compiled before.

    Args:
        compiler: the program's.
        image: the module.
        copy: which of several modules with the same content it is; each has code of its own, so that traps name the right one.
        made_before: returns code that lies elsewhere, by the digest of what is compiled.
        starting: called before the engine compiles it.

    Raises:
        InvalidModuleError: the engine refuses it.
        UnsupportedModuleError: it needs what the engine lacks, or exceptions in their former encoding.
    """
    wasm = image.wasm
    check_capabilities(compiler.engine, wasm)

    try:
        return generated(
            compiler,
            _compiled_from(image.digest, copy),
            image.name,
            lambda: compiled_bytes(image, copy),
            made_before=made_before,
            starting=starting,
        )
    except InvalidModuleError as refused:
        from dl.wasm.rewrite import uses_legacy_exceptions  # noqa: PLC0415  only what the engine refuses

        try:
            legacy = uses_legacy_exceptions(wasm)
        except (MalformedModuleError, UnsupportedModuleError):
            legacy = False  # the engine's reason stands
        if legacy:
            raise UnsupportedModuleError(image.name, LEGACY_EXCEPTIONS) from refused
        raise


def compiled_bytes(image: ModuleImage, copy: int = 0) -> bytes:
    """Return what is compiled of a module: with other names of imports, code that places its functions, and a copy's mark."""
    from dl.wasm.rewrite import numbered_copy, rename_and_place, rename_imports  # noqa: PLC0415  only without a plan

    wasm, names = image.wasm, import_places(image.wasm.imports)
    if places_itself(wasm):
        table = (BASE_NAMESPACE, TABLE_NAME)
        linked = rename_and_place(wasm, names, tuple(functions_without_index(wasm)), PLACE, table)
    else:
        linked = rename_imports(wasm, names)
    return numbered_copy(linked, copy)


def as_library(
    image: ModuleImage,
    wait_slots: Mapping[str, int],
    compiled_before: Callable[[bytes], bool] | None = None,
) -> ModuleImage:
    """Return a module as it is linked as a library; see `dl.modules.image.with_interruptible_waits`."""
    # A main module's tags are the program's; a library's are shared.
    return with_interruptible_waits(with_shared_tags(image), wait_slots, compiled_before)


def _compiled_from(digest: bytes, copy: int) -> tuple[object, ...]:
    """Return what the bytes are made of that are compiled of a module."""
    return ("module", digest, copy)


def _compiled_before(compiler: Compiler) -> Callable[[bytes], bool] | None:
    """Return what says whether the program's plan knows what is compiled of a module; None without a plan."""
    plan = compiler.plan
    return None if plan is None else lambda digest: plan.knows(_compiled_from(digest, 0))


def reserve_memory(program: Program, tree: FoundTree) -> None:
    """Reserve linear memory for the data of the new modules; the main module's is laid out already.

    Before the link lock is taken, because it may come from the main module's own allocator, which is guest code.

    Raises:
        ResourceLimitError: there is no room; nothing stays reserved.
    """
    side_memory = program.side_memory
    try:
        for module in tree.new:
            info = module.image.wasm.dylink
            if module.main or info is None or not info.memory_size:
                continue
            assert side_memory is not None
            # Guest code may take for ever; all else may not end between taking the block and noting it.
            with contextlib.nullcontext() if side_memory.calls_guest else uninterrupted():
                module.block = side_memory.allocate(
                    info.memory_size, info.memory_alignment_log2, module.image.name
                )
        if tree.root.main and side_memory is not None:
            program.state.linker_addresses.update(side_memory.addresses())
    except BaseException:
        release_memory(program, tree)
        raise


def release_memory(program: Program, tree: FoundTree) -> None:
    """Give back what `reserve_memory` has reserved and no module of the program has taken."""
    for module in tree.new:
        block, module.block = module.block, None
        if block is not None and program.side_memory is not None:
            program.side_memory.free(block)
