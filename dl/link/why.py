"""By which rule an import is bound where it is: for `Linker.explain`, and for the trace of bindings.

Read from the resolution record of the importing module, and from the scopes as they are: the record says who provides an
import, and the place of the provider in the importer's search order says why. The rules are those of `dl.link.resolve`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from dl.dlfcn import MAIN_HANDLE, ModuleHandle
from dl.glue.resolution import (
    HOST,
    LINKER,
    NOBODY,
    Binding,
    Constant,
    LazyStub,
    ThroughTable,
)
from dl.link.plan import LinkPlan
from dl.link.sources import ENV, GOT_FUNC, GOT_MEM, described, scope_of
from dl.link.tracing import bindings_log, symbols_log
from dl.modules.linked_module import LinkedModule
from dl.program.host_symbols import FINALIZERS
from dl.program.program import Program
from dl.records import NamedTuple, dataclass
from dl.wasm.records import Import

_BY_SCOPE = (ENV, GOT_MEM, GOT_FUNC)
"""Import modules whose imports mean the first definition of their name that the importer sees; others name whose they mean."""


_GIVEN = "given by `imports`, which come before every module"
_LINKERS_OWN = "memory, table, stack pointer, bases, tags and limits of the heap are the linker's"


@dataclass(frozen=True)
class OtherDefinition:
    """A definition of the symbol that an import is not bound to.

    Attributes:
        provider: name of the module; `the host` for the user's imports and the system interface.
        handle: the module's handle; 0 for the host.
        what: what is defined there, such as `a function (i32) -> i32`.
        reason: why the import is not bound to it, lower case.
    """

    provider: str
    handle: int
    what: str
    reason: str

    def __str__(self) -> str:
        return f"{self.provider} ({self.what}): {self.reason}"


@dataclass(frozen=True)
class BoundImport:
    """One import, and what it is bound to.

    Attributes:
        namespace: the import's module name: `env`, `GOT.func`, `GOT.mem` or a namespace of the host's.
        symbol: the import's field name.
        type: its type as text.
        provider: name of the module that answers; `the host`, `the linker` or `nobody`.
        handle: that module's handle; 0 if it is none.
        rule: why it answers, lower case.
        address: the table index or the address that the import stands for, if the record has one; None otherwise.
        others: the other definitions of the name in the program, those of modules in handle order.
    """

    namespace: str
    symbol: str
    type: str
    provider: str
    handle: int
    rule: str
    address: int | None
    others: tuple[OtherDefinition, ...]

    def __str__(self) -> str:
        where = "" if self.address is None else f" at {self.address:#x}"
        lines = [f"{self.namespace}.{self.symbol} {self.type} is that of {self.provider}{where}: {self.rule}"]
        return "\n".join([*lines, *(f"  not {other}" for other in self.others)])


class World(NamedTuple):
    """What there is to answer.

    Attributes:
        program: the program.
        modules: its modules.
        global_scope: those whose symbols all see, in search order.
    """

    program: Program
    modules: Mapping[ModuleHandle, LinkedModule]
    global_scope: Sequence[LinkedModule]


def world_of(program: Program, plan: LinkPlan | None = None) -> World:
    """Return what there is to answer.

    Args:
        program: the program.
        plan: a load that is under way, whose modules count too; None for what is loaded.
    """
    modules, scope = program.state.modules.copy(), list(program.state.global_scope)
    if plan is not None:
        modules |= {new.handle: new for new in plan.new}
        scope += program.state.not_global(plan.promoted)
    return World(program, modules, scope)


def explained_import(
    world: World, module: LinkedModule, position: int, entry: Import, binding: Binding
) -> BoundImport:
    """Return what an import of a module is bound to, and by which rule.

    Args:
        world: what there is to answer.
        module: the importing module.
        position: the import's position.
        entry: the import.
        binding: what the resolution record has for it.
    """
    stub = module.stub_targets.get(position)
    provider = binding.provider if stub is None else stub.provider
    found = world.modules.get(provider)
    instance = None if world.program.names is None else world.program.names.find(entry)
    if found is None and instance is not None and instance[0] == binding:
        name, handle, rule = instance[2], 0, "the import names the instance that it means"
    elif found is not None and entry.module not in _BY_SCOPE:
        name, handle, rule = found.name, int(found.handle), "the import names the module that it means"
    elif found is not None:
        name, handle, rule = found.name, int(found.handle), _rule_of_module(world, module, found)
    else:
        (name, rule), handle = _rule_without_module(world.program, module, entry, binding, provider), 0
    if stub is not None:
        rule = f"bound at its first call: {rule}"
    address = stub.address if stub is not None else None
    if address is None and isinstance(binding, ThroughTable):
        address = binding.address
    if address is None and isinstance(binding, Constant) and provider != NOBODY:
        address = binding.value
    others = tuple(_others(world, module, entry, provider))
    return BoundImport(entry.module, entry.name, str(entry.type), name, handle, rule, address, others)


def _rule_of_module(world: World, module: LinkedModule, provider: LinkedModule) -> str:
    """Return why a module provides an import of another one."""
    local = module.scope or ()
    in_global, in_local = provider in world.global_scope, provider in local
    if module.deep_bind and in_local:
        return f"the first definition in the tree of {local[0].name}, which was opened with RTLD_DEEPBIND"
    if in_global:
        return "the first definition in the global scope"
    if in_local:
        return (
            f"no module in the global scope defines it, and this is the first in the tree of {local[0].name}"
        )
    if provider is module:
        return "nothing that it sees defines it but itself"
    if any(other is provider for other in world.program.state.trees_with(module)):
        return "the first definition in a tree that was opened later and contains the importer"
    return "the first definition that it saw when it was bound; the scopes have changed since"


def _rule_without_module(
    program: Program, module: LinkedModule, entry: Import, binding: Binding, provider: ModuleHandle
) -> tuple[str, str]:
    """Return name and rule of a provider that is no module."""
    host = program.host
    if provider == HOST:
        if _given(program, entry) is not None:
            return "the host", _GIVEN
        if module.handle != MAIN_HANDLE and entry.name in host.system.get(FINALIZERS, {}):
            return "the host", "the linker notes what libraries register for their end, and passes it on"
        return "the host", f"the system interface {entry.module}, as no module that it sees defines it"
    if provider == LINKER:
        return "the linker", _LINKERS_OWN
    if provider == NOBODY:
        if isinstance(binding, LazyStub) or (isinstance(binding, Constant) and binding.value):
            return "nobody", "nothing defines it yet; it is looked for at the first call"
        return "nobody", "it is weak, and nothing defined it: the null pointer"
    return f"module {int(provider)}", "which was unloaded since"


def _given(program: Program, entry: Import) -> str | None:
    """Return what the user gave under an import's name, as text; None if there is nothing."""
    for namespace in (entry.module, ENV) if entry.module.startswith("GOT.") else (entry.module,):
        value = program.host.user.get(namespace, {}).get(entry.name)
        if value is not None:
            return (
                "a function"
                if program.host.defines_function(namespace, entry.name)
                else f"the number {value}"
            )
    return None


