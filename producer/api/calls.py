"""One call, from a checked body to an image: resolve → store inputs → queue → wait → read."""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections import defaultdict
from collections.abc import Coroutine, Sequence
from dataclasses import asdict, astuple, dataclass, field
from datetime import UTC, datetime
from functools import reduce
from typing import Annotated, Any, TypeVar

import anyio
from fastapi import Depends, Response
from fastapi import Request as HttpRequest

from jobs.calls.call import Call
from jobs.calls.waiting import CallQueue, QueueFull
from jobs.errors import InvalidRequest
from jobs.formats import FORMATS
from jobs.inputs.decoding import Decoding
from jobs.inputs.images import InputPolicy, check_image, check_mask, load_input, store_input
from jobs.models.fingerprints import route_digest
from jobs.models.table import ModelTable
from jobs.output.storage import Storage
from jobs.requests import Body, ImageInput, Request, Task
from jobs.traces import current, span
from producer.api.admission import Admitted, Caller, WithKey
from producer.api.files.downloads import Downloads, UsedDownloads
from producer.api.roster import Roster
from producer.api.wire.errors import RETRY_SECONDS, ApiError
from producer.api.wire.parts import provided
from producer.api.wire.reading import Source
from producer.api.wire.threads import in_daemon, in_thread
from producer.planning.resolution import PlanOptions, Resolver, UnknownFingerprint

INPUT_THREADS = 16  # inputs of a team that are fetched and checked at a time

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of a call: until a worker rendered it, of rendering, of encoding and storing."""

    queue: float
    render: float
    store: float

    def longest(self, other: Timing) -> Timing:
        """Of two calls that went side by side, the longer of each part."""
        return Timing(*map(max, astuple(self), astuple(other)))

    def header(self) -> str:
        """For the HTTP header Server-Timing, in milliseconds."""
        return ", ".join(f"{name};dur={1000 * s:.2f}" for name, s in asdict(self).items())


@dataclass(frozen=True, slots=True)
class Picture:
    """A rendered image: where it lies below the store, and its file's bytes."""

    request: Request
    path: str
    data: bytes
    timing: Timing


@dataclass(frozen=True, slots=True)
class _Stored:
    """An input in storage: the reference that names it, its width and height."""

    name: str
    size: tuple[int, int]


@dataclass(frozen=True)
class Order:
    """What a caller wants: `count` images of a body.

    images, controls, mask: inputs that are not in storage yet; the body itself has none.
    """

    task: Task
    body: Body
    images: Sequence[Source] = ()
    controls: Sequence[Source] = ()
    count: int = 1
    mask: Source | None = None

    @property
    def inputs(self) -> dict[str, Sequence[Source]]:
        """All inputs by their fields."""
        masks = () if self.mask is None else (self.mask,)
        return {"image": self.images, "control_images": self.controls, "mask_image": masks}


