"""docker-compose.yml without an engine: each service's very command and environment, as processes.

Hosts, ports and mounted paths are this machine's, the store is the tests' own. Services of the
image `producer` run where nothing is installed but its packages.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import urllib.request
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from io import BytesIO
from pathlib import Path
from typing import Any

import boto3
import orjson
import PIL.Image
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from jobs.output.storage import open_storage
from tests.chaos.servers import Valkey, free_port
from tests.collector import collecting
from tests.conftest import CREDENTIALS
from tests.support import eventually

ROOT = Path(__file__).parents[2]
CONTAINER = Path(__file__).parent / "container"
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
TOKENS = {"api_keys": "secret-of-callers@vision", "metrics_token": "secret-of-prometheus"}
PORTS = {"facade": "8000", "exporter": "9464"}

SCHEDULES = b"""
state = "s3://imagemill/schedules"
[schedules.yearly]
cron = "0 0 1 1 *"
manifest = "s3://imagemill/{date}.jsonl"
out = "s3://imagemill/yearly/{date}"
"""


def installed(names: list[str]) -> set[str]:
    """Distributions that these need, themselves included."""
    found, left = set[str](), [Requirement(name) for name in names]
    while left:
        one = left.pop()
        name = canonicalize_name(one.name)
        if name in found or (one.marker and not one.marker.evaluate({"extra": ""})):
            continue
        try:
            needs = [Requirement(need) for need in requires(name) or ()]
        except PackageNotFoundError:
            continue  # for another platform
        found.add(name)
        wanted = ["", *one.extras]
        left += [
            Requirement(str(need).partition(";")[0])
            for need in needs
            if need.marker is None or any(need.marker.evaluate({"extra": e}) for e in wanted)
        ]
    return found


def lacking() -> set[str]:
    """Modules that the worker's image has and the producer's has not."""
    ours = installed(PROJECT["project"]["dependencies"])
    lean = installed(PROJECT["dependency-groups"]["producer"])
    return {
        module
        for module, of in packages_distributions().items()
        if (names := {canonicalize_name(one) for one in of}) <= ours and not names & lean
    }


@dataclass
class Machine:
    """Where services run as processes."""

    folder: Path
    broker: Valkey
    endpoint: str
    ports: dict[str, str] = field(default_factory=lambda: {k: str(free_port()) for k in PORTS})
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def here(self, text: str) -> str:
        """A text of the file with this machine's places."""
        places = {
            "redis://broker:6379": f"redis://127.0.0.1:{self.broker.port}",
            "http://store:7070": self.endpoint,
            "/run/secrets/": f"{self.folder}/secrets/",
            "/keys/": f"{self.folder}/keys/",
        } | {f":{PORTS[name]}/": f":{port}/" for name, port in self.ports.items()}
        for theirs, ours in places.items():
            text = text.replace(theirs, ours)
        return text.replace("${IMAGEMILL_LOG_FORMAT:-text}", "text").replace(
            "${IMAGEMILL_SCHEDULES:-s3://imagemill/schedules.toml}",
            "s3://imagemill/schedules.toml",
        )

    def start(self, name: str) -> subprocess.Popen[bytes]:
        service = COMPOSE["services"][name]
        given = {
            key: self.here(os.environ[key] if value is None else value)
            for key, value in service["environment"].items()
            if value is not None or key in os.environ
        }
        assert not any("${" in value for value in given.values())
        secrets = self.folder / f"secrets-of-{name}"
        secrets.mkdir()
        for secret in service.get("secrets", []):
            if isinstance(secret, dict):
                (secrets / secret["target"]).write_text(TOKENS[secret["source"]])
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "PYTHONPATH": os.pathsep.join([str(CONTAINER), str(ROOT)]),
            "CONTAINER_SECRETS": str(secrets),
            "CONTAINER_LACKS": ",".join(lacking()) if self.is_lean(name) else "-",
            "OMP_WAIT_POLICY": "PASSIVE",
            **given,
        }
        port = ["--port", self.ports[name]] if name in self.ports else []
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [*service["command"], *port], cwd=ROOT, env=environment, stdout=log, stderr=log
            )
        self.processes.append(process)
        return process

    @staticmethod
    def is_lean(name: str) -> bool:
        return bool(COMPOSE["services"][name]["build"]["target"] == "producer")

    def is_healthy(self, name: str) -> bool:
        """What the service's own health check says."""
        command = COMPOSE["services"][name]["healthcheck"]["test"]
        done = subprocess.run(
            [sys.executable, *map(self.here, command[2:])], capture_output=True, check=False
        )
        return done.returncode == 0

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def ask(self, name: str, path: str, token: str = "", body: Any = None) -> bytes:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.ports[name]}{path}",
            orjson.dumps(body) if body else None,
            {"Content-Type": "application/json", "Authorization": f"Bearer {token}"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return bytes(answer.read())


@pytest.fixture
def machine(bucket: str, tmp_path: Path) -> Iterator[Machine]:
    """A started broker, by its own command, and store."""
    assert bucket  # credentials and endpoint are in the environment
    boto3.client("s3").create_bucket(Bucket="imagemill")
    command = COMPOSE["services"]["broker"]["command"]
    broker = Valkey(tmp_path, aof=True)
    assert command[0] == "valkey-server"
    broker.run(*command[1:])
    (tmp_path / "secrets").mkdir()
    (tmp_path / "keys").mkdir()
    (tmp_path / "secrets/aws_credentials").write_text(
        f"[default]\naws_access_key_id = {CREDENTIALS['AWS_ACCESS_KEY_ID']}\n"
        f"aws_secret_access_key = {CREDENTIALS['AWS_SECRET_ACCESS_KEY']}\n"
    )
    machine = Machine(tmp_path, broker, os.environ["AWS_ENDPOINT_URL"])
    yield machine
    for process in machine.processes:
        process.terminate()
    for process in machine.processes:
        process.wait(60)
    broker.stop()


def test_a_manifest_and_a_call_go_through(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {"torch", "diffusers", "celery"} <= lacking()
    with collecting() as collector:
        monkeypatch.setenv("IMAGEMILL_TRACES", collector.url)
        go_through(machine)
        traced = {"imagemill-facade", "imagemill-worker"}
        eventually(lambda: {service for service, _ in collector.spans} == traced)


def go_through(machine: Machine) -> None:
    storage = open_storage("s3://imagemill")
    storage.write(
        "schedules.toml",
        b"""
state = "s3://imagemill/schedules"
[schedules.yearly]
cron = "0 0 1 1 *"
manifest = "s3://imagemill/{date}.jsonl"
out = "s3://imagemill/yearly/{date}"
""",
    )
    for name in ("worker-cpu", "facade", "exporter", "scheduler"):
        machine.start(name)
    demo = machine.start("demo")
    assert demo.wait(150) == 0, machine.log("demo") + machine.log("worker-cpu")
    rows = storage.read("demo/metadata.jsonl").splitlines()
    assert len(rows) == 64

    eventually(lambda: machine.is_healthy("facade"))
    eventually(lambda: machine.is_healthy("exporter"))
    call = {"prompt": "a large red circle on a blue background"}
    answer = machine.ask("facade", "/v1/images/generations", "secret-of-callers", call)
    image = b64decode(orjson.loads(answer)["image"])
    assert PIL.Image.open(BytesIO(image)).size == (64, 64)
    done = b'imagemill_requests_total{code="",model="shapes",status="done"} 65.0'
    eventually(lambda: done in machine.ask("exporter", "/metrics"))
    assert done in machine.ask("facade", "/metrics", "secret-of-prometheus")
    (scheduler,) = (one for one in machine.processes if "schedule" in one.args)
    assert scheduler.poll() is None, machine.log("scheduler")
    assert storage.list("schedules/yearly"), machine.log("scheduler")
