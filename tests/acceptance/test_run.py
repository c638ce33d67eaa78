"""`imagemill run`: a manifest becomes a dataset, on the demo model and on the null renderer."""

from __future__ import annotations

import gzip
import json
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
from PIL import Image

from jobs.output.plan import read_plan
from jobs.output.storage import open_storage
from tests.support import Cli, circles, rows


def test_manifest_becomes_dataset(cli: Cli) -> None:
    manifest = cli.manifest(*circles(20))
    outcome = cli.json("run", manifest, "--out", "out")
    summary = outcome["summary"]
    assert (outcome["out"], outcome["rendered"]) == (str(cli.folder / "out"), True)
    assert (summary["state"], summary["done"]) == ("finished", 20)
    images = rows(cli.folder / "out" / "metadata.jsonl")
    assert [row["custom_id"] for row in images] == [f"circle-{i}" for i in range(20)]
    for row in images:
        file = cli.folder / "out" / row["file_name"]
        assert sha256(file.read_bytes()).hexdigest() == row["sha256"]
        with Image.open(file) as image:
            assert image.size == (row["width"], row["height"]) == (64, 64)
    assert {row["model"] for row in images} == {"shapes"}
    assert not rows(cli.folder / "out" / "errors.jsonl")


@pytest.mark.parametrize("crew", [["--devices", "cpu"], []])
def test_a_plan_is_cut_for_the_workers_that_render_it(cli: Cli, crew: list[str]) -> None:
    """Not for a fleet: 20 calls need no 20 parts where one worker renders them all."""
    manifest = cli.manifest(*circles(20 * 16))
    outcome = cli.json("run", manifest, "--out", "out", "--model", "null", *crew)
    plan = read_plan(open_storage(outcome["out"]), outcome["summary"]["run_id"])
    assert plan is not None
    assert plan.chunks <= 7


