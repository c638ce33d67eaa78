"""The ASGI application: its parts, and the endpoints that use them."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.metadata import version
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

from anyio import CancelScope
from anyio.lowlevel import checkpoint
from fastapi import FastAPI
from limits import RateLimitItem, parse
from limits.aio.storage import RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.broker.connection import Broker, connect_async
from jobs.broker.fleet import Fleet
from jobs.calls.waiting import CallLimits, CallQueue
from jobs.errors import UsageError
from jobs.inputs.images import InputPolicy
from jobs.models.table import ModelTable
from jobs.output.storage import open_storage
from jobs.settings import Settings
from producer.api import health, manual, metrics
from producer.api.access.keys import make_ring
from producer.api.access.signing import read_signer
from producer.api.admission import Access
from producer.api.calls import Calls
from producer.api.files import downloads as downloading
from producer.api.files.downloads import Downloads
from producer.api.files.shelf import Shelf
from producer.api.friendli import endpoints as friendli
from producer.api.friendli.bodies import ContainerImageEditBody, DedicatedImageEditBody
from producer.api.metrics import Metrics
from producer.api.openai import batches as batching
from producer.api.openai import files, images, models
from producer.api.openai.batch.steps import Steps
from producer.api.openai.batch.store import BatchStore
from producer.api.openai.batch.tending import Batches
from producer.api.openai.bodies import EditImageBodyJsonParam
from producer.api.page import endpoints as page
from producer.api.page.board import Board
from producer.api.page.gallery import Gallery
from producer.api.page.pictures import Thumbnails
from producer.api.page.ranking import Rankings
from producer.api.page.visits import make_pages
from producer.api.roster import Roster
from producer.api.traffic import Traffic
from producer.api.wire.errors import handle_errors
from producer.api.wire.parts import provide
from producer.api.wire.reading import BodyLimits
from producer.api.wire.schema import document
from producer.control.installation import installation
from producer.control.metrics import make_registry

log = logging.getLogger(__name__)


def make_api(settings: Settings, table: ModelTable) -> FastAPI:
    """The facade of one deployment; connects when it is first used.

    Nothing in its parts would be missed after a restart.

    Raises:
        UsageError: a setting cannot work.
    """
    if settings.store is None:
        raise UsageError("no store is set", "Pass --store URI or set IMAGEMILL_STORE.")
    table = replace(table, closed=True)  # nobody may name a repository or a folder from outside
    storage, known, client = (
        open_storage(settings.store), installation(settings), connect_async(settings)
    )  # fmt: skip
    policy = InputPolicy(hosts=settings.input_hosts)
    limits = CallLimits(math.ceil(settings.call_seconds), settings.model_calls, settings.team_calls)
    queue = CallQueue(client, settings.key_prefix, limits, known.runs.seal)
    roster = Roster(Fleet(known.runs.client, settings.key_prefix))
    shelf = Shelf(storage)
    downloads = Downloads(storage, read_signer(settings.signing_file), settings.public_url)
    store = BatchStore(storage)
    ring = make_ring(settings.api_keys, settings.keys_file)
    access = Access(ring, *_pace(settings), _host(settings))
    steps = Steps(store, shelf, known, table, policy)
    batches = Batches(store, steps, known.runs.client, settings.key_prefix)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        Thread(target=batches.run, name="batches", daemon=True).start()
        watching = asyncio.create_task(roster.watch())
        try:
            yield
        finally:
            batches.stop()
            watching.cancel()
            await asyncio.wait([watching])
            await client.aclose()
            await access.close()
            known.runs.client.close()

    registry = make_registry(known, table)
    app = _Facade(
        Traffic(registry),
        title="imagemill",
        version=version("imagemill"),
        description="Images from prompts, one by one or in batches.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    provide(
        app,
        access,
        BodyLimits(settings.body_bytes, settings.file_bytes),
        Calls(table, storage, queue, roster, policy, settings.call_seconds),
        batches,
        shelf,
        downloads,
        roster,
        make_pages(),
        Board(known, storage),
        Gallery(),
        Rankings(),
        Thumbnails(),
        Metrics(registry, settings.metrics_token),
    )
    handle_errors(app)
    app.include_router(health.router)
    app.include_router(metrics.router)
    manual.add(app)
    app.include_router(friendli.router)
    app.include_router(images.router)
    app.include_router(models.router)
    app.include_router(files.router)
    app.include_router(batching.router)
    app.include_router(downloading.router)
    page.add(app)
    document(app, [ContainerImageEditBody, DedicatedImageEditBody, EditImageBodyJsonParam])
    return app


def _pace(settings: Settings) -> tuple[FixedWindowRateLimiter, RateLimitItem]:
    """What counts the requests of teams in Redis, and how many they may send."""
    counts = RedisStorage(
        "async+redis://",  # where it is, the pool knows
        implementation="redispy",
        key_prefix=f"{settings.key_prefix}rate",
        connection_pool=Broker(settings).pool_async(),  # type: ignore[arg-type]
    )
    return FixedWindowRateLimiter(counts), parse(settings.team_rate)


def _host(settings: Settings) -> str:
    """The host, with its port if one is written, that callers name beside loopback ones."""
    return urlsplit(settings.public_url or "").netloc


class _Facade(FastAPI):
    """FastAPI that answers HEAD; around all of it, answers of its own middleware too, the access
    log."""

    def __init__(self, traffic: Traffic, **options: Any) -> None:
        self.traffic = traffic
        super().__init__(**options)

    def build_middleware_stack(self) -> ASGIApp:
        return AccessLog(HeadAsGet(super().build_middleware_stack()), self.traffic)


class HeadAsGet:
    """Has HEAD answered wherever GET is, by the head of GET's answer; its body is not made."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
        asked = {**scope, "method": "GET"}  # another: the server goes by its own
        rest = CancelScope()

        async def send_head(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.start":
                await send({"type": "http.response.body"})
                rest.cancel()
                await checkpoint()  # which ends the answer here

        try:
            with rest:
                await self.app(asked, receive, send_head)
        finally:
            scope["route"] = asked.get("route")


class AccessLog:
    """One line a request: neither queries, which may be signed, nor headers, nor bodies.

    Each request has an id, in its line and its answer: its caller's (X-Request-Id), else a new one.
    traffic: counts them as well.
    """

    def __init__(self, app: ASGIApp, traffic: Traffic) -> None:
        self.app = app
        self.traffic = traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        name = request_id(Headers(scope=scope))
        started, status = time.perf_counter(), 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = name
            await send(message)

        try:
            await self.app(scope, receive, noting)
        finally:
            seconds = time.perf_counter() - started
            self.traffic.count(scope, status, seconds)
            path = scope["path"].encode("unicode_escape").decode()
            log.info(
                "%s %s %d %.0f ms %s", scope["method"], path, status, 1000 * seconds, name,
                extra={"request": name, "status": status, "seconds": round(seconds, 6)},
            )  # fmt: skip


_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def request_id(headers: Headers) -> str:
    """The id that a caller gave its request, if it can stand in a log; else a new one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