@dataclass
class Calls:
    """Renders orders with the workers of the installation.

    table: closed, so that nobody names a repository or a folder from outside; storage: where
    inputs and images lie; seconds: until a call has failed; under_way: calls now; draining: no
    new ones are taken, as the process is to end.
    """

    table: ModelTable
    storage: Storage
    queue: CallQueue
    roster: Roster
    policy: InputPolicy
    seconds: float
    under_way: int = 0
    draining: bool = False
    _given_up: asyncio.Event = field(default_factory=asyncio.Event)
    _fingerprints: dict[str, str] = field(default_factory=dict)
    _decoding: Decoding = field(default_factory=Decoding)
    _threads: defaultdict[str, anyio.CapacityLimiter] = field(  # by team: slow URLs are its own
        default_factory=lambda: defaultdict(lambda: anyio.CapacityLimiter(INPUT_THREADS))
    )

    async def render(self, caller: Caller, order: Order, http: HttpRequest) -> list[Picture]:
        """Render an order; gives up, and withdraws what waits, when its caller goes or it is late.

        Raises:
            InvalidRequest, ApiError, TimeoutError: see producer.api.wire.errors.
        """
        if self.draining:
            raise _stopping()
        self.under_way += 1
        try:
            with span("call", [http.headers.get("traceparent", "")], images=order.count):
                async with asyncio.timeout(self.seconds):
                    return await self._unless_in_vain(http, self._render(caller, order))
        finally:
            self.under_way -= 1

    def give_up(self) -> None:
        """End the calls that are still under way: their callers are told to come back."""
        self._given_up.set()

    async def _unless_in_vain(
        self, http: HttpRequest, work: Coroutine[Any, Any, list[Picture]]
    ) -> list[Picture]:
        """The result of `work`, which is cancelled when the caller goes or this process ends."""

        async def disconnected() -> None:
            while (await http.receive())["type"] != "http.disconnect":
                pass

        working = asyncio.create_task(work)
        gone, given_up = (
            asyncio.create_task(one) for one in (disconnected(), self._given_up.wait())
        )
        tasks: set[asyncio.Task[Any]] = {working, gone, given_up}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            if gone.done():
                raise ApiError(499, "client_gone", "the caller has gone")
            raise _stopping()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _render(self, caller: Caller, order: Order) -> list[Picture]:
        # First: what nobody serves need not be on this machine either.
        workers = await self.roster.require(self.table.route(order.body.model).model)
        names = [uuid.uuid4().hex for _ in range(order.count)]  # what missing seeds derive from
        # Before its inputs are fetched: a wrong field is refused at once.
        inputs = {field: _names(sources) for field, sources in order.inputs.items()}
        requests = await self._resolve(order, names, inputs)
        if any(inputs.values()):
            requests = await self._resolve(order, names, await self._store(caller.team, order))
        return list(await _gather([self._call(caller, one, workers) for one in requests]))

    async def _resolve(
        self, order: Order, names: list[str], inputs: dict[str, list[str]]
    ) -> list[Request]:
        given: dict[str, Any] = {
            field: tuple(ImageInput(image=one) for one in several)
            for field, several in inputs.items()
            if several
        }
        if "mask_image" in given:
            (given["mask_image"],) = given["mask_image"]
        body = order.body.model_copy(update=given)
        return [
            await self._request(order.task, body.numbered(number), name)
            for number, name in enumerate(names)
        ]

    async def _request(self, task: Task, body: Body, name: str) -> Request:
        """The request that a body stands for.

        Raises:
            InvalidRequest: the model does not take what it asks for.
            FatalError: the model's weights cannot be identified here.
        """
        while True:
            # A resolver remembers every kind of body it has met, so each call has its own.
            resolver = Resolver(self.table, PlanOptions(), self._fingerprints)
            try:
                return resolver.resolve(0, task, body, name)
            except UnknownFingerprint as unknown:
                model = unknown.model
            self._fingerprints[model] = await in_thread(route_digest, self.table, model)

    async def _store(self, team: str, order: Order) -> dict[str, list[str]]:
        """The inputs of an order in storage, by their fields.

        Raises:
            InvalidRequest: one is none, or a mask has not its image's size.
        """
        stored = {
            field: await self._store_inputs(team, sources, field)
            for field, sources in order.inputs.items()
        }
        for mask in stored["mask_image"]:
            check_mask(mask.size, stored["image"][0].size)
        return {field: [one.name for one in several] for field, several in stored.items()}

    async def _store_inputs(
        self, team: str, sources: Sequence[Source], field: str
    ) -> list[_Stored]:
        """Fetch, check and store inputs: neither Redis nor a worker meets what a user wrote."""
        check = self._decoding.check_mask if field == "mask_image" else self._decoding.check

        def store(source: Source) -> _Stored:
            if isinstance(source, str):
                data = load_input(source, self.policy, None, field)
            else:
                data = source
                check_image(data, self.policy, field)
            size = check(data, field)
            return _Stored(store_input(self.storage, data), size)

        return await _gather(
            [in_daemon(store, source, threads=self._threads[team]) for source in sources]
        )

    async def _call(self, caller: Caller, request: Request, workers: int) -> Picture:
        now = datetime.now(UTC)
        name = f"{request.custom_id}.{FORMATS[request.format].extension}"
        path = f"calls/{caller.team}/{now:%Y-%m-%d}/{name}"
        call = Call(request.custom_id, caller.team, request, self.storage.uri, path, current())
        started = time.perf_counter()
        try:
            await self.queue.put(call)
            answer = await self.queue.wait(call)
        except QueueFull as full:
            seconds = full.ahead * self.table.get(request.key.model).seconds_per_image / workers
            wait = min(60, max(1, math.ceil(seconds)))
            raise ApiError(429, "queue_full", str(full), "", wait) from None
        except BaseException:  # above all: cancelled, as its caller has gone or its time is over
            await asyncio.shield(self.queue.withdraw(call))
            raise
        if answer.status == "rejected":
            raise InvalidRequest("", answer.message, answer.code)
        if answer.status != "done":
            message = f"the image could not be rendered: {answer.message}"
            if answer.code == "unavailable":
                raise ApiError(503, answer.code, message, "", RETRY_SECONDS)
            raise ApiError(500, answer.code, message)
        data = await in_thread(self.storage.read, path)
        render, store = answer.seconds_render, answer.seconds_encode + answer.seconds_store
        queue = max(0.0, time.perf_counter() - started - render - store)
        return Picture(request, path, data, Timing(queue, render, store))


UsedCalls = Annotated[Calls, provided(Calls)]


@dataclass(frozen=True)
class Exchange:
    """One HTTP request for images under way, and what its answer needs."""

    calls: Calls
    downloads: Downloads
    caller: Caller
    request: HttpRequest
    response: Response

    async def render(self, order: Order) -> list[Picture]:
        """Render an order; a header tells where the time went, in milliseconds.

        Raises: as Calls.render.
        """
        pictures = await self.calls.render(self.caller, order, self.request)
        timing = reduce(Timing.longest, (picture.timing for picture in pictures))
        self.response.headers["Server-Timing"] = timing.header()
        return pictures

    async def url(self, path: str) -> str:
        """A URL that opens a stored file for a while."""
        return await in_thread(self.downloads.url, path, str(self.request.base_url))


async def _exchange(
    calls: UsedCalls,
    downloads: UsedDownloads,
    caller: Admitted,
    request: HttpRequest,
    response: Response,
) -> Exchange:
    return Exchange(calls, downloads, caller, request, response)


async def _with_key(exchange: Annotated[Exchange, Depends(_exchange)], _: WithKey) -> Exchange:
    return exchange


AnyExchange = Annotated[Exchange, Depends(_exchange)]
KeyExchange = Annotated[Exchange, Depends(_with_key)]


def _stopping() -> ApiError:
    return ApiError(503, "stopping", "this server is stopping; try again", "", RETRY_SECONDS)


def _names(sources: Sequence[Source]) -> list[str]:
    """What stands for inputs until they are stored."""
    return [source if isinstance(source, str) else "upload" for source in sources]


async def _gather(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All results; the first error cancels the rest and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
