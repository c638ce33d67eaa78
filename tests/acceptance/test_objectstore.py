"""Manifests and datasets on a real S3 server."""

from __future__ import annotations

from hashlib import sha256

import orjson

from jobs import layout
from jobs.records import read_part
from jobs.storage import open_storage
from tests.support import Cli, circles


def test_dataset_on_s3(cli: Cli, bucket: str) -> None:
    source = open_storage(bucket)
    source.write("manifest.jsonl", b"\n".join(orjson.dumps(line) for line in circles(20)))
    out = f"{bucket}/datasets/circles"
    command = ("run", f"{bucket}/manifest.jsonl", "--out", out, "--model", "null")
    assert cli.json(*command)["summary"]["done"] == 20
    storage = open_storage(out)
    rows = list(read_part(storage, layout.METADATA))
    assert [row["custom_id"] for row in rows] == [f"circle-{i}" for i in range(20)]
    for row in rows:
        assert sha256(storage.read(row["file_name"])).hexdigest() == row["sha256"]
    assert not cli.json(*command)["rendered"]
    assert cli.json("status", out, "--broker", "redis://127.0.0.1:1")["state"] == "finished"
    assert cli("sheet", out).stdout.strip() == f"{out}-sheet.png"
    assert source.read("datasets/circles-sheet.png").startswith(b"\x89PNG")


def test_missing_bucket(cli: Cli, bucket: str) -> None:
    manifest = cli.manifest(*circles(2))
    refused = cli("run", manifest, "--out", f"{bucket}-absent/out", "--model", "null", code=1)
    assert f"{bucket}-absent" in refused.stderr
    assert "Traceback" not in refused.stderr
