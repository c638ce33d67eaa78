"""Parts become a dataset in manifest order, one row a request, whatever parts there are."""

import gzip
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.errors import (
    USAGE_ERRORS,
    FatalError,
    ImagemillError,
    ManifestRefused,
    UsageError,
)
from jobs.ids import SEEDS
from jobs.models.table import load_models
from jobs.output import layout
from jobs.output.dataset import (
    IncompleteRun,
    read_finished,
    read_pictured,
    read_summary,
    write_dataset,
)
from jobs.output.plan import Plan, read_plan, read_shard
from jobs.output.records import Record, RecordStatus, Row, read_parts, write_part
from jobs.output.storage import Storage, open_storage
from jobs.requests import Request
from producer.planning import reuse
from producer.planning.generations import plan_next
from producer.planning.resolution import PlanOptions
from producer.planning.submission import Job, identify, prepare
from tests.samples import make_record


def record(request: Request, status: RecordStatus = "done", code: str = "x") -> Record:
    name = layout.image(0, request.job_id, request.format) if status == "done" else ""
    return make_record(request, status=status, file_name=name, sha256="0", code=code)


def planned(out: Path, lines: list[dict[str, object]]) -> tuple[Storage, Plan]:
    manifest = out.parent / f"{out.name}-{len(lines)}.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    submission = identify(
        Job(str(manifest), str(out), load_models(), PlanOptions(model="null", skip_invalid=True))
    )
    return submission.storage, prepare(submission)


def finish(storage: Storage, plan: Plan, keep: Callable[[Request], RecordStatus | None]) -> None:
    """Write the first chunk's done part, with the status that `keep` gives each request."""
    requests = read_shard(storage, plan.run_id, 0)
    store(storage, plan, [record(r, status) for r in requests if (status := keep(r))])


def store(storage: Storage, plan: Plan, records: list[Record]) -> None:
    """Write the first chunk's done part, and files for its images."""
    for one in records:
        if one.file_name:
            storage.write(one.file_name, b"")
    write_part(storage, layout.done_part(plan.run_id, 0, 0), records)


