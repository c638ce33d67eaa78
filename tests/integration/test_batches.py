"""The steps of OpenAI batches, with a real broker and a real worker."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Any

import orjson
import pytest

from jobs.inputs.images import InputPolicy
from jobs.models.table import load_models
from jobs.output.dataset import read_summary
from jobs.output.storage import Storage, open_storage
from jobs.settings import Team
from producer.api.files.shelf import Shelf, new_id
from producer.api.openai.batch.steps import Steps
from producer.api.openai.batch.store import Batch, BatchStore, Ticket
from producer.api.openai.batch.tending import Batches
from producer.control.installation import installation
from tests.sites import Site
from tests.support import eventually


@dataclass(frozen=True)
class CountingStorage(Storage):
    """Counts what is read, by the last part of its path."""

    reads: Counter[str] = field(default_factory=Counter)

    def read(self, path: str) -> bytes:
        self.reads[path.rpartition("/")[2]] += 1
        return super().read(path)


@pytest.fixture
def batches(site: Site, tmp_path: Path) -> Batches:
    plain = open_storage(str(tmp_path / "store"))
    storage = CountingStorage(plain.uri, plain.filesystem, plain.root)
    known = installation(site.settings)
    store, shelf = BatchStore(storage), Shelf(storage)
    steps = Steps(
        store=store,
        shelf=shelf,
        known=known,
        table=load_models(site.settings.models),
        policy=InputPolicy(),
    )
    return Batches(store, steps, known.runs.client, site.settings.key_prefix)


def made(batches: Batches, model: str, requests: int, ends_in: float, team: str = "red") -> Ticket:
    """A batch of `model`, which expires so many seconds from now."""
    endpoint: Any = "/v1/images/generations"
    with batches.steps.shelf.new(team, "a", "batch") as (file, content):
        for i in range(requests):
            body = {"prompt": f"{i}", "model": model}
            line = {"custom_id": f"{i}", "method": "POST", "url": endpoint, "body": body}
            content.write(orjson.dumps(line) + b"\n")
    now = int(time.time())
    ticket = Ticket(
        id=new_id("batch_"),
        team=team,
        input_file_id=file.id,
        endpoint=endpoint,
        metadata=None,
        created_at=now,
        expires_at=int(now + ends_in),
        priority="high",
    )
    batches.create(ticket)
    return ticket


def tended(batches: Batches, ticket: Ticket) -> Batch:
    """The batch once it has ended, tended as a facade does."""

    def look() -> Batch | None:
        batches.tend()
        return batches.store.final(ticket)

    return eventually(look, 30)


def test_a_batch_under_way_asks_storage_for_nothing(site: Site, batches: Batches) -> None:
    """Ten looks, of which each cost four reads once."""
    ticket = made(batches, "slow", 4, 3600)
    batches.steps.advance(ticket)  # planned and launched; there is no worker yet
    following = batches.steps.advance(ticket)
    assert following
    progress = site.progress(following.run_id)
    assert (progress.team, progress.priority) == ("red", "high")
    batches._due[f"red/{ticket.id}".encode()] = following
    storage = batches.store.storage
    assert isinstance(storage, CountingStorage)
    storage.reads.clear()
    for _ in range(10):
        batches.tend()
        assert not batches._under_way
    assert not storage.reads
    site.start_worker("slow")
    assert tended(batches, ticket).status == "completed"


def test_a_batch_beyond_its_teams_quota_fails(batches: Batches) -> None:
    known = replace(batches.steps.known, teams={"red": Team(images_in_flight=3)})
    limited = replace(batches, steps=replace(batches.steps, known=known))
    failed = tended(limited, made(limited, "slow", 4, 3600))
    assert failed.errors
    assert [error.code for error in failed.errors.data] == ["quota_exceeded"]
    assert "3 of them left" in failed.errors.data[0].message
    assert limited.steps.advance(made(limited, "slow", 3, 3600))


def test_a_facade_that_comes_back_late_lets_workers_settle(site: Site, batches: Batches) -> None:
    """Its batch has expired long ago; a worker is still rendering it."""
    ticket = made(batches, "slow", 200, 3600)
    site.start_worker("slow")
    batches.steps.advance(ticket)
    eventually(lambda: batches.get("red", ticket.id).request_counts.completed)
    late = replace(ticket, expires_at=int(time.time()) - 3600)
    assert batches.steps.advance(late)
    out = batches.store.out(ticket)
    summary = read_summary(out)
    assert summary
    assert summary.state == "cancelled"  # also for who looks at run.json
    final = eventually(lambda: None if batches.steps.advance(late) else batches.store.final(late))
    assert final.status == "expired"
    images = len(list(Path(out.root).rglob("images/*/*")))
    assert final.request_counts.completed == images
    assert len(list(Path(out.root).rglob("images/*/*"))) == images


def test_a_team_takes_one_step_at_a_time(batches: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many batches it has; another team's step begins meanwhile."""
    done, begun = Event(), list[str]()

    def advance(_: Steps, ticket: Ticket) -> None:
        begun.append(ticket.team)
        done.wait(20)

    monkeypatch.setattr(Steps, "advance", advance)
    for team in ("red", "red", "red", "blue"):
        made(batches, "slow", 1, 3600, team)
    for _ in range(3):
        batches.tend()
    try:
        assert eventually(lambda: sorted(begun) == ["blue", "red"])
        batches.tend()
        assert sorted(batches._under_way) == ["blue", "red"]
    finally:
        done.set()
    eventually(lambda: not batches._under_way)
    assert sorted(begun) == ["blue", "red"]
