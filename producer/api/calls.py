"""One call, from a checked body to an image: store inputs → resolve → queue → wait → read."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from fastapi import Request

from jobs.calls.call import Call
from jobs.calls.waiting import QueueFull
from jobs.errors import InvalidRequest
from jobs.inputs.images import check_image, load_input, open_image, store_input
from jobs.output.layout import EXTENSIONS
from jobs.requests import MAX_SEED, Body, ImageInput, Task
from jobs.requests import Request as Rendering
from producer.api.admission import Caller
from producer.api.facade import Facade, in_thread
from producer.api.wire.errors import RETRY_SECONDS, ApiError
from producer.api.wire.reading import Source
from producer.planning.manifest import BatchLine

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Picture:
    """A rendered image: where it lies below the store, and its file's bytes.

    seconds: of rendering, as the worker measured it.
    """

    request: Rendering
    path: str
    data: bytes
    seconds: float


@dataclass(frozen=True)
class Order:
    """What a caller wants: `count` images of a body.

    images, controls: inputs that are not in storage yet; the body itself has none.
    """

    task: Task
    body: Body
    images: Sequence[Source] = ()
    controls: Sequence[Source] = ()
    count: int = 1


async def render(facade: Facade, caller: Caller, order: Order, request: Request) -> list[Picture]:
    """Render an order; gives up, and withdraws what waits, when the caller goes or time runs out.

    With a seed, image number i of several has the seed plus i.

    Raises:
        InvalidRequest, ApiError, TimeoutError: see producer.api.wire.errors.
    """
    async with asyncio.timeout(facade.settings.call_seconds):
        return await _unless_gone(request, _render(facade, caller, order))


async def _render(facade: Facade, caller: Caller, order: Order) -> list[Picture]:
    # Before its inputs are fetched: a wrong field is refused at once.
    requests = await _resolve(facade, order, order.images, order.controls)
    workers = await facade.require_worker(requests[0].key.model)
    if order.images or order.controls:
        images = await _store_inputs(facade, order.images, "image")
        controls = await _store_inputs(facade, order.controls, "control_images")
        requests = await _resolve(facade, order, images, controls)
    return list(await _gather([_call(facade, caller, one, workers) for one in requests]))


async def _resolve(
    facade: Facade, order: Order, images: Sequence[Source], controls: Sequence[Source]
) -> list[Rendering]:
    lines = [_line(order, images, controls, number) for number in range(order.count)]
    return [await facade.resolve(line) for line in lines]


def _line(
    order: Order, images: Sequence[Source], controls: Sequence[Source], number: int
) -> BatchLine:
    body = order.body
    update: dict[str, Any] = {}
    if images:
        update["image"] = tuple(ImageInput(image=_name(image)) for image in images)
    if controls:
        update["control_images"] = tuple(ImageInput(image=_name(image)) for image in controls)
    if body.seed is not None:
        update["seed"] = (body.seed + number) % (MAX_SEED + 1)
    return BatchLine(
        custom_id=uuid.uuid4().hex,  # also what a missing seed is derived from
        method="POST",
        url="/v1/images/edits" if order.task == "edit" else "/v1/images/generations",
        body=body.model_copy(update=update),
    )


def _name(source: Source) -> str:
    return source if isinstance(source, str) else "upload"


async def _store_inputs(facade: Facade, sources: Sequence[Source], field: str) -> list[str]:
    """Fetch, check and store inputs: neither Redis nor a worker meets what a user wrote."""

    def store(source: Source) -> str:
        if isinstance(source, str):
            data = load_input(source, facade.policy, None, field)
        else:
            data = source
            check_image(data, facade.policy, field)
        open_image(data, field)
        return store_input(facade.storage, data)

    return await _gather(
        [in_thread(store, source, threads=facade.input_threads) for source in sources]
    )


async def _call(facade: Facade, caller: Caller, request: Rendering, workers: int) -> Picture:
    now = datetime.now(UTC)
    name = f"{request.custom_id}.{EXTENSIONS[request.format]}"
    path = f"calls/{caller.team}/{now:%Y-%m-%d}/{name}"
    call = Call(request.custom_id, caller.team, request, facade.storage.uri, path)
    try:
        await facade.calls.put(call)
        answer = await facade.calls.wait(call)
    except QueueFull as full:
        seconds = full.ahead * facade.table.get(request.key.model).seconds_per_image / workers
        wait = min(60, max(1, math.ceil(seconds)))
        raise ApiError(429, "queue_full", str(full), "", wait) from None
    except BaseException:  # above all: cancelled, as its caller has gone or its time is over
        await asyncio.shield(facade.calls.withdraw(call))
        raise
    if answer.status == "rejected":
        raise InvalidRequest("", answer.message, answer.code)
    if answer.status != "done":
        message = f"the image could not be rendered: {answer.message}"
        if answer.code == "unavailable":
            raise ApiError(503, answer.code, message, "", RETRY_SECONDS)
        raise ApiError(500, answer.code, message)
    data = await in_thread(facade.storage.read, path)
    return Picture(request, path, data, answer.seconds_render)


async def _gather(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All results; the first error cancels the rest and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the caller disconnects."""

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.create_task(work), asyncio.create_task(disconnected())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ApiError(499, "client_gone", "the caller has gone")
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.wait({working, watching})


def timing(pictures: Sequence[Picture]) -> dict[str, str]:
    """A header that tells how long the rendering itself took, in milliseconds."""
    longest = max(picture.seconds for picture in pictures) * 1000
    return {"Server-Timing": f"render;dur={longest:.2f}"}
