"""Whose a run is and how it ranks: what turns, usage and quotas go by."""

from __future__ import annotations

import re
from typing import Literal, get_args

from jobs.errors import UsageError

OPEN_TEAM = "default"  # that of nobody in particular
TEAM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")  # becomes a folder

Priority = Literal["low", "normal", "high"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)  # the lowest first


def check_team(name: str) -> str:
    """The name. Raises UsageError if it is not plain."""
    if not TEAM.fullmatch(name):
        raise UsageError(
            f"team {name!r} is no plain name", "Use up to 64 letters, digits, - and _."
        )
    return name
