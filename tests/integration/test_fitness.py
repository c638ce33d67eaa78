"""One bad device, or one host without the weights, stops nobody else."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import redis
from safetensors.torch import load_file, save_file

from jobs.broker.connection import connect
from jobs.broker.fleet import Fleet, Worker
from jobs.errors import FatalError
from jobs.settings import Settings
from producer.control.installation import installation
from producer.control.status import look
from producer.control.stopping import resume
from tests.sites import DEMO, MODELS, Site
from tests.support import eventually
from worker.faults import LIKE_FAILURES, Fitness, Unfit

RUN = "0123456789ab"


def broken_table(site: Site, name: str) -> Path:
    """A models table of a host whose weights of "slow" are not there."""
    (site.folder / name).mkdir()
    file = site.folder / f"{name}.toml"
    slow = f'[models.slow]\nrepo = "{name}"'
    file.write_text(MODELS.replace('[models.slow]\nrepo = "null:"', slow))
    return file


def start_broken(site: Site, name: str) -> None:
    before = len(site.fleet.workers())
    site.start_worker(None, "--models-file", str(broken_table(site, name)))
    eventually(lambda: len(site.fleet.workers()) > before)


def test_a_broken_worker_leaves_the_work_to_others(site: Site) -> None:
    start_broken(site, "nowhere")
    site.start(site.plan(RUN, "slow", list(range(8)), chunk=2))
    # It is the only one: the run is paused, with the reason.
    eventually(lambda: site.progress(RUN).state == "paused")
    assert "nowhere has no model_index.json" in site.progress(RUN).problem
    [broken] = site.fleet.workers()
    assert "slow" not in broken.serves
    site.start_worker("slow")
    eventually(lambda: len(site.fleet.workers()) == 2)
    resume(RUN, installation(site.settings))
    # Resumed, the broken one tries again, and gives up for good while the other renders.
    rows = site.wait(RUN)
    assert broken.name not in {row["worker"] for row in rows}
    assert len(rows) == 8


def test_status_says_which_worker_cannot_render_and_why(site: Site) -> None:
    site.start(site.plan(RUN, "slow", list(range(4)), chunk=2))
    for name in ("a", "b"):
        site.fleet.report(Worker(name=name, models=("slow",), device="cpu", host="host", pid=1))
    site.fleet.give_up("a", "slow", "no weights")
    status = look(RUN, installation(site.settings))
    assert (status.unserved, status.unfit) == ((), ("a does not render slow: no weights",))
    site.fleet.give_up("b", "slow", "no GPU")
    assert look(RUN, installation(site.settings)).unserved == ("slow",)


def test_a_run_is_paused_with_all_reasons(site: Site) -> None:
    for name in ("here", "there"):
        start_broken(site, name)
    site.start(site.plan(RUN, "slow", list(range(4)), chunk=2))
    eventually(lambda: site.progress(RUN).state == "paused")
    problem = site.progress(RUN).problem
    assert "here has no model_index.json" in problem
    assert "there has no model_index.json" in problem
    assert all(f"{worker.name}: " in problem for worker in site.fleet.workers())


def test_other_weights_than_planned_cost_a_worker_that_run_alone(site: Site) -> None:
    other = site.folder / "other.toml"
    other.write_text(MODELS.replace("sleep = 0.25", "sleep = 0.2"))
    site.start_worker("slow", "--models-file", str(other))
    [worker] = eventually(site.fleet.workers)
    site.start_worker("slow")
    eventually(lambda: len(site.fleet.workers()) == 2)
    site.start(site.plan(RUN, "slow", list(range(6)), chunk=2))
    assert worker.name not in {row["worker"] for row in site.wait(RUN)}
    assert [one.unfit for one in site.fleet.workers()] == [{}, {}]


def test_a_model_that_fails_every_request_pauses_its_run(site: Site) -> None:
    """Not one row after the other: the run says what they all said, and the rest is not tried."""
    broken = site.folder / "broken"
    shutil.copytree(DEMO, broken)
    weights = broken / "vae/diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["decoder.conv_out.bias"].fill_(math.nan)
    save_file(tensors, weights)
    table = site.folder / "models.toml"
    table.write_text(MODELS.replace(str(DEMO), str(broken)))
    plant = Site(site.folder, site.settings, workers=site.workers)
    plant.start(plant.plan(RUN, "shapes", list(range(80)), chunk=8))
    plant.start_worker("shapes")
    eventually(lambda: plant.progress(RUN).state == "paused", 120)
    same = f"{LIKE_FAILURES} requests in a row failed alike: non_finite: the image has NaN pixels"
    assert plant.progress(RUN).problem.startswith(same)
    assert LIKE_FAILURES - 4 <= len(plant.records(RUN)) < LIKE_FAILURES
    # Resumed with nothing mended: it says so again after one batch, not after as many as before.
    before = len(plant.records(RUN))
    resume(RUN, installation(plant.settings))
    eventually(lambda: plant.progress(RUN).state == "paused")
    assert plant.progress(RUN).problem.startswith(same)
    assert len(plant.records(RUN)) == before


@pytest.fixture
def client(broker: str) -> redis.Redis:
    return connect(Settings(broker=broker))


def test_only_those_who_live_and_could_count(client: redis.Redis) -> None:
    fleet = Fleet(client, "t:")
    fitness = Fitness(fleet, "me")
    fault = Unfit("m", True, FatalError("no weights", "Download them."))
    assert fitness.give_up(fault, "run") == "no weights\nDownload them."
    for name, models in (("me", ("m",)), ("stranger", ("n",)), ("other", ("m", "n"))):
        fleet.report(Worker(name=name, models=models, device="cpu", host="host", pid=1))
    assert fitness.give_up(fault, "run") is None
    fleet.give_up("other", "run", "planned otherwise")
    reasons = fitness.give_up(fault, "run")
    assert reasons == "me: no weights\nDownload them.\nother: planned otherwise"
    fleet.forget(Worker(name="other", models=(), device="", host="", pid=1))
    assert fitness.give_up(fault, "run") == "no weights\nDownload them."
    assert not fitness.is_fit("m")
    assert fitness.is_fit("n")
