"""Every bound of `dl.Limits`, from the guest's side and the host's: a clear error at it, and nothing half done."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest

import dl
from dl.limits import limit_options
from tests.support.groups import Program, held, program, until
from tests.support.groups import library as stress_library
from tests.support.modules import MEMORY, SHARED_MEMORY, TABLE, imports, library, module, pie, returns, static

pytestmark = pytest.mark.timeout(120)

GROW = (
    '(func (export "grow") (param i32) (result i32) local.get 0 memory.grow)'
    '(func (export "size") (result i32) memory.size)'
)
GROW_TABLE = (
    '(func (export "grow_table") (param i32) (result i32) ref.null func local.get 0 table.grow)'
    '(func (export "table_size") (result i32) table.size)'
)
GROWABLE_TABLE = '(table (export "__indirect_function_table") 4 funcref)'


def refused(name: str, value: int) -> str:
    """The pattern of a message that names a limit and how to raise it."""
    option = limit_options()[name]["option"]
    return re.escape(f"the limit is {value} (Limits.{name}, dlrun --{option})")


def unsigned(value: int) -> int:
    return value & 0xFFFFFFFF


def mains(shared: bool) -> dict[str, bytes]:
    """Programs whose memory may grow to 4 GiB by their own account."""
    memory = SHARED_MEMORY if shared else MEMORY
    return {
        "position-independent": pie(GROW, shared=shared),
        "static, memory imported": module(memory, GROWABLE_TABLE, GROW),
    }


class TestMemory:
    @pytest.mark.parametrize("shared", [False, True])
    @pytest.mark.parametrize("kind", ["position-independent", "static, memory imported"])
    def test_a_memory_of_the_linker(self, kind: str, shared: bool) -> None:
        """The guest's `memory.grow` returns -1 beyond the limit, and the linker raises; the size stays."""
        limits = dl.Limits(memory_pages=40)
        with dl.Linker(mains(shared)[kind], name="app", limits=limits, stack_size=65536) as linker:
            grow, size = (linker.main_group.dlsym(linker.main, n) for n in ("grow", "size"))
            before = size()
            assert unsigned(grow(40 - before + 1)) == 0xFFFFFFFF
            assert linker.grow_memory(40 - before + 1) is None
            with pytest.raises(dl.ResourceLimitError, match=refused("memory_pages", 40)) as caught:
                linker.main_group.dlopen(library(memory_size=40 << 16), name="big.so")
            assert caught.value.limit == "memory_pages"
            assert (size(), len(linker.modules)) == (before, 1)
            assert grow(40 - before) == before
            assert size() == 40

    def test_a_memory_of_the_program(self) -> None:
        """A memory that a static program defines cannot grow beyond the limit either."""
        main = static(GROW, memory='(memory (export "memory") 2)')
        with dl.Linker(main, name="app", limits=dl.Limits(memory_pages=40), stack_size=65536) as linker:
            grow, size = (linker.main_group.dlsym(linker.main, n) for n in ("grow", "size"))
            before = size()
            assert unsigned(grow(41 - before)) == 0xFFFFFFFF
            with pytest.raises(dl.ResourceLimitError, match=refused("memory_pages", 40)):
                linker.main_group.dlopen(library(memory_size=40 << 16), name="big.so")
            assert size() == before
            assert grow(40 - before) == before

    @pytest.mark.parametrize(
        "main",
        [
            module('(import "env" "memory" (memory 41))', GROWABLE_TABLE),
            module('(import "env" "memory" (memory 41 50 shared))', GROWABLE_TABLE),
            static(memory='(memory (export "memory") 41)'),
            static(memory='(memory (export "memory") 1 41 shared)'),
            pie(memory_size=41 << 16),
        ],
    )
    def test_a_program_that_needs_more(self, main: bytes) -> None:
        """A program that begins beyond the limit, or shares a memory of its own that could, is not started."""
        with pytest.raises(dl.ResourceLimitError, match=refused("memory_pages", 40)):
            dl.Linker(main, name="app", limits=dl.Limits(memory_pages=40))

    def test_what_cannot_help_is_not_proposed(self) -> None:
        """Where the program's own maximum is the bound, the error does not speak of the limit."""
        main = module('(import "env" "memory" (memory 2 40))', GROWABLE_TABLE)
        with dl.Linker(main, stack_size=65536) as linker:
            with pytest.raises(dl.ResourceLimitError) as caught:
                linker.main_group.dlopen(library(memory_size=40 << 16), name="big.so")
            assert "Limits." not in str(caught.value)
            assert not caught.value.limit