def rows(out: Path, name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


LINES: list[dict[str, object]] = [
    {"custom_id": f"{i}", "prompt": f"p{i}", "num_inference_steps": 1 + i % 3} for i in range(9)
]


def test_rows_are_in_manifest_order(tmp_path: Path) -> None:
    storage, plan = planned(tmp_path / "o", LINES)
    finish(storage, plan, lambda r: "failed" if r.index == 4 else "done")
    summary = write_dataset(storage, plan)
    assert [row["index"] for row in rows(tmp_path / "o", "metadata.jsonl")] == [
        0, 1, 2, 3, 5, 6, 7, 8,
    ]  # fmt: skip
    assert [row["custom_id"] for row in rows(tmp_path / "o", "errors.jsonl")] == ["4"]
    assert (summary.done, summary.failed, summary.without_image) == (8, 1, 1)
    assert read_summary(storage) == summary


def test_no_row_holds_a_null_and_seeds_are_strings(tmp_path: Path) -> None:
    storage, plan = planned(tmp_path / "o", [{"prompt": "a", "seed": 2**64 - 1}])
    finish(storage, plan, lambda _: "done")
    write_dataset(storage, plan)
    (row,) = rows(tmp_path / "o", "metadata.jsonl")
    assert row["seed"] == str(2**64 - 1)
    assert None not in row.values()


def test_columns_that_lines_keep_are_the_datasets(tmp_path: Path) -> None:
    lines: list[dict[str, object]] = [
        {"prompt": "b", "custom_id": "b", "width": 128, "keep": {"label": "cat", "weight": 0.5}},
        {"prompt": "plain", "custom_id": "plain"},
        {"prompt": "a", "custom_id": "a", "n": 2, "keep": {"label": "dog", "odd name": True}},
        {"prompt": "no", "custom_id": "no", "keep": {"label": "none"}},
    ]
    storage, plan = planned(tmp_path / "out", lines)
    finish(storage, plan, lambda r: "failed" if r.prompt == "no" else "done")
    write_dataset(storage, plan)
    found = {row["custom_id"]: row for row in rows(tmp_path / "out", "metadata.jsonl")}
    kept = {
        name: {k: row[k] for k in ("label", "weight", "odd name") if k in row}
        for name, row in found.items()
    }
    assert kept == {
        "b": {"label": "cat", "weight": 0.5},
        "plain": {},
        "a": {"label": "dog", "odd name": True},
        "a#1": {"label": "dog", "odd name": True},
    }
    (error,) = rows(tmp_path / "out", "errors.jsonl")
    assert error["label"] == "none"


def test_what_is_kept_changes_no_image(tmp_path: Path) -> None:
    storage, plan = planned(tmp_path / "out", [{"prompt": "a", "keep": {"label": "cat"}}])
    finish(storage, plan, lambda _: "done")
    write_dataset(storage, plan)
    storage, plan = planned(
        tmp_path / "out", [{"prompt": "a", "keep": {"label": "dog"}}, {"prompt": "b"}]
    )
    assert plan.reused == 1
    finish(storage, plan, lambda r: "done" if r.prompt == "b" else None)
    write_dataset(storage, plan)
    labels = [row.get("label") for row in rows(tmp_path / "out", "metadata.jsonl")]
    assert labels == ["dog", None]


@pytest.mark.parametrize(
    "keep",
    [
        {"seed": 1}, {"image": "x"}, {"": 1}, {"a": None}, {"a": [1]}, {"a": {"b": 1}},
        {"a": 2**63}, {"a\n": 1}, {f"c{i}": i for i in range(101)}, ["a"], "a",
    ],
)  # fmt: skip
def test_what_no_dataset_can_keep_is_refused(tmp_path: Path, keep: object) -> None:
    with pytest.raises(ManifestRefused) as refused:
        planned(tmp_path / "out", [{"prompt": "a", "keep": keep}])
    assert {error.field.split(".")[0] for error in refused.value.errors} == {"keep"}


def test_a_manifest_that_somebody_changed_is_refused(tmp_path: Path) -> None:
    storage, plan = planned(tmp_path / "out", [{"prompt": "a", "keep": {"label": "cat"}}])
    finish(storage, plan, lambda _: "done")
    for content in (b"", b"[]", b'{"keep": {"sha256": "x"}}', b'{"keep": 5}'):
        storage.write(layout.manifest(plan.run_id), gzip.compress(content))
        with pytest.raises(FatalError, match="is not the manifest of its plan: line 1"):
            write_dataset(storage, plan)


def test_a_missing_record_replaces_nothing(tmp_path: Path) -> None:
    storage, plan = planned(tmp_path / "o", LINES)
    storage.write(layout.METADATA, b"before")
    finish(storage, plan, lambda r: None if r.index == 4 else "done")
    with pytest.raises(IncompleteRun) as caught:
        write_dataset(storage, plan)
    assert caught.value.missing == 1
    assert storage.read(layout.METADATA) == b"before"


def test_a_request_with_records_in_two_parts_has_one_row(tmp_path: Path) -> None:
    storage, plan = planned(tmp_path / "o", LINES)
    finish(storage, plan, lambda _: "done")
    again = [record(r) for r in read_shard(storage, plan.run_id, 0)[:3]]
    write_part(storage, layout.interrupted_part(plan.run_id, 0, 0, "abc"), again)
    write_dataset(storage, plan)
    assert len(rows(tmp_path / "o", "metadata.jsonl")) == 9


def test_rows_of_an_older_version_are_summed_up_too(tmp_path: Path) -> None:
    storage, plan = planned(tmp_path / "o", LINES)
    finish(storage, plan, lambda _: "done")
    path = layout.done_part(plan.run_id, 0, 0)
    storage.write(path, storage.read(path).replace(b'"modes":"",', b""))
    assert b"modes" not in storage.read(path)
    assert [stack["modes"] for stack in write_dataset(storage, plan).stacks] == [""]


def test_skipped_lines_are_rows_of_errors(tmp_path: Path) -> None:
    storage, plan = planned(tmp_path / "o", [*LINES, {"prompt": 5}])
    finish(storage, plan, lambda _: "done")
    summary = write_dataset(storage, plan)
    (row,) = rows(tmp_path / "o", "errors.jsonl")
    assert (row["status"], row["index"]) == ("invalid", 9)
    assert "prompt" in str(row["message"])
    assert (summary.done, summary.invalid, summary.without_image) == (9, 1, 1)


@pytest.mark.parametrize(
    ("name", "content"),
    [("m.jsonl", '{"prompt": "a"}\n{"prompt": 5}\n'), ("m.csv", "caption\na cat\n")],
)
def test_a_refused_manifest_leaves_nothing(tmp_path: Path, name: str, content: str) -> None:
    def refuse(out: Path, keep_report: bool = False) -> None:
        job = Job(str(tmp_path / name), str(out), load_models(), PlanOptions(model="null"))
        with pytest.raises(USAGE_ERRORS):
            prepare(identify(job), keep_report=keep_report)

    (tmp_path / name).write_text(content)
    refuse(tmp_path / "new" / "o")
    assert not (tmp_path / "new").exists()
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty")
    assert not list((tmp_path / "empty").iterdir())
    planned(tmp_path / "o", LINES)
    before = sorted((tmp_path / "o").rglob("*"))
    refuse(tmp_path / "o")
    assert sorted((tmp_path / "o").rglob("*")) == before


def test_the_reasons_stay_where_somebody_reads_them(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"prompt": "a"}\n{"prompt": 5}\n')
    out = tmp_path / "o"
    job = Job(str(tmp_path / "m.jsonl"), str(out), load_models(), PlanOptions(model="null"))
    submission = identify(job)
    with pytest.raises(ManifestRefused) as refused:
        prepare(submission, keep_report=True)
    report = layout.invalid(submission.run_id)
    assert refused.value.report == str(out / report)
    assert [row["index"] for row in rows(out, report)] == [1]
    assert not (out / "_run" / submission.run_id / "plan").exists()


def test_another_manifest_reuses_what_it_shares(tmp_path: Path) -> None:
    storage, plan = planned(tmp_path / "o", LINES)
    finish(storage, plan, lambda r: "failed" if r.index == 4 else "done")
    first = write_dataset(storage, plan)
    before = {row["custom_id"]: row for row in rows(tmp_path / "o", "metadata.jsonl")}

    extra: dict[str, object] = {"custom_id": "new", "prompt": "new"}
    storage, plan = planned(tmp_path / "o", [extra, *LINES])
    assert plan.run_id != first.run_id
    assert plan.reused == 8
    kept = {str(row["job_id"]) for row in before.values()}
    finish(storage, plan, lambda r: None if r.job_id in kept else "done")
    write_dataset(storage, plan)
    after = rows(tmp_path / "o", "metadata.jsonl")
    assert [row["index"] for row in after] == list(range(10))
    assert after[1] == before["0"] | {"index": 1}


def test_a_rerun_reads_the_newest_run_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, oldest = planned(tmp_path / "o", LINES)
    finish(storage, oldest, lambda r: "failed" if r.index == 4 else "done")
    write_dataset(storage, oldest)
    storage, middle = planned(tmp_path / "o", LINES)
    assert (middle.run_id != oldest.run_id, middle.reused) == (True, 8)
    finish(storage, middle, lambda r: "failed" if r.index == 4 else None)
    write_dataset(storage, middle)
    read: list[str] = []

    def noted(storage: Storage, paths: Iterable[str]) -> Iterator[Row]:
        read.extend(some := list(paths))
        return read_parts(storage, some)

    monkeypatch.setattr(reuse, "read_parts", noted)
    storage, newest = planned(tmp_path / "o", LINES)
    assert newest.reused == 8
    assert {path.split("/")[1] for path in read} == {middle.run_id}


def test_a_manifest_whose_every_image_exists_has_no_chunks(tmp_path: Path) -> None:
    storage, plan = planned(tmp_path / "o", LINES)
    finish(storage, plan, lambda _: "done")
    write_dataset(storage, plan)
    storage, plan = planned(tmp_path / "o", LINES[:5])
    assert (plan.chunks, plan.reused) == (0, 5)
    assert write_dataset(storage, plan).done == 5


def test_what_has_no_dataset_yet_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"it has no run\.json"):
        read_finished(open_storage(str(tmp_path)))
    storage, plan = planned(tmp_path / "o", LINES)
    with pytest.raises(UsageError, match=rf"run {plan.run_id} in .* has not finished.*\n.*resume"):
        read_finished(storage)
    finish(storage, plan, lambda _: "failed")
    write_dataset(storage, plan)
    assert read_finished(storage).done == 0
    with pytest.raises(UsageError, match=r"has no images.*\n.*errors\.jsonl"):
        read_pictured(storage)


