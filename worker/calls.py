"""Interactive calls, as a worker serves them: take, render like any batch, answer each."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Executor, wait
from dataclasses import asdict, dataclass

import redis

from jobs.calls.call import Answer, Call
from jobs.calls.claims import Claims
from jobs.errors import FatalError, ImagemillError, TransientError
from jobs.output.storage import open_storage
from worker.render import Rendered
from worker.storing import Shelf
from worker.workshop import Workshop

log = logging.getLogger(__name__)


def serve_calls(shop: Workshop) -> bool:
    """Render one batch of calls that wait, and answer each of them. False if none waits.

    Whatever is wrong with a call, its model or its storage is its callers' to hear: a bulk run
    that makes way for it must not suffer.

    Raises:
        redis.RedisError: Redis is away; the calls are taken again later.
    """
    calls = shop.claims.take(shop.slots)
    if not calls:
        return False
    with shop.claims.keep(calls):
        answers = Answers(shop.claims, shop.executor, shop.name, calls)
        try:
            batch = shop.loader(open_storage(calls[0].out)).load([one.request for one in calls])
            shop.stage.run(calls[0].request.key.model, batch, answers)
        except redis.RedisError:
            raise
        except Exception as error:
            answers.fail(error)
    return True


@dataclass(frozen=True)
class Answers:
    """Stores the images of calls, each in a thread, and answers whoever waits for it."""

    claims: Claims
    executor: Executor
    worker: str
    calls: Sequence[Call]

    def take(self, batch: list[Rendered]) -> None:
        """Answer every call of the batch. Raises redis.RedisError when Redis is away."""
        under_way = [
            self.executor.submit(self._answer, call, one)
            for call, one in zip(self.calls, batch, strict=True)
        ]
        wait(under_way)
        for one in under_way:
            one.result()

    def fail(self, error: Exception) -> None:
        """Tell all callers that there is nothing to be had."""
        _note("Interactive calls", error)
        for call in self.calls:
            self._fail(call, error)

    def _answer(self, call: Call, one: Rendered) -> None:
        try:
            record = Shelf(open_storage(call.out), self.worker, 1).put(one, call.path)
        except Exception as error:  # of whatever kind: the others have their images
            _note(f"Call {call.id}", error)
            self._fail(call, error)
        else:
            self.claims.answer(call, record.row())

    def _fail(self, call: Call, error: Exception) -> None:
        """Tell the caller no more than it needs: messages of storage name places of ours."""
        message = "the worker's log says why"
        if isinstance(error, FatalError | TransientError):
            message = "model or storage are not available; the worker's log says why"
        self.claims.answer(call, asdict(Answer("failed", "unavailable", message)))


def _note(what: str, error: Exception) -> None:
    log.error("%s: %s", what, error, exc_info=not isinstance(error, ImagemillError))
