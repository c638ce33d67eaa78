"""What a device process does about each kind of message."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import redis
from tenacity import (
    Retrying,
    retry_if_exception_type,
    stop_after_delay,
    stop_when_event_set,
    wait_fixed,
)

from jobs.broker.dispatch import start_run
from jobs.broker.messages import FEED, FINALIZE, RENDER, WAKE
from jobs.broker.progress import Effort
from jobs.broker.turns import Turn, whose_turn
from jobs.errors import FatalError, ImagemillError, TransientError
from jobs.output.dataset import write_dataset
from jobs.output.records import RecordStatus, chunks_done
from jobs.traces import span
from worker.calls import serve_beside, serve_calls, served
from worker.chunks import Todo, Work, count
from worker.faults import Unfit, own_fault
from worker.inputs import Loader
from worker.render import BatchRenderer
from worker.rounds import begin_round
from worker.storing import Output
from worker.suspects import Suspects
from worker.workshop import Workshop

RELEASE_SECONDS = 60.0  # a partition that ends within them counts as no death
SAVE_SECONDS = 60.0  # a chunk that takes longer than thought stores records so often
LOOK_SECONDS = 0.1  # while inputs are on their way, calls are looked for so often
UNFED_SECONDS = 10.0  # a run whose storage is away takes the turns of no other
FETCHED = 16  # requests whose inputs are read while the device renders the chunk before
LEAD_SECONDS = 2.0  # before a chunk's end the next message is taken, to be made ready: not before,
# as it waits here for the device, and another worker may have nothing to do

log = logging.getLogger(__name__)

MakeWay = Callable[[], None]  # says that the next message may be taken


class PutBack(Exception):
    """The message is to be delivered again, to whoever is first."""


class Interrupted(Exception):
    """The chunk stops early: the worker is to end, or the run does not go on."""


@dataclass(frozen=True)
class Ready:
    """A chunk that only lacks the device. loader: has begun to read the first inputs."""

    work: Work
    todo: Todo
    loader: Loader


@dataclass(frozen=True)
class Drawn:
    """A chunk whose every batch is rendered, and under way into storage.

    effort: what that took; settled: what earlier attempts had finished.
    """

    work: Work
    output: Output
    effort: Effort
    settled: dict[str, RecordStatus]


def render(
    shop: Workshop, make_way: MakeWay, run_id: str, epoch: int, shard: int, chunk: int
) -> None:
    """Render and store one chunk; the last one of a run sends `finalize`.

    Only drawing needs the device: before and after, others have it.
    """
    with responsibly(shop, run_id, epoch), span("chunk", run=run_id, shard=shard, chunk=chunk):
        run = shop.open(run_id, epoch)
        if run is None:
            return
        work = Work(run, shop.shards, shard, chunk)
        todo = work.todo()
        loader = shop.loader(run.storage, _renderer(shop, work), shop.inputs)
        loader.fetch(todo.requests[:FETCHED])
        try:
            ready = Ready(work, todo, loader)
            drawn = shop.device.submit(copy_context().run, draw, shop, ready, make_way).result()
        except Interrupted:
            if shop.stopping.is_set():
                raise PutBack from None
            return
        with span("end"):
            statuses = store(shop, drawn)
        shop.runs.spend(run_id, work.model, drawn.effort)
        shop.turns.settle(run_id, drawn.effort.seconds)
        if shop.runs.attempts.complete(run_id, work.number, *count(statuses.values())):
            shop.dispatcher.finalize(run_id, epoch, work.model)


def draw(shop: Workshop, ready: Ready, make_way: MakeWay) -> Drawn:
    """Render what a chunk lacks, batch by batch, with the device.

    Raises:
        Interrupted: it stopped before a batch; what it had finished is stored.
    """
    work, todo = ready.work, ready.todo
    if not goes_on(shop, work):
        raise Interrupted
    work = replace(work, attempt=shop.runs.attempts.begin(work.run_id, work.number))
    shop.at_work.enter()
    shop.tell(work.run_id, work.model)
    output = Output(
        work.run.storage, shop.executor, work.shard, shop.name, work.attempt.number,
        work.run.plan.scorers, shop.flow, shop.clock.start(work.run_id, work.run.epoch),
        put=shop.put,
    )  # fmt: skip
    try:
        if work.attempt.number > 1:
            todo = work.todo()  # an earlier attempt may have left a part since
        if work.attempt.deaths:
            shop.at_work.wait_for_others()  # should it kill the process, it is to kill them no more
        _draw_batches(shop, replace(ready, work=work, todo=todo), output, make_way)
        effort = output.meter.effort()
        serve_all(shop, partial(serve_calls, shop))  # their wakes may wait behind the next chunk
    except BaseException as error:
        try:
            if not isinstance(error, TransientError):  # else storage is away
                with suppress(ImagemillError):
                    work.store_interrupted(output.records())
        finally:
            shop.at_work.leave()
            release(shop, work)
        raise
    finally:
        shop.tell()
    shop.clock.stop(work.run_id, work.run.epoch)
    return Drawn(work, output, effort, todo.settled)


def _draw_batches(shop: Workshop, ready: Ready, output: Output, make_way: MakeWay) -> None:
    work, todo = ready.work, ready.todo
    renderer = _renderer(shop, work)
    with own_fault(work.model, whole=False):
        for key in {request.key for request in todo.requests}:
            renderer().check_weights(key, work.planned_weights(key))
    shop.fitness.succeed(work.model)
    done_before, failed_before = count(todo.settled.values())
    suspects = Suspects(shop.runs.attempts, work, output, renderer)
    saved = time.monotonic()
    # With care, inputs are loaded under watch: a decoder can crash as well.
    ordered = suspects.batches(todo.requests)
    for batch in ready.loader.ahead(ordered, eager=not suspects.careful):
        if not goes_on(shop, work):
            raise Interrupted
        # Whoever waits for a single image goes first, and need not wait for slow inputs either.
        while serve_calls(shop) or not (suspects.careful or batch.arrives(LOOK_SECONDS)):
            if shop.stopping.is_set():
                raise Interrupted
        left = len(todo.requests) - output.taken
        pace = shop.pace.get(work.model)
        started = time.monotonic()
        # With care, a call that kills the process is not to be laid to this batch's charge.
        models = frozenset() if suspects.careful else served(shop) & shop.renderers.loaded
        serve = partial(serve_beside, shop, models)
        early = None if pace is None else make_way
        at = started + left * (pace or 0.0) - LEAD_SECONDS
        with (
            suspects.watch(batch.requests),
            shop.lookout.interlude(models, serve, early, at) as calls,
        ):
            shop.stage.run(work.model, batch, output, work.run.plan, calls)
        seconds = time.monotonic() - started - calls.seconds
        shop.pace[work.model] = seconds / len(batch.requests)
        if output.taken < len(todo.requests):  # the end of the chunk says it as well
            shop.runs.attempts.report(
                work.run_id, work.number, work.attempt, done_before + output.taken, failed_before
            )
        if time.monotonic() - saved > SAVE_SECONDS:
            work.store_interrupted(output.records())
            saved = time.monotonic()
    make_way()


def _renderer(shop: Workshop, work: Work) -> Callable[[], BatchRenderer]:
    """What renders a chunk. Not held: others may need its memory between two batches."""
    return partial(shop.renderers.get, work.model, work.run.plan.commits)


def goes_on(shop: Workshop, work: Work) -> bool:
    """Whether the chunk's next batch is to be rendered here and now."""
    return not shop.stopping.is_set() and shop.runs.is_running(work.run_id, work.run.epoch)


