"""What one device process has at hand, made once: connections, loaded models, storing threads."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from threading import Event

from celery import current_app

from jobs.broker.connection import connect
from jobs.broker.dispatch import Dispatcher
from jobs.broker.fleet import Fleet
from jobs.broker.runs import Runs
from jobs.broker.seals import make_seal
from jobs.calls.claims import Claims
from jobs.inputs.images import InputPolicy
from jobs.models.table import load_models
from jobs.output.storage import Storage
from jobs.settings import load_settings
from worker.chunks import LiveRun, open_run
from worker.faults import Fitness
from worker.inputs import Loader
from worker.renderers import Renderers
from worker.stage import Stage

RUNS_KEPT = 8


@dataclass
class Workshop:
    """The tools of one device process.

    name: the worker's; models: what it serves, the first of them loaded at once; slots: requests
    that one call of each has room for; fitness: what it cannot render for now; stage renders,
    executor stores, inputs loads; policy, stores: what inputs may be and where from; stopping: set
    when it is to end after its batch.
    """

    name: str
    models: list[str]
    slots: Mapping[str, int]
    runs: Runs
    claims: Claims
    dispatcher: Dispatcher
    renderers: Renderers
    fitness: Fitness
    stage: Stage
    executor: ThreadPoolExecutor
    inputs: ThreadPoolExecutor
    policy: InputPolicy
    stores: frozenset[str]
    stopping: Event = field(default_factory=Event)
    _open: OrderedDict[tuple[str, int, str], LiveRun] = field(default_factory=OrderedDict)

    def loader(self, storage: Storage) -> Loader:
        """What loads the inputs of requests whose stored inputs lie in `storage`."""
        return Loader(self.inputs, storage, self.policy, self.stores)

    def open(self, run_id: str, epoch: int) -> LiveRun | None:
        """The run of a message; None if it is cancelled, paused, finished or was resumed since."""
        out = self.runs.location(run_id, epoch)
        if out is None:
            return None
        key = run_id, epoch, out
        if key not in self._open:
            while len(self._open) >= RUNS_KEPT:
                self._open.popitem(last=False)
            self._open[key] = open_run(run_id, epoch, out)
        return self._open[key]


@cache
def workshop() -> Workshop:
    """This process's own, made on first use."""
    settings = load_settings()
    client, seal = connect(settings), make_seal(settings)
    conf = current_app.conf  # what worker/process/parent.py gave its pool process
    table = load_models(settings.models)
    renderers = Renderers(table, conf.imagemill_device, settings.models_kept)
    return Workshop(
        name=conf.imagemill_worker,
        models=conf.imagemill_models,
        slots={name: table.get(name).batch_width for name in conf.imagemill_models},
        runs=Runs(client, settings.key_prefix, seal),
        claims=Claims(client, settings.key_prefix, seal),
        dispatcher=Dispatcher(client, settings.key_prefix, seal),
        renderers=renderers,
        fitness=Fitness(Fleet(client, settings.key_prefix), conf.imagemill_worker),
        stage=Stage(renderers, settings.batch_seconds),
        executor=ThreadPoolExecutor(settings.upload_threads, thread_name_prefix="store"),
        # Apart from those that store: a slow host must not hold images up.
        inputs=ThreadPoolExecutor(settings.upload_threads, thread_name_prefix="load"),
        policy=InputPolicy(hosts=settings.input_hosts),
        stores=settings.input_stores,
    )
