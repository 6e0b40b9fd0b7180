"""`dl.records`: classes that behave as those of `dataclasses`, and cost less to define."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import itertools
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import dl.records

ROOT = Path(__file__).parent.parent

SOURCE = """
from __future__ import annotations
from typing import ClassVar
from {module} import dataclass, field

@dataclass
class Plain:
    a: int
    b: str = "b"
    c: list[int] = field(default_factory=list)
    limit: ClassVar[int] = 7

@dataclass(frozen=True)
class Frozen:
    a: int
    b: tuple[int, ...] = ()
    note: str = field(default="n", compare=False, repr=False)

@dataclass(frozen=True, slots=True)
class Slotted:
    a: int
    b: int = 2
    c: dict[str, int] = field(default_factory=dict, compare=False)

@dataclass(eq=False)
class Identity:
    a: int
    made: int = field(init=False)
    ten: int = field(init=False, default=10)
    def __post_init__(self):
        self.made = self.a * 2

@dataclass(frozen=True)
class Derived(Frozen):
    more: int = 0
    a: int = 5

@dataclass(frozen=True)
class OwnMethods:
    a: int
    def __eq__(self, other):
        return isinstance(other, OwnMethods)
    def __hash__(self):
        return 3
    def __repr__(self):
        return "own"

@dataclass(frozen=True)
class Empty:
    pass

@dataclass(slots=True)
class SlottedAndSet:
    a: int
    kept: int = field(init=False, default=4)

@dataclass(frozen=True, eq=False)
class FrozenIdentity:
    a: object = None
"""

CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("Plain", (1,), {}),
    ("Plain", (1,), {"c": [2]}),
    ("Frozen", (1, (2,)), {"note": "x"}),
    ("Frozen", (), {"a": 1}),
    ("Slotted", (1,), {}),
    ("Identity", (4,), {}),
    ("Derived", (), {}),
    ("Derived", (1, (2,), "n", 3), {}),
    ("OwnMethods", (1,), {}),
    ("Empty", (), {}),
    ("SlottedAndSet", (1,), {}),
    ("FrozenIdentity", (), {}),
]


NUMBERS = itertools.count()


def defined(module: str) -> ModuleType:
    """Return a module that the classes are defined in, with the decorator of another one."""
    made = ModuleType(f"classes_{next(NUMBERS)}")
    sys.modules[made.__name__] = made
    exec(SOURCE.format(module=module), made.__dict__)
    return made


OURS, STANDARD = defined("dl.records"), defined("dataclasses")


def outcome(function: Any) -> object:
    """Return what a function returns, or what it raises."""
    try:
        return function()
    except (TypeError, ValueError, AttributeError) as error:
        return type(error)


@pytest.mark.parametrize(("name", "arguments", "named"), CALLS)
def test_an_instance_is_as_that_of_the_standard_decorator(
    name: str, arguments: tuple[Any, ...], named: dict[str, Any]
) -> None:
    """Text, fields, equality, hash, setting, copies, pickles and what `dataclasses` itself does with it."""

    def described(module: ModuleType) -> list[object]:
        cls = getattr(module, name)
        one, same = cls(*arguments, **named), cls(*arguments, **named)
        return [
            repr(one),
            one == same,
            one == 5,
            outcome(lambda: hash(one) == hash(same)),
            outcome(lambda: setattr(one, "a", 9)),
            outcome(lambda: delattr(same, "a")),
            # With slots and frozen the standard one raises the wrong error, having made the class twice.
            outcome(lambda: setattr(one, "unknown", 9)) is None,
            hasattr(one, "__dict__"),
            cls.__match_args__,
            repr(copy.copy(one)),
            repr(pickle.loads(pickle.dumps(one))),
            dataclasses.is_dataclass(one),
            outcome(lambda: dataclasses.asdict(one)),
            outcome(lambda: [(f.name, f.type, f.init, f.repr, f.compare) for f in dataclasses.fields(one)]),
            outcome(lambda: repr(dataclasses.replace(one))),
            str(inspect.signature(cls)),
        ]

    assert described(OURS) == described(STANDARD)


@pytest.mark.parametrize(("name", "arguments", "named"), CALLS)
def test_first_and_later_instances_are_alike(
    name: str, arguments: tuple[Any, ...], named: dict[str, Any]
) -> None:
    """Those that are filled field by field, and those that the compiled `__init__` makes; both refuse wrong arguments."""
    cls = getattr(defined("dl.records"), name)
    made = [cls(*arguments, **named) for _ in range(20)]

    assert len({repr(one) for one in made}) == 1
    assert len({repr(getattr(one, "__dict__", None)) for one in made}) == 1
    assert cls.__init__.__code__.co_name == "__init__"  # that of the last ones is compiled
    for wrong in (cls, getattr(defined("dl.records"), name)):
        with pytest.raises(TypeError):
            wrong(*arguments, **named, unknown=1)


@pytest.mark.parametrize("name", sorted({name for name, *_ in CALLS}))
def test_a_signature_is_known_before_the_first_instance(name: str) -> None:
    """`inspect.signature`, and so `help`, show the fields of a class of which nobody has made anything."""
    fresh = defined("dl.records")

    assert str(inspect.signature(getattr(fresh, name))) == str(inspect.signature(getattr(STANDARD, name)))


@pytest.mark.parametrize(
    ("arguments", "named"), [((), {}), ((1, 2, 3, 4), {}), ((1,), {"a": 2}), ((1,), {"unknown": 2})]
)
def test_wrong_arguments_are_refused(arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    """As for any function: too few, too many, twice, unknown; also for the first instance."""
    with pytest.raises(TypeError):
        defined("dl.records").Frozen(*arguments, **named)
    with pytest.raises(TypeError):
        OURS.Frozen(*arguments, **named)


def test_replace_makes_another_with_some_fields_changed() -> None:
    """Of all kinds; a field that no argument sets cannot be changed."""
    assert dl.records.replace(OURS.Slotted(1), b=5) == OURS.Slotted(1, 5)
    assert dl.records.replace(OURS.Identity(3), a=4).made == 8
    with pytest.raises(ValueError, match="made"):
        dl.records.replace(OURS.Identity(3), made=4)


def test_standard_classes_can_derive_from_ours() -> None:
    """A user's own data class may be derived from one of ours."""

    @dataclasses.dataclass(frozen=True)
    class Users(OURS.Frozen):  # type: ignore[name-defined,misc]
        extra: int = 1

    assert repr(Users(1, extra=2)) == (
        "test_standard_classes_can_derive_from_ours.<locals>.Users(a=1, b=(), extra=2)"
    )
    assert [field.name for field in dataclasses.fields(Users)] == ["a", "b", "note", "extra"]


