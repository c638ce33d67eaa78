"""What every endpoint has at hand. Nothing in it would be missed after a restart."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Annotated, TypeVar, TypeVarTuple, cast

import anyio
import redis.asyncio
from fastapi import Depends, Request
from limits import RateLimitItem, parse
from limits.aio.storage import RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter

from jobs.broker.connection import address, connect_async
from jobs.broker.fleet import Fleet
from jobs.calls.waiting import CallLimits, CallQueue
from jobs.errors import ImagemillError, UsageError
from jobs.inputs.images import InputPolicy
from jobs.models.fingerprints import route_digest
from jobs.models.table import ModelTable
from jobs.output.storage import Storage, open_storage
from jobs.requests import Request as Rendering
from jobs.settings import Settings
from producer.api.access.keys import KeyRing, make_ring
from producer.api.access.signing import Signer, read_signer
from producer.api.openai.batch.steps import Steps
from producer.api.openai.batch.store import BatchStore
from producer.api.openai.batch.tending import Batches
from producer.api.wire.errors import RETRY_SECONDS, ApiError
from producer.control.installation import Installation, installation
from producer.planning.manifest import BatchLine
from producer.planning.resolution import PlanOptions, Resolver, UnknownFingerprint

FLEET_SECONDS = 1.0  # between two looks at the workers
TEND_SECONDS = 1.0  # between two looks at the batches
INPUT_THREADS = 16  # inputs that are fetched and checked at a time

log = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@dataclass
class Facade:
    """One process's connections and the deployment's facts."""

    settings: Settings
    table: ModelTable
    storage: Storage
    known: Installation
    redis: redis.asyncio.Redis
    calls: CallQueue
    keys: KeyRing
    signer: Signer
    limiter: FixedWindowRateLimiter
    rate: RateLimitItem
    policy: InputPolicy
    input_threads: anyio.CapacityLimiter
    batches: Batches
    hurry: asyncio.Event = field(default_factory=asyncio.Event)
    _fingerprints: dict[str, str] = field(default_factory=dict)
    _served: Counter[str] = field(default_factory=Counter)
    _looked: float = float("-inf")

    async def workers(self, model: str) -> int:
        """How many workers serve a model, as of the last two looks."""
        if time.monotonic() - self._looked > 2 * FLEET_SECONDS:
            await self._look_for_workers()
        return self._served[model]

    async def watch_workers(self) -> None:
        """Look for workers again and again, until cancelled, so that no call has to."""
        while True:
            with suppress(redis.RedisError):  # whoever calls will be told
                await self._look_for_workers()
            await asyncio.sleep(FLEET_SECONDS)

    async def _look_for_workers(self) -> None:
        fleet = Fleet(self.known.runs.client, self.settings.key_prefix)
        served = Counter(
            model for worker in await in_thread(fleet.workers) for model in worker.models
        )
        self._served, self._looked = served, time.monotonic()

    async def require_worker(self, model: str) -> int:
        """How many workers serve a model; raises ApiError 503 if there is none."""
        if count := await self.workers(model):
            return count
        raise ApiError(503, "no_worker", f"no worker serves {model}", "", RETRY_SECONDS)

    async def resolve(self, line: BatchLine) -> Rendering:
        """The request that a line stands for.

        Raises:
            InvalidRequest: the model does not take what it asks for.
            FatalError: the model's weights cannot be identified here.
        """
        while True:
            # A resolver remembers every kind of line it has met, so each line has its own.
            resolver = Resolver(self.table, PlanOptions(), self._fingerprints)
            try:
                return resolver.resolve(1, line)
            except UnknownFingerprint as unknown:
                model = unknown.model
            self._fingerprints[model] = await in_thread(route_digest, self.table, model)

    async def tend_batches(self) -> None:
        """Take the batches on from step to step, until cancelled."""
        recovered = False
        while True:
            self.hurry.clear()
            try:
                if not recovered:
                    await in_thread(self.batches.recover)
                    recovered = True
                await in_thread(self.batches.tend)
            except (ImagemillError, redis.RedisError) as error:
                log.warning("Batches wait: %s", error)
            with suppress(TimeoutError):
                await asyncio.wait_for(self.hurry.wait(), TEND_SECONDS)

    async def close(self) -> None:
        """Close the connections."""
        await self.redis.aclose()
        self.known.runs.client.close()


async def in_thread(
    action: Callable[[*Ts], T], *args: *Ts, threads: anyio.CapacityLimiter | None = None
) -> T:
    """Run what would block the event loop. When the caller is cancelled it is left to itself."""
    return await anyio.to_thread.run_sync(action, *args, abandon_on_cancel=True, limiter=threads)


def open_facade(settings: Settings, table: ModelTable) -> Facade:
    """Make everything without connecting to anything.

    Raises:
        UsageError: a setting cannot work.
    """
    if settings.store is None:
        raise UsageError("no store is set", "Pass --store URI or set IMAGEMILL_STORE.")
    try:
        rate = parse(settings.team_rate)
    except ValueError as error:
        raise UsageError(f"setting team_rate: {error}", "Write for example 6000/minute.") from error
    url, options = address(settings)
    # Nobody may name a repository or a folder from outside.
    closed = replace(table, closed=True)
    storage, known = open_storage(settings.store), installation(settings)
    policy, signer = InputPolicy(hosts=settings.input_hosts), read_signer(settings.signing_file)
    client, store = connect_async(settings), BatchStore(storage)
    return Facade(
        settings=settings,
        table=closed,
        storage=storage,
        known=known,
        redis=client,
        calls=CallQueue(
            client,
            settings.key_prefix,
            CallLimits(math.ceil(settings.call_seconds), settings.model_calls, settings.team_calls),
            known.runs.seal,
            known.dispatcher,
        ),
        keys=make_ring(settings.api_keys, settings.keys_file),
        signer=signer,
        limiter=FixedWindowRateLimiter(
            RedisStorage(
                "async+" + url.replace("unix://", "redis+unix://", 1),
                implementation="redispy",
                key_prefix=f"{settings.key_prefix}rate",
                **options,
            )
        ),
        rate=rate,
        policy=policy,
        input_threads=anyio.CapacityLimiter(INPUT_THREADS),
        batches=Batches(
            store,
            Steps(store, known, closed, policy, signer),
            known.runs.client,
            settings.key_prefix,
        ),
    )


async def _of(request: Request) -> Facade:  # async: FastAPI would call it in a thread
    return cast("Facade", request.app.state.facade)


Used = Annotated[Facade, Depends(_of)]