def test_output_loads_as_imagefolder(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [*circles(4), {"prompt": "no custom_id, a large seed", "seed": 2**64 - 1}]
    lines.append({"prompt": "guided", "negative_prompt": "blue", "guidance_scale": 2})
    cli("run", cli.manifest(*lines), "--out", "out", "--model", "null", "--format", "png")
    monkeypatch.setenv("HF_HOME", str(cli.folder / "hf"))
    from datasets import load_dataset

    out = cli.folder / "out"
    dataset = load_dataset(
        "imagefolder", data_dir=str(out), split="train", cache_dir=str(cli.folder / "hf")
    )
    assert len(dataset) == 6
    expected = rows(out / "metadata.jsonl")
    loaded = {row["job_id"]: row for row in dataset}
    for row in expected:
        found = loaded[row["job_id"]]
        assert found["seed"] == row["seed"]
        assert found["prompt"] == row["prompt"]
        with Image.open(out / row["file_name"]) as stored:
            assert found["image"].tobytes() == stored.tobytes()


def test_a_tables_columns_are_kept_and_choose_what_is_exported(cli: Cli) -> None:
    (cli.folder / "m.csv").write_text("caption,label,note\na cat,cat,\na dog,dog,old\nno,,\n")
    options = ["--map", "prompt=caption", "--keep", "label", "--keep", "note", "--model", "null"]
    cli("run", "m.csv", "--out", "out", *options)
    found = rows(cli.folder / "out" / "metadata.jsonl")
    kept = [{k: row[k] for k in ("label", "note") if k in row} for row in found]
    assert kept == [{"label": "cat"}, {"label": "dog", "note": "old"}, {}]
    before = {row["sha256"] for row in found}
    cli("run", "m.csv", "--out", "out", *options[:2], "--model", "null")
    again = rows(cli.folder / "out" / "metadata.jsonl")
    assert {row["sha256"] for row in again} == before
    assert not any("label" in row for row in again)
    cli("run", "m.csv", "--out", "out", *options)
    command = ["export", "out", "to", "--to", "parquet", "--where", 'label == "dog"']
    assert cli.json(*command)["images"] == 1
    refused = cli("run", "m.csv", "--out", "out", *options, "--keep", "seed", code=2)
    assert "--keep seed: seed is a column that each dataset has" in refused.stderr


def test_second_run_renders_nothing(cli: Cli) -> None:
    manifest = cli.manifest(*circles(20))
    cli("run", manifest, "--out", "out", "--model", "null")
    before = (cli.folder / "out" / "metadata.jsonl").read_bytes()
    again = cli("run", manifest, "--out", "out", "--model", "null")
    assert "Nothing was left to render: 20 images" in again.stdout
    assert (cli.folder / "out" / "metadata.jsonl").read_bytes() == before


def test_pictures_that_are_gone_are_rendered_again(cli: Cli) -> None:
    """One of them, then a folder of them, then some that a grown manifest's run would reuse."""
    command = ("run", cli.manifest(*circles(20)), "--out", "out", "--model", "null")
    cli(*command)
    images = cli.folder / "out" / "images"
    before = {path: path.read_bytes() for path in images.rglob("*.jpg")}
    gone = min(before)
    gone.unlink()
    again = cli(*command)
    assert "1 image is gone from" in again.stderr
    assert "20 images in" in again.stdout
    shutil.rmtree(images)
    assert "20 images are gone from" in cli(*command).stderr
    assert {path: path.read_bytes() for path in images.rglob("*.jpg")} == before
    assert not cli.json(*command)["rendered"]
    found = cli.json("fsck", "out")
    assert found.pop("images") == 20
    assert not any(found.values())
    gone.unlink()
    grown = ("run", cli.manifest(*circles(30)), "--out", "out", "--model", "null", "--json")
    ended = cli(*grown)
    assert "1 image is gone from" in ended.stderr
    summary = json.loads(ended.stdout)["summary"]
    assert (summary["done"], summary["reused"]) == (30, 19)
    found = cli.json("fsck", "out")
    assert found.pop("images") == 30
    assert not any(found.values())


def test_grown_manifest_renders_only_what_is_new(cli: Cli) -> None:
    cli("run", cli.manifest(*circles(20)), "--out", "out", "--model", "null")
    before = {row["job_id"]: row for row in rows(cli.folder / "out" / "metadata.jsonl")}
    summary = cli.json("run", cli.manifest(*circles(30)), "--out", "out", "--model", "null")[
        "summary"
    ]
    assert (summary["done"], summary["reused"]) == (30, 20)
    after = {row["job_id"]: row for row in rows(cli.folder / "out" / "metadata.jsonl")}
    assert before.items() <= after.items()


def test_gzipped_batch_lines_render(cli: Cli) -> None:
    line = {"custom_id": "../../etc/passwd", "method": "POST", "url": "/v1/images/generations"}
    plain = cli.manifest(line | {"body": {"prompt": "a path is only a name", "model": "null"}})
    packed = plain.with_name("manifest.jsonl.gz")
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    cli("run", packed, "--out", "out")
    (row,) = rows(cli.folder / "out" / "metadata.jsonl")
    assert row["custom_id"] == "../../etc/passwd"
    assert Path(row["file_name"]).parts[0] == "images"


def test_a_run_warns_of_what_may_not_be_meant(cli: Cli) -> None:
    manifest = cli.manifest({"prompt": "a {{ color }} cat"}, {"prompt": "a cat"})
    done = cli("run", manifest, "--out", "out", "--model", "null")
    assert "Warning: 1 line may not say what you mean: imagemill plan shows them" in done.stderr
    assert rows(cli.folder / "out" / "metadata.jsonl")[0]["prompt"] == "a {{ color }} cat"


def test_two_models_share_a_run(cli: Cli) -> None:
    lines = [
        line | {"model": model}
        for line, model in zip(circles(8), ["null", "shapes"] * 4, strict=True)
    ]
    summary = cli.json("run", cli.manifest(*lines), "--out", "out")["summary"]
    assert summary["done"] == 8
    assert {stack["model"]: stack["images"] for stack in summary["stacks"]} == {
        "null": 4,
        "shapes": 4,
    }


def test_limit_and_quiet(cli: Cli) -> None:
    manifest = cli.manifest(*circles(20))
    done = cli("run", manifest, "--out", "out", "--model", "null", "--limit", 3, "--quiet")
    assert (done.stdout, done.stderr) == ("", "")
    assert len(rows(cli.folder / "out" / "metadata.jsonl")) == 3


def test_invalid_manifest_is_refused_whole(cli: Cli) -> None:
    manifest = cli.manifest({"prompt": "fine"}, {"prompt": 1}, {"prompt": "x", "sed": 3})
    refused = cli("run", manifest, "--out", "out", code=2)
    assert "2 invalid lines; nothing was enqueued" in refused.stderr
    assert "line 2: prompt:" in refused.stderr
    assert "line 3: sed: unknown field; did you mean 'seed'?" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (cli.folder / "out").exists()


def test_first_twenty_errors_are_shown(cli: Cli) -> None:
    wrong = [{"prompt": 1, "sed": 2}] * 15
    refused = cli("run", cli.manifest(*wrong), "--out", "out", code=2)
    assert (refused.stderr.count("prompt:"), refused.stderr.count("sed:")) == (10, 10)
    assert "… and 10 more" in refused.stderr


def test_a_refusal_offers_the_rest_only_if_there_is_one(cli: Cli) -> None:
    wrong = cli("run", cli.manifest({"prompt": 1}), "--out", "out", "--skip-invalid", code=2)
    assert wrong.stderr.endswith("Correct it.\n")
    some = cli("run", cli.manifest({"prompt": 1}, {"prompt": "a"}), "--out", "out", code=2)
    assert some.stderr.endswith("Correct it, or pass --skip-invalid to render the rest.\n")


def test_skip_invalid_renders_the_rest(cli: Cli) -> None:
    manifest = cli.manifest({"prompt": "fine", "custom_id": "a"}, {"prompt": 1, "custom_id": "b"})
    command = ("run", manifest, "--out", "out", "--model", "null", "--skip-invalid")
    shown = cli(*command, code=1).stdout
    assert "1 without an image (1 invalid):\n  b: invalid_request: line 2: prompt: " in shown
    assert shown.endswith("out/errors.jsonl\n")
    (error,) = rows(cli.folder / "out" / "errors.jsonl")
    assert (error["custom_id"], error["index"], error["status"]) == ("b", 1, "invalid")
    assert "prompt" in error["message"]
    assert [row["custom_id"] for row in rows(cli.folder / "out" / "metadata.jsonl")] == ["a"]
    assert not cli.json(*command, code=1)["rendered"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "absent.jsonl", "--out", "out"], ["absent.jsonl does not exist"]),
        (
            ["run", "manifest.jsonl", "--out", "out", "--model", "shape"],
            ["Error: --model: unknown model 'shape'; known: null, ", "did you mean 'shapes'?"],
        ),
        (
            ["plan", "manifest.jsonl", "--model", "shapes:outlin"],
            ["'shapes' has no adapter", "'outline'?"],
        ),
        (["run", "manifest.jsonl", "--out", "what://out"], ["what", "s3://"]),
        (["run", "manifest.jsonl", "--out", "out", "--models-file", "no.toml"], ["no.toml"]),
        (["run", "-", "--out", "out"], ["standard input"]),
        (["run", "manifest.jsonl", "--out", ""], ["location '': it is empty", "not set"]),
        (["plan", ""], ["location '': it is empty", "not set"]),
        (["status", ""], ["location '': it is empty"]),
        (["up", "--store", "store", "--models", "null,shape"], ["unknown model 'shape'"]),
        (["run", "manifest.jsonl"], ["--out"]),
        (["run", "manifest.jsonl", "--out", "out", "--format", "gif"], ["gif"]),
    ],
)
def test_usage_errors_exit_with_two(cli: Cli, arguments: list[str], words: list[str]) -> None:
    cli.manifest(*circles(2))
    refused = cli(*arguments, code=2)
    assert all(word in refused.stderr for word in words), refused.stderr
    assert "Traceback" not in refused.stderr


