"""TOML that people write: settings, models tables, schedules."""

from __future__ import annotations

import tomllib
from typing import Any


def parse_toml(text: str) -> dict[str, Any]:
    """What a TOML file holds.

    Raises:
        tomllib.TOMLDecodeError: it is none, or its values are nested hundreds of levels deep.
    """
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise tomllib.TOMLDecodeError("nested too deeply") from error
