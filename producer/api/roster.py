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

from jobs.broker.fleet import Fleet, Worker
from producer.api.wire.errors import RETRY_SECONDS, ApiError
from producer.api.wire.threads import in_thread

LOOK_SECONDS = 1.0
RETURN_SECONDS = 600.0


@dataclass
class Roster:
    """How many workers serve each model. Raises redis.RedisError when Redis is away.

    look_seconds: between two looks; return_seconds: a worker that starts again is back by then.
    """

    fleet: Fleet
    look_seconds: float = LOOK_SECONDS
    return_seconds: float = RETURN_SECONDS
    _workers: list[Worker] = field(default_factory=list)
    _served: Counter[str] = field(default_factory=Counter)
    _looked: float = float("-inf")
    _seen: dict[str, float] = field(default_factory=dict)  # when a model was served last

    async def workers(self, model: str) -> int:
        """How many workers serve a model, as of the last two looks."""
        await self.all()
        return self._served[model]

    async def all(self) -> list[Worker]:
        """The workers that live, by name, as of the last two looks."""
        if time.monotonic() - self._looked > 2 * self.look_seconds:
            await self._look()
        return self._workers

    async def awaited(self, model: str) -> str | None:
        """What must still happen before the first call of a model is served fast; None if nothing.

        Workers that load it at once count, if there are any; else all that serve it, else all.
        """
        workers = [worker for worker in await self.all() if worker.serves]
        if not workers:
            return "no worker is there"
        serving = [worker for worker in workers if model in worker.serves]
        first = [worker for worker in serving if worker.models[0] == model]
        chosen = first or serving or workers
        if any(worker.ready for worker in chosen):
            return None
        return f"a worker is loading {chosen[0].models[0]}"

    async def require(self, model: str) -> int:
        """How many workers serve a model.

        Raises:
            ApiError: 503 if one will soon; 404 if none does, but others are there. Friendli's
                client, for one, sends again for an hour what was answered with 503.
        """
        if count := await self.workers(model):
            return count
        gone = time.monotonic() - self._seen.get(model, float("-inf"))
        if not self._served or gone < self.return_seconds:
            raise ApiError(503, "no_worker", f"no worker serves {model}", "", RETRY_SECONDS)
        served = ", ".join(sorted(self._served))
        message = f"no worker serves {model}; served: {served}"
        raise ApiError(404, "model_not_served", message, "model")

    async def watch(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            with suppress(redis.RedisError):  # whoever calls will be told
                await self._look()
            await asyncio.sleep(self.look_seconds)

    async def _look(self) -> None:
        self._workers = await in_thread(self.fleet.workers)
        self._served = Counter(model for worker in self._workers for model in worker.serves)
        self._looked = time.monotonic()
        self._seen |= dict.fromkeys(self._served, self._looked)
