"""Why an import is bound where it is: who answered, by which rule, and what else was there; the rules are in `dl.link.why`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dl.api.loaded import LoadedModule
from dl.errors import SymbolNotFoundError
from dl.link.why import BoundImport, OtherDefinition, explained_import, world_of
from dl.modules.linked_module import LinkedModule
from dl.records import dataclass

if TYPE_CHECKING:
    from dl.link.plan import LinkPlan
    from dl.program.program import Program

__all__ = ["BoundImport", "Explanation", "OtherDefinition", "explain"]


@dataclass(frozen=True)
class Explanation:
    """Why the imports of a symbol in a module are bound where they are; made by `Linker.explain`.

    Printed, it is a line for each import, and one for each other definition.

    Attributes:
        symbol: the symbol.
        module: the module that imports it.
        imports: its imports of that name.
    """

    symbol: str
    module: LoadedModule
    imports: tuple[BoundImport, ...]

    def __str__(self) -> str:
        return "\n".join(f"{self.module.name}: {entry}" for entry in self.imports)


def explain(program: Program, symbol: str, module: LinkedModule, plan: LinkPlan | None = None) -> Explanation:
    """Explain the imports of a symbol in a module; see `Linker.explain`.

    Args:
        program: the program.
        symbol: the imported name.
        module: the module that imports it.
        plan: a load that is being rehearsed, to which the module belongs; see `dl.link.rehearse`.

    Raises:
        SymbolNotFoundError: the module imports nothing of this name.
    """
    world = world_of(program, plan)
    imports = tuple(
        explained_import(world, module, position, entry, module.bindings[position])
        for position, entry in enumerate(module.wasm.imports)
        if entry.name == symbol
    )
    if not imports:
        own = "it defines it itself" if module.symbols.get(symbol) is not None else "nor does it export it"
        raise SymbolNotFoundError(symbol, [module.name], f"{module.name} does not import it; {own}")
    return Explanation(symbol, LoadedModule(program, module), imports)
