"""imagemill export, as a user runs it: several at once, and between object stores."""

from __future__ import annotations

import json
import signal
from hashlib import sha256
from pathlib import Path

import psutil
import pyarrow.parquet as pq

from jobs.output.storage import open_storage
from tests.certificates import write_pair
from tests.datasets import make_dataset
from tests.support import Cli, eventually


def test_several_commands_share_the_work(cli: Cli) -> None:
    rows = make_dataset(str(cli.folder / "out"), 40)
    command = ["export", "out", "shards", "--to", "parquet", "--shard-size", "4", "--workers", "2"]
    several = [cli.start(*command, "--json") for _ in range(2)]
    outcomes = [json.loads(one.communicate()[0]) for one in several]
    assert [(one["images"], one["shards"]) for one in outcomes] == [(40, 10)] * 2
    assert sum(one["written"] for one in outcomes) >= 10
    shards = sorted((cli.folder / "shards/train").iterdir())
    assert [shard.name for shard in shards] == [f"{i:05d}.parquet" for i in range(10)]
    found = [job for shard in shards for job in pq.read_table(shard)["job_id"].to_pylist()]
    assert found == [row["job_id"] for row in rows]
    assert "is no condition" in cli(*command, "--where", "1", code=2).stderr


def test_a_killed_export_goes_on(cli: Cli) -> None:
    make_dataset(str(cli.folder / "out"), 400)
    command = ["export", "out", "--to", "webdataset", "--shard-size", "1", "--workers", "1"]
    killed = cli.start(*command, "shards")
    shards = cli.folder / "shards/train"
    eventually(lambda: list(shards.glob("*.parquet")))
    killed.kill()
    killed.communicate()
    there = len(list(shards.glob("*.parquet")))
    assert there < 400
    assert cli.json(*command, "shards")["written"] == 400 - there
    cli(*command, "again")
    again = cli.folder / "again/train"
    assert {path.name: path.read_bytes() for path in shards.glob("[0-9]*")} == {
        path.name: path.read_bytes() for path in again.iterdir()
    }


def test_ctrl_c_ends_an_export_and_its_processes_and_says_how_to_go_on(cli: Cli) -> None:
    make_dataset(str(cli.folder / "out"), 150)
    command = ["export", "out", "to", "--to", "parquet", "--shard-size", "1", "--workers", "2"]
    stopped = cli.start(*command)
    shards = cli.folder / "to/train"
    eventually(lambda: list(shards.glob("*.parquet")))
    parent = psutil.Process(stopped.pid)
    for one in (parent, *parent.children()):  # as a terminal does
        one.send_signal(signal.SIGINT)
    _, told = stopped.communicate(timeout=60)
    assert stopped.returncode == 130
    assert told == "Stopped. Whole shards stay: run the same command again to write the others.\n"
    assert not cli.processes()
    there = len(list(shards.glob("*.parquet")))
    assert cli.json(*command)["written"] == 150 - there


def test_images_are_signed_by_several_processes(cli: Cli) -> None:
    rows = make_dataset(str(cli.folder / "out"), 12)
    key, chain, _ = write_pair(cli.folder)
    command = ["export", "out", "to", "--to", "parquet", "--shard-size", "4", "--workers", "2"]
    assert cli.json(*command, "--sign", key, "--certificate", chain)["written"] == 3
    found = [
        row
        for path in sorted((cli.folder / "to/train").iterdir())
        for row in pq.read_table(path).to_pylist()
    ]
    assert [row["sha256"] for row in found] == [row["sha256"] for row in rows]
    hashes = [sha256(row["image"]["bytes"]).hexdigest() for row in found]
    assert hashes == [row["signed_sha256"] for row in found]
    assert not set(hashes) & {row["sha256"] for row in rows}
    assert "belong together" in cli(*command, "--sign", key, code=2).stderr


def test_from_bucket_to_bucket(cli: Cli, bucket: str) -> None:
    make_dataset(f"{bucket}/out", 6)
    command = ["export", f"{bucket}/out", f"{bucket}/to", "--to", "webdataset"]
    assert cli.json(*command, "--shard-size", "2", "--workers", "2")["written"] == 3
    target = open_storage(f"{bucket}/to")
    before = {name: target.read(name) for name in target.sizes("")}
    target.remove("train/00001.tar")
    assert cli.json(*command, "--shard-size", "2")["written"] == 1
    assert {name: target.read(name) for name in target.sizes("")} == before
    assert not list(Path(cli.folder).glob("tmp*"))


def test_a_suite_from_its_prompts_to_its_scorers_folders(cli: Cli) -> None:
    prompts = [
        {"tag": "colors", "include": [], "prompt": f"a {one} car"} for one in ("red", "blue")
    ]
    lines = "".join(json.dumps(prompt) + "\n" for prompt in prompts)
    (cli.folder / "evaluation_metadata.jsonl").write_text(lines)
    manifest = cli("preset", "geneval", "evaluation_metadata.jsonl").stdout
    (cli.folder / "geneval.jsonl").write_text(manifest)
    cli("run", "geneval.jsonl", "--model", "null", "--out", "out")
    made = cli.json("export", "out", "to", "--layout", "geneval")
    assert (made["prompts"], made["images"], made["written"]) == (2, 8, 10)
    for number, prompt in enumerate(prompts):
        folder = cli.folder / f"to/{number:05d}"
        assert json.loads((folder / "metadata.jsonl").read_text()) == prompt
        assert len(list((folder / "samples").glob("*.png"))) == 4
    assert (
        "0 files of geneval written now" in cli("export", "out", "to", "--layout", "geneval").stdout
    )
    assert "only one of them" in cli("export", "out", "to", code=2).stderr
    text = cli("export", "out", "to", "--layout", "geneval", "--split", "a=1", code=2).stderr
    assert "--where only" in text
    assert "cannot be read" in cli("preset", "dpg", "none.csv", code=2).stderr
