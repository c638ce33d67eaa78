"""Interactive calls, as a worker serves them: take, render like any batch, answer each."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from threading import Semaphore

import redis

from jobs.calls.call import Answer, Call
from jobs.calls.claims import Claims
from jobs.errors import FatalError, ImagemillError, TransientError
from jobs.output.storage import open_storage
from jobs.requests import Request
from jobs.traces import span
from worker.accounts import Accounts
from worker.faults import Unfit
from worker.interludes import NoRoom
from worker.render import Rendered
from worker.storing import Put, Shelf, when_all_end
from worker.workshop import Workshop

ELSEWHERE_SECONDS = 1.0  # a call that this worker cannot render is left to others for so long

log = logging.getLogger(__name__)


def serve_calls(shop: Workshop) -> bool:
    """Render one batch of calls that wait; each is answered once it is stored. False if none waits.

    Whatever is wrong with a call, its model or its storage is its callers' to hear: a bulk run
    that makes way for it must not suffer. Where only this worker is to blame, others get the call.

    Raises:
        redis.RedisError: Redis is away; the calls are taken again later.
    """
    return _serve(shop, served(shop), beside=False)


def serve_beside(shop: Workshop, models: Collection[str]) -> bool:
    """The same between two steps of a run's batch, for models that are loaded.

    Raises:
        NoRoom: the device's memory does not hold both; the calls wait on.
    """
    try:
        return not shop.stopping.is_set() and _serve(shop, models, beside=True)
    except redis.RedisError as error:  # the batch needs none of it before its end
        log.warning("Interactive calls: %s", error)
        return False


def served(shop: Workshop) -> frozenset[str]:
    """The models whose calls this worker takes now."""
    return frozenset(model for model in shop.call_slots if shop.fitness.is_fit(model))


def _serve(shop: Workshop, models: Collection[str], beside: bool) -> bool:
    most = {model: max(shop.call_slots[model]) for model in models}
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
    with ExitStack() as claim:
        claim.enter_context(shop.claims.keep(calls))
        answers = Answers(
            shop.claims, shop.executor, shop.call_flow, shop.put, shop.name, calls, claim,
            shop.accounts,
        )  # fmt: skip
        try:
            model, storage = calls[0].request.key.model, open_storage(calls[0].out)
            renderer = partial(shop.renderers.get, model)
            with span("calls", [call.trace for call in calls]):
                loader = shop.loader(storage, renderer, shop.call_inputs)
                batch = loader.load([within(one.request, slots) for one in calls])
                shop.stage.run(model, batch, answers, beside=beside)
        except redis.RedisError:
            raise
        except NoRoom:
            claim.close()
            shop.claims.hand_back(calls, 0.0)
            raise
        except Unfit as error:
            if shop.fitness.give_up(error, calls[0].request.key.route) is None:
                # A model that it has given up it does not take again; of others it must leave them.
                seconds = 0.0 if error.whole else ELSEWHERE_SECONDS
                claim.close()
                shop.claims.hand_back(calls, seconds)
            else:
                answers.fail(error)
        except Exception as error:
            answers.fail(error)
    return True


def fill(waiting: int, choice: Sequence[int]) -> int:
    """The most slots that so many calls fill; the fewest if they fill none."""
    return max((slots for slots in choice if slots <= waiting), default=min(choice))


def within(request: Request, slots: int) -> Request:
    """The same request, to be rendered by a pipeline call of so many slots."""
    return request.with_key(request.key.with_slots(slots))


@dataclass(frozen=True)
class Answers:
    """Stores the images of calls, each in a thread, and answers whoever waits for it.

    flow: taken for each batch until it is answered; claim: what keeps the calls, until then;
    accounts: what they used.
    """

    claims: Claims
    executor: Executor
    flow: Semaphore
    put: Put
    worker: str
    calls: Sequence[Call]
    claim: ExitStack
    accounts: Accounts

    def take(self, batch: list[Rendered]) -> None:
        """Begin to answer every call of the batch; waits while too many are under way."""
        self.flow.acquire()
        claim = self.claim.pop_all()

        def end() -> None:
            claim.close()
            self.flow.release()

        pairs = zip(self.calls, batch, strict=True)
        ended = [
            self.executor.submit(copy_context().run, self._answer, call, one) for call, one in pairs
        ]
        when_all_end(ended, end)

    def fail(self, error: Exception) -> None:
        """Tell all callers that there is nothing to be had."""
        _note("Interactive calls", error)
        for call in self.calls:
            self._fail(call, error)

    def _answer(self, call: Call, one: Rendered) -> None:
        try:
            self._store(call, one)
        except redis.RedisError as error:  # without its answer it is taken again
            _note(f"Call {call.id}", error)

    def _store(self, call: Call, one: Rendered) -> None:
        try:
            shelf = Shelf(open_storage(call.out), self.worker, attempt=1)
            (record,) = self.put(shelf, [(one, call.path)])
        except Exception as error:  # of whatever kind: the others have their images
            _note(f"Call {call.id}", error)
            self.accounts.note(call, one, "failed", 0)
            self._fail(call, error)
        else:
            self.accounts.note(call, one, record.status, record.bytes)
            spent = record.timings
            answer = Answer(
                record.status, record.code, record.message, spent.render, spent.encode, spent.store
            )
            self.claims.answer(call, answer)

    def _fail(self, call: Call, error: Exception) -> None:
        """Tell the caller no more than it needs: messages of storage name places of ours."""
        message = "the worker's log says why"
        if isinstance(error, FatalError | TransientError):
            message = "model or storage are not available; the worker's log says why"
        self.claims.answer(call, Answer("failed", "unavailable", message))


def _note(what: str, error: Exception) -> None:
    log.error("%s: %s", what, error, exc_info=not isinstance(error, ImagemillError))
