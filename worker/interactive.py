"""Interactive calls, as a worker serves them: take → load → render → encode, store → answer."""

from __future__ import annotations

import logging
from dataclasses import asdict

from jobs.calls import Answer, Call
from jobs.errors import ImagemillError
from jobs.storage import open_storage
from worker.output import Shelf
from worker.render import Rendered
from worker.watchdog import watchdog
from worker.workshop import Workshop

log = logging.getLogger(__name__)


def serve_calls(shop: Workshop) -> bool:
    """Render one batch of calls that wait, and answer each of them. False if none waits.

    Raises:
        redis.RedisError: Redis is away; the calls are taken again later.
    """
    table = shop.renderers.table
    calls = shop.calls.take({name: table.get(name).batch_width for name in shop.models})
    if not calls:
        return False
    with shop.calls.keep(calls):
        try:
            renderer = shop.renderers.get(calls[0].request.key.model)
            loader = shop.loader(open_storage(calls[0].out))
            batch = loader.load([call.request for call in calls])
            with watchdog(shop.batch_seconds):
                rendered = renderer.render(batch)
        except ImagemillError as error:
            log.error("Interactive calls: %s", error)
            for call in calls:
                _fail(shop, call, error)
            return True
        stored = [
            shop.executor.submit(_answer, shop, call, one)
            for call, one in zip(calls, rendered, strict=True)
        ]
        for one in stored:
            one.result()
    return True


def _answer(shop: Workshop, call: Call, one: Rendered) -> None:
    shelf = Shelf(open_storage(call.out), shop.name, 1)
    try:
        record = shelf.put(one, call.path)
    except ImagemillError as error:
        log.error("Call %s: %s", call.id, error)
        _fail(shop, call, error)
    else:
        shop.calls.answer(call, record.row())


def _fail(shop: Workshop, call: Call, error: ImagemillError) -> None:
    shop.calls.answer(call, asdict(Answer("failed", "unavailable", error.message)))
