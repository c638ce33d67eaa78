"""A call that comes while a batch of a run renders, in a device process with a real broker."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from jobs.calls.call import Answer, Call
from jobs.errors import FatalError
from tests.samples import make_request
from tests.sites import Site
from tests.support import eventually
from worker.inputs import Prepared
from worker.null import NullRenderer
from worker.render import Image, Pause
from worker.tasks import render
from worker.workshop import Workshop

SECONDS = 20.0
CALL_SEED = 99

Guest = Callable[[], None]


def make_call(site: Site) -> Call:
    return site.make_call(make_request(CALL_SEED))


@pytest.fixture
def long_batch(monkeypatch: pytest.MonkeyPatch) -> tuple[Event, list[Guest]]:
    """The first batch of a run asks between steps until it has made way.

    Returns what is set once it renders, and what happens where a call is rendered.
    """
    draw, rendering, guests = NullRenderer.render, Event(), list[Guest]()

    def wait(self: NullRenderer, batch: list[Prepared], pause: Pause) -> list[Image]:
        seed = batch[0].request.seed
        if seed == 0:
            rendering.set()
            eventually(pause, SECONDS)
        if seed == CALL_SEED:
            for guest in guests:
                guest()
        return draw(self, batch, pause)

    monkeypatch.setattr(NullRenderer, "render", wait)
    return rendering, guests


def call_within(site: Site, shop: Workshop, rendering: Event) -> Answer:
    """The answer to a call that came once a run's only chunk rendered; both have ended."""
    plan = site.plan("run", "null", list(range(8)), chunk=8)
    epoch = site.runs.open(plan, str(site.folder / "run"), [])
    with ThreadPoolExecutor(1) as threads:
        done = threads.submit(render, shop, Event().set, "run", epoch, 0, 0)
        assert rendering.wait(SECONDS)
        answer = site.answer(make_call(site))
        done.result(SECONDS)
    return answer


def test_a_call_is_answered_before_the_batch_ends(
    site: Site, shop: Workshop, long_batch: tuple[Event, list[Guest]]
) -> None:
    rendering, _ = long_batch
    assert call_within(site, shop, rendering).status == "done"
    assert len(site.records("run")) == 8
    assert (site.folder / "calls/a.png").is_file()
    effort = site.progress("run").effort
    assert (effort.images, effort.slots) == (8, 8)  # the call's are not the run's


def test_memory_that_holds_no_call_beside_a_batch_does_at_its_end(
    site: Site, shop: Workshop, long_batch: tuple[Event, list[Guest]]
) -> None:
    rendering, guests = long_batch
    tries: list[int] = []

    def full_at_first() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise MemoryError("full")

    guests.append(full_at_first)
    assert call_within(site, shop, rendering).status == "done"
    assert len(tries) == 2
    assert len(site.records("run")) == 8


def test_a_call_that_fails_within_a_batch_is_its_callers_to_hear(
    site: Site, shop: Workshop, long_batch: tuple[Event, list[Guest]]
) -> None:
    rendering, guests = long_batch

    def fail() -> None:
        raise FatalError("the device does not like it")

    guests.append(fail)
    assert call_within(site, shop, rendering).status == "failed"
    assert len(site.records("run")) == 8
    assert site.progress("run").state == "running"


def test_a_chunk_that_has_killed_workers_makes_no_way(
    site: Site, shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a call that kills its process would be laid to the charge of a request of the run."""
    draw, made_way = NullRenderer.render, list[bool]()

    def ask(self: NullRenderer, batch: list[Prepared], pause: Pause) -> list[Image]:
        if batch[0].request.seed != CALL_SEED:
            site.client.zadd(waiting, {"g:nobody": 0})
            made_way.append(pause())
        return draw(self, batch, pause)

    monkeypatch.setattr(NullRenderer, "render", ask)
    waiting = f"{site.settings.key_prefix}calls:null"
    plan = site.plan("run", "null", list(range(8)), chunk=8)
    epoch = site.runs.open(plan, str(site.folder / "run"), [])
    for _ in range(3):
        shop.runs.attempts.begin("run", 0)
    render(shop, Event().set, "run", epoch, 0, 0)
    assert made_way == [False, False]
    assert len(site.records("run")) == 8
