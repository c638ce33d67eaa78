"""Which models the workers of the installation serve, looked up again and again in the background.

So no call has to ask, and one look serves them all.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

import redis

from jobs.broker.fleet import Fleet
from producer.api.wire.errors import RETRY_SECONDS, ApiError
from producer.api.wire.threads import in_thread

LOOK_SECONDS = 1.0  # between two looks


@dataclass
class Roster:
    """How many workers serve each model. Raises redis.RedisError when Redis is away."""

    fleet: Fleet
    _served: Counter[str] = field(default_factory=Counter)
    _looked: float = float("-inf")

    async def workers(self, model: str) -> int:
        """How many workers serve a model, as of the last two looks."""
        if time.monotonic() - self._looked > 2 * LOOK_SECONDS:
            await self._look()
        return self._served[model]

    async def require(self, model: str) -> int:
        """How many workers serve a model; raises ApiError 503 if there is none."""
        if count := await self.workers(model):
            return count
        raise ApiError(503, "no_worker", f"no worker serves {model}", "", RETRY_SECONDS)

    async def watch(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            with suppress(redis.RedisError):  # whoever calls will be told
                await self._look()
            await asyncio.sleep(LOOK_SECONDS)

    async def _look(self) -> None:
        workers = await in_thread(self.fleet.workers)
        self._served = Counter(model for worker in workers for model in worker.serves)
        self._looked = time.monotonic()
