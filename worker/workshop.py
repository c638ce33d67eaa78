"""What one device process has at hand, made once: connections, loaded models, storing threads."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Condition, Event, Lock, Semaphore

import redis

from jobs.broker.connection import connect
from jobs.broker.counters import Counters
from jobs.broker.dispatch import Dispatcher
from jobs.broker.fleet import Doing, Fleet, Worker
from jobs.broker.runs import Runs
from jobs.broker.seals import make_seal
from jobs.broker.turns import Turns
from jobs.calls.claims import Claims
from jobs.inputs.decoding import Decoding
from jobs.inputs.images import InputPolicy
from jobs.models.table import load_models
from jobs.output.plan import Plan
from jobs.output.storage import Storage
from jobs.settings import load_settings
from worker.accounts import Accounts
from worker.chunks import LiveRun, Shards, open_run
from worker.counts import Counts
from worker.faults import Fitness
from worker.inputs import Loader
from worker.interludes import Lookout
from worker.meter import Clock
from worker.render import BatchRenderer
from worker.renderers import Renderers
from worker.stage import Stage
from worker.storing import IN_FLIGHT, Counted, Put, Shelf

RUNS_KEPT = 8
CALL_INPUTS = 4  # threads

Score = Callable[[Storage, Plan], dict[str, str]]  # as worker.storehouse.Storehouse's


@dataclass
class Workshop:
    """The tools of one device process.

    name: the worker's; models: what it serves, the first of them loaded at once; call_slots: those
    that pipeline calls for interactive calls may have, by model; lookout: to look while a batch
    renders; weights: of teams, for turns; fitness: what it cannot render for now; stage renders,
    executor stores by means of put, and score scores what put has not; inputs loads what runs name,
    call_inputs what calls do; decoding: how much at a time; policy, stores: what inputs may be and
    where from; device: the one thread that touches models; flow: how many rendered batches may be
    on their way into storage, and call_flow the same of calls; at_work: chunks that have begun;
    pace: seconds a request, by model, of the last batch; clock: when the device was last at work;
    unfed: until when (monotonic seconds) others come before a run that could not be fed;
    pause_seconds: before a message that met a passing fault goes back; counts: what it did,
    reported to counters; accounts: what calls used, written to storage; stopping: set when it is to
    end after its batch.
    """

    name: str
    models: list[str]
    call_slots: Mapping[str, tuple[int, ...]]
    runs: Runs
    claims: Claims
    lookout: Lookout
    dispatcher: Dispatcher
    turns: Turns
    weights: Mapping[str, float]
    renderers: Renderers
    fitness: Fitness
    stage: Stage
    executor: ThreadPoolExecutor
    put: Put
    score: Score
    inputs: ThreadPoolExecutor
    call_inputs: ThreadPoolExecutor
    policy: InputPolicy
    stores: frozenset[str]
    counts: Counts
    counters: Counters
    accounts: Accounts = field(default_factory=Accounts)
    device: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "device"))
    decoding: Decoding = field(default_factory=Decoding)
    flow: Semaphore = field(default_factory=lambda: Semaphore(IN_FLIGHT))
    call_flow: Semaphore = field(default_factory=lambda: Semaphore(IN_FLIGHT))
    shards: Shards = field(default_factory=Shards)
    at_work: AtWork = field(default_factory=lambda: AtWork())
    pace: dict[str, float] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)
    unfed: dict[str, float] = field(default_factory=dict)
    pause_seconds: float = 2.0
    stopping: Event = field(default_factory=Event)
    _lock: Lock = field(default_factory=Lock)
    _open: OrderedDict[tuple[str, int, str], LiveRun] = field(default_factory=OrderedDict)

    def report(self) -> None:
        """Say what was done since the last report. Raises redis.RedisError when Redis is away."""
        self.counts.report(self.counters)

    def settle(self) -> None:
        """Wait until each call that was rendered is answered. Nothing is rendered any more."""
        for _ in range(IN_FLIGHT):
            self.call_flow.acquire()

    def loader(
        self, storage: Storage, renderer: Callable[[], BatchRenderer], executor: Executor
    ) -> Loader:
        """What loads the inputs of a model's requests whose stored inputs lie in `storage`."""
        return Loader(
            executor, storage, self.policy, self.stores, self.decoding,
            lambda: renderer().renderer.fits_inputs(),
        )  # fmt: skip

    def tell(self, run_id: str = "", model: str = "") -> None:
        """Say what the device does now, for whoever looks; nothing depends on it."""
        doing = Doing(run_id, model, tuple(sorted(self.renderers.loaded)), time.time())
        with suppress(redis.RedisError):
            self.fitness.fleet.tell(self.name, doing)

    def open(self, run_id: str, epoch: int) -> LiveRun | None:
        """The run of a message; None if it is cancelled, paused, finished or was resumed since."""
        out = self.runs.location(run_id, epoch)
        if out is None:
            return None
        key = run_id, epoch, out
        with self._lock:
            if key not in self._open:
                while len(self._open) >= RUNS_KEPT:
                    self._open.popitem(last=False)
                self._open[key] = open_run(run_id, epoch, out)
                # No images yet: the first ones are not to wait until storage is reached.
                self.executor.submit(self.put, Shelf(self._open[key].storage, self.name, 0), ())
            return self._open[key]

    def reopen(self) -> None:
        """Have `open` look at storage again: Redis may have lost what happened since."""
        with self._lock:
            self._open.clear()


class AtWork:
    """Counts the chunks that have begun and have not ended: the one that renders comes last."""

    def __init__(self) -> None:
        self._count = 0
        self._changed = Condition()

    def enter(self) -> None:
        with self._changed:
            self._count += 1

    def leave(self) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()

    def wait_for_others(self) -> None:
        """Wait until none but the one that asks is at work."""
        with self._changed:
            self._changed.wait_for(lambda: self._count <= 1)


def make_workshop(worker: Worker, put: Put, score: Score) -> Workshop:
    """The tools of a worker's device process. put, score: how images are stored and scored."""
    settings = load_settings()
    client, seal = connect(settings), make_seal(settings)
    claims = Claims(client, settings.key_prefix, seal)
    table = load_models(settings.models)
    counts = Counts(table.models)
    renderers = Renderers(table, worker.device, settings.models_kept, counts, warms=True)
    return Workshop(
        name=worker.name,
        models=list(worker.models),
        call_slots={name: table.get(name).call_slots for name in worker.models},
        runs=Runs(client, settings.key_prefix, seal),
        claims=claims,
        lookout=Lookout(claims),
        dispatcher=Dispatcher(client, settings.key_prefix, seal),
        turns=Turns(client, settings.key_prefix, seal),
        weights={name: team.weight for name, team in settings.teams.items()},
        renderers=renderers,
        fitness=Fitness(Fleet(client, settings.key_prefix), worker.name),
        stage=Stage(renderers, settings.batch_seconds),
        executor=ThreadPoolExecutor(settings.upload_threads, thread_name_prefix="store"),
        put=Counted(put, counts),
        score=score,
        # Apart from those that store: a slow host must not hold images up.
        inputs=ThreadPoolExecutor(settings.upload_threads, thread_name_prefix="load"),
        # A facade has fetched them: they wait for no URLs of a run.
        call_inputs=ThreadPoolExecutor(CALL_INPUTS, thread_name_prefix="load-call"),
        policy=InputPolicy(hosts=settings.input_hosts),
        stores=settings.input_stores,
        counts=counts,
        counters=Counters(client, settings.key_prefix),
    )
