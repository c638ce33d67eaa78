"""Interactive calls, as a worker serves them: take → load → render → encode, store → answer."""

from __future__ import annotations

import logging
from dataclasses import asdict

import redis

from jobs.calls.call import Answer, Call
from jobs.errors import FatalError, ImagemillError, TransientError
from jobs.output.storage import open_storage
from worker.process.watchdog import watchdog
from worker.render import Rendered
from worker.storing import Shelf
from worker.workshop import Workshop

log = logging.getLogger(__name__)


def serve_calls(shop: Workshop) -> bool:
    """Render one batch of calls that wait, and answer each of them. False if none waits.

    Raises:
        redis.RedisError: Redis is away; the calls are taken again later.
    """
    table = shop.renderers.table
    calls = shop.claims.take({name: table.get(name).batch_width for name in shop.models})
    if not calls:
        return False
    with shop.claims.keep(calls):
        try:
            rendered = _render(shop, calls)
        except redis.RedisError:
            raise
        except Exception as error:  # of whatever kind: a bulk run must not suffer from it
            log.log(
                logging.ERROR, "Interactive calls: %s", error,
                exc_info=not isinstance(error, ImagemillError),
            )  # fmt: skip
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


def _render(shop: Workshop, calls: list[Call]) -> list[Rendered]:
    renderer = shop.renderers.get(calls[0].request.key.model)
    batch = shop.loader(open_storage(calls[0].out)).load([call.request for call in calls])
    with watchdog(shop.batch_seconds):
        return renderer.render(batch)


def _answer(shop: Workshop, call: Call, one: Rendered) -> None:
    shelf = Shelf(open_storage(call.out), shop.name, 1)
    try:
        record = shelf.put(one, call.path)
    except ImagemillError as error:
        log.error("Call %s: %s", call.id, error)
        _fail(shop, call, error)
    else:
        shop.claims.answer(call, record.row())


def _fail(shop: Workshop, call: Call, error: Exception) -> None:
    """Tell the caller no more than it needs: messages of storage name places of ours."""
    message = "the worker's log says why"
    if isinstance(error, FatalError | TransientError):
        message = "model or storage are not available; the worker's log says why"
    shop.claims.answer(call, asdict(Answer("failed", "unavailable", message)))