def store(shop: Workshop, drawn: Drawn) -> dict[str, RecordStatus]:
    """Wait for a chunk's images to be stored, then store its part, unless it is there.

    Returns what became of each request by job id.
    """
    try:
        records = drawn.output.records()
        # An empty part must not take the place of what another attempt has stored meanwhile.
        if records or not drawn.work.is_done():
            drawn.work.store_done(records)
    except BaseException as error:
        try:
            if not isinstance(error, TransientError):
                with suppress(ImagemillError):
                    drawn.work.store_interrupted(drawn.output.records())
        finally:
            release(shop, drawn.work)
        raise
    finally:
        shop.at_work.leave()
    return drawn.settled | drawn.output.settled


def release(shop: Workshop, work: Work) -> None:
    """Say that an attempt has ended without a death, as soon as Redis answers.

    Raises:
        redis.RedisError: it has not answered for RELEASE_SECONDS, or this process is to end.
    """
    retrying = Retrying(
        retry=retry_if_exception_type(redis.RedisError),
        stop=stop_after_delay(RELEASE_SECONDS) | stop_when_event_set(shop.stopping),
        wait=wait_fixed(shop.pause_seconds),
        reraise=True,
    )
    retrying(shop.runs.attempts.release, work.run_id, work.number, work.attempt)


def wake(shop: Workshop, _: MakeWay) -> None:
    """Serve interactive calls in the device's thread, the oldest first, until none waits."""
    serve_all(shop, partial(serve_calls, shop))


