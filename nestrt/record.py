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

    def _init(self, *args, **named):
        values = {**self.DEFAULTS, **dict(zip(self.FIELDS, args, strict=False)), **named}
        if len(args) > len(self.FIELDS) or len(values) != len(self.FIELDS):
            wrong = sorted(set(self.FIELDS).symmetric_difference(values))
            raise TypeError(f"{type(self).__name__}: {len(args)} positional values; missing or unknown: {wrong}")
        self.__dict__.update(values)

    def _repr(self):
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self.FIELDS)})"

    def _eq(self, other):
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def _hash(self):
        return hash(tuple(self.__dict__[name] for name in self.FIELDS))

    def record(cls):
        """Give *cls* an initialiser, equality, a hash and a repr from its annotations.

        Fields are positional or by keyword, in the order of their annotations, a
        base class's first; a class attribute of the same name is the default.
        Values are shared, never copied, so defaults must be immutable.
        """
        fields = []
        for base in reversed(cls.__mro__):
            fields += [name for name in base.__dict__.get("__annotations__", ()) if name not in fields]
        cls.FIELDS = tuple(fields)
        cls.DEFAULTS = {name: getattr(cls, name) for name in fields if hasattr(cls, name)}
        cls.__init__, cls.__repr__, cls.__eq__, cls.__hash__ = _init, _repr, _eq, _hash
        return cls

    def replace(value, **changes):
        """Return a copy of the record *value* with some fields changed."""
        return type(value)(**{**value.__dict__, **changes})