class TestTable:
    @pytest.mark.parametrize("main", [pie(GROW_TABLE), static(GROW_TABLE)])
    def test_elements(self, main: bytes) -> None:
        """The guest's `table.grow` returns -1 beyond the limit, and a library or closure that needs more is refused whole."""
        with dl.Linker(main, name="app", limits=dl.Limits(table_elements=200)) as linker:
            grow, size = (linker.main_group.dlsym(linker.main, n) for n in ("grow_table", "table_size"))
            before = size()
            with pytest.raises(dl.ResourceLimitError, match=refused("table_elements", 200)):
                linker.main_group.dlopen(library(table_size=200), name="big.so")
            first = linker.callback("() -> ()", lambda: None)

            def fill() -> None:
                for _ in range(200):
                    linker.callback("() -> ()", lambda: None)

            with pytest.raises(dl.ResourceLimitError, match=refused("table_elements", 200)):
                fill()
            assert len(linker.modules) == 1
            assert size() <= 200
            assert unsigned(grow(201 - size())) == 0xFFFFFFFF
            assert first.address < size()
            assert before <= size()

    def test_a_program_that_needs_more(self) -> None:
        """A program whose table begins beyond the limit is not started."""
        with pytest.raises(dl.ResourceLimitError, match=refused("table_elements", 100)):
            dl.Linker(pie(table_size=100), name="app", limits=dl.Limits(table_elements=100))


class TestThreads:
    def test_host_and_guest_threads_count_together(self) -> None:
        """At the limit a spawn, an attachment and the guest's own call fail; as soon as one has ended, the next may start."""
        with program(limits=dl.Limits(threads=2)) as p:
            go, inside = threading.Event(), threading.Semaphore(0)
            p.on_thread = lambda _number, _record: (inside.release(), go.wait(30))
            spawned = p.linker.spawn(lambda _group: (inside.release(), go.wait(30)))
            p.start()
            inside.acquire()
            inside.acquire()
            before = held(p.linker)
            with pytest.raises(dl.ResourceLimitError, match=refused("threads", 2)) as caught:
                p.linker.spawn(lambda _group: None)
            assert caught.value.limit == "threads"
            assert isinstance(attached(p), dl.ResourceLimitError)
            assert p.call(p.main, "start", p.words) == 6  # EAGAIN of WASI
            assert held(p.linker) == before
            go.set()
            spawned.join()
            until(p.is_alone)
            for _ in range(20):
                a, b = (p.linker.spawn(lambda _group: None) for _ in range(2))
                a.join()
                b.join()
            assert attached(p) is None

    def test_threads_that_fail_to_start_do_not_count(self) -> None:
        """A thread whose group cannot be made gives its place back."""
        with program(limits=dl.Limits(threads=1)) as p:

            def fail(step: str, group: str | None) -> None:
                if step == "table" and group != "main":
                    raise dl.InstantiationError("x", "on purpose")

            p.main.dlopen(stress_library(1), name="a.so")
            p.linker.program.checkpoint = fail
            for _ in range(3):
                assert p.call(p.main, "start", p.words) != 0
                with pytest.raises(dl.DlError, match="on purpose"):
                    p.linker.spawn(lambda _group: None).join()
                assert "on purpose" in str(attached(p))
            p.linker.program.checkpoint = lambda _step, _group: None
            assert attached(p) is None


def attached(p: Program) -> BaseException | None:
    """What a thread gets that attaches itself."""
    errors: list[BaseException] = []

    def attach() -> None:
        try:
            with p.linker.attach():
                pass
        except dl.DlError as error:
            errors.append(error)

    thread = threading.Thread(target=attach)
    thread.start()
    thread.join()
    return errors[0] if errors else None