def serve_all(shop: Workshop, serve: Callable[[], bool]) -> None:
    """Serve batches of calls until none waits, or the broker cannot be asked."""
    try:
        while not shop.stopping.is_set() and serve():
            pass
    except redis.RedisError as error:
        log.warning("Interactive calls: %s", error)  # those who wait will wake us again


def feed(shop: Workshop, _: MakeWay, run_id: str, epoch: int, model: str) -> None:
    """Give a turn to the run whose turn it is, which need not be the message's own.

    The message goes round until its own run has given out all its chunks.
    """
    with responsibly(shop, run_id, epoch):
        while True:
            served = {name for name in shop.models if shop.fitness.is_fit(name)} | {model}
            waiting = shop.turns.waiting(sorted(served))
            own = (run_id, epoch, model)
            if all((one.run_id, one.epoch, one.model) != own for one in waiting):
                return
            now = time.monotonic()
            here = [
                one
                for one in waiting
                if shop.unfed.get(one.run_id, now) <= now and shop.fitness.is_fit(one.run_id)
            ]
            if give(shop, whose_turn(here or waiting, shop.weights, shop.renderers.loaded)):
                raise PutBack


def give(shop: Workshop, turn: Turn) -> bool:
    """Queue a turn's chunks; False if that run has moved on meanwhile, or does not go on."""
    one = turn.run
    try:
        with responsibly(shop, one.run_id, one.epoch):
            run = shop.open(one.run_id, one.epoch)
            if run is None:
                return False
            places = run.plan.places(one.model, one.place)
            todo = (place for place in places if place not in run.done)
            chunks = list(islice(todo, turn.chunks))
            return shop.turns.take(turn, chunks, next(todo, None))
    except PutBack:
        shop.unfed[one.run_id] = time.monotonic() + UNFED_SECONDS
        raise
    return False  # it was paused


def finalize(shop: Workshop, make_way: MakeWay, run_id: str, epoch: int) -> None:
    """Write the dataset of a run whose chunks are all complete; queue those that are not."""
    make_way()  # it may take minutes, and needs no device
    with responsibly(shop, run_id, epoch):
        run = shop.open(run_id, epoch)
        if run is None:
            return
        left = run.plan.round_after(chunks_done(run.storage, run.plan))
        if left == 0:
            # Messages were lost, or Redis counted more than storage holds: that is the truth.
            log.warning("Run %s: queueing what is missing", run_id)
            start_run(run.plan, run.storage, shop.runs, shop.dispatcher)
            return
        problems = shop.score(run.storage, run.plan) if run.plan.scorers else {}
        if run.plan.chooses:
            if problems:
                reasons = "\n".join(problems.values())
                raise FatalError(reasons, "Mend that, then resume the run: it chooses by scores.")
            if left and begin_round(run.plan, run.storage, shop.runs, shop.dispatcher):
                return
        summary = write_dataset(run.storage, run.plan, problems)
        lacking = "\n".join(f"no scores of {name}: {why}" for name, why in problems.items())
        shop.runs.finish(run_id, summary.done, summary.failed + summary.rejected, lacking)
        log.info("Run %s finished: %d images", run_id, summary.done)


@contextmanager
def responsibly(shop: Workshop, run_id: str, epoch: int) -> Iterator[None]:
    """Never lose a message: passing faults put it back, others pause the run and say why.

    Faults of this worker alone put it back as well, as long as another worker can do it.
    """
    try:
        try:
            yield
        except (PutBack, TransientError, redis.RedisError):
            raise
        except Unfit as fault:
            reasons = shop.fitness.give_up(fault, run_id)
            if reasons is None:
                raise
            log.error("Run %s is paused: no worker can render it", run_id)
            if shop.runs.is_running(run_id, epoch):
                shop.runs.pause(run_id, reasons)
        except Exception as error:
            if isinstance(error, ImagemillError):
                log.error("Run %s is paused: %s", run_id, error)
            else:
                log.exception("Run %s is paused", run_id)
            if shop.runs.is_running(run_id, epoch):
                shop.runs.pause(run_id, str(error) or type(error).__name__)
    except (TransientError, Unfit, redis.RedisError) as error:
        log.warning("Run %s: trying again: %s", run_id, error)
        if isinstance(error, redis.RedisError):
            shop.reopen()
        shop.stopping.wait(shop.pause_seconds)
        raise PutBack from error


TASKS: dict[str, Callable[..., None]] = {
    RENDER: render,
    FEED: feed,
    FINALIZE: finalize,
    WAKE: wake,
}
