"""Interactive calls, as a worker serves them: take, render like any batch, answer each."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Executor, wait
from dataclasses import asdict, dataclass, replace
from functools import partial

import redis

from jobs.calls.call import Answer, Call
from jobs.calls.claims import Claims
from jobs.errors import FatalError, ImagemillError, TransientError
from jobs.output.storage import open_storage
from jobs.requests import Request
from worker.faults import Unfit
from worker.render import Rendered
from worker.storing import Put, Shelf
from worker.workshop import Workshop

ELSEWHERE_SECONDS = 1.0  # a call that this worker cannot render is left to others for so long

log = logging.getLogger(__name__)


def serve_calls(shop: Workshop) -> bool:
    """Render one batch of calls that wait, and answer each of them. False if none waits.

    Whatever is wrong with a call, its model or its storage is its callers' to hear: a bulk run
    that makes way for it must not suffer. Where only this worker is to blame, others get the call.

    Raises:
        redis.RedisError: Redis is away; the calls are taken again later.
    """
    most = {model: max(n) for model, n in shop.call_slots.items() if shop.fitness.is_fit(model)}
    try:
        calls = shop.claims.take(most)
    except redis.ResponseError as error:  # something else lies where calls wait
        log.error("Interactive calls cannot be taken: %s", error)
        return False
    if not calls:
        return False
    slots = fill(len(calls), shop.call_slots[calls[0].request.key.model])
    if surplus := calls[slots:]:
        shop.claims.hand_back(surplus, 0.0)
    calls = calls[:slots]
    own: Unfit | None = None
    with shop.claims.keep(calls):
        answers = Answers(shop.claims, shop.executor, shop.put, shop.name, calls)
        try:
            model, storage = calls[0].request.key.model, open_storage(calls[0].out)
            renderer = partial(shop.renderers.get, model)
            loader = shop.loader(storage, renderer, shop.call_inputs)
            batch = loader.load([within(one.request, slots) for one in calls])
            shop.stage.run(model, batch, answers)
        except redis.RedisError:
            raise
        except Unfit as error:
            if shop.fitness.give_up(error, calls[0].request.key.route) is None:
                own = error
            else:
                answers.fail(error)
        except Exception as error:
            answers.fail(error)
    if own:
        # A model that it has given up it does not take again; of others it must leave the calls.
        shop.claims.hand_back(calls, 0.0 if own.whole else ELSEWHERE_SECONDS)
    return True


def fill(waiting: int, choice: Sequence[int]) -> int:
    """The most slots that so many calls fill; the fewest if they fill none."""
    return max((slots for slots in choice if slots <= waiting), default=min(choice))


def within(request: Request, slots: int) -> Request:
    """The same request, to be rendered by a pipeline call of so many slots."""
    return request._replace(key=replace(request.key, slots=slots))


@dataclass(frozen=True)
class Answers:
    """Stores the images of calls, each in a thread, and answers whoever waits for it."""

    claims: Claims
    executor: Executor
    put: Put
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
            shelf = Shelf(open_storage(call.out), self.worker, attempt=1)
            (record,) = self.put(shelf, [(one, call.path)])
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