class TestCode:
    def test_code_that_is_gone_does_not_count(self) -> None:
        """Loads that fail do not use the limit up in threads that end, nor with one content in one that goes on."""

        def fail(group: dl.InstanceGroup, addend: int) -> None:
            with pytest.raises(dl.InitializationError):
                group.dlopen(stress_library(addend, traps=True), dl.RTLD_NOW, name=f"trap{addend}.so")

        def fail_often(group: dl.InstanceGroup, first: int) -> None:
            for number in range(10):
                fail(group, first + number)

        with program(limits=dl.Limits(code_modules=100)) as p:
            for number in range(12):
                p.linker.spawn(fail_often, 9000 + 10 * number).join()
            for _ in range(100):
                fail(p.main, 8999)
            assert p.main.dlopen(stress_library(1), dl.RTLD_NOW, name="a.so") > 1

    def test_code_in_use_counts(self) -> None:
        """At the limit a load fails and leaves nothing, whether others stay loaded or have failed in a thread that goes on."""
        with program(limits=dl.Limits(code_modules=60)) as p:

            def load(number: int) -> dl.ModuleHandle:
                lib = stress_library(9100 + number, traps=number % 3 == 2)
                return p.main.dlopen(lib, dl.RTLD_NOW, name=f"{number}.so")

            loaded = 0
            refusal: dl.ResourceLimitError | None = None
            for number in range(60):
                try:
                    load(number)
                    loaded += 1
                except dl.InitializationError:
                    assert number % 3 == 2
                except dl.ResourceLimitError as error:
                    refusal = error
                    break
            assert refusal is not None
            assert re.search(refused("code_modules", 60), str(refusal))
            assert len(p.linker.modules) == loaded + 1 > 10
            before = held(p.linker)
            with pytest.raises(dl.ResourceLimitError, match=refused("code_modules", 60)):
                load(99)
            assert held(p.linker) == before
            assert p.main.dlopen("0.so") > 1

    def test_signatures_of_closures(self) -> None:
        """Each signature of a callback is code; at the limit the next one is refused, and known ones go on."""
        with program(limits=dl.Limits(code_modules=30)) as p:

            def make(count: int) -> dl.Callback:
                return p.linker.callback(f"({', '.join(['i64'] * count)}) -> ()", lambda *_: None)

            kept = [make(0)]
            with pytest.raises(dl.ResourceLimitError, match=refused("code_modules", 30)):
                kept.extend(make(count) for count in range(40))
            assert p.linker.callback("() -> ()", lambda: None).address


class TestClosures:
    def test_callbacks(self) -> None:
        """As many callbacks as the limit says can be open; closing one makes room for one."""
        with dl.Linker(None, limits=dl.Limits(closures=3)) as linker:
            made = [linker.callback("() -> ()", lambda: None) for _ in range(3)]
            with pytest.raises(dl.ResourceLimitError, match=refused("closures", 3)):
                linker.callback("() -> ()", lambda: None)
            made[0].close()
            linker.callback("() -> ()", lambda: None)

    def test_closures_of_the_guest(self) -> None:
        """`closure_allocate` fails at the limit with 21, as when the table is full, and works again after `closure_free`."""
        wasix = [
            imports(n, "(param i32) (result i32)", "wasix_32v1") for n in ("closure_allocate", "closure_free")
        ]
        exports = [f'(export "{n}" (func ${n}))' for n in ("closure_allocate", "closure_free")]
        with dl.Linker(pie(*wasix, *exports), name="app", limits=dl.Limits(closures=2)) as linker:
            allocate, free = (
                linker.main_group.dlsym(linker.main, n) for n in ("closure_allocate", "closure_free")
            )
            at = (linker.grow_memory(1) or 0) << 16
            assert [allocate(at + 4 * i) for i in range(3)] == [0, 0, 21]
            assert free(linker.memory.read_u32(at)) == 0
            assert allocate(at) == 0


def test_libraries_count_with_the_main_module() -> None:
    """The limit on modules counts the main module, and a tree that would pass it leaves nothing of itself."""
    libs = {"a.so": library(), "b.so": library(needed=["c.so"]), "c.so": library(memory_size=64)}
    limits = dl.Limits(libraries=3)
    with dl.Linker(pie(returns("f", 1)), name="app", libraries=libs, limits=limits) as linker:
        linker.main_group.dlopen("a.so")
        before = held(linker)
        with pytest.raises(dl.ResourceLimitError, match=refused("libraries", 3)):
            linker.main_group.dlopen("b.so")
        assert held(linker) == before
        linker.main_group.dlopen("c.so")


@pytest.mark.parametrize("name", list(limit_options()))
@pytest.mark.parametrize("value", [0, -1, True, 1.5, "8"])
def test_impossible_limits(name: str, value: Any) -> None:
    """A limit that is no positive integer is refused by name."""
    with pytest.raises(dl.LinkerUsageError, match=name):
        dl.Limits(**{name: value})


def test_more_memory_than_there_can_be() -> None:
    """More pages than 32 bits can address are refused."""
    with pytest.raises(dl.LinkerUsageError, match="memory_pages"):
        dl.Limits(memory_pages=65537)


def test_a_program_that_uses_its_table_only() -> None:
    """A limit of one element is below what any program needs, and says so."""
    with pytest.raises(dl.ResourceLimitError, match=refused("table_elements", 1)):
        dl.Linker(module(MEMORY, TABLE), name="app", limits=dl.Limits(table_elements=1))