def test_a_finished_run_is_recognised_and_one_with_failures_is_tried_again(tmp_path: Path) -> None:
    storage, plan = planned(tmp_path / "o", LINES)
    manifest = str(tmp_path / f"o-{len(LINES)}.jsonl")
    options = PlanOptions(model="null", skip_invalid=True)
    job = Job(manifest, str(tmp_path / "o"), load_models(), options)
    assert identify(job).finished is None
    finish(storage, plan, lambda r: "failed" if r.index == 4 else "done")
    write_dataset(storage, plan)
    again = identify(job)
    assert again.finished is None
    assert again.run_id != plan.run_id

    # The second try is interrupted, then it succeeds; the first one never comes back.
    second = prepare(again)
    assert identify(job).plan == second
    finish(storage, second, lambda r: "done" if r.index == 4 else None)
    summary = write_dataset(storage, second)
    assert (summary.done, summary.failed) == (9, 0)
    for _ in range(2):
        assert identify(job).finished == summary
    assert identify(replace(job, options=replace(options, seed=1))).finished is None
    renamed = replace(job.table, aliases={"x": "null"})  # what lines mean may have changed
    assert identify(replace(job, table=renamed)).finished is None
    elsewhere = identify(replace(job, out=str(tmp_path / "elsewhere")))
    assert elsewhere.run_id not in (plan.run_id, second.run_id)