def test_mistakes_in_a_class_are_refused() -> None:
    """A mutable default, a field without default behind one with, annotations that are no text."""

    def define(body: str, future: str = "from __future__ import annotations") -> None:
        names: dict[str, Any] = {"__name__": "mistaken"}
        source = f"{future}\nfrom dl.records import dataclass\n@dataclass\nclass C:\n {body}\nC()"
        exec(compile(source, "mistaken", "exec", dont_inherit=True), names)

    with pytest.raises(ValueError, match="mutable default"):
        define("a: list[int] = []")
    with pytest.raises(TypeError, match="without a default"):
        define("a: int = 1\n b: int")
    with pytest.raises(TypeError, match="annotations"):
        define("a: int = 1", future="")


def test_many_threads_make_the_first_instance_at_once() -> None:
    """`__init__` is compiled by whichever thread comes first to it, or by several, which make the same."""
    for _ in range(20):
        cls = defined("dl.records").Frozen
        made: list[Any] = []
        start = threading.Barrier(4)

        def make(cls: Any = cls, made: list[Any] = made, start: threading.Barrier = start) -> None:
            start.wait(10)
            made.extend(cls(number) for number in range(20))

        threads = [threading.Thread(target=make) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert sorted(one.a for one in made) == sorted([*range(20)] * 4)


TUPLES = """
from __future__ import annotations
from {module} import NamedTuple

class Place(NamedTuple):
    \"\"\"A place.\"\"\"
    file: str
    line: int
    column: int = 1
    def __str__(self):
        return f"{self.file}:{self.line}"

class Derived(Place):
    pass
"""


@pytest.mark.parametrize("name", ["Place", "Derived"])
def test_a_named_tuple_is_as_that_of_typing(name: str) -> None:
    """Text, fields, defaults, order, copies, pickles, changes, and what wrong arguments raise."""

    def described(module: str) -> list[object]:
        made = ModuleType(f"classes_{next(NUMBERS)}")
        sys.modules[made.__name__] = made
        exec(TUPLES.replace("{module}", module), made.__dict__)
        cls = getattr(made, name)
        one = cls("a.c", line=3)
        return [
            repr(one),
            str(one),
            one == ("a.c", 3, 1),
            one < cls("a.c", 4),
            hash(one) == hash(("a.c", 3, 1)),
            [*one],
            one.file + str(one.column),
            cls._fields,
            cls.__match_args__,
            cls._field_defaults,
            cls.__doc__,
            cls.__mro__[-2:],
            type(cls),
            one._asdict(),
            one._replace(column=7),
            cls._make(["b", 1, 2]),
            copy.copy(one) == one,
            type(pickle.loads(pickle.dumps(one))) is cls,
            pickle.loads(pickle.dumps(one)) == one,
            name == "Derived" or hasattr(one, "__dict__"),
            outcome(lambda: setattr(one, "line", 4)),
            *(
                outcome(call)
                for call in (
                    cls,
                    lambda: cls("a", 1, 2, 3),
                    lambda: cls("a", 1, file="b"),
                    lambda: cls("a", lines=2),
                )
            ),
        ]

    assert described("dl.records") == described("typing")


def test_running_a_program_imports_no_data_classes() -> None:
    """Neither the linker nor its engine imports `dataclasses` or `inspect`, which take as long as a third of the linker."""
    code = (
        "import sys, dl; dl.Linker(None, memory=dl.MemoryType(32, 64)).close(); "
        "print([n for n in ('dataclasses', 'inspect', 'wasmtime', 'typing_extensions', 'html', 'importlib.metadata') "
        "if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )

    assert done.stdout.strip() == "[]"
