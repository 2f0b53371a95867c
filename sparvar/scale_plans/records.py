"""What every record of a plan is: frozen, strict about its fields, with tables that cannot change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict

K = TypeVar("K")
V = TypeVar("V")


class FrozenDict(dict[K, V]):
    """A dict that cannot change: plans are shared between threads and named by their digest."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("a plan must not be changed in place; plan.replace(...) makes a changed copy")

    __setitem__ = __delitem__ = clear = pop = popitem = setdefault = update = __ior__ = _refuse

    def __reduce__(self) -> tuple[type, tuple[dict[K, V]]]:
        return type(self), (dict(self),)


def by_scale(table: Mapping[int, V]) -> Mapping[int, V]:
    return FrozenDict(sorted(table.items()))


def by_name(table: Mapping[str, V]) -> Mapping[str, V]:
    return FrozenDict(sorted(table.items()))


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
