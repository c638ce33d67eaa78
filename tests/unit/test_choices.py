"""Candidates for an image: which are planned, which are needed, and which one is chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.errors import UsageError
from jobs.models.table import load_models
from jobs.output import layout
from jobs.output.choices import Choice, Chooser
from jobs.output.dataset import IncompleteRun, write_dataset
from jobs.output.plan import Chunk, Shard, encode_shard, read_shard, write_plan
from jobs.output.records import Row, Scores, write_part
from jobs.output.scores import Scoring, write_chosen_by, write_scores, write_scoring
from jobs.output.storage import Storage, open_storage
from jobs.requests import Candidate, Request, Rule
from jobs.settings import Settings
from producer.commands.options import Requests
from producer.planning.blocks import plan_blocks
from producer.planning.recipes import rule_of
from producer.planning.resolution import PlanOptions
from tests.samples import make_plan, make_record, make_request, store_image
from tests.support import rows as read_rows

RUN = "0" * 12
SCORING = Scoring("clip", "1", ("clip", "blank"))


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "out"))


def candidates(rule: Rule, many: int, first: int = 0) -> list[Request]:
    return [
        make_request(
            first + n,
            index=first,
            custom_id=f"image-{first}",
            candidate=Candidate(f"{first:032x}", n, rule),
        )
        for n in range(many)
    ]


def stored(storage: Storage, requests: list[Request], scores: list[Scores | None]) -> list[Row]:
    """The rows of these requests, with these scores; None for one that failed."""
    rows: list[Row] = []
    for request, found in zip(requests, scores, strict=False):
        if found is None:
            rows.append(make_record(request, status="failed", code="c", message="m").row())
        else:
            rows.append(store_image(storage, request, request.job_id.encode()).row())
    pairs = [(row, found) for row, found in zip(rows, scores, strict=True) if found is not None]
    path = layout.folder_scores(SCORING.key, 0, RUN, 0, "0000")
    write_scores(storage, path, pairs)
    write_chosen_by(storage, RUN, [SCORING])
    write_scoring(storage, SCORING)
    return rows


def chosen(storage: Storage, rule: Rule, scores: list[Any]) -> Choice:
    """What becomes of an image whose first candidates have these values of clip."""
    requests = candidates(rule, rule.tries)
    found = [{"clip": one} if one is not None else None for one in scores]
    rows = stored(storage, requests[: len(scores)], found)
    known = [*rows, *[None] * (len(requests) - len(rows))]
    chooser = Chooser(storage, make_plan(RUN, chooses=True))
    (choice,) = chooser.choose(list(zip(requests, known, strict=True))[::-1])
    return choice


def numbers(rows: tuple[Row, ...]) -> list[int]:
    return sorted(int(row["job_id"], 16) for row in rows)


def test_the_best_is_chosen_and_of_equals_the_first(storage: Storage) -> None:
    choice = chosen(storage, Rule(4, 4, "clip"), [0.1, 0.5, None, 0.5])
    assert choice.chosen
    assert (int(choice.chosen["job_id"], 16), choice.chosen["candidates"]) == (1, 4)
    assert numbers(choice.rejects) == [0, 2, 3]


def test_the_first_candidates_are_needed_together_and_others_one_by_one(storage: Storage) -> None:
    rule = Rule(2, 5, "clip", least=(("clip", 0.5),))
    assert [one.candidate.round for one in candidates(rule, 5) if one.candidate] == [0, 0, 1, 2, 3]
    assert [one.seed for one in chosen(storage, rule, []).needed] == [0, 1]
    assert [one.seed for one in chosen(storage, rule, [0.6]).needed] == [1]
    assert [one.seed for one in chosen(storage, rule, [0.6, 0.1]).needed] == [2]
    assert [one.seed for one in chosen(storage, rule, [0.6, 0.1, None]).needed] == [3]
    done = chosen(storage, rule, [0.6, 0.1, None, 0.7])
    assert (done.chosen or {}).get("job_id") == f"{3:032x}"
    assert numbers(done.rejects) == [0, 1, 2]
    # What an earlier run had rendered beyond that is not needed, so not listed.
    more = chosen(storage, rule, [0.6, 0.1, None, 0.7, 0.9])
    assert (more.chosen, more.rejects) == (done.chosen, done.rejects)


def test_nothing_is_chosen_while_scores_are_missing(storage: Storage) -> None:
    """The first was chosen. A score that a scorer could not give is another thing."""
    requests = candidates(Rule(3, 3, "clip"), 3)
    rows = stored(storage, requests, [{"clip": 0.1}, {}, {"clip": 0.5}])
    known = list(zip(requests, rows, strict=True))
    plan = make_plan(RUN, chooses=True, scorers=("clip=weights",))
    (choice,) = Chooser(storage, plan).choose(known)
    assert choice.chosen
    assert int(choice.chosen["job_id"], 16) == 2
    stored(storage, requests[:2], [{"clip": 0.1}, {}])
    assert Chooser(storage, plan).choose(known) == [Choice(unscored=("clip",))]
    storage.remove(layout.chosen_by(RUN))
    assert Chooser(storage, plan).choose(known) == [Choice(unscored=("clip",))]


def test_an_image_that_no_candidate_makes_is_listed_without(storage: Storage) -> None:
    rule = Rule(1, 2, least=(("clip", 0.5),), most=(("blank", 0),))
    found = chosen(storage, rule, [0.1, 0.9]).chosen  # the second has no such score
    assert found
    assert (found["status"], found["code"]) == ("rejected", "none_passed")
    assert found["message"] == "none of 2 candidates has clip >= 0.5 and blank <= 0"
    assert "file_name" not in found
    failed = chosen(storage, rule, [None, None])
    assert failed.chosen
    assert (failed.chosen["status"], failed.chosen["code"]) == ("failed", "c")
    assert numbers(failed.rejects) == [0]
    alone = chosen(storage, Rule(), [None])
    assert alone.chosen
    assert (alone.chosen["status"], alone.rejects) == ("failed", ())


def test_the_dataset_lists_what_was_chosen_and_the_rejects_apart(storage: Storage) -> None:
    rule = Rule(2, 3, "clip", least=(("clip", 0.5),))
    requests = [*candidates(rule, 3), *candidates(rule, 3, 10), make_request(20)]
    storage.write(layout.shard(RUN, 0), encode_shard(requests))
    assert read_shard(storage, RUN, 0) == requests
    chunks = (Chunk("null", 0, 7),)
    plan = make_plan(RUN, {"null": "f"}, (Shard(7, chunks),), chooses=True, scorers=("clip",))
    write_plan(storage, plan)
    scores: list[Scores] = [{"clip": 0.9}, {"clip": 0.8}, {"clip": 0.1}, {"clip": 0.2}, {"clip": 0}]
    some = [requests[0], requests[1], *requests[3:6], requests[6]]
    stored(storage, some, [*scores, {"clip": 0.0}])
    records = [store_image(storage, one, one.job_id.encode()) for one in some]
    write_part(storage, layout.interrupted_part(RUN, 0, 0, "a"), records[:-2])
    with pytest.raises(IncompleteRun):
        write_dataset(storage, plan)
    write_part(storage, layout.done_part(RUN, 0, 0), records[-2:])
    summary = write_dataset(storage, plan)
    assert (summary.requests, summary.done, summary.rejected, summary.rejects) == (3, 2, 1, 4)
    root = Path(storage.uri)
    found = read_rows(root / layout.METADATA)
    assert [(row["custom_id"], row["clip"]) for row in found] == [("image-0", 0.9), ("row-20", 0.0)]
    (error,) = read_rows(root / layout.ERRORS)
    assert (error["custom_id"], error["code"]) == ("image-10", "none_passed")
    rejects = read_rows(root / layout.REJECTS)
    assert [row["clip"] for row in rejects] == [0.8, 0.1, 0.2, 0]
    # Scores that come later, of other weights, change no choice.
    other = Scoring("clip", "2", ("clip",))
    pairs = [(one.row(), {"clip": 1.0}) for one in records]
    write_scores(storage, layout.folder_scores(other.key, 0, RUN, 0), pairs)
    write_scoring(storage, other)
    write_dataset(storage, plan)
    again = read_rows(root / layout.METADATA)
    assert [(row["job_id"], row["clip"]) for row in again] == [(r["job_id"], 1.0) for r in found]


def planned(tmp_path: Path, *lines: str, **options: Any) -> tuple[list[Request], list[Chunk]]:
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(f"{line}\n" for line in lines))
    table = load_models()
    wanted = PlanOptions(model="null", **options)
    storage = open_storage(str(tmp_path / "plan"))
    (block,) = plan_blocks(str(manifest), table, wanted, {}, storage)
    assert not block.errors, block.errors
    storage.write(layout.shard(RUN, 0), block.shard)
    from producer.planning.chunks import cut

    (chunks,) = cut([block.calls])
    return read_shard(storage, RUN, 0), list(chunks)


def test_all_candidates_are_planned_and_the_first_is_the_request_itself(tmp_path: Path) -> None:
    plain, _ = planned(tmp_path, '{"custom_id": "a", "prompt": "x", "n": 2}')
    line = (
        '{"custom_id": "a", "prompt": "x", "n": 2, "best_of": 2, "by": "contrast",'
        ' "min": {"contrast": 5}, "max_tries": 4}'
    )
    found, chunks = planned(tmp_path, line, '{"prompt": "y"}', scorers=("statistics",))
    assert len({one.seed for one in found}) == len({one.job_id for one in found}) == 9
    by_number = {(one.custom_id, one.candidate.number): one for one in found if one.candidate}
    assert len(by_number) == 8
    for request in plain:
        first = by_number[request.custom_id, 0]
        assert first._replace(candidate=None, key=request.key) == request
        assert first.candidate == Candidate(
            request.job_id, 0, Rule(2, 4, "contrast", (("contrast", 5.0),))
        )
    rounds = [one.round for one in found]
    assert rounds == sorted(rounds)
    for chunk in chunks:
        assert {one.round for one in found[chunk.start : chunk.stop]} == {chunk.round}
    assert [chunk.round for chunk in chunks][-2:] == [1, 2]
    more, _ = planned(tmp_path, line.replace("4}", "6}"), scorers=("statistics",))
    assert {one.job_id for one in found if one.candidate} < {one.job_id for one in more}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ('"best_of": 4', "by"),
        ('"by": "contrast"', "by"),
        ('"max_tries": 4', "max_tries"),
        ('"best_of": 4, "by": "contrast", "min": {"contrast": 1}, "max_tries": 2', "max_tries"),
        ('"best_of": 2, "by": "beauty"', "by"),
        ('"min": {"beauty": 2}', "min"),
        ('"max": {"duplicate_of": 2}', "max"),
        ('"best_of": 2, "by": "pdq"', "by"),
        ('"n": 5000, "best_of": 4, "by": "contrast"', "n"),
    ],
)
def test_rules_that_cannot_be_are_refused(tmp_path: Path, fields: str, field: str) -> None:
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(f'{{"prompt": "x", {fields}}}\n')
    options = PlanOptions(model="null", scorers=("statistics", "duplicates"))
    (block,) = plan_blocks(str(manifest), load_models(), options, {})
    assert [error.field for error in block.errors] == [field]


def test_options_choose_for_lines_that_do_not_say(tmp_path: Path) -> None:
    text = '{"best_of": 2, "by": "contrast", "min": {"contrast": 5}, "max_tries": 4}'
    lines = ['{"custom_id": "a", "prompt": "x"}', '{"prompt": "y", "n": 2, "max": {"blank": 0}}']
    said = [lines[0].replace("}", f", {text[1:]}"), lines[1]]
    scorers = ("statistics",)
    found, chunks = planned(tmp_path, *lines, scorers=scorers, rule=rule_of(text))
    assert (found, chunks) == planned(tmp_path, *said, scorers=scorers)
    assert len(found) == 4 + 2
    many = [f'{{"prompt": "{n}"}}' for n in range(1500)]
    manifest = tmp_path / "many.jsonl"
    manifest.write_text("\n".join(many))
    wanted = PlanOptions(model="null", scorers=scorers, rule=rule_of(text))
    blocks = list(plan_blocks(str(manifest), load_models(), wanted, {}))
    assert [block.requests for block in blocks] == [4096, 1904]


@pytest.mark.parametrize(
    "text", ["", "4", '{"best_of": 4}', '{"clip": 1}', "{}", '{"max_tries": 99}', '{"by": "clip"}']
)
def test_options_that_choose_nothing_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--choose"):
        rule_of(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"best_of": 1, "by": "clip"}', "by: belongs to a best_of of 2 or more"),
        ('{"best_of": 2}', "by: is required"),
        ('{"bestof": 2, "by": "clip"}', "bestof: unknown field; did you mean 'best_of'"),
        ('{"min": {"clip": 0.9}, "max": {"clip": 0.1}}', "min.clip: is above its max, 0.1"),
    ],
)
def test_what_is_wrong_with_a_choice_is_said(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        rule_of(text)


@pytest.mark.parametrize(
    ("scorers", "text", "reason"),
    [
        (["statistics"], '{"best_of": 2, "by": "sharpnes"}', "by: .*; did you mean 'sharpness'"),
        ([], '{"min": {"contrast": 5}}', "min: no scorer of the run .*; name one with --score"),
        (["shapes"], '{"max": {"shapes_wrong": 1}}', "max: column 'shapes_wrong' is text"),
    ],
)
def test_an_option_that_chooses_by_no_score_is_told_once(
    scorers: list[str], text: str, reason: str
) -> None:
    with pytest.raises(UsageError, match=f"--choose: {reason}"):
        Requests(score=scorers, choose=text).planned(Settings(), load_models())