def _others(
    world: World, module: LinkedModule, entry: Import, provider: ModuleHandle
) -> Iterator[OtherDefinition]:
    """Yield the definitions of an import's name that it is not bound to."""
    host = world.program.host
    order = list(scope_of(module, world.global_scope))
    modules = sorted(world.modules.items()) if entry.module in _BY_SCOPE else []
    winner = world.modules.get(provider)
    given = _given(world.program, entry)
    for _, other in modules:
        symbol = other.symbols.get(entry.name)
        if other is winner or symbol is None:
            continue
        yield OtherDefinition(
            other.name,
            int(other.handle),
            described(symbol),
            _why_not(module, other, winner, order, provider, given=given is not None),
        )
    system = host.system.get(entry.module, {}).get(entry.name)
    if provider != HOST and given is not None:
        yield OtherDefinition("the host", 0, given, "it is of another kind than the import")
    if provider != HOST and system is not None:
        reason = "the system interface is asked after every module"
        yield OtherDefinition("the host", 0, f"a function {system.type}", reason)


def _why_not(
    module: LinkedModule,
    other: LinkedModule,
    winner: LinkedModule | None,
    order: list[LinkedModule],
    provider: ModuleHandle,
    *,
    given: bool,
) -> str:
    """Return why an import is not bound to the definition of a module."""
    if provider == HOST and given:
        return "what `imports` give comes first"
    if provider in (HOST, LINKER):
        return "the name is the linker's or the host's own for this module"
    if other not in order:
        return f"{module.name} does not see it: it was opened with RTLD_LOCAL, by another dlopen"
    if winner is not None and winner in order and order.index(other) > order.index(winner):
        return f"it comes after {winner.name} in the search order"
    if other.load_number > module.load_number:
        return "it was loaded after the import was bound"
    return "it came into sight after the import was bound"


def tell_bindings(program: Program, modules: Sequence[LinkedModule], plan: LinkPlan) -> None:
    """Tell the loggers about bindings; see `dl.link.tracing.trace_bindings`."""
    world = world_of(program, plan)
    for module in modules:
        for position, binding in enumerate(module.bindings):
            _trace_binding(world, module, position, binding)


def tell_stub(program: Program, module: LinkedModule, position: int) -> None:
    """Tell the loggers about a stub; see `dl.link.tracing.trace_stub`."""
    _trace_binding(world_of(program), module, position, module.bindings[position])


def _trace_binding(world: World, module: LinkedModule, position: int, binding: Binding) -> None:
    entry = module.wasm.imports[position]
    bound = explained_import(world, module, position, entry, binding)
    about = {
        "importer": module.name,
        "namespace": entry.module,
        "symbol": entry.name,
        "type": bound.type,
        "provider": bound.provider,
    }
    if entry.module in _BY_SCOPE and bound.rule not in (_LINKERS_OWN, _GIVEN):
        searched = []
        for candidate in scope_of(module, world.global_scope):
            searched.append(candidate.name)
            if candidate.handle == bound.handle:
                break
        found = f"found in {bound.provider}" if bound.handle else f"none of them has it ({bound.provider})"
        symbols_log.debug(
            "%s: %s: looked for in %s: %s",
            module.name,
            entry.name,
            ", ".join(searched),
            found,
            extra={"fields": about | {"searched": searched}},
        )
    why = {"rule": bound.rule, "address": bound.address, "not": [str(other) for other in bound.others]}
    bindings_log.debug(
        "%s: %s", module.name, "; ".join(str(bound).split("\n  ")), extra={"fields": about | why}
    )
