"""Value classes for the start-up path: what dataclasses gives, without its 12 ms of import."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar, dataclass_transform

    T = TypeVar("T")

    @dataclass_transform(eq_default=True, kw_only_default=False)
    def record(cls: type[T]) -> type[T]: ...

    def replace(value: T, **changes: Any) -> T: ...

else:

    def record(cls):
        """Give *cls* an initialiser, equality, a hash and a repr from its annotations.

        Fields are positional or by keyword, in the order of their annotations, a
        base class's first; a class attribute of the same name is the default.
        Values are shared, never copied, so defaults must be immutable.
        """
        fields = []
        for base in reversed(cls.__mro__):
            fields += [name for name in base.__dict__.get("__annotations__", ()) if name not in fields]
        fields = tuple(fields)
        defaults = {name: getattr(cls, name) for name in fields if hasattr(cls, name)}

        def __init__(self, *args, **named):
            values = dict(defaults)
            values.update(zip(fields, args, strict=False))
            values.update(named)
            if len(args) > len(fields) or len(values) != len(fields):
                wrong = sorted(set(fields).symmetric_difference(values))
                raise TypeError(f"{cls.__name__}: {len(args)} positional values; missing or unknown: {wrong}")
            self.__dict__.update(values)

        def __repr__(self):
            return f"{cls.__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in fields)})"

        def __eq__(self, other):
            return type(self) is type(other) and self.__dict__ == other.__dict__

        def __hash__(self):
            return hash(tuple(self.__dict__.values()))

        for method in (__init__, __repr__, __eq__, __hash__):
            setattr(cls, method.__name__, method)
        cls.FIELDS = fields
        return cls

    def replace(value, **changes):
        """Return a copy of the record *value* with some fields changed."""
        return type(value)(**{**value.__dict__, **changes})
