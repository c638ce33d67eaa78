"""What a device process does while the device renders: it ends one chunk, and prepares the next."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from itertools import count
from threading import Event

import pytest
import redis
from PIL import Image

from jobs.broker.fleet import Doing, Worker
from jobs.output.records import Record
from tests.samples import make_key, make_request
from tests.sites import Site
from tests.support import eventually
from worker import chunks
from worker.chunks import Work
from worker.inputs import Fetched, Loader, Prepared
from worker.null import NullRenderer
from worker.render import Image as Drawn
from worker.render import Pause
from worker.tasks import PutBack, render
from worker.workshop import Workshop

SECONDS = 20.0


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


class Desk:
    """Gives messages to a device process, each to a thread of its own."""

    def __init__(self, site: Site, shop: Workshop, threads: ThreadPoolExecutor) -> None:
        self.shop, self.threads = shop, threads
        plan = site.plan("run", "null", list(range(16)), chunk=8)  # in batches of 4
        self.epoch = site.runs.open(plan, str(site.folder / "run"), [])

    def render(self, chunk: int) -> tuple[Future[None], Event]:
        """Returns its end, and whether the next message may be taken."""
        way = Event()
        done = self.threads.submit(render, self.shop, way.set, "run", self.epoch, 0, chunk)
        return done, way


@pytest.fixture
def desk(site: Site, shop: Workshop, threads: ThreadPoolExecutor) -> Desk:
    return Desk(site, shop, threads)


@pytest.fixture
def rendering(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds that began each pipeline call, so far."""
    calls: list[int] = []
    draw = NullRenderer.render

    def count(self: NullRenderer, batch: list[Prepared], pause: Pause) -> list[Drawn]:
        calls.append(batch[0].request.seed)
        return draw(self, batch, pause)

    monkeypatch.setattr(NullRenderer, "render", count)
    return calls


@pytest.fixture
def may_end(monkeypatch: pytest.MonkeyPatch) -> Event:
    """Chunk 0 is not stored before it is set."""
    store, may_end = Work.store_done, Event()

    def store_late(self: Work, records: list[Record]) -> None:
        if self.chunk == 0:
            assert may_end.wait(SECONDS)
        store(self, records)

    monkeypatch.setattr(Work, "store_done", store_late)
    return may_end


def test_a_chunk_is_stored_while_the_next_one_renders(
    site: Site, desk: Desk, rendering: list[int], may_end: Event
) -> None:
    first, way = desk.render(0)
    assert way.wait(SECONDS)
    second, _ = desk.render(1)
    second.result(SECONDS)  # it is stored before the first
    assert rendering == [0, 4, 8, 12]
    assert not first.done()
    may_end.set()
    first.result(SECONDS)
    assert site.progress("run").chunks_done == 2
    assert len(site.records("run")) == 16
    effort = site.progress("run").effort
    assert (effort.images, effort.slots) == (16, 16)
    assert 0 < effort.busy <= 1


