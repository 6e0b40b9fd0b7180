"""What a load would link to what, found out by the phases of a real one up to where nothing is compiled or run yet.

So the answer is the resolver's own. The load is undone afterwards.
"""

from __future__ import annotations

from collections.abc import Callable

from dl.dlfcn import DlFlags
from dl.errors import DlError
from dl.glue.resolution import NOBODY, Binding, Constant
from dl.link.find import find_main, find_tree
from dl.link.number import enter_scopes, number_modules
from dl.link.perform import Change
from dl.link.place import define_symbols, place_modules
from dl.link.plan import LinkPlan, LoadRequest
from dl.link.resolve import Resolver, define_reexports, is_weak
from dl.modules.image import ModuleImage
from dl.modules.locate import SearchPolicy
from dl.program.program import Program
from dl.records import dataclass
from dl.wasm.records import Import


@dataclass(frozen=True)
class Link:
    """What one import would be linked to.

    Attributes:
        importer: name of the module that imports.
        entry: the import.
        state: `linked`; `late` for a function that nothing defines yet, which is looked for when it is called; `weak` for one
            that need not be there; `undefined`; or `refused`.
        meaning: what it is linked to, or why it is not.
        provider: name of the module that defines it; None if it is the host, the linker or nobody.
    """

    importer: str
    entry: Import
    state: str
    meaning: str
    provider: str | None


class _Rehearsed(Exception):  # noqa: N818  not a fault: it has the load undone
    """Ends a load that was not meant."""


def rehearse(
    program: Program,
    image: ModuleImage,
    *,
    main: bool,
    visit: Callable[[LinkPlan], object] = lambda _plan: None,
) -> list[Link]:
    """Return what every import of a module, and of what it needs, would be linked to. The program is as before.

    Args:
        program: a program that no thread runs yet.
        image: the module.
        main: whether it is the program's main module; else a library that is opened lazily.
        visit: called with the plan before it is undone; its modules have the bindings of what can be linked.

    Raises:
        DlError: a module is missing, broken, or cannot be linked for another reason than its imports.
    """
    policy = SearchPolicy.of_host((), program.options.paths)
    request = LoadRequest(DlFlags.LAZY | DlFlags.GLOBAL, lenient=main, policy=policy)
    tree = find_main(program, image, request) if main else find_tree(program, image, request)
    links: list[Link] = []
    try:
        with Change(program, None) as change:
            plan = LinkPlan(program, change, request)
            number_modules(plan, tree)
            place_modules(plan)
            define_symbols(plan)
            enter_scopes(plan)
            resolver = Resolver(program, plan)
            define_reexports(plan, resolver)
            for module in plan.new:
                bindings: list[Binding] = []
                for entry in module.wasm.imports:
                    missing = len(resolver.missing)
                    try:
                        binding = resolver.bind_import(module, entry)
                    except DlError as error:
                        links.append(Link(module.name, entry, "refused", str(error), None))
                        bindings.append(Constant(0, NOBODY))
                        continue
                    bindings.append(binding)
                    provider = program.state.module(binding.provider)
                    name = provider.name if provider else None
                    meaning = resolver.described(binding)
                    if len(resolver.missing) > missing:
                        state, meaning = "undefined", "nothing defines it"
                    elif binding.provider != NOBODY:
                        state = "linked"
                    elif is_weak(module, entry):
                        state, meaning = "weak", "nothing defines it, nor need anything"
                    else:
                        state = "late"
                    links.append(Link(module.name, entry, state, meaning, name))
                module.bindings = tuple(bindings)
            visit(plan)
            raise _Rehearsed
    except _Rehearsed:
        return links
