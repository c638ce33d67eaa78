"""Who is told how planning goes."""

from __future__ import annotations

import logging
from typing import Protocol

log = logging.getLogger(__name__)


class Listener(Protocol):
    """Who is told how planning goes."""

    def planning(self, lines: int) -> None:
        """So many lines of the manifest are read."""

    def warning(self, text: str) -> None:
        """Something to look at again."""


class Log:
    """For whoever looks later: warnings alone."""

    def planning(self, lines: int) -> None:
        pass

    def warning(self, text: str) -> None:
        log.warning("%s", text)
