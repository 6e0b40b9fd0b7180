"""A program that is linked again from its plan is the program that is linked without one; what has changed is never found."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import dl
from dl.engine.code_cache import PROCESS_CODE
from dl.engine.prelink import Plan
from dl.glue import generated
from dl.modules import image
from dl.wasm import rewrite
from dl.wasm.module import parse_module
from tests.behaviour.test_fixture_cases import RUNS, Run
from tests.support.modules import MEMORY, TABLE, calls, data, got, imports, library, pie, reads, returns
from tests.support.paths import ROOT

SHORT = ("cpp-main-shared", "static-main-shared", "tls-threads-shared")
"""Runs of the fixtures that every run of the suite makes; a soak makes all."""

NOT_ALL = ("exceptions-legacy-encoding-shared", "exceptions-legacy-encoding-unshared", "threads-many-shared")
"""Runs of which not all is in a plan: of a module that the engine refuses, and of threads that open libraries in any order."""

LONG = "DL_SOAK_SECONDS" in os.environ


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of compiled code, where no program can write."""
    return tmp_path_factory.mktemp("code") / "cache"


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """Each test begins as a new process does: what the process knows in memory is not noted in a plan."""
    forget()
    yield
    forget()


THREADS = ROOT / "fixtures/threads/shared/main.wasm"


def forget(*, code: bool = True) -> None:
    """Forget what the process has in memory of modules, as a new process begins; all, or all but compiled code."""
    image._PARSED.forked()
    image._LATEST.forked()
    generated._DIGESTS.forked()
    if code:
        PROCESS_CODE.forked()


def plan_of(program: dl.Linker) -> Plan:
    """Return a program's plan."""
    plan = program.program.compiler.plan
    assert plan is not None
    return plan


def linked(program: dl.Linker) -> list[Any]:
    """Return all that linking has decided about a program, and what its main group has of it."""
    state = program.program.state
    modules = [
        (
            module.name,
            module.handle,
            module.image.digest,
            module.memory_base,
            module.table_base,
            module.first_placed,
            tuple(module.bindings),
            dict(module.symbols),
            module.thread_local,
        )
        for module in state.modules.values()
    ]
    group = program._main_group
    table = [group.instances.function_type(index) for index in range(group.instances.table_length())]
    return [modules, list(state.global_symbols), table]


def chosen_runs() -> list[Any]:
    """Return the runs of fixtures that are made."""
    linked_as_libraries = [each for each in RUNS if not each.values[0].by_name]
    return [each for each in linked_as_libraries if LONG or each.id in SHORT]


