"""Counts and scopes against a small model: random opens, closes, calls and look-ups on random graphs of libraries."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field

import pytest

import dl
from tests.support.modules import calls, imports, library, returns

SEED = int(os.environ.get("DL_SEED", "1"))
PROGRAMS = 300 if "DL_SOAK_SECONDS" in os.environ else 8
SYMBOLS = ("fa", "fb", "fc")


@dataclass(frozen=True)
class Source:
    """A library: what it needs, what it defines, and what it calls."""

    number: int
    needed: tuple[str, ...]
    defines: tuple[str, ...]
    uses: tuple[str, ...]

    def wasm(self) -> bytes:
        fields = [returns(symbol, self.number) for symbol in self.defines]
        for symbol in self.uses:
            fields += [imports(symbol), calls(f"call {self.number} {symbol}", symbol)]
        return library(*fields, needed=self.needed)


@dataclass
class Loaded:
    """A library in the model."""

    opens: int = 0
    stays: bool = False
    first_open: int = 0
    scope: list[str] = field(default_factory=list)
    bound: dict[str, str] = field(default_factory=dict)


@dataclass
class Model:
    """What ELF says, in as few words as possible."""

    sources: dict[str, Source]
    loaded: dict[str, Loaded] = field(default_factory=dict)
    everybody_sees: list[str] = field(default_factory=list)
    opens: int = 0

    def tree(self, name: str) -> list[str]:
        order, following = [], [name]
        while following:
            level, following = following, []
            for one in level:
                if one not in order:
                    order.append(one)
                    following += self.sources[one].needed
        return order

    def first(self, symbol: str, names: list[str]) -> str | None:
        return next((n for n in names if n in self.loaded and symbol in self.sources[n].defines), None)

    def open(self, name: str, *, now: bool, everybody: bool, only_loaded: bool, stays: bool) -> bool:
        if only_loaded and name not in self.loaded:
            return False
        tree = self.tree(name)
        new = [n for n in tree if n not in self.loaded]
        added = [n for n in tree if everybody and n not in self.everybody_sees]
        for n in new:
            self.loaded[n] = Loaded(scope=[] if everybody else tree)
        self.everybody_sees += added
        found = {(n, s): self.find(n, s, later=False) for n in new for s in self.sources[n].uses}
        if now and None in found.values():
            for n in new:
                del self.loaded[n]
            self.everybody_sees = [n for n in self.everybody_sees if n not in added]
            return False
        for (n, symbol), provider in found.items():
            if provider is not None:
                self.loaded[n].bound[symbol] = provider
        root = self.loaded[name]
        root.opens += 1
        root.stays |= stays
        if not root.first_open:
            self.opens += 1
            root.first_open = self.opens
        return True

    def find(self, name: str, symbol: str, *, later: bool) -> str | None:
        found = self.first(symbol, [*self.everybody_sees, *self.loaded[name].scope, name])
        if found is None and later:
            roots = sorted((m.first_open, n) for n, m in self.loaded.items() if m.first_open)
            trees = [self.tree(n) for _, n in roots]
            found = self.first(symbol, [n for tree in trees if name in tree for n in tree])
        return found

    def call(self, name: str, symbol: str) -> int | None:
        bound = self.loaded[name].bound
        provider = bound.get(symbol) or self.find(name, symbol, later=True)
        if provider is None:
            return None
        bound[symbol] = provider
        return self.sources[provider].number

    def close(self, name: str) -> None:
        self.loaded[name].opens -= 1
        kept: set[str] = set()
        pending = [n for n, m in self.loaded.items() if m.opens or m.stays]
        while pending:
            n = pending.pop()
            if n not in kept:
                kept.add(n)
                pending += [*self.sources[n].needed, *self.loaded[n].bound.values()]
        self.loaded = {n: m for n, m in self.loaded.items() if n in kept}
        self.everybody_sees = [n for n in self.everybody_sees if n in kept]

    def look_up(self, symbol: str, names: list[str]) -> int | None:
        found = self.first(symbol, names)
        return None if found is None else self.sources[found].number


def random_sources(choose: random.Random) -> dict[str, Source]:
    names = [f"{n}.so" for n in range(choose.randint(3, 7))]
    density = choose.choice([0.2, 0.4])
    return {
        name: Source(
            number,
            tuple(n for n in choose.sample(names, choose.choice([0, 0, 1, 2])) if n != name),
            tuple(s for s in SYMBOLS if choose.random() < density),
            tuple(s for s in SYMBOLS if choose.random() < 0.5),
        )
        for number, name in enumerate(names)
    }


class Both:
    """The program and the model, which do the same."""

    def __init__(self, linker: dl.Linker, model: Model, choose: random.Random) -> None:
        self.linker, self.group, self.model, self.choose = linker, linker.main_group, model, choose
        self.handles: dict[str, dl.ModuleHandle] = {}

    def step(self) -> None:
        is_open = [n for n, m in self.model.loaded.items() if m.opens]
        what = self.choose.choice(["open", "open", "close", "close", "call", "call", "look up"])
        if what == "open" or not is_open:
            self.open(self.choose.choice(list(self.model.sources)))
        elif what == "close":
            name = self.choose.choice(is_open)
            self.group.dlclose(self.handles[name])
            self.model.close(name)
        elif what == "look up":
            self.look_up(self.choose.choice(SYMBOLS), self.choose.choice([None, *is_open]))
        else:
            self.call(self.choose.choice(list(self.model.loaded)))
        self.compare()

    def open(self, name: str) -> None:
        now, everybody, only_loaded, stays = (
            self.choose.random() < share for share in (0.3, 0.4, 0.15, 0.03)
        )
        flags = dl.RTLD_NOW if now else dl.RTLD_LAZY
        flags |= dl.RTLD_GLOBAL if everybody else dl.RTLD_LOCAL
        flags |= (dl.RTLD_NOLOAD if only_loaded else 0) | (dl.RTLD_NODELETE if stays else 0)
        opened = self.model.open(name, now=now, everybody=everybody, only_loaded=only_loaded, stays=stays)
        if opened:
            handle = self.group.dlopen(name, flags)
            assert self.handles.get(name) == handle or self.model.loaded[name].opens == 1
            self.handles[name] = handle
        else:
            with pytest.raises(dl.DlError):
                self.group.dlopen(name, flags)

    def call(self, name: str) -> None:
        handle = next(m.handle for m in self.linker.modules if m.name == name)
        for symbol in self.model.sources[name].uses:
            function = self.group.dlsym(handle, f"call {self.model.sources[name].number} {symbol}")
            assert isinstance(function, dl.GuestFunction)
            expected = self.model.call(name, symbol)
            if expected is None:
                with pytest.raises(dl.UnresolvedCallError):
                    function()
            else:
                assert function() == expected

    def look_up(self, symbol: str, name: str | None) -> None:
        names = self.model.everybody_sees if name is None else self.model.tree(name)
        expected = self.model.look_up(symbol, names)
        handle = dl.RTLD_DEFAULT if name is None else self.handles[name]
        if expected is None:
            with pytest.raises(dl.SymbolNotFoundError):
                self.group.dlsym(handle, symbol)
        else:
            found = self.group.dlsym(handle, symbol)
            assert isinstance(found, dl.GuestFunction)
            assert found() == expected

    def compare(self) -> None:
        modules = {m.name: m for m in self.linker.program.state.modules.values()}
        assert set(modules) == set(self.model.loaded)
        assert list(self.linker.statistics().global_scope) == self.model.everybody_sees
        for name, module in modules.items():
            assert module.opens == self.model.loaded[name].opens, name


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_opens_and_closes_are_those_of_the_model() -> None:
    """What is loaded, how often it is open, what all see, and what each call and look-up finds is as the model says."""
    print(f"seeds {SEED} to {SEED + PROGRAMS - 1}")
    for seed in range(SEED, SEED + PROGRAMS):
        choose = random.Random(f"model {seed}")
        sources = random_sources(choose)
        libs = {name: source.wasm() for name, source in sources.items()}
        with dl.Linker(None, libraries=libs) as linker:
            both = Both(linker, Model(sources), choose)
            empty = linker.statistics()
            for _ in range(60):
                both.step()
            for name, loaded in list(both.model.loaded.items()):
                for _ in range(loaded.opens):
                    linker.main_group.dlclose(both.handles[name])
                    both.model.close(name)
            both.compare()
            if not both.model.loaded:
                now = linker.statistics()
                assert (now.table_elements, now.side_bytes) == (empty.table_elements, empty.side_bytes)
