"""Scores: which columns images get, that they are made once, and that they cannot lie."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from configs.demo.training.drawing import draw
from configs.demo.training.scenes import every_scene
from jobs.errors import FatalError, UsageError
from jobs.output import layout
from jobs.output.dataset import read_summary, write_dataset
from jobs.output.records import Row
from jobs.output.scorers import scorers_of
from jobs.output.scores import Scoring
from jobs.output.storage import open_storage
from tests.datasets import make_run
from tests.support import rows
from worker.scoring.duplicates import DISTANCE, Duplicates, first_near
from worker.scoring.job import Outcome, score
from worker.scoring.rater import Rater
from worker.scoring.scorer import Scorer, make_scorer
from worker.scoring.statistics import Statistics

rng = np.random.default_rng(7)


def plain(*colours: int) -> list[Image.Image]:
    return [Image.new("RGB", (8, 8), (colour, colour, colour)) for colour in colours]


def noisy(seed: int, side: int = 128) -> Image.Image:
    """A picture with much to see: smooth blobs."""
    coarse = np.random.default_rng(seed).integers(0, 255, (9, 9, 3), np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


class Mean:
    """A scorer that counts what it is given, and may end early, as if it were killed."""

    version = "1"
    columns: tuple[str, ...] = ("mean", "small")

    def __init__(self, most: int = 1000) -> None:
        self.seen: list[str] = []
        self.most, self.sign = most, 1

    def score(self, images: Sequence[Image.Image], rows: Sequence[Row]) -> Mapping[str, Any]:
        for row in rows:
            if len(self.seen) == self.most:
                raise KeyboardInterrupt
            self.seen.append(row["custom_id"])
        means = [self.sign * float(np.asarray(image).mean()) for image in images]
        return {"mean": means, "small": [None if mean > 100 else True for mean in means]}


def run(out: str, scorer: Scorer, name: str = "mean") -> Outcome:
    relations = tuple(getattr(scorer, "relations", ()))
    scoring = Scoring(name, scorer.version, tuple(scorer.columns), relations)
    return score(open_storage(out), Rater(scorer, scoring), lambda *_: None)


@pytest.fixture
def out(tmp_path: Path) -> str:
    return str(tmp_path / "out")


def metadata(out: str) -> list[dict[str, Any]]:
    return rows(Path(out) / layout.METADATA)


def test_columns_join_the_metadata_and_stay(out: str) -> None:
    plan = make_run(out, plain(*range(0, 200, 25)))
    storage = open_storage(out)
    before, summary = metadata(out), read_summary(storage)
    assert run(out, Mean()) == Outcome(
        scorer="mean", version="1", columns=("mean", "small"), images=8, scored=8
    )
    after = metadata(out)
    assert [row.pop("mean") for row in after] == [float(v) for v in range(0, 200, 25)]
    assert [row.pop("small", None) for row in after] == [True] * 5 + [None] * 3
    assert after == before
    assert read_summary(storage) == summary
    joined = Path(out, layout.METADATA).read_bytes()
    write_dataset(storage, plan)
    assert Path(out, layout.METADATA).read_bytes() == joined


def test_what_has_scores_is_not_scored_again(out: str) -> None:
    make_run(out, plain(*range(9)))
    killed = Mean(most=7)
    with pytest.raises(KeyboardInterrupt):
        run(out, killed)
    assert "mean" not in metadata(out)[0]
    rest = Mean()
    assert run(out, rest).scored == len(rest.seen) == 3
    assert len({*killed.seen[:6], *rest.seen}) == 9
    assert all("mean" in row for row in metadata(out))
    assert run(out, Mean(most=0)).scored == 0


def test_a_longer_run_has_only_its_new_images_scored(out: str) -> None:
    images = plain(*range(7))
    make_run(out, images[:4])
    run(out, Mean())
    make_run(out, images)
    assert ["mean" in row for row in metadata(out)] == [True] * 4 + [False] * 3
    scorer = Mean()
    run(out, scorer)
    assert sorted(scorer.seen) == ["row-4", "row-5", "row-6"]
    assert [row["mean"] for row in metadata(out)] == [float(v) for v in range(7)]


def test_an_image_that_changed_is_scored_again(out: str) -> None:
    make_run(out, plain(1, 2))
    run(out, Mean())
    make_run(out, plain(1, 9))
    assert ["mean" in row for row in metadata(out)] == [True, False]
    assert run(out, Mean()).scored == 1
    assert [row["mean"] for row in metadata(out)] == [1.0, 9.0]


def test_another_version_replaces_the_columns_when_it_is_done(out: str) -> None:
    make_run(out, plain(*range(4)))
    run(out, Mean())
    other = Mean(most=2)
    other.version, other.sign = "2", -1
    with pytest.raises(KeyboardInterrupt):
        run(out, other)
    assert metadata(out)[1]["mean"] == 1.0
    other.most = 1000
    run(out, other)
    assert metadata(out)[1]["mean"] == -1.0


def test_two_scorers_cannot_have_one_column(out: str) -> None:
    make_run(out, plain(1))
    run(out, Mean())
    run(out, Statistics(), "statistics")
    assert {"mean", "blank", "sharpness"} <= metadata(out)[0].keys()
    with pytest.raises(UsageError, match="scorer mean has given the dataset a column 'mean'"):
        run(out, Mean(), "other")


class Wrong(Mean):
    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def score(self, *_: object) -> Any:
        return self.answer


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"mean": [1.0, 2.0], "small": [True]}, "other columns"),
        ({"mean": [1.0], "small": [True], "more": [1]}, "other columns"),
        ({"mean": [1.0]}, "KeyError"),
        ({"mean": [float("nan")], "small": [True]}, "gave nan as mean"),
        ({"mean": [np.float32(1)], "small": [True]}, "as mean"),
        ({"mean": ["x" * 1001], "small": [True]}, "as mean"),
        (None, "TypeError"),
    ],
)
def test_what_scorers_give_is_checked(out: str, answer: Any, words: str) -> None:
    make_run(out, plain(1))
    with pytest.raises(FatalError, match=words):
        run(out, Wrong(answer))
    assert "mean" not in metadata(out)[0]


def test_scores_that_somebody_else_wrote_are_refused(out: str) -> None:
    plan = make_run(out, plain(1))
    run(out, Mean())
    folder = Path(out, layout.SCORES)
    (path,) = folder.glob("mean.*/*")
    good = path.read_bytes()
    for bad in (b"{}", b"[]", b"x", good.replace(b'"mean"', b'"file_name"')):
        path.write_bytes(bad)
        with pytest.raises(FatalError, match="no score that imagemill wrote"):
            write_dataset(open_storage(out), plan)
    path.write_bytes(good)
    about = json.loads((folder / "mean.json").read_text())
    for change in ({"columns": ["file_name"]}, {"name": "other"}, {"columns": 1}):
        (folder / "mean.json").write_text(json.dumps(about | change))
        with pytest.raises(FatalError, match="no score that imagemill wrote"):
            write_dataset(open_storage(out), plan)


def test_statistics() -> None:
    striped = np.zeros((64, 64, 3), np.uint8)
    striped[:, ::8] = (255, 0, 0)
    images = [
        Image.new("RGB", (64, 64), (10, 200, 30)),
        noisy(1),
        noisy(1).filter(ImageFilter.GaussianBlur(6)),
        Image.fromarray(striped),
        noisy(1).convert("L").convert("RGB"),
        Image.new("RGB", (1, 1)),
    ]
    found = Statistics().score(images, [])
    assert found["blank"] == [True, False, False, False, False, True]
    assert found["sharpness"][0] == 0
    assert found["sharpness"][1] > found["sharpness"][2] > 0
    assert found["contrast"][3] == pytest.approx(255 * np.sqrt(1 / 8 * 7 / 8), abs=0.001)
    assert found["saturation"][4] == found["colourfulness"][4] == 0
    assert found["colourfulness"][1] > 20
    assert found["brightness"][0] == pytest.approx(0.299 * 10 + 0.587 * 200 + 0.114 * 30, abs=1)


def test_duplicates(out: str) -> None:
    first, other = noisy(1, 512), noisy(2, 512)
    scaled = first.resize((384, 384))
    images = [first, other, first, scaled, *plain(5, 5), first.point(lambda v: min(255, v + 6))]
    make_run(out, images)
    run(out, Duplicates(), "duplicates")
    found = metadata(out)
    names = [row["file_name"] for row in found]
    assert [row["duplicate_of"] for row in found] == ["", "", names[0], "", "", names[4], ""]
    near = [row["similar_to"] for row in found]
    assert near == ["", "", names[0], names[0], "", "", names[0]]  # what is plain is like nothing
    assert found[4]["pdq"] == ""


def test_neighbours_are_those_of_all_pairs() -> None:
    centres = rng.integers(0, 2**64, (40, 4), np.uint64, endpoint=False)
    many = centres[rng.integers(0, 40, 1500)]
    for row in many:  # 0 to 60 bits away from a centre
        for bit in rng.integers(0, 256, rng.integers(0, 60)):
            row[bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    away = np.bitwise_count(many[:, None] ^ many[None]).sum(axis=2, dtype=int)
    expected = [next((j for j in range(i) if away[i, j] <= DISTANCE), -1) for i in range(len(many))]
    assert first_near(many).tolist() == expected
    assert 100 < expected.count(-1) < 1400


def test_shapes_judges_the_demo_model(out: str) -> None:
    scenes = list(every_scene())[:2]
    pictures = [Image.fromarray(np.asarray(draw(scene), np.uint8)) for scene in scenes]
    prompts = [scenes[0].captions()[0], scenes[0].captions()[0], "a cat"]
    make_run(out, [pictures[0], Image.new("RGB", (64, 64), (20, 20, 20)), pictures[0]], prompts)
    scorer, scoring = make_scorer("shapes", "", "cpu")
    score(open_storage(out), Rater(scorer, scoring), lambda *_: None)
    found = metadata(out)
    assert (found[0]["shapes"], found[0]["shapes_wrong"]) == (1.0, "")
    assert found[1]["shapes"] < 0.5
    assert "shape" in found[1]["shapes_wrong"]
    assert "shapes" not in found[2]


def test_scorers_are_found_by_name() -> None:
    with pytest.raises(UsageError, match="no scorer is called 'beauty'"):
        make_scorer("beauty", "", "cpu")
    with pytest.raises(UsageError, match="scorer statistics takes no weights"):
        make_scorer("statistics", "some/repo", "cpu")
    with pytest.raises(UsageError, match="scorer clip needs weights"):
        make_scorer("clip", "", "cpu")
    with pytest.raises(UsageError, match="scorer clip needs weights"):
        scorers_of(["statistics", "clip"])
