"""Runs for tests of the page, without a worker: plans, and what workers would have stored."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from io import BytesIO

from PIL import Image

from jobs.output import layout
from jobs.output.choices import Chooser
from jobs.output.dataset import planned, rows_by_shard, write_summary
from jobs.output.plan import Chunk, Plan, Shard, encode_shard, read_shard, write_plan
from jobs.output.records import write_part
from jobs.output.scores import Scoring, write_chosen_by, write_scores, write_scoring
from jobs.output.storage import Storage
from jobs.requests import Candidate, Request, Rule
from tests.samples import KEY, make_plan, make_record, make_request, store_image


def job(number: int) -> str:
    """The job id of a request; as with real ones, half of it tells them apart."""
    return f"{number:016x}{0:016x}"


def plan_run(
    storage: Storage,
    run_id: str,
    requests: int,
    shard: int = 4096,
    chunk: int = 64,
    prompts: Mapping[int, str] = {},
    model: str = "null",
) -> Plan:
    """A run of so many requests: their seeds count from 0, `prompts` replaces some texts."""
    key, shards = KEY._replace(model=model), []
    for number, first in enumerate(range(0, requests, shard)):
        rows = range(first, min(first + shard, requests))
        own = [
            make_request(i, key, job_id=job(i), prompt=prompts.get(i, f"scene {i}")) for i in rows
        ]
        storage.write(layout.shard(run_id, number), encode_shard(own))
        starts = range(0, len(own), chunk)
        chunks = tuple(Chunk(model, i, min(i + chunk, len(own))) for i in starts)
        shards.append(Shard(len(own), chunks))
    for place in (layout.manifest, layout.invalid):
        storage.write(place(run_id), b"")
    plan = make_plan(run_id, {model: "f"}, tuple(shards))
    write_plan(storage, plan)
    write_summary(storage, planned(plan))
    return plan


def settle(
    storage: Storage, plan: Plan, shard: int, chunk: int, failed: Mapping[int, str] = {}
) -> None:
    """Store a chunk as a worker would. failed: index of a request → the message of its failure."""
    part = plan.shards[shard].chunks[chunk]
    records = []
    for request in read_shard(storage, plan.run_id, shard)[part.start : part.stop]:
        if message := failed.get(request.index):
            record = make_record(request, status="failed", code="render_error", message=message)
        else:
            record = store_image(storage, request, _colour(request.seed), shard)
        records.append(record)
    write_part(storage, layout.done_part(plan.run_id, shard, chunk), records)


def _colour(seed: int) -> bytes:
    data = BytesIO()
    Image.new("RGB", (64, 64), (seed % 256, seed // 256 % 256, 128)).save(data, "PNG")
    return data.getvalue()


def plan_choosing(storage: Storage, run_id: str, images: int = 12, tries: int = 3) -> Plan:
    """The plan of a run that takes for each image the first candidate whose `taste` is 0.5 or more:
    in turn the third, the second, the first, the first; none for the last image."""
    rule = Rule(1, tries, "", least=(("taste", 0.5),))
    own = [
        make_request(
            tries * image + n,
            index=image,
            custom_id=f"image-{image}",
            prompt=f"scene {image}",
            job_id=job(tries * image + n),
            candidate=Candidate(job(tries * image), n, rule),
        )
        for n in range(tries)
        for image in range(images)
    ]
    storage.write(layout.shard(run_id, 0), encode_shard(own))
    starts = range(0, len(own), images)
    chunks = tuple(Chunk("null", at, at + images, at // images) for at in starts)
    for place in (layout.manifest, layout.invalid):
        storage.write(place(run_id), b"")
    shards = (Shard(len(own), chunks),)
    plan = make_plan(run_id, {"null": "f"}, shards, chooses=True, scorers=("taste",))
    write_plan(storage, plan)
    write_summary(storage, planned(plan))
    return plan


def taste_of(request: Request, images: int = 12) -> float:
    """What the scorer of such a run gives a candidate."""
    number = request.candidate.number if request.candidate else 0
    return 0.0 if request.index == images - 1 else (request.index + number) % 4 / 4


def settle_round(storage: Storage, plan: Plan, number: int, failed: Collection[int] = ()) -> None:
    """Store what is needed of a round, with its scores, as workers would. failed: lines."""
    (known,) = rows_by_shard(storage, plan)
    chooser = Chooser(storage, plan)
    needed = {one.job_id for choice in chooser.choose(known) for one in choice.needed}
    chunk = plan.shards[0].chunks[number]
    requests = read_shard(storage, plan.run_id, 0)[chunk.start : chunk.stop]
    some = [one for one in requests if one.job_id in needed]
    lost = [one for one in some if one.index in failed]
    some = [one for one in some if one.index not in failed]
    records = [store_image(storage, one, _colour(one.seed)) for one in some]
    rows = [record.row() for record in records]
    records += [make_record(one, status="failed", code="c", message="m") for one in lost]
    scoring = Scoring("taste", "1", ("taste",))
    scores = [(row, {"taste": taste_of(one)}) for row, one in zip(rows, some, strict=True)]
    place = layout.folder_scores(scoring.key, 0, plan.run_id, 0, f"{number:04d}")
    write_scores(storage, place, scores)
    write_chosen_by(storage, plan.run_id, [scoring])
    write_scoring(storage, scoring)
    write_part(storage, layout.done_part(plan.run_id, 0, number), records)