@pytest.mark.soak
@pytest.mark.timeout(120)
@pytest.mark.parametrize("run", chosen_runs())
def test_a_fixture_from_its_plan(
    run: Run, place: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Symbols, bindings, bases, table, output and end are the same without a plan, with a new one, and from it."""
    outcomes: list[Any] = []
    plans: list[Any] = []
    caches: tuple[Any, ...] = (False, place, place)
    for number, cache in enumerate(caches):
        folder = tmp_path / str(number)  # a run may leave files that the next one would find
        folder.mkdir()
        forget(code=bool(plans[1:]))  # compiling it once is enough
        printed: list[bytes] = []
        ended: Any = None
        try:
            with dl.Linker(
                run.main,
                library_path=run.library_path,
                args=[run.main.name, *run.described.get("args", [])],
                env=run.described.get("env", {}),
                preopens=run.preopens(folder),
                stdin=run.described.get("stdin", "").encode(),
                stdout=printed.append,
                wamr=run.described.get("wamr_mode"),
                cache=cache,
            ) as program:
                facts = linked(program)
                try:
                    ended = program.main_group.run()
                except dl.DlError as error:
                    ended = type(error)
                plans.append(program.program.compiler.plan)
        except dl.DlError as error:
            facts, ended = [], type(error)
        outcomes.append((facts, b"".join(printed), ended))
    assert outcomes[0] == outcomes[1] == outcomes[2]
    if plans:
        assert plans[0] is None
        assert plans[1].hits == 0 < plans[1].misses
        assert plans[2].hits > 0
        assert plans[2].misses == 0 or request.node.callspec.id in NOT_ALL


def test_nothing_is_rewritten_or_generated(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a plan, the main module is parsed once, its waits are not rewritten, and nothing is generated or compiled."""
    main = THREADS
    dl.Linker(main, cache=place).close()
    forget()
    done: list[str] = []

    def noted(where: object, name: str) -> None:
        former: Callable[..., Any] = getattr(where, name)
        monkeypatch.setattr(where, name, lambda *a, **k: (done.append(name), former(*a, **k))[1])

    noted(image, "parse_module")
    noted(rewrite, "rewrite_waits")
    noted(rewrite, "contains_wait_instructions")
    noted(generated, "content_digest")
    with dl.Linker(main, cache=place) as program:
        assert done == ["parse_module"]
        module = program.program.main_module
        assert module is not None
        # Who wants to see the bytes gets those that would have been compiled.
        assert module.wasm.sections == parse_module(module.wasm.data, "m").sections
    assert done[:2] == ["parse_module", "rewrite_waits"]


def test_a_plan_whose_code_is_gone(place: Path) -> None:
    """When the code of a module has been removed and its digest is known, it is compiled again, and the program runs."""
    main = THREADS
    with dl.Linker(main, cache=place) as program:
        former = linked(program)
    for file in place.glob("*.code"):
        file.unlink()
    forget()
    with dl.Linker(main, cache=place) as program:
        assert linked(program) == former


@pytest.mark.soak
@pytest.mark.timeout(120)
def test_another_program_under_the_same_plan(place: Path) -> None:
    """With the plan of all former ones, each variant of libraries, flags, imports and options is as without a plan."""
    # The main module, under which the plan is kept, is the same in all.
    seed = 4
    print(f"seed {seed}")
    generator = random.Random(seed)
    main = pie(
        imports("f"), calls("call_f", "f"), got("f", "func"), reads("where_f", "got_func_f"), weak=["f"]
    )
    counted = 0
    for _ in range(100 if LONG else 8):
        variant = variant_of(generator)
        forget()
        plain = outcome(main, variant, cache=False)[0]
        forget(code=False)
        made, plan = outcome(main, variant, cache=place)
        forget()
        replayed, again = outcome(main, variant, cache=place)
        assert plain == made == replayed
        assert plan is not None
        assert again is not None
        assert again.misses == 0
        counted += plan.misses > 0
    assert counted > 4  # most variants are not what a former one was


@dataclasses.dataclass(frozen=True)
class Variant:
    """What can change about a program beside its main module."""

    numbers: tuple[int, ...]
    order: tuple[int, ...]
    flags: tuple[dl.DlFlags, ...]
    given: bool
    stack: int
    side_memory: Any


def variant_of(generator: random.Random) -> Variant:
    """Return any variant."""
    count = generator.randrange(1, 4)
    return Variant(
        tuple(generator.randrange(2) for _ in range(count)),
        tuple(generator.sample(range(count), count)),
        tuple(generator.choice([dl.RTLD_LOCAL, dl.RTLD_GLOBAL]) | dl.RTLD_LAZY for _ in range(count)),
        generator.random() < 0.3,
        generator.choice([1024, 4096]),
        generator.choice(["auto", "grow"]),
    )


def outcome(main: bytes, variant: Variant, cache: Any) -> tuple[list[Any], Plan | None]:
    """Return what a variant is: all that was linked, and what calls answer."""
    libraries = {
        f"{position}.so": library(
            MEMORY, TABLE, imports("f"), calls("call", "f"), returns("f", number), data("d", 4), got("d", "mem"),
            reads("where", "got_mem_d"), memory_size=16 + 16 * number, memory_align=2, weak=["f"],
        )
        for position, number in enumerate(variant.numbers)
    }  # fmt: skip
    host = {"env": {"f": dl.HostFunction(lambda: 9, (), ("i32",))}} if variant.given else None
    with dl.Linker(
        main,
        libraries=libraries,
        imports=host,
        stack_size=variant.stack,
        side_memory=variant.side_memory,
        cache=cache,
    ) as program:
        group = program.main_group
        answers: list[Any] = []
        for position, flags in zip(variant.order, variant.flags, strict=True):
            handle = group.dlopen(f"{position}.so", flags)
            answers += [group.dlsym(handle, "call")(), group.dlsym(handle, "where")()]
        answers.append(group.dlsym(dl.MAIN_HANDLE, "where_f")())
        try:
            answers.append(group.dlsym(dl.MAIN_HANDLE, "call_f")())
        except dl.UnresolvedCallError:
            answers.append(None)
        return [linked(program), answers], program.program.compiler.plan
