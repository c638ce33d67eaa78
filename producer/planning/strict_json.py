"""JSON of strangers: without surprises, and for time and memory in proportion to its bytes."""

from __future__ import annotations

import json
from typing import Any

MAX_DEPTH = 32
MAX_ITEMS = 256  # of a list, and keys of an object
MAX_MARKS = 200_000  # commas and opening brackets; prompts of commas alone hold a third of them


def parse_json(raw: bytes) -> Any:
    """JSON without repeated keys, NaN, infinities, deep nesting or very many values.

    Raises:
        json.JSONDecodeError: says which of these it has, or that it is none.
    """
    check_marks(raw)
    try:
        content = json.loads(raw, object_pairs_hook=_unique, parse_constant=_refuse)
    except json.JSONDecodeError:
        raise
    except RecursionError as error:
        raise json.JSONDecodeError("nested too deeply", "", 0) from error
    except ValueError as error:  # broken UTF-8, a number of thousands of digits, a repeated key
        raise json.JSONDecodeError(str(error), "", 0) from error
    _check_shape(content)
    return content


def describe(error: ValueError) -> str:
    """What is wrong with a line of JSON, and at which of its columns if that is known."""
    if not isinstance(error, json.JSONDecodeError):
        return f"not valid JSON: {error}"
    where = f" at column {error.colno}" if error.doc else ""
    return f"not valid JSON: {error.msg}{where}"


def check_marks(raw: bytes) -> None:
    """Refuse very many values before one is built: each costs far more than its bytes.

    Raises:
        json.JSONDecodeError: there are.
    """
    # Fewer bytes hold fewer marks; so most lines and bodies are not looked at.
    if len(raw) > MAX_MARKS and sum(raw.count(mark) for mark in b"[{,") > MAX_MARKS:
        raise json.JSONDecodeError("too many values", "", 0)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_ITEMS:  # each unknown one would become an error
        raise ValueError(f"an object has more than {MAX_ITEMS} keys")
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"key {name[:64]!r} appears twice")
        found[name] = value
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _check_shape(content: Any) -> None:
    """Refuse lists that are too long and nesting that is too deep."""
    level = [content]
    for _ in range(MAX_DEPTH + 1):
        following = list[Any]()
        for value in level:
            if isinstance(value, dict):
                following += value.values()
            elif isinstance(value, list):
                if len(value) > MAX_ITEMS:
                    raise json.JSONDecodeError(f"a list has more than {MAX_ITEMS} items", "", 0)
                following += value
        if not following:
            return
        level = following
    raise json.JSONDecodeError("nested too deeply", "", 0)