def black() -> str:
    file = BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return b64encode(file.getvalue()).decode()


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of diffusers, about NumPy
def test_the_first_inputs_are_read_while_the_device_is_busy(
    site: Site, shop: Workshop, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not decoded, which belongs to the chunk's own attempt."""
    fetched, decoded = list[str](), list[str]()
    asked, is_free = Event(), Event()
    load = Loader._load

    def fetch(_: Loader, reference: str, __: str) -> Fetched:
        fetched.append(reference)
        asked.set()
        return Fetched(b64decode(black()), 0.0)

    def decode(self: Loader, reference: str, *arguments: object) -> object:
        decoded.append(reference)
        return load(self, reference, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Loader, "_fetch", fetch)
    monkeypatch.setattr(Loader, "_load", decode)
    shop.device.submit(shop.renderers.get, "shapes").result()  # however long that takes
    shop.device.submit(is_free.wait, 3 * SECONDS)
    image = "https://example.com/a.png"
    plan = site.plan("run", "shapes", list(range(8)), chunk=8, image=image)
    epoch = site.runs.open(plan, str(site.folder / "run"), [])
    done = threads.submit(render, shop, Event().set, "run", epoch, 0, 0)
    assert asked.wait(SECONDS)
    assert decoded == []
    is_free.set()
    done.result(SECONDS)
    assert fetched == decoded == [image] * 2  # of two batches: the first did not read it again
    assert len(site.records("run")) == 8


def test_calls_are_served_while_a_batch_waits_for_its_inputs(
    site: Site, shop: Workshop, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More slow inputs than threads load them: a call with one of its own waits for none."""
    asked, there = Event(), Event()
    fetch = Loader._fetch

    def slowly(self: Loader, reference: str, field: str) -> object:
        if reference == "https://slow.example.com":
            asked.set()
            assert there.wait(SECONDS)
            reference = picture
        return fetch(self, reference, field)

    monkeypatch.setattr(Loader, "_fetch", slowly)
    picture = black()
    seeds = list(range(16))
    plan = site.plan("run", "shapes", seeds, chunk=16, image="https://slow.example.com")
    epoch = site.runs.open(plan, str(site.folder / "run"), [])
    done = threads.submit(render, shop, Event().set, "run", epoch, 0, 0)
    assert asked.wait(SECONDS)

    request = make_request(key=make_key(task="edit", inputs=1), images=(picture,))
    assert site.answer(site.make_call(request)).status == "done"
    assert not done.done()
    there.set()
    done.result(SECONDS)
    assert len(site.records("run")) == 16


def test_the_next_chunk_is_read_while_one_renders_and_each_shard_once(
    desk: Desk, rendering: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    read, look = chunks.read_shard, Work.todo
    drawing, looked, may_draw = Event(), Event(), Event()
    draw = NullRenderer.render

    def wait(self: NullRenderer, batch: list[Prepared], pause: Pause) -> list[Drawn]:
        drawing.set()
        assert may_draw.wait(SECONDS)
        return draw(self, batch, pause)

    def todo(self: Work) -> object:
        found = look(self)
        if self.chunk == 1:
            looked.set()
        return found

    def read_shard(*arguments: object) -> object:
        reads.append(1)
        return read(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(NullRenderer, "render", wait)
    monkeypatch.setattr(Work, "todo", todo)
    monkeypatch.setattr(chunks, "read_shard", read_shard)
    first, _ = desk.render(0)
    assert drawing.wait(SECONDS)
    second, _ = desk.render(1)
    assert looked.wait(SECONDS)
    assert rendering == []  # the first has not even rendered a batch
    may_draw.set()
    for done in (first, second):
        done.result(SECONDS)
    assert rendering == [0, 4, 8, 12]
    assert len(reads) == 1


@pytest.mark.parametrize(("pace", "early"), [(0.1, True), (1000.0, False), (None, False)])
def test_the_next_message_is_taken_shortly_before_a_chunk_ends(
    desk: Desk, shop: Workshop, monkeypatch: pytest.MonkeyPatch, pace: float | None, early: bool
) -> None:
    """Taken at the begin of a long batch, it would wait while another worker has none."""
    drawing, may_draw = Event(), Event()
    draw = NullRenderer.render

    def wait(self: NullRenderer, batch: list[Prepared], pause: Pause) -> list[Drawn]:
        drawing.set()
        assert may_draw.wait(SECONDS)
        return draw(self, batch, pause)

    monkeypatch.setattr(NullRenderer, "render", wait)
    if pace is not None:
        shop.pace["null"] = pace
    done, way = desk.render(0)
    assert drawing.wait(SECONDS)
    assert way.wait(SECONDS if early else 0.2) == early
    may_draw.set()
    done.result(SECONDS)
    assert way.is_set()


def test_a_message_that_only_waits_goes_back_without_an_attempt(
    site: Site, desk: Desk, shop: Workshop
) -> None:
    shop.stopping.set()
    done, _ = desk.render(0)
    with pytest.raises(PutBack):
        done.result(SECONDS)
    assert not site.client.exists(f"{site.settings.key_prefix}run:run:attempts")


def test_a_chunk_that_killed_its_process_is_rendered_beside_no_other(
    site: Site, desk: Desk, rendering: list[int], may_end: Event
) -> None:
    """Guarantee 3: what is nearly stored is not to die with it again."""
    site.runs.attempts.begin("run", 1)  # by a worker that has died since
    first, way = desk.render(0)
    assert way.wait(SECONDS)
    second, _ = desk.render(1)
    eventually(lambda: site.client.hget(f"{site.settings.key_prefix}run:run:attempts", "1") == b"2")
    assert rendering == [0, 4]
    may_end.set()
    for done in (first, second):
        done.result(SECONDS)
    assert rendering == [0, 4, 8, 12]


def test_a_broker_that_is_away_after_the_last_batch_keeps_no_chunk_from_being_stored(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = count()

    def serve_calls(_: Workshop) -> bool:
        if next(asked) == 2:  # after two batches
            raise redis.ConnectionError("away")
        return False

    monkeypatch.setattr("worker.tasks.serve_calls", serve_calls)
    desk.render(0)[0].result(SECONDS)
    progress = desk.shop.runs.progress("run")
    assert progress
    assert (next(asked), progress.chunks_done, progress.retries) == (3, 1, 0)
    desk.shop.at_work.wait_for_others()  # there are none


def test_a_worker_says_what_it_renders(
    site: Site, shop: Workshop, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = Worker(name=shop.name, models=("null",), device="cpu", host="host", pid=1)
    site.fleet.report(member)
    draw, seen = NullRenderer.render, list[Doing]()

    def look(self: NullRenderer, batch: list[Prepared], pause: Pause) -> list[Drawn]:
        seen.extend(worker.doing for worker in site.fleet.workers())
        return draw(self, batch, pause)

    monkeypatch.setattr(NullRenderer, "render", look)
    desk.render(0)[0].result(SECONDS)
    assert {(one.run_id, one.model) for one in seen} == {("run", "null")}
    (idle,) = site.fleet.workers()
    assert (idle.doing.run_id, idle.doing.loaded) == ("", ("null",))
    assert site.progress("run").costs.keys() == {"null"}
    site.fleet.forget(member)
    site.fleet.report(member)
    assert site.fleet.workers()[0].doing == Doing()
