"""imagemill score, as a user runs it: kills, others' scorers, CLIP, selection."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import configs.demo
from tests.support import Cli, circles, eventually, rows

PLUGIN = """
import time

class Slow:
    version = "3"
    columns = ("pace",)

    def score(self, images, rows):
        time.sleep(0.01)
        return {"pace": [None if row["index"] == 5 else 1.5 for row in rows]}

class Luck:
    version = "1"
    columns = ("luck",)

    def score(self, images, rows):
        time.sleep(0.005 * len(rows))
        return {"luck": [int(row["seed"]) % 100 / 100 for row in rows]}

class Broken(Slow):
    columns = ("depth",)

    def score(self, images, rows):
        raise RuntimeError("no such layer")
"""
POINTS = "[imagemill.scorers]\nslow = slow:Slow\nluck = slow:Luck\nbroken = slow:Broken\n"


@pytest.fixture
def plugin(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed distribution with scorers."""
    about = cli.folder / "site/slow-1.0.dist-info"
    about.mkdir(parents=True)
    (cli.folder / "site/slow.py").write_text(PLUGIN)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: slow\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(POINTS)
    paths = [str(cli.folder / "site"), *os.environ.get("PYTHONPATH", "").split(":")]
    monkeypatch.setenv("PYTHONPATH", ":".join(filter(None, paths)))


@pytest.mark.usefixtures("plugin")
def test_a_killed_scoring_goes_on(cli: Cli) -> None:
    cli("run", cli.manifest(*circles(9000)), "--model", "null", "--out", "out")
    images = {path: path.stat().st_mtime_ns for path in (cli.folder / "out/images").rglob("*.jpg")}
    killed = cli.start("score", "out", "--with", "slow")
    eventually(lambda: list((cli.folder / "out/_scores").glob("slow.*/*.jsonl")))
    killed.kill()
    killed.communicate()
    assert "pace" not in rows(cli.folder / "out/metadata.jsonl")[0]
    several = [cli.start("score", "out", "--with", "slow", "--json") for _ in range(2)]
    answers = [one.communicate(timeout=60)[0] for one in several]
    assert sum(json.loads(answer)[0]["scored"] for answer in answers) >= 4096
    assert [one["scored"] for one in cli.json("score", "out", "--with", "slow")] == [0]
    found = rows(cli.folder / "out/metadata.jsonl")
    assert [row["index"] for row in found if "pace" not in row] == [5]
    assert {path: path.stat().st_mtime_ns for path in images} == images
    text = cli("score", "out", "--with", "broken", code=1).stderr
    assert "scorer broken failed at images/" in text
    assert "RuntimeError: no such layer" in text
    text = cli("score", "out", "--with", "x", code=2).stderr
    assert "broken, clip, duplicates, luck, shapes, slow, statistics" in text


def scores(out: Path, *names: str) -> list[tuple[object, ...]]:
    """These columns of a dataset, with the images' hashes."""
    return [tuple(map(row.get, ("sha256", *names))) for row in rows(out / "metadata.jsonl")]


def kept(out: Path) -> list[str]:
    """All that a dataset keeps of its images' scores."""
    files = (out / "_scores").glob("*/*.jsonl")
    return sorted(line for file in files for line in file.read_text().splitlines())


@pytest.mark.usefixtures("plugin")
def test_images_are_scored_as_they_are_rendered(cli: Cli) -> None:
    manifest = cli.manifest(*circles(600))
    given = ["--score", "statistics", "--score", "slow", "--score", "duplicates"]
    columns = ("contrast", "sharpness", "pace", "pixel_hash", "duplicate_of")
    cli("run", manifest, "--model", "null", "--out", "later")
    cli("score", "later", *(one.replace("--score", "--with") for one in given))
    killed = cli.start("run", manifest, "--model", "null", "--out", "now", *given)
    eventually(lambda: list((cli.folder / "now/_scores").glob("slow.*/*.jsonl")))
    killed.kill()
    killed.communicate()
    assert not (cli.folder / "now/metadata.jsonl").exists()
    cli("run", manifest, "--model", "null", "--out", "now", *given)
    for file in (cli.folder / "now/_scores").glob("*/*.jsonl"):
        assert file.name.count(".") == 4, "of a chunk: nothing was left to score at the end"
    assert scores(cli.folder / "now", *columns) == scores(cli.folder / "later", *columns)
    assert kept(cli.folder / "now") == kept(cli.folder / "later")
    assert [one["scored"] for one in cli.json("score", "now", "--with", "slow")] == [0]


