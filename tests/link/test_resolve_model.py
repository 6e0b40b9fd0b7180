"""Symbol resolution held against a model: any graph of libraries, opened in any order with any flags."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

import dl
from dl.link.lookup import look_up
from tests.support.modules import MEMORY, TABLE, calls, data, got, imports, library, pie, reads, returns

SYMBOLS = "abc"


@dataclass
class Spec:
    """A library: what it needs by number, and what it defines."""

    needed: list[int]
    defines: str


@dataclass
class Model:
    """What ELF says: first definition in the global scope, then in the tree that was opened; the other way with DEEPBIND."""

    specs: list[Spec]
    scope: list[int] = field(default_factory=list)
    trees: dict[int, list[int]] = field(default_factory=dict)
    deep: set[int] = field(default_factory=set)
    loaded: list[int] = field(default_factory=list)
    bound: dict[tuple[int, str], int] = field(default_factory=dict)
    opened: list[int] = field(default_factory=list)
    mains: list[int] = field(default_factory=list)

    def tree(self, root: int) -> list[int]:
        """Breadth first, each once."""
        order, queue = [], [root]
        while queue:
            module = queue.pop(0)
            if module not in order:
                order.append(module)
                queue += self.specs[module].needed
        return order

    def open(self, root: int, flags: dl.DlFlags) -> None:
        """Load a tree; dependencies get their numbers first."""
        tree = self.tree(root)
        new = [m for m in self._post_order(root, set(self.loaded)) if m not in self.loaded]
        if flags & dl.RTLD_GLOBAL:
            self.scope += [m for m in tree if m not in self.scope]
        for module in new:
            if flags & dl.RTLD_DEEPBIND:
                self.deep.add(module)
            if flags & dl.RTLD_DEEPBIND or not flags & dl.RTLD_GLOBAL:
                self.trees[module] = tree
        self.loaded += new
        if root not in self.opened:
            self.opened.append(root)
        for module in new:
            for symbol in SYMBOLS:
                definer = self.find(module, symbol)
                if definer is not None:
                    self.bound[module, symbol] = definer

    def _post_order(self, module: int, seen: set[int]) -> list[int]:
        if module in seen:
            return []
        seen.add(module)
        return [n for needed in self.specs[module].needed for n in self._post_order(needed, seen)] + [module]

    def find(self, module: int, symbol: str) -> Any:
        """The module whose definition another sees."""
        own = self.trees.get(module, [])
        order = [*own, *self.scope] if module in self.deep else [*self.scope, *own]
        trees = [self.tree(root) for root in self.opened]
        # The first module is the program's main one, if it has one; like what it needs, it sees the global scope only.
        later = [] if self.is_of_main(module) else [m for tree in trees if module in tree for m in tree]
        return next((m for m in [*order, module, *later] if symbol in self.specs[m].defines), None)

    def is_of_main(self, module: int) -> bool:
        """Whether a module is the main one, or needed by it."""
        return any(module in self.tree(main) for main in self.mains)


def wasm(number: int, spec: Spec, build: Callable[..., Any] = library) -> bytes:
    """A library whose functions say who they are, and which calls and points to every symbol."""
    fields = [MEMORY] if build is library else []
    fields += [TABLE] if build is library else []
    for symbol in SYMBOLS:
        fields += [imports(symbol), got(symbol, "func"), got(f"d{symbol}", "mem")]
        fields += [
            calls(f"call_{symbol}_{number}", symbol),
            reads(f"func_{symbol}_{number}", f"got_func_{symbol}"),
        ]
        fields += [reads(f"mem_{symbol}_{number}", f"got_mem_d{symbol}")]
    for symbol in spec.defines:
        fields += [returns(symbol, number), data(f"d{symbol}", 4 * SYMBOLS.index(symbol))]
    weak = [*SYMBOLS, *(f"d{s}" for s in SYMBOLS)]
    return build(*fields, needed=[f"{n}.so" for n in spec.needed], weak=weak, memory_size=12, memory_align=2)


FLAGS = [
    dl.RTLD_LAZY | visible | deep
    for visible in (dl.RTLD_LOCAL, dl.RTLD_GLOBAL)
    for deep in (dl.RTLD_LOCAL, dl.RTLD_DEEPBIND)
]
GRAPHS = st.integers(1, 6).flatmap(
    lambda count: st.tuples(
        st.lists(
            st.builds(
                Spec,
                st.lists(st.integers(0, count - 1), max_size=3, unique=True),
                st.lists(st.sampled_from(SYMBOLS), unique=True).map("".join),
            ),
            min_size=count,
            max_size=count,
        ),
        st.lists(st.tuples(st.integers(0, count - 1), st.sampled_from(FLAGS)), min_size=1, max_size=4),
        st.booleans(),
    )
)


def check(program: dl.Linker, model: Model, handles: dict[int, dl.ModuleHandle]) -> None:
    """Every call, function pointer and data pointer of every module means what the model says."""
    group = program.main_group
    for module in model.loaded:
        for symbol in SYMBOLS:
            bound = model.bound.get((module, symbol))
            call = group.dlsym(handles[module], f"call_{symbol}_{module}")
            pointer = group.dlsym(handles[module], f"func_{symbol}_{module}")()
            address = group.dlsym(handles[module], f"mem_{symbol}_{module}")()
            if bound is None:
                assert (pointer, address) == (0, 0), "a weak symbol that nothing defined"
                try:
                    assert call() == model.find(module, symbol)
                except dl.UnresolvedCallError:
                    assert model.find(module, symbol) is None
                continue
            own = {
                name: look_up(group.linker.program.state, handles[bound], name, tree=False)
                for name in (symbol, f"d{symbol}")
            }
            assert call() == bound
            assert pointer == own[symbol].address
            assert address == own[f"d{symbol}"].address


def number_of(name: str, libs: dict[str, bytes]) -> int:
    """Return the number of a module in the model; the main module, which has no name of its own, comes after the libraries."""
    return int(name.removesuffix(".so")) if name in libs else len(libs)


@settings(max_examples=150)
@given(GRAPHS)
@example(([Spec([1], ""), Spec([0], "a")], [(0, FLAGS[0])], False))
@example(([Spec([1], "a"), Spec([2], "a"), Spec([0, 1], "a")], [(2, FLAGS[3]), (0, FLAGS[2])], True))
@example(
    (
        [Spec([], "a"), Spec([], "a"), Spec([], "")],
        [(0, FLAGS[0]), (1, FLAGS[2]), (2, FLAGS[0]), (0, FLAGS[2])],
        False,
    )
)
def test_any_graph_opened_in_any_way(case: tuple[list[Spec], list[tuple[int, dl.DlFlags]], bool]) -> None:
    """Bindings of a program's modules are those of the model, whatever they need, define, and are opened with."""
    specs, opens, with_main = list(case[0]), case[1], case[2]
    model = Model(specs)
    libs = {f"{n}.so": wasm(n, spec) for n, spec in enumerate(specs)}
    main = None
    if with_main:
        # A main module is the last of the model, loaded first and global.
        specs.append(Spec([0], "b"))
        main = wasm(len(specs) - 1, specs[-1], pie)
    with dl.Linker(main, libraries=libs, stack_size=1024) as program:
        group = program.main_group
        if with_main:
            model.mains.append(len(specs) - 1)
            model.open(len(specs) - 1, dl.RTLD_GLOBAL)
            model.loaded.sort(key=lambda m: m != len(specs) - 1)
        for root, flags in opens:
            group.dlopen(f"{root}.so", flags)
            model.open(root, flags)

        assert [number_of(m.name, libs) for m in program.modules] == model.loaded
        handles = {m: module.handle for m, module in zip(model.loaded, program.modules, strict=True)}
        check(program, model, handles)
        assert [number_of(name, libs) for name in program.statistics().global_scope] == model.scope
