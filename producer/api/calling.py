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

from jobs.calls import WAKE_SECONDS, Answer, Call, CallKeys, decode_answer, encode_call
from jobs.errors import InvalidRequest
from jobs.inputs import check_image, load_input, open_image, store_input
from jobs.layout import EXTENSIONS
from jobs.requests import MAX_SEED, Body, ImageInput, Task
from jobs.requests import Request as Rendering
from producer.api.admission import Caller
from producer.api.errors import RETRY_SECONDS, ApiError
from producer.api.facade import Facade, in_thread
from producer.api.reading import Source
from producer.manifest import BatchLine

T = TypeVar("T")

# KEYS: the calls that wait for the model, those of the team, the call's body.
# ARGV: member, id, body, seconds to live, most for the model, most for the team.
# Returns what is full: "" (the call was added), "model" or "team", and how many wait for the model.
ADD = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
local waiting = redis.call('ZCARD', KEYS[1])
if waiting >= tonumber(ARGV[5]) then return {'model', waiting} end
if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[6]) then return {'team', waiting} end
redis.call('SET', KEYS[3], ARGV[3], 'EX', ARGV[4])
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZADD', KEYS[2], now + ARGV[4], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[4] * 2)
redis.call('EXPIRE', KEYS[2], ARGV[4])
return {'', waiting}
"""


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
        InvalidRequest, ApiError, TimeoutError: see producer.api.errors.
    """
    async with asyncio.timeout(facade.settings.call_seconds):
        return await _unless_gone(request, _render(facade, caller, order))


async def _render(facade: Facade, caller: Caller, order: Order) -> list[Picture]:
    # Before its inputs are fetched: a wrong field is refused at once.
    draft = await facade.resolve(_line(order, order.images, order.controls, 0))
    workers = await facade.require_worker(draft.key.model)
    images = await _store_inputs(facade, order.images, "image")
    controls = await _store_inputs(facade, order.controls, "control_images")
    requests = [
        await facade.resolve(_line(order, images, controls, number))
        for number in range(order.count)
    ]
    return list(await _gather([_call(facade, caller, one, workers) for one in requests]))


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
    await _add(facade, call, workers)
    try:
        answer = await _wait(facade, call)
    except BaseException:  # above all: cancelled, as its caller has gone or its time is over
        await asyncio.shield(_withdraw(facade, call))
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


async def _add(facade: Facade, call: Call, workers: int) -> None:
    """Queue a call.

    Raises:
        ApiError: 429, as too many wait.
    """
    settings, keys = facade.settings, CallKeys(facade.settings.key_prefix)
    model = call.request.key.model
    full, ahead = await facade.redis.register_script(ADD)(
        [keys.waiting(model), keys.team(call.team), keys.call(call.id)],
        [
            call.member, call.id, encode_call(call, facade.known.runs.seal),
            math.ceil(settings.call_seconds),
            settings.model_calls, settings.team_calls,
        ],
    )  # fmt: skip
    if full:
        seconds = ahead * facade.table.get(model).seconds_per_image / workers
        raise ApiError(
            429,
            "queue_full",
            f"too many calls of this {full.decode()} are waiting",
            "",
            min(60, max(1, math.ceil(seconds))),
        )


async def _withdraw(facade: Facade, call: Call) -> None:
    """Remove a call that waits. One that is being rendered ends unheard."""
    keys = CallKeys(facade.settings.key_prefix)
    async with facade.redis.pipeline() as pipe:
        pipe.zrem(keys.waiting(call.request.key.model), call.member)
        pipe.zrem(keys.team(call.team), call.id)
        pipe.delete(keys.call(call.id))
        await pipe.execute()


async def _wait(facade: Facade, call: Call) -> Answer:
    answer = CallKeys(facade.settings.key_prefix).answer(call.id)
    while True:
        await in_thread(facade.known.dispatcher.wake, call.request.key.model)
        found = await facade.redis.blpop([answer], timeout=WAKE_SECONDS)
        if found:
            return decode_answer(found[1])


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
