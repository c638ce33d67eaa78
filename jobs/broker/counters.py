"""What all workers together have done since Redis began to count. Only ever grows.

<prefix>counters    hash: a series, its words parted by spaces → its sum

Workers add what came to be since their last report, so a worker that ends takes nothing away. What
they had not reported is lost with them; a wiped Redis begins anew at 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal, cast

import redis

OTHER = "other"  # stands for models and codes that have no series of their own

# Codes of requests without an image, by what that makes of them.
CODES: dict[str, Literal["rejected", "failed"]] = {
    "invalid_request": "rejected",
    "input_forbidden": "rejected",
    "input_not_an_image": "rejected",
    "input_too_large": "rejected",
    "input_unreachable": "rejected",
    "nsfw": "rejected",
    "non_finite": "failed",
    "out_of_memory": "failed",
    "render_error": "failed",
    "worker_died": "failed",
}
STAGES = ("load", "inputs", "render", "encode", "store")

Series = tuple[str, ...]  # a name and the values of its labels: ("seconds", "sdxl", "render")


@dataclass(frozen=True)
class Counters:
    """The sums of one installation. Raises redis.RedisError when Redis is away."""

    client: redis.Redis
    prefix: str

    def add(self, sums: Mapping[Series, float]) -> None:
        """Add to each series."""
        with self.client.pipeline() as pipe:
            for series, amount in sums.items():
                count(pipe, self.prefix, series, amount)
            pipe.execute()

    def read(self, wanted: Sequence[Series]) -> dict[Series, float]:
        """The sums of these series, 0 for what nobody has counted. One round trip.

        Asked for by name: whoever else writes to that hash cannot make it cost more.
        """
        names = [" ".join(series) for series in wanted]
        found = cast("list[bytes | None]", self.client.hmget(f"{self.prefix}counters", names))
        return {series: _number(raw) for series, raw in zip(wanted, found, strict=True)}


def count(pipe: redis.client.Pipeline, prefix: str, series: Series, amount: float = 1) -> None:
    """Have a pipeline add to one series."""
    command: Any = pipe.hincrbyfloat
    command(f"{prefix}counters", " ".join(series), amount)


def _number(raw: bytes | None) -> float:
    with suppress(ValueError):
        value = float(raw or 0)
        return value if isfinite(value) and value > 0 else 0.0
    return 0.0