@pytest.mark.parametrize("name", [*layout.DATASET, layout.RUN])
def test_a_dataset_that_no_run_has_written_is_not_replaced(tmp_path: Path, name: str) -> None:
    out = tmp_path / "o"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    theirs = out / name
    theirs.write_text('{"file_name": "cat.png", "text": "by hand"}\n')
    with pytest.raises(ImagemillError, match=rf"{name} was not written by imagemill.*\n.*another"):
        planned(out, LINES)
    assert sorted(p.name for p in out.iterdir()) == sorted(["notes.txt", name])
    assert "by hand" in theirs.read_text()

    theirs.unlink()
    storage, plan = planned(out, LINES)
    finish(storage, plan, lambda _: "done")
    write_dataset(storage, plan)
    storage.remove("_run")  # nothing but the dataset is left, which is known to be a run's
    assert planned(out, LINES[:4])[1].until(0) == 4


def test_the_next_generation_is_made_from_the_plan_alone(tmp_path: Path) -> None:
    lines: list[dict[str, object]] = [line | {"keep": {"label": "x"}} for line in LINES]
    storage, plan = planned(tmp_path / "o", [*lines, {"prompt": 1}])
    finish(storage, plan, lambda r: "failed" if r.index == 4 else "done")
    first = write_dataset(storage, plan)
    manifest = tmp_path / f"o-{len(lines) + 1}.jsonl"
    options = PlanOptions(model="null", skip_invalid=True)
    job = Job(str(manifest), str(tmp_path / "o"), load_models(), options)
    submitted = identify(job).run_id
    content = manifest.read_bytes()
    manifest.unlink()
    second = plan_next(storage, plan)
    assert read_plan(storage, second.run_id) == second
    assert (second.reused, second.invalid, second.keeps) == (8, 1, True)
    finish(storage, second, lambda r: "done" if r.index == 4 else None)
    summary = write_dataset(storage, second)
    assert (first.done, summary.done, summary.without_image) == (8, 9, 1)
    assert [row["label"] for row in rows(tmp_path / "o", "metadata.jsonl")] == ["x"] * 9
    assert read_shard(storage, second.run_id, 0) == read_shard(storage, plan.run_id, 0)
    # Whoever submits the manifest again meets this very run.
    manifest.write_bytes(content)
    assert submitted == second.run_id
    assert identify(job).finished == summary


