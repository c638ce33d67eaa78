"""What `imagemill doctor` says when all is well, and of each thing that is not."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import boto3
import orjson
import pytest
from click.testing import Result
from packaging.requirements import Requirement
from typer.testing import CliRunner

from jobs.broker.connection import connect
from jobs.models.table import load_models
from jobs.output.storage import Storage
from jobs.settings import Settings
from producer.cli import make_cli
from producer.upkeep.doctor import WORKERS_OWN, Finding, Wanted, examine
from tests.sites import MODELS


@pytest.fixture
def models(tmp_path: Path) -> Path:
    path = tmp_path / "models.toml"
    path.write_text(MODELS + '[models.far]\nrepo = "/nowhere/at-all"\n')
    return path


def doctor(*options: object) -> Result:
    return CliRunner().invoke(make_cli(), ["doctor", *map(str, options)])


def look(settings: Settings, *locations: object) -> dict[str, list[Finding]]:
    """The findings by state, without those of devices, which cost a process."""
    wanted = Wanted([str(one) for one in locations], "cpu")
    found: dict[str, list[Finding]] = {"ok": [], "note": [], "wrong": []}
    for one in examine(settings, load_models(settings.models), wanted):
        found[one.state].append(one)
    return found


def test_a_sound_installation_in_s3(broker: str, bucket: str, models: Path, tmp_path: Path) -> None:
    done = doctor(
        "--store", tmp_path / "store", "--out", f"{bucket}/run", "--broker", broker,
        "--models-file", models, "--devices", "cpu",
    )  # fmt: skip
    assert done.exit_code == 0, done.stdout
    lines = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert not [line for line in lines if line.startswith("wrong")]
    assert f"ok     storage {bucket}/run: writes, reads, lists and deletes" in lines
    assert "ok     devices: cpu0" in lines
    assert any(line.startswith("note   model far: ") for line in lines)
    assert any("appendonly is off" in line for line in lines)
    assert boto3.client("s3").list_objects_v2(Bucket=bucket.removeprefix("s3://"))["KeyCount"] == 0
    assert not list((tmp_path / "store").iterdir())


def test_everything_that_is_wrong_is_said_with_what_to_do(
    bucket: str, models: Path, tmp_path: Path
) -> None:
    done = doctor(
        "--json", "--out", f"{bucket}-which-is-none/run", "--out", "/proc/none",
        "--broker", f"redis+socket://{tmp_path}/none.sock", "--models-file", models,
        "--models", "far,unheard-of", "--devices", "77",
    )  # fmt: skip
    assert done.exit_code == 1
    found = orjson.loads(done.stdout)
    wrong = {one["what"].split()[0] + one["what"][-6:]: one for one in found
             if one["state"] == "wrong"}  # fmt: skip
    assert len(wrong) == len([one for one in found if one["state"] == "wrong"]) == 6
    assert all(one["hint"] for one in wrong.values() if "unheard" not in one["what"])


def test_a_user_without_the_rights(broker: str, models: Path) -> None:
    client = connect(Settings(broker=broker))
    client.execute_command(
        "ACL SETUSER low on >secret resetkeys ~other:* resetchannels +@all -@dangerous"
    )
    url = f"{broker.replace('redis+socket://', 'redis+socket://low:secret@')}"
    try:
        wrong = look(Settings(broker=url, models=models))["wrong"]
        refused = look(Settings(broker=url.replace("secret", "guess"), models=models))["wrong"]
    finally:
        client.execute_command("ACL DELUSER low")
    assert any("may not SET, GET, LPUSH" in one.detail for one in wrong)
    assert any("password" in one.hint for one in refused)
    assert "guess" not in str(refused)


def test_a_broker_that_may_drop_queues(broker: str, models: Path) -> None:
    client = connect(Settings(broker=broker))
    client.config_set("maxmemory", "1gb")
    client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        found = look(Settings(broker=broker, models=models))
    finally:
        client.config_set("maxmemory", 0)
        client.config_set("maxmemory-policy", "noeviction")
    assert any("allkeys-lru" in one.detail for one in found["wrong"])


def test_a_store_whose_clock_is_off(
    broker: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Storage.modified
    monkeypatch.setattr(Storage, "modified", lambda self, path: right(self, path) - 900)
    (clock,) = look(Settings(broker=broker, models=models), tmp_path / "out")["wrong"]
    assert "its clock is" in clock.detail
    assert "Synchronise" in clock.hint


def test_what_workers_alone_need_is_what_the_image_without_torch_lacks() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    everything = {Requirement(one).name for one in project["project"]["dependencies"]}
    producer = {Requirement(one).name for one in project["dependency-groups"]["producer"]}
    assert everything - producer == WORKERS_OWN


def test_an_installation_without_what_workers_need_is_the_producer_only(
    broker: str, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = set(WORKERS_OWN)

    def version(name: str, ask: Callable[[str], str] = metadata.version) -> str:
        if name in lacking:
            raise metadata.PackageNotFoundError(name)
        return ask(name)

    monkeypatch.setattr(metadata, "version", version)
    found = look(Settings(broker=broker, models=models))
    assert "versions" in {one.what for one in found["ok"]}
    (devices,) = [one for one in found["note"] if one.what == "devices"]
    assert "producer only" in devices.detail
    lacking.remove("torch")  # a worker's, of which a part is gone
    (versions,) = look(Settings(broker=broker, models=models))["wrong"]
    assert "diffusers is missing" in versions.detail
    assert "torch is missing" not in versions.detail