@pytest.mark.usefixtures("plugin")
def test_a_scorer_that_fails_costs_no_image(cli: Cli) -> None:
    manifest = cli.manifest(*circles(5))
    command = ["run", manifest, "--model", "null", "--out", "out"]
    given = ["--score", "broken", "--score", "statistics"]
    text = cli(*command, *given, code=1).stdout
    assert "No scores of broken for some images: scorer broken failed at images/" in text
    assert "RuntimeError: no such layer" in text
    found = rows(cli.folder / "out/metadata.jsonl")
    assert len(found) == 5
    assert all("contrast" in row and "depth" not in row for row in found)
    assert cli.json("fsck", "out", code=1)["scorers"] == ["broken"]
    assert "no such layer" in cli("fsck", "out", "--repair", code=1).stderr
    working = (cli.folder / "site/slow.py").read_text().replace("raise RuntimeError", "return")
    working = working.replace('return("no such layer")', 'return {"depth": [2.5] * len(rows)}')
    (cli.folder / "site/slow.py").write_text(working)
    assert cli.json(*command, *given)["summary"]["reused"] == 5
    assert [row["depth"] for row in rows(cli.folder / "out/metadata.jsonl")] == [2.5] * 5
    # One more scorer is another run, which renders nothing.
    again = cli.json(*command, "--score", "slow")["summary"]
    assert (again["reused"], again["unscored"]) == (5, {})
    assert {"pace", "depth"} <= rows(cli.folder / "out/metadata.jsonl")[0].keys()
    assert "no scorer is called 'x'" in cli(*command, "--score", "x", code=2).stderr


