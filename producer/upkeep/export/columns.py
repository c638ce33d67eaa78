"""The types of a dataset's columns, found out from all of its rows before any is written.

Loaders guess types from the first rows, so a column has one type in every shard: no 3 beside 3.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import orjson

from jobs.errors import FatalError
from jobs.output.records import Row

MAX_COLUMNS = 1000

Dtype = Literal["string", "int64", "float64", "bool", "json"]


class Kind(NamedTuple):
    """A column's type; `json` is text that holds what has no type of its own."""

    dtype: Dtype
    many: bool = False


_TEXT = Kind("string")
_WHOLE = Kind("int64")
_JSON = Kind("json")
_SCALARS: Mapping[type, Kind] = {str: _TEXT, bool: Kind("bool"), float: Kind("float64")}
_NUMBERS = {"int64", "float64"}


@dataclass(frozen=True, slots=True)
class Columns:
    """kinds: name → type, in order of first use; partial: those that some rows lack."""

    kinds: Mapping[str, Kind]
    partial: frozenset[str]

    def values(self, row: Row) -> dict[str, Any]:
        """The row with each column in its type; None for one that it lacks."""
        return {name: _cast(row.get(name), kind) for name, kind in self.kinds.items()}

    def even(self) -> Columns:
        """Those that can have a value in every row: no row lacks them, or they are text.

        For forms whose readers guess types from the first rows: they cannot guess that of a number
        or a list that these lack.
        """
        kinds = self.kinds.items()
        kept = {name: kind for name, kind in kinds if name not in self.partial or kind == _TEXT}
        return Columns(kept, self.partial & kept.keys())

    def having(self, name: str) -> Columns:
        """These and one of text that every row has."""
        return Columns({**self.kinds, name: _TEXT}, self.partial - {name})

    def lacking(self, name: str) -> Columns:
        """These without one."""
        kinds = {one: kind for one, kind in self.kinds.items() if one != name}
        return Columns(kinds, self.partial - {name})

    def filled(self, row: Row) -> dict[str, Any]:
        """As values, with empty text for what even columns lack."""
        return {name: "" if value is None else value for name, value in self.values(row).items()}


class ColumnSurvey:
    """Sees every row once."""

    def __init__(self) -> None:
        self._kinds: dict[str, Kind] = {}
        self._even: set[str] | None = None  # what no row has lacked so far

    def add(self, row: Row) -> None:
        """Raises FatalError for a dataset with too many columns to be one."""
        if self._even is None:
            self._even = set(row)
        elif not self._even <= row.keys():
            self._even &= row.keys()
        for name, value in row.items():
            kind = _SCALARS.get(type(value)) or _kind(value)
            if kind is None:
                self._even.discard(name)
            elif self._kinds.get(name) is not kind:
                self._learn(name, kind)

    def _learn(self, name: str, kind: Kind) -> None:
        before = self._kinds.setdefault(name, kind)
        if before != kind:
            self._kinds[name] = _merged(before, kind)
        if len(self._kinds) > MAX_COLUMNS:
            raise FatalError(f"the dataset has more than {MAX_COLUMNS} columns")

    @property
    def names(self) -> frozenset[str]:
        """What was seen so far."""
        return frozenset(self._kinds)

    def columns(self, without: frozenset[str]) -> Columns:
        """What was seen, apart from names that a form has its own use for."""
        kinds = {name: kind for name, kind in self._kinds.items() if name not in without}
        return Columns(kinds, frozenset(kinds.keys() - (self._even or set())))


def _kind(value: Any) -> Kind | None:
    """None for what tells no type: null and the empty list."""
    match value:
        case None | []:
            return None
        case str() | bool() | float():
            return _SCALARS[type(value)]
        case int():
            return _WHOLE if -(2**63) <= value < 2**63 else _JSON
        case list():
            kinds = {_kind(one) for one in value}
            dtypes = {kind.dtype for kind in kinds if kind and not kind.many}
            if len(kinds) == 1 and len(dtypes) == 1 and "json" not in dtypes:
                return Kind(dtypes.pop(), many=True)
            numbers = len(kinds) == len(dtypes) and dtypes == _NUMBERS
            return Kind("float64", many=True) if numbers else _JSON
    return _JSON


def _merged(one: Kind, other: Kind) -> Kind:
    if one.many == other.many and {one.dtype, other.dtype} == _NUMBERS:
        return Kind("float64", one.many)
    return _JSON


def _cast(value: Any, kind: Kind) -> Any:
    if value is None or (value == [] and not kind.many):
        return None
    if kind.dtype == "json":
        return orjson.dumps(value).decode()
    if kind.dtype == "float64":
        return [float(one) for one in value] if kind.many else float(value)
    return value
