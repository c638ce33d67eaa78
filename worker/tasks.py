"""The Celery edge: what a device process does about each kind of message."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

import redis
from celery import shared_task
from celery.exceptions import Reject
from celery.signals import worker_process_init
from tenacity import (
    Retrying,
    retry_if_exception_type,
    stop_after_delay,
    stop_when_event_set,
    wait_fixed,
)

from jobs.broker.dispatch import next_shard, start_run
from jobs.broker.messages import FEED, FINALIZE, RENDER, WAKE
from jobs.children import die_with_parent
from jobs.errors import FatalError, ImagemillError, TransientError
from jobs.output.dataset import write_dataset
from jobs.output.records import RecordStatus, chunks_done
from worker.calls import serve_calls
from worker.chunks import Work, count
from worker.faults import Unfit, own_fault
from worker.process.parent import READY_SIGNAL, STOP_SIGNAL
from worker.storing import Output
from worker.suspects import Suspects
from worker.workshop import Workshop, workshop

PAUSE_SECONDS = 2.0  # before a message that met a passing fault goes back
RELEASE_SECONDS = 60.0  # a partition that ends within them counts as no death
SAVE_SECONDS = 60.0  # a chunk that takes longer than thought stores records so often

log = logging.getLogger(__name__)


class Interrupted(Exception):
    """The chunk stops early: the worker is to end, or the run does not go on."""


@shared_task(name=RENDER)  # type: ignore[untyped-decorator]
def render(run_id: str, epoch: int, shard: int, chunk: int) -> None:
    """Render and store one chunk; the last one of a run sends `finalize`."""
    shop = workshop()
    with responsibly(shop, run_id, epoch):
        run = shop.open(run_id, epoch)
        if run is None:
            return
        number = run.plan.number(shard, chunk)
        work = Work(run, shard, chunk, shop.runs.begin(run_id, number))
        try:
            settled = render_chunk(shop, work)
        except Exception as error:
            release(shop, work)
            if not isinstance(error, Interrupted):
                raise
            if shop.stopping.is_set():
                raise Reject(requeue=True) from None
            return
        if shop.runs.complete(run_id, number, *count(settled.values())):
            shop.dispatcher.finalize(run_id, epoch, work.model)


def release(shop: Workshop, work: Work) -> None:
    """Say that an attempt has ended without a death, as soon as Redis answers.

    Raises:
        redis.RedisError: it has not answered for RELEASE_SECONDS, or this process is to end.
    """
    retrying = Retrying(
        retry=retry_if_exception_type(redis.RedisError),
        stop=stop_after_delay(RELEASE_SECONDS) | stop_when_event_set(shop.stopping),
        wait=wait_fixed(PAUSE_SECONDS),
        reraise=True,
    )
    retrying(shop.runs.release, work.run_id, work.number, work.attempt)


def render_chunk(shop: Workshop, work: Work) -> dict[str, RecordStatus]:
    """Read, load, render, encode, store; returns what became of each request by job id.

    Raises:
        Interrupted: it stopped after a batch; what it had finished is stored.
    """
    settled = work.settled()
    requests = [request for request in work.requests() if request.job_id not in settled]
    if not requests and work.is_done():
        return settled  # its part is there: an empty one must not take its place
    renderer = partial(shop.renderers.get, work.model)
    with own_fault(work.model, whole=False):
        for key in {request.key for request in requests}:
            renderer().check_weights(key, work.planned_weights(key))
    shop.fitness.succeed(work.model)
    done_before, failed_before = count(settled.values())
    storage = work.run.storage
    output = Output(storage, shop.executor, work.shard, shop.name, work.attempt.number)
    suspects = Suspects(shop.runs, work, output, renderer)
    saved = time.monotonic()
    try:
        # With care, inputs are loaded under watch: a decoder can crash as well.
        ordered = suspects.batches(requests)
        for batch in shop.loader(storage).ahead(ordered, eager=not suspects.careful):
            if shop.stopping.is_set() or not shop.runs.is_running(work.run_id, work.run.epoch):
                raise Interrupted
            while not shop.stopping.is_set() and serve_calls(shop):
                pass  # whoever waits for a single image goes first
            with suspects.watch(batch.requests):
                shop.stage.run(work.model, batch, output)
            shop.runs.report(
                work.run_id, work.number, work.attempt, done_before + output.taken, failed_before
            )
            if time.monotonic() - saved > SAVE_SECONDS:
                work.store_interrupted(output.records())
                saved = time.monotonic()
        records = output.records()
    except TransientError:
        raise  # storage is away
    except Exception:
        with suppress(ImagemillError):
            work.store_interrupted(output.records())
        raise
    work.store_done(records)
    return settled | output.settled


@shared_task(name=WAKE)  # type: ignore[untyped-decorator]
def wake() -> None:
    """Serve interactive calls, the oldest first, until none waits."""
    shop = workshop()
    try:
        while not shop.stopping.is_set() and serve_calls(shop):
            pass
    except redis.RedisError as error:
        log.warning("Interactive calls: %s", error)  # those who wait will wake us again


@shared_task(name=FEED)  # type: ignore[untyped-decorator]
def feed(run_id: str, epoch: int, shard: int, model: str) -> None:
    """Queue the chunks of one plan shard, then the feed of the next."""
    shop = workshop()
    with responsibly(shop, run_id, epoch):
        run = shop.open(run_id, epoch)
        if run is None:
            return
        chunks = enumerate(run.plan.shards[shard].chunks)
        todo = [i for i, chunk in chunks if chunk.model == model and (shard, i) not in run.done]
        shop.dispatcher.render(run_id, epoch, shard, model, todo)
        following = next_shard(run.plan, shard, model)
        if following is not None:
            shop.dispatcher.feed(run_id, epoch, following, model)


@shared_task(name=FINALIZE)  # type: ignore[untyped-decorator]
def finalize(run_id: str, epoch: int) -> None:
    """Write the dataset of a run whose chunks are all complete; queue those that are not."""
    shop = workshop()
    with responsibly(shop, run_id, epoch):
        run = shop.open(run_id, epoch)
        if run is None:
            return
        if len(chunks_done(run.storage, run_id)) < run.plan.chunks:
            # Messages were lost, or Redis counted more than storage holds: that is the truth.
            log.warning("Run %s: queueing what is missing", run_id)
            start_run(run.plan, run.storage, shop.runs, shop.dispatcher)
            return
        summary = write_dataset(run.storage, run.plan)
        shop.runs.finish(run_id, summary.done, summary.failed + summary.rejected)
        log.info("Run %s finished: %d images", run_id, summary.done)


@contextmanager
def responsibly(shop: Workshop, run_id: str, epoch: int) -> Iterator[None]:
    """Never lose a message: passing faults put it back, others pause the run and say why.

    Faults of this worker alone put it back as well, as long as another worker can do it.
    """
    try:
        try:
            yield
        except (Reject, TransientError, redis.RedisError):
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
        shop.stopping.wait(PAUSE_SECONDS)
        raise Reject(requeue=True) from error


@worker_process_init.connect  # type: ignore[untyped-decorator]
def prepare(**_: object) -> None:
    """Load the first model before the first message asks for it, then listen for the end."""
    die_with_parent()
    shop = workshop()
    try:
        shop.renderers.get(shop.models[0])
    except FatalError as error:
        log.error("%s", error)  # a run that needs this model will say it again
    except Exception:  # likewise; without a handler for the signal it would end a live batch
        log.exception("Model %s did not load", shop.models[0])
    # Until here the signal just ends the process, as there is nothing to finish yet.
    signal.signal(STOP_SIGNAL, lambda *_: shop.stopping.set())
    os.kill(os.getppid(), READY_SIGNAL)