@pytest.mark.usefixtures("plugin")
def test_choices_are_the_same_whatever_dies(cli: Cli) -> None:
    lines: list[dict[str, object]] = [
        {"custom_id": f"a{n}", "prompt": f"scene {n}", "n": 2, "min": {"luck": 0.7}, "max_tries": 6}
        for n in range(60)
    ]
    best = {"best_of": 3, "by": "luck", "max": {"luck": 0.9}, "max_tries": 5}
    lines += [{"custom_id": f"b{n}", "prompt": f"scene {n}", **best} for n in range(40)]
    lines += [{"custom_id": f"c{n}", "prompt": f"scene {n}", "keep": {"m": n}} for n in range(20)]
    manifest = cli.manifest(*lines)
    command = ["run", manifest, "--model", "null", "--score", "luck", "--out"]
    text = cli("plan", manifest, "--model", "null", "--score", "luck").stdout
    assert "120 lines for 260 requests" in text
    assert "up to 680 further candidates" in text
    given = ["--score", "luck", "--choose", '{"min": {"luck": 0.5}, "max_tries": 2}']
    assert "up to 700 further" in cli("plan", manifest, "--model", "null", *given).stdout
    cli(*command, "calm", code=1)  # some have no image that passes
    all_parts = parts_of(cli.folder / "calm")
    assert all_parts > 3
    for few in (all_parts // 4, all_parts // 2, all_parts - 1):
        killed = cli.start(*command, "wild")
        eventually(lambda n=few: parts_of(cli.folder / "wild") >= n)
        killed.kill()
        killed.communicate()
    wild = cli.json(*command, "wild", code=1)["summary"]
    names = ("metadata", "errors", "rejects")
    calm, found = (
        {name: [told(row) for row in rows(cli.folder / out / f"{name}.jsonl")] for name in names}
        for out in ("calm", "wild")
    )
    assert found == calm
    check_choices(calm)
    images = sum(1 for _ in (cli.folder / "wild/images").rglob("*.jpg"))
    assert images == wild["done"] + wild["rejects"], "nothing is rendered that is not needed"
    assert wild["requests"] == 180 == wild["done"] + wild["rejected"]
    again = cli.json(*command, "wild", code=1)
    assert (again["rendered"], again["summary"]["run_id"]) == (False, wild["run_id"])

    assert not any(cli.json("fsck", "calm").get(kind) for kind in ("unrecorded", "stale", "lost"))
    parts = sorted((cli.folder / "calm/_run").glob("*/parts/*"))
    for part in parts[::3]:
        part.unlink()
    for part in parts[1::3]:  # a request of a chunk that is complete
        part.write_bytes(b"".join(part.read_bytes().splitlines(True)[1:]))
    assert cli.json("fsck", "calm", code=1)["unrecorded"]
    cli("fsck", "calm", "--repair")
    mended = {
        name: [told(row) for row in rows(cli.folder / f"calm/{name}.jsonl")] for name in names
    }
    assert mended == calm


@pytest.mark.usefixtures("plugin")
def test_scores_that_are_lost_change_no_choice(cli: Cli) -> None:
    """The first candidate was chosen, and all was said to be mended."""
    choosing = {"best_of": 3, "by": "luck", "min": {"luck": 0.3}, "max_tries": 5}
    manifest = cli.manifest(*[{"prompt": f"scene {n}", **choosing} for n in range(20)])
    cli("run", manifest, "--model", "null", "--score", "luck", "--out", "out")
    out = cli.folder / "out"
    names = ("metadata.jsonl", "rejects.jsonl", "errors.jsonl")
    before = {name: (out / name).read_bytes() for name in names}
    images = len(before["metadata.jsonl"].splitlines()) + len(before["rejects.jsonl"].splitlines())

    (scores,) = out.glob("_scores/luck.*/")
    shutil.rmtree(scores)
    found = cli.json("fsck", "out", code=1)
    assert len(found.pop("unscored")) == found.pop("images") == images > 60
    assert found.pop("scorers") == ["luck"]
    assert not any(found.values())
    for scorer in ("duplicates", "statistics"):
        said = cli("score", "out", "--with", scorer, code=1).stderr
        assert "has lost scores of luck, by which images are chosen" in said
        assert "fsck" in said
        (out / f"_scores/{scorer}.json").unlink(missing_ok=True)  # its columns are to stay out
    assert {name: (out / name).read_bytes() for name in names} == before
    assert "All is mended" in cli("fsck", "out", "--repair").stderr
    assert {name: (out / name).read_bytes() for name in names} == before
    shutil.rmtree(scores)
    cli("score", "out", "--with", "luck")
    assert {name: (out / name).read_bytes() for name in names} == before

    (chosen_by,) = out.glob("_run/*/chosen_by.json")
    chosen_by.unlink()
    assert cli.json("fsck", "out", code=1)["scorers"] == ["luck"]
    cli("fsck", "out", "--repair")
    assert {name: (out / name).read_bytes() for name in names} == before
    assert not cli.json("fsck", "out")["unscored"]


@pytest.mark.usefixtures("plugin")
def test_scores_that_are_lost_are_no_columns_less(cli: Cli) -> None:
    """Their columns were dropped, and all was said to be mended."""
    given = ("--score", "statistics", "--score", "duplicates")
    cli("run", cli.manifest(*circles(5)), "--model", "null", "--out", "out", *given)
    out = cli.folder / "out"
    whole = (out / "metadata.jsonl").read_bytes()
    assert {"contrast", "duplicate_of"} <= rows(out / "metadata.jsonl")[0].keys()
    for lost, scorers in (
        ("_scores/statistics.*/", ["statistics"]),
        ("_run/*/scores/", ["duplicates"]),
        ("_scores/", ["duplicates", "statistics"]),
    ):
        (folder,) = out.glob(lost)
        shutil.rmtree(folder)
        found = cli.json("fsck", "out", code=1)
        assert (len(found["unscored"]), found["scorers"]) == (5, scorers)
        cli("fsck", "out", "--repair")
        assert (out / "metadata.jsonl").read_bytes() == whole
        assert not cli.json("fsck", "out")["unscored"]

    cli("score", "out", "--with", "slow")
    added = (out / "metadata.jsonl").read_bytes()
    (folder,) = out.glob("_scores/slow.*/")
    shutil.rmtree(folder)
    said = cli("fsck", "out", "--repair", code=1).stderr
    assert "Nothing is mended while scores of slow are gone" in said
    assert "--with slow scores the images again" in said
    assert cli.json("fsck", "out", code=1)["added"] == ["slow"]
    assert (out / "metadata.jsonl").read_bytes() == added
    cli("score", "out", "--with", "slow")
    assert (out / "metadata.jsonl").read_bytes() == added
    shutil.rmtree(folder)
    (out / "_scores/slow.json").unlink()
    cli("fsck", "out", "--repair")
    assert (out / "metadata.jsonl").read_bytes() == whole


def parts_of(out: Path) -> int:
    return len(list((out / "_run").glob("*/parts/*")))


def told(row: dict[str, Any]) -> tuple[object, ...]:
    names = ("custom_id", "seed", "sha256", "luck", "candidates", "code", "message", "m")
    return tuple(map(row.get, names))


def check_choices(found: dict[str, list[tuple[Any, ...]]]) -> None:
    """What was chosen and refused, from the seeds alone."""
    images = {one[0]: one for one in found["metadata"]}
    tried: dict[str, list[float]] = {}
    for one in found["rejects"]:
        tried.setdefault(one[0], []).append(one[3])
    for name, (_, _, _, luck, count, *_) in images.items():
        refused = tried.get(name, [])
        assert count == 1 + len(refused), name
        if name.startswith("a"):
            assert luck >= 0.7 > max(refused, default=0), name
            assert count <= 6
        elif name.startswith("b"):
            assert luck <= 0.9
            assert luck == max(one for one in (*refused, luck) if one <= 0.9)
            assert count == 5 or sum(one <= 0.9 for one in (*refused, luck)) == 3
    for name, _, _, _, count, code, message, _ in found["errors"]:
        assert (code, count) == ("none_passed", len(tried[name]))
        assert message == f"none of {count} candidates has luck >= 0.7"
        assert count == 6
        assert max(tried[name]) < 0.7
    assert len(images) + len(found["errors"]) == 180
    assert [images[f"c{n}"][-1] for n in range(20)] == list(range(20))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model of random weights, with the demo model's words."""
    folder = tmp_path_factory.mktemp("clip")
    words = AutoTokenizer.from_pretrained(Path(configs.demo.__file__).parent / "shapes/tokenizer")
    words.save_pretrained(folder)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    small |= {"num_hidden_layers": 2}
    text = {**small, "vocab_size": len(words), "max_position_embeddings": 16}
    text |= {"eos_token_id": words.eos_token_id, "bos_token_id": words.bos_token_id}
    vision = {**small, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    shape = CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    CLIPModel(shape).save_pretrained(folder)
    side = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=side).save_pretrained(folder)
    return folder


def test_scores_select(cli: Cli, clip: Path) -> None:
    prompt = "a large red circle on a blue background"
    lines = [{"custom_id": "c", "prompt": prompt, "n": 8}, {"prompt": "a green sky"}]
    cli("run", cli.manifest(*lines), "--out", "out")
    given = ["--with", "shapes", "--with", f"clip={clip}", "--with", "statistics"]
    assert [one["scored"] for one in cli.json("score", "out", *given)] == [9, 9, 9]
    found = rows(cli.folder / "out/metadata.jsonl")
    assert ["shapes" in row for row in found] == [True] * 8 + [False]
    assert all(-1 <= row["clip"] <= 1 for row in found)
    assert len({row["clip"] for row in found}) == 9
    least = sorted(row["clip"] for row in found)[4]
    where = f"clip >= {least} and shapes >= 0.2 and not blank"
    chosen = [row for row in found if row["clip"] >= least and row.get("shapes", 0) >= 0.2]
    done = cli.json("export", "out", "to", "--to", "parquet", "--where", where)
    assert done["images"] == len(chosen) > 0
    (clip / "note.txt").write_text("other weights, as far as anybody knows")
    assert cli.json("score", "out", "--with", f"clip={clip}")[0]["scored"] == 9
    assert "needs weights" in cli("score", "out", "--with", "clip", code=2).stderr
    assert "does not load" in cli("score", "out", "--with", "clip=out/images", code=1).stderr


def test_scores_in_a_bucket(cli: Cli, bucket: str) -> None:
    cli("run", cli.manifest(*circles(5)), "--model", "null", "--out", f"{bucket}/out")
    given = ["score", f"{bucket}/out", "--with", "statistics", "--with", "duplicates"]
    assert [one["scored"] for one in cli.json(*given)] == [5, 5]
    assert [one["scored"] for one in cli.json(*given)] == [0, 0]
