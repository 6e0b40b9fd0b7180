"""Data classes whose methods are made when they are first needed.

The standard decorator compiles up to seven methods for each class as it is defined, and imports `inspect` for it. A program
that runs once uses half of the classes that it imports, and of most only `__init__`; so that was a third of what importing the
linker took. Here a class costs what its definition does. The first instances are filled field by field, and `__init__` is
compiled for a class that gets more of them; the other methods are closures.

`NamedTuple` is as that of `typing`, which compiles a function and each annotation: a quarter of a millisecond for a class.

To type checkers these *are* the names of `dataclasses` and `typing`. At run time `dataclasses.fields`, `asdict`, `replace` and
the like work with these classes as with others; asking for it is what imports `dataclasses`. Not there, because nothing here
needs it: `order`, `kw_only`, `InitVar`, and annotations that are not strings (each file has
`from __future__ import annotations`).
"""

from __future__ import annotations

from operator import attrgetter, itemgetter
from reprlib import recursive_repr
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass, field, fields, replace
    from typing import NamedTuple
else:
    try:
        from _collections import _tuplegetter as _element
    except ImportError:  # as `collections` has it

        def _element(number, doc):
            return property(itemgetter(number), doc=doc)

    class _Absent:
        """What is given for a field that is given nothing; as the standard one shows it in signatures."""

        def __repr__(self):
            return "<factory>"

    _ABSENT = _Absent()
    _OF_CLASSES = ("ClassVar", "typing.ClassVar")
    _MUTABLE = (list, dict, set)
    _FEW = 8  # compiling takes as long as filling about twelve

    class _Field:
        """What a class says about one of its fields, beside the annotation."""

        __slots__ = (
            "annotation",
            "compare",
            "default",
            "default_factory",
            "init",
            "metadata",
            "name",
            "repr",
        )

        def __init__(
            self,
            default,
            default_factory=_ABSENT,
            init=True,
            repr=True,  # noqa: A002
            compare=True,
            metadata=None,
        ):
            self.default, self.default_factory = default, default_factory
            self.init, self.repr, self.compare, self.metadata = init, repr, compare, metadata

        def standard(self):
            """Return the field as the arguments of `dataclasses.make_dataclass` have it."""
            import dataclasses  # noqa: PLC0415  what this file is there to avoid

            default = {} if self.default is _ABSENT else {"default": self.default}
            if self.default_factory is not _ABSENT:
                default = {"default_factory": self.default_factory}
            of = {"init": self.init, "repr": self.repr, "compare": self.compare, "metadata": self.metadata}
            return self.name, self.annotation, dataclasses.field(**default, **of)

    def field(
        *,
        default=_ABSENT,
        default_factory=_ABSENT,
        init=True,
        repr=True,  # noqa: A002
        compare=True,
        metadata=None,
    ):
        """As `dataclasses.field`."""
        return _Field(default, default_factory, init, repr, compare, metadata)

    def dataclass(cls=None, /, *, frozen=False, eq=True, repr=True, slots=False):  # noqa: A002
        """As `dataclasses.dataclass`."""

        def decorate(cls):
            return _made(cls, frozen=frozen, eq=eq, with_repr=repr, slots=slots)

        return decorate if cls is None else decorate(cls)

    def fields(record):
        """As `dataclasses.fields`, of classes that were made here: fields with a `name`, a `default` and `metadata`."""
        return tuple(record.__record_fields__.values())

    def replace(record, /, **changes):
        """As `dataclasses.replace`."""
        for name, each in record.__record_fields__.items():
            if not each.init:
                if name in changes:
                    raise ValueError(f"field {name} is declared with init=False, it cannot be replaced")
            elif name not in changes:
                changes[name] = getattr(record, name)
        return record.__class__(**changes)

    def _made(cls, *, frozen, eq, with_repr, slots):
        own = _own_fields(cls)
        inherited = {}
        for base in cls.__mro__[-1:0:-1]:
            inherited.update(base.__dict__.get("__record_fields__", {}))
        every = {**inherited, **own}
        if slots:
            cls = _with_slots(cls, own, inherited)
        of_class = cls.__dict__
        cls.__record_fields__ = every
        cls.__record_options__ = frozen, eq
        cls.__dataclass_fields__ = _STANDARD_FIELDS
        cls.__dataclass_params__ = _STANDARD_PARAMS
        cls.__signature__ = _SIGNATURE
        cls.__match_args__ = tuple([name for name, each in every.items() if each.init])
        if "__init__" not in of_class:
            cls.__init__ = _first_init(cls, frozen=frozen)
        if with_repr and "__repr__" not in of_class:
            cls.__repr__ = _text
        if eq:
            _compare(cls, [name for name, each in every.items() if each.compare], frozen=frozen)
        if frozen:
            _freeze(cls, every)
        return cls

    def _own_fields(cls):
        own, of_class = {}, cls.__dict__
        for name, annotation in cls.__annotations__.items():
            if type(annotation) is not str:
                raise TypeError(
                    f"{cls.__qualname__}.{name}: its file lacks `from __future__ import annotations`"
                )
            if annotation.startswith(_OF_CLASSES):
                continue
            made = of_class.get(name, _ABSENT)
            if type(made) is not _Field:
                made = _Field(made)
            elif made.default is _ABSENT:
                delattr(cls, name)
            else:
                setattr(cls, name, made.default)
            if isinstance(made.default, _MUTABLE):
                raise ValueError(f"{cls.__qualname__}.{name}: mutable default: use default_factory")
            made.name, made.annotation = name, annotation
            own[name] = made
        return own

    def _with_slots(cls, own, inherited):
        """Return a class with slots, which must be there when a class is made."""
        body = dict(cls.__dict__)
        for name in (*own, "__dict__", "__weakref__"):
            body.pop(name, None)
        body["__slots__"] = tuple(name for name in own if name not in inherited)
        made = type(cls)(cls.__name__, cls.__bases__, body)
        made.__qualname__ = cls.__qualname__
        names = tuple({**inherited, **own})

        def state_of(self):
            return [getattr(self, name) for name in names]

        def set_state(self, state):
            for name, value in zip(names, state, strict=True):
                object.__setattr__(self, name, value)

        made.__getstate__, made.__setstate__ = state_of, set_state
        return made

    def _first_init(cls, *, frozen):
        """Return the `__init__` of the first instances, which compiles that of all others."""
        made = 0

        def init(self, *values, **named):
            nonlocal made
            made += 1
            if made > _FEW or not _filled(self, cls, values, named, frozen=frozen):
                _compiled_init(cls, frozen=frozen)(self, *values, **named)

        init.makes_init = frozen
        return init

    def _filled(record, cls, values, named, *, frozen):
        """Do what the compiled `__init__` does; return False, and do nothing, if the arguments are not those of the class."""
        left, by_name, of_record = len(values), len(named), []
        for name, each in cls.__record_fields__.items():
            value = each.default
            if each.init and left:
                value = values[-left]
                left -= 1
            elif each.init and name in named:
                value = named[name]
                by_name -= 1
            elif each.default_factory is not _ABSENT:
                value = each.default_factory()
            elif each.init and value is _ABSENT:
                return False
            elif not each.init and (value is _ABSENT or "__slots__" not in cls.__dict__):
                continue  # set by __post_init__, or found in the class
            of_record.append((name, value))
        if left or by_name:
            return False
        set_value = object.__setattr__ if frozen else setattr
        for name, value in of_record:
            set_value(record, name, value)
        if hasattr(cls, "__post_init__"):
            record.__post_init__()
        return True

    def _compiled_init(cls, *, frozen):
        """Give a class its `__init__`. Any number of threads may do this at once; they make the same."""
        names = {"_absent": _ABSENT, "_set": object.__setattr__}
        parameters, lines, optional = ["self"], [], ""
        for name, each in cls.__record_fields__.items():
            factory = each.default_factory is not _ABSENT
            value = name
            if factory:
                names[f"_make_{name}"] = each.default_factory
                value = f"_make_{name}() if {name} is _absent else {name}" if each.init else f"_make_{name}()"
            elif not each.init:
                if each.default is _ABSENT or "__slots__" not in cls.__dict__:
                    continue  # set by __post_init__, or found in the class
                value = f"_default_{name}"
            if each.init:
                if not factory and each.default is _ABSENT:
                    if optional:
                        raise TypeError(f"field {name} without a default follows {optional}, which has one")
                    parameters.append(name)
                else:
                    optional = name
                    names[f"_default_{name}"] = _ABSENT if factory else each.default
                    parameters.append(f"{name}=_default_{name}")
            elif not factory:
                names[f"_default_{name}"] = each.default
            lines.append(f"_set(self, {name!r}, {value})" if frozen else f"self.{name} = {value}")
        if hasattr(cls, "__post_init__"):
            lines.append("self.__post_init__()")
        body = "\n    ".join(lines or ["pass"])
        exec(f"def __init__({', '.join(parameters)}):\n    {body}", names)  # noqa: S102  made of the names of fields
        init = names["__init__"]
        init.__qualname__, init.__module__ = f"{cls.__qualname__}.__init__", cls.__module__
        init.__annotations__ = {n: each.annotation for n, each in cls.__record_fields__.items() if each.init}
        init.__annotations__["return"] = None
        cls.__init__ = init
        return init

    @recursive_repr()
    def _text(self):
        fields_of = self.__record_fields__.items()
        shown = ", ".join([f"{name}={getattr(self, name)!r}" for name, each in fields_of if each.repr])
        return f"{self.__class__.__qualname__}({shown})"

    def _compare(cls, names, *, frozen):
        get = attrgetter(*names) if names else lambda _record: ()
        if "__eq__" not in cls.__dict__:

            def is_equal(self, other):
                return get(self) == get(other) if other.__class__ is self.__class__ else NotImplemented

            cls.__eq__ = is_equal
        # A class with an `__eq__` of its own has `__hash__ = None` from the language.
        if cls.__dict__.get("__hash__") is None:
            cls.__hash__ = (lambda self: hash(get(self))) if frozen else None

    def _freeze(cls, names):
        def refuse_to_set(self, name, value):
            if type(self) is cls or name in names:
                raise _frozen(f"cannot assign to field {name!r}")
            super(cls, self).__setattr__(name, value)

        def refuse_to_delete(self, name):
            if type(self) is cls or name in names:
                raise _frozen(f"cannot delete field {name!r}")
            super(cls, self).__delattr__(name)

        cls.__setattr__, cls.__delattr__ = refuse_to_set, refuse_to_delete

    def _frozen(text):
        from dataclasses import FrozenInstanceError  # noqa: PLC0415  seldom raised

        return FrozenInstanceError(text)

    class _Standard:
        """An attribute by which `dataclasses` knows its classes; it is made when it is asked for."""

        def __init__(self, name):
            self._name = name

        def __get__(self, _instance, owner=None) -> Any:
            import dataclasses  # noqa: PLC0415

            cls = next(each for each in owner.__mro__ if "__record_fields__" in each.__dict__)
            frozen, eq = cls.__record_options__
            every = [each.standard() for each in cls.__record_fields__.values()]
            twin = dataclasses.make_dataclass(cls.__name__, every, frozen=frozen, eq=eq)
            for name in ("__dataclass_fields__", "__dataclass_params__"):
                setattr(cls, name, getattr(twin, name))
            return getattr(twin, self._name)

    class _Signature:
        """What `inspect.signature` shows, also before the first instance."""

        def __get__(self, _instance, owner=None) -> Any:
            import inspect  # noqa: PLC0415

            if "__record_fields__" not in owner.__dict__:
                raise AttributeError("__signature__")  # a subclass has its own
            init = owner.__init__
            if hasattr(init, "makes_init"):
                init = _compiled_init(owner, frozen=init.makes_init)
            found = inspect.signature(init)
            return found.replace(parameters=list(found.parameters.values())[1:])

    _STANDARD_FIELDS, _STANDARD_PARAMS = _Standard("__dataclass_fields__"), _Standard("__dataclass_params__")
    _SIGNATURE = _Signature()

    class _NamedTupleType(type):
        """Makes a class of tuples of what is written as a class that derives from `NamedTuple`."""

        def __new__(cls, name, bases, body):
            if not bases:
                return super().__new__(cls, name, bases, body)
            names = tuple(body.get("__annotations__", ()))
            defaults = {each: body[each] for each in names if each in body}
            body.update({each: _element(number, None) for number, each in enumerate(names)})
            body.update(
                __slots__=(),
                __match_args__=names,
                _fields=names,
                _field_defaults=defaults,
                __new__=_maker_of(names, defaults),
                __repr__=_tuple_text,
                __getnewargs__=lambda self: (*self,),
                _asdict=lambda self: dict(zip(names, self, strict=True)),
                _make=classmethod(lambda made, values: made(*values)),
                _replace=lambda self, /, **changes: type(self)(**self._asdict() | changes),
            )
            return type(name, (tuple,), body)

    class NamedTuple(metaclass=_NamedTupleType):
        """As `typing.NamedTuple`, of the class's fields and defaults."""

    def _maker_of(names, defaults):
        count = len(names)

        def make(cls, *values, **named):
            if named or len(values) != count:
                given = {**defaults, **dict(zip(names, values, strict=False))}
                if len(values) > count or given.keys() & named.keys() & set(names[: len(values)]):
                    raise TypeError(f"{cls.__qualname__}: more values than fields, or a field twice")
                given.update(named)
                if given.keys() != set(names):
                    raise TypeError(
                        f"{cls.__qualname__} has the fields {', '.join(names)}, not {', '.join(given)}"
                    )
                values = [given[name] for name in names]
            return tuple.__new__(cls, values)

        return make

    def _tuple_text(self):
        shown = ", ".join(f"{name}={value!r}" for name, value in zip(self._fields, self, strict=True))
        return f"{type(self).__name__}({shown})"


__all__ = ["NamedTuple", "dataclass", "field", "fields", "replace"]