def test_missing_weights_say_what_to_do(cli: Cli) -> None:
    manifest = cli.manifest(*circles(2))
    missing = cli("run", manifest, "--out", "out", "--model", "nobody/nothing", code=1)
    assert "nobody/nothing" in missing.stderr
    assert "Download it first" in missing.stderr


def test_absent_device_ends_the_run(cli: Cli) -> None:
    manifest = cli.manifest(*circles(2))
    ended = cli("run", manifest, "--out", "out", "--model", "null", "--devices", "7", code=2)
    assert "no GPU '7'" in ended.stderr
    assert "again" not in ended.stderr
    assert "Traceback" not in ended.stderr


def test_output_that_cannot_be_written(cli: Cli) -> None:
    (cli.folder / "file").write_text("in the way")
    refused = cli("run", cli.manifest(*circles(2)), "--out", "file/out", "--model", "null", code=1)
    assert "file/out" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_what_a_block_of_lines_leaves_over_is_rendered_with_that_of_the_next(cli: Cli) -> None:
    lines = [
        {"custom_id": f"{i}", "prompt": "a cat", "guidance_scale": i % 1100 / 100}
        for i in range(4400)
    ]
    outcome = cli.json("run", cli.manifest(*lines), "--out", "out", "--model", "null")
    assert outcome["summary"]["done"] == 4400
    images = rows(cli.folder / "out" / "metadata.jsonl")
    assert [row["custom_id"] for row in images] == [line["custom_id"] for line in lines]
    assert {row["batch_width"] for row in images} == {4}  # 3 or 4 of each stand in the first block
    (lost := cli.folder / "out" / images[-1]["file_name"]).unlink()
    cli("fsck", "out", "--repair")
    assert sha256(lost.read_bytes()).hexdigest() == images[-1]["sha256"]
