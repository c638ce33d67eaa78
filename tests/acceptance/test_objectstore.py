"""Manifests and datasets on a real S3 server."""

from __future__ import annotations

import os
from base64 import b64decode
from hashlib import sha256
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import orjson
import pytest

from jobs.output import layout
from jobs.output.records import read_part
from jobs.output.storage import open_storage
from tests.facades import make_premises, picture, stop
from tests.support import Cli, circles


def test_dataset_on_s3(cli: Cli, bucket: str) -> None:
    source = open_storage(bucket)
    source.write("manifest.jsonl", b"\n".join(orjson.dumps(line) for line in circles(20)))
    out = f"{bucket}/datasets/circles"
    command = ("run", f"{bucket}/manifest.jsonl", "--out", out, "--model", "null")
    summary = cli.json(*command)["summary"]
    assert summary["done"] == 20
    storage = open_storage(out)
    rows = list(read_part(storage, layout.METADATA))
    assert [row["custom_id"] for row in rows] == [f"circle-{i}" for i in range(20)]
    for row in rows:
        assert sha256(storage.read(row["file_name"])).hexdigest() == row["sha256"]
    storage.remove(rows[0]["file_name"])
    again = cli(*command).stdout  # it is not listed
    assert f"imagemill fsck {out} looks whether their files are there" in again
    cli("fsck", out, "--repair")
    assert not cli.json(*command)["rendered"]
    assert sha256(storage.read(rows[0]["file_name"])).hexdigest() == rows[0]["sha256"]
    assert cli.json("status", out, "--broker", "redis://127.0.0.1:1")["state"] == "finished"
    (used,) = cli.json("usage", bucket)
    assert (used["name"], used["images"]) == ("null", 20)
    assert cli("sheet", out).stdout.strip() == f"{out}-sheet.png"
    assert source.read("datasets/circles-sheet.png").startswith(b"\x89PNG")


def test_missing_bucket(cli: Cli, bucket: str) -> None:
    manifest = cli.manifest(*circles(2))
    refused = cli("run", manifest, "--out", f"{bucket}-absent/out", "--model", "null", code=2)
    assert f"storage {bucket}-absent/out does not exist" in refused.stderr
    assert "Create the bucket" in refused.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("plan", "s3://bucket/m.jsonl"),
        ("run", "m.jsonl", "--out", "s3://bucket/out"),
        ("status", "s3://bucket/out"),
    ],
    ids=lambda command: command[0],
)
def test_no_credentials(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    (cli.folder / "m.jsonl").write_text('{"prompt": "x", "model": "null"}')
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "absent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "absent")
    said = cli(*command, code=2).stderr
    assert "storage s3://bucket/" in said
    assert ": no credentials" in said
    assert "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in said


def test_facade_on_s3(tmp_path: Path, bucket: str) -> None:
    premises = make_premises(tmp_path)
    token = premises.key("red")
    server, url = premises.serve("up", "--models", "null", "--store", f"{bucket}/facade")
    headers = {"Authorization": f"Bearer {token}"}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=30) as client:
            body = {"model": "null", "prompt": "p", "seed": 7, "num_inference_steps": 8}
            answer = client.post("/dedicated/v1/images/generations", json=body)
            (item,) = answer.raise_for_status().json()["data"]
            # Straight from the object store, by whoever has the URL, for an hour.
            assert item["url"].startswith(os.environ["AWS_ENDPOINT_URL"])
            query = parse_qs(urlsplit(item["url"]).query)
            assert "X-Amz-Signature" in query or "Signature" in query
            image = httpx.get(item["url"]).raise_for_status().content
            body["response_format"] = "jpeg"
            answer = client.post("/dedicated/v1/images/generations", json=body)
            assert b64decode(answer.json()["data"][0]["b64_json"]) == image

            form = {"image": ("a.png", picture(), "image/png")}
            fields = {"model": "null", "prompt": "p", "num_inference_steps": "8"}
            edited = client.post("/dedicated/v1/images/edits", data=fields, files=form)
            assert httpx.get(edited.json()["data"][0]["url"]).content.startswith(b"\xff\xd8")
    finally:
        stop(server, premises.log("up"))
