"""Which images: conditions such as `clip > 0.25 and model == "shapes"`, and splits by content.

The grammar is Python's, read with `ast` and never evaluated: names of columns, text, numbers, True
and False, lists of these; == != < <= > >=, in, not in; and, or, not; parentheses.
"""

from __future__ import annotations

import ast
import operator
import re
import warnings
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from jobs.errors import UsageError, resembling
from jobs.output.records import Row

MAX_CONDITION = 1000  # characters: no nesting that Python's own stack could not hold
SPLIT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,31}")  # becomes a folder

_Read = Callable[[Mapping[str, Any]], Any]  # of a row
_Test = Callable[[Mapping[str, Any]], bool]
_COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda one, many: one in many,
    ast.NotIn: lambda one, many: one not in many,
}
_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Condition:
    """columns: those it names; holds: whether it is true of a row.

    A comparison with a column that a row lacks does not hold.
    """

    columns: frozenset[str]
    holds: Callable[[Row], bool]


@dataclass(frozen=True, slots=True)
class Split:
    """A name and the fraction of the images that it gets."""

    name: str
    share: float


WHOLE = (Split("train", 1.0),)


def parse_condition(text: str) -> Condition:
    """What `text` asks of a row. Raises UsageError for what is not of the grammar above.

    The condition's `holds` raises UsageError where a row's column cannot be compared so.
    """
    if len(text) > MAX_CONDITION:
        raise _refused(text, f"is longer than {MAX_CONDITION} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes, to whoever wrote a Python file
            tree = ast.parse(text.strip(), mode="eval").body
        test = _test(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _refused(text, str(getattr(error, "msg", error))) from error
    names = (node.id for node in ast.walk(tree) if isinstance(node, ast.Name))

    def holds(row: Row) -> bool:
        try:
            return test(row)
        except TypeError as error:
            raise _refused(text, str(error)) from error

    return Condition(frozenset(names), holds)


def parse_splits(text: str) -> tuple[Split, ...]:
    """Splits from "train=0.9,val=0.1". Raises UsageError if they are no such, or not all of it."""
    try:
        pairs = [pair.split("=") for pair in text.split(",")]
        splits = tuple(Split(name.strip(), float(share)) for name, share in pairs)
    except ValueError:
        splits = ()
    names = {split.name for split in splits}
    good = all(SPLIT_NAME.fullmatch(s.name) and 0 < s.share <= 1 for s in splits)
    whole = abs(sum(split.share for split in splits) - 1) < 1e-6
    if not good or not whole or len(names) < len(splits) or "all" in names:
        raise UsageError(
            f"--split {text!r} does not say how to split the images",
            "Give each split a name and its share, 1 in all: --split train=0.9,val=0.1",
        )
    return splits


def split_of(row: Row, splits: tuple[Split, ...]) -> str:
    """The split of an image: it depends on what was asked for and on nothing else of the dataset.

    Images of one prompt (and of the same inputs) that differ in their seeds or parameters stay
    together, so that no split holds what another was to be tested with.
    """
    if len(splits) == 1:
        return splits[0].name
    content = repr([row.get(name) for name in ("prompt", "input_images", "control_images")])
    digest = blake2b(content.encode(), digest_size=8, person=b"split").digest()
    at = int.from_bytes(digest, "little") / 2**64
    for split in splits[:-1]:
        if at < split.share:
            return split.name
        at -= split.share
    return splits[-1].name


def unknown_column(option: str, name: str, names: Set[str]) -> UsageError:
    """What to say of a column that an option names and no row has; names: those that rows have."""
    return UsageError(
        f"{option} names {name!r}, which is no column of the dataset{resembling(name, names)}",
        f"Its columns: {', '.join(sorted(names)[:60])}.",
    )


def _test(node: ast.expr) -> _Test:
    """Raises ValueError for what the grammar lacks."""
    match node:
        case ast.BoolOp(op=ast.And(), values=values):
            tests = [_test(value) for value in values]
            return lambda row: all(test(row) for test in tests)
        case ast.BoolOp(op=ast.Or(), values=values):
            tests = [_test(value) for value in values]
            return lambda row: any(test(row) for test in tests)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            test = _test(operand)
            return lambda row: not test(row)
        case ast.Compare(left=first, ops=ops, comparators=others):
            read = [_value(one) for one in (first, *others)]
            steps = list(zip(map(_compare, ops), read, read[1:], strict=False))
            return lambda row: all(step(left(row), right(row)) for step, left, right in steps)
        case ast.Name(id=name):
            return lambda row: _truth(row.get(name, False))
    raise ValueError(f"{ast.unparse(node)!r} is no condition")


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is neither true nor false")
    return value


def _value(node: ast.expr) -> _Read:
    match node:
        case ast.Name(id=name):
            return lambda row: row.get(name, _ABSENT)
        case ast.Constant(value=str() | int() | float() as value):
            return lambda _: value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            negative = -value
            return lambda _: negative
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            values = [_value(one)({}) for one in elements if not isinstance(one, ast.Name)]
            if len(values) == len(elements):
                return lambda _: values
    raise ValueError(f"{ast.unparse(node)!r} is no column, text, number or list")


def _compare(op: ast.cmpop) -> Callable[[Any, Any], bool]:
    if type(op) not in _COMPARE:
        raise ValueError(f"{type(op).__name__.lower()!r} compares nothing here")
    compare = _COMPARE[type(op)]
    contains = isinstance(op, ast.In | ast.NotIn)

    def step(left: Any, right: Any) -> bool:
        """Raises TypeError for what would always, or never, hold."""
        if _ABSENT in (left, right) or None in (left, right):
            return False
        if contains and isinstance(right, list):
            fits = all(_are_alike(left, one) for one in right)
        else:
            fits = isinstance(right, str) if contains else _are_alike(left, right)
        if not fits:
            raise TypeError(f"{left!r} cannot be compared with {right!r}")
        return compare(left, right)

    return step


def _are_alike(left: object, right: object) -> bool:
    numbers = isinstance(left, int | float) and isinstance(right, int | float)
    return numbers or type(left) is type(right)


def _refused(text: str, reason: str) -> UsageError:
    return UsageError(
        f"--where {text[:200]!r}: {reason}",
        "Compare columns with values, as in: --where 'width >= 512 and model == \"shapes\"'. "
        "Seeds are text.",
    )