@pytest.mark.parametrize(("code", "again"), [("input_unreachable", True), ("x", False)])
def test_an_input_that_was_away_is_tried_again(tmp_path: Path, code: str, again: bool) -> None:
    storage, plan = planned(tmp_path / "o", LINES)
    requests = read_shard(storage, plan.run_id, 0)
    records = [record(r, "rejected" if r.index == 4 else "done", code) for r in requests]
    store(storage, plan, records)
    assert write_dataset(storage, plan).rejected == 1
    manifest = str(tmp_path / f"o-{len(LINES)}.jsonl")
    options = PlanOptions(model="null", skip_invalid=True)
    submission = identify(Job(manifest, str(tmp_path / "o"), load_models(), options))
    assert (submission.finished is None) == again
    assert prepare(submission).reused == (8 if again else 0)


def test_what_is_gone_is_rendered_again_once_whoever_submits_at_once(tmp_path: Path) -> None:
    storage, plan = planned(tmp_path / "o", LINES)
    finish(storage, plan, lambda _: "done")
    write_dataset(storage, plan)
    storage.remove(str(rows(tmp_path / "o", "metadata.jsonl")[0]["file_name"]))
    manifest = tmp_path / "longer.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in [*LINES, {"prompt": "new"}]))
    job = Job(str(manifest), str(tmp_path / "o"), load_models(), PlanOptions(model="null"))
    first, second = identify(job), identify(job)
    assert first.gone
    assert second.gone
    plan = prepare(first)
    assert plan.reused == 8
    requests = read_shard(storage, plan.run_id, 0)
    for number, chunk in enumerate(plan.shards[0].chunks):
        records = [record(request, "done") for request in requests[chunk.start : chunk.stop]]
        write_part(storage, layout.done_part(plan.run_id, 0, number), records)
    again = prepare(second)
    assert [shard.chunks for shard in again.shards] == [shard.chunks for shard in plan.shards]
    assert write_dataset(storage, again).done == 10


def test_runs_have_the_seeds_that_lines_have(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text(
        '{"prompt": "p"}\n{"prompt": "{{ a }}", "sample": {"a": ["b"]}}'
    )
    options = PlanOptions(model="null", seed=SEEDS - 1)
    job = Job(str(tmp_path / "m.jsonl"), str(tmp_path / "o"), load_models(), options)
    prepare(identify(job))
    plan = identify(job).plan
    assert plan is not None
    assert plan.seed == SEEDS - 1
    finish(open_storage(job.out), plan, lambda _: "done")
    write_dataset(open_storage(job.out), plan)
    summary = read_summary(open_storage(job.out))
    assert summary is not None
    assert summary.seed == SEEDS - 1


def test_another_team_or_priority_is_the_same_run(tmp_path: Path) -> None:
    manifest = tmp_path / "m.jsonl"
    manifest.write_text('{"prompt": "p"}\n')
    job = Job(str(manifest), str(tmp_path / "o"), load_models(), PlanOptions(model="null"))
    first = prepare(identify(job))
    urgent = replace(job, team="vision", priority="high")
    second = prepare(identify(urgent))
    assert second == replace(first, team="vision", priority="high")
    assert read_plan(open_storage(job.out), first.run_id) == second
