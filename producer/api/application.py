"""The ASGI application."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.models.table import ModelTable
from jobs.settings import Settings
from producer.api import health
from producer.api.facade import open_facade
from producer.api.files import downloads
from producer.api.friendli import endpoints as friendli
from producer.api.friendli.bodies import ContainerImageEditBody, DedicatedImageEditBody
from producer.api.openai import batches, files, images
from producer.api.openai.bodies import EditImageBodyJsonParam
from producer.api.wire.errors import handle_errors
from producer.api.wire.schema import document

log = logging.getLogger(__name__)


def make_api(settings: Settings, table: ModelTable) -> FastAPI:
    """The facade of one deployment; connects when it is first used.

    Raises:
        UsageError: a setting cannot work.
    """
    facade = open_facade(settings, table)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        chores = [
            asyncio.create_task(facade.tend_batches()),
            asyncio.create_task(facade.watch_workers()),
        ]
        try:
            yield
        finally:
            for chore in chores:
                chore.cancel()
            await asyncio.wait(chores)
            await facade.close()

    app = FastAPI(
        title="imagemill",
        version=version("imagemill"),
        description="Images from prompts, one by one or in batches.",
        lifespan=lifespan,
        max_body_size=max(settings.body_bytes, settings.file_bytes),
        redoc_url=None,
    )
    app.state.facade = facade
    handle_errors(app)
    app.include_router(health.router)
    app.include_router(friendli.router, max_body_size=settings.body_bytes)
    app.include_router(images.router, max_body_size=settings.body_bytes)
    app.include_router(files.router, max_body_size=settings.file_bytes)
    app.include_router(batches.router, max_body_size=settings.body_bytes)
    app.include_router(downloads.router)
    document(app, [ContainerImageEditBody, DedicatedImageEditBody, EditImageBodyJsonParam])
    app.add_middleware(AccessLog)
    return app


class AccessLog:
    """One line a request: neither queries, which may be signed, nor headers, nor bodies."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def noting(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, noting)
        finally:
            seconds = time.perf_counter() - started
            path = scope["path"].encode("unicode_escape").decode()
            log.info("%s %s %d %.0f ms", scope["method"], path, status, 1000 * seconds)
