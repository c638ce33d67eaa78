"""Brokers of several kinds: those that work, and those that say what would."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from jobs.broker.connection import connect
from jobs.errors import Exit, FatalError
from jobs.settings import Settings
from tests.chaos.servers import Valkey, free_port
from tests.sites import MODELS, Site
from tests.support import Cli, eventually


@pytest.fixture
def valkey(cli: Cli) -> Iterator[Valkey]:  # ends before the command line does
    server = Valkey(cli.folder, aof=False)
    yield server
    if server.process:
        server.process.kill()
        server.process.wait()


@pytest.mark.parametrize(
    ("mode", "hint"),
    [("--cluster-enabled yes --cluster-port {}", "sentinel://"), ("--sentinel", "master_name")],
)
def test_what_cannot_work_is_refused(valkey: Valkey, cli: Cli, mode: str, hint: str) -> None:
    file = cli.folder / "valkey.conf"
    file.write_text("")
    valkey.run(str(file), *mode.format(free_port()).split())
    settings = Settings(broker=valkey.url)
    with pytest.raises(FatalError, match="the broker is a"):
        connect(settings).ping()

    manifest = cli.manifest({"prompt": "a"})
    for command in (
        ("submit", manifest, "--out", "out", "--broker", valkey.url),
        ("worker", "--broker", valkey.url),
        ("serve", "--broker", valkey.url, "--store", "store"),
    ):
        refused = cli(*command, code=Exit.HOPELESS if "worker" in command else 1).stderr
        assert "Traceback" not in refused
        assert hint in refused
    assert hint in cli("doctor", "--broker", valkey.url, code=1).stdout


def test_a_password_that_is_renewed(
    valkey: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "models.toml").write_text(MODELS)
    file = tmp_path / "password"
    file.write_text("first\n")
    valkey.options = ["--requirepass", "first"]
    valkey.user = ":first@"
    valkey.start()
    admin = connect(Settings(broker=valkey.url))
    url = f"redis://127.0.0.1:{valkey.port}/0"
    site = Site(
        tmp_path,
        Settings(broker=url, broker_password_file=file, models=tmp_path / "models.toml"),
    )
    try:
        site.start_worker("slow")
        site.start(site.plan("run", "slow", list(range(16)), chunk=4))
        site.wait_for_images("run", 2)
        admin.config_set("requirepass", "second")
        file.write_text("second\n")
        admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        eventually(lambda: _finished(site))
        assert "authentication" not in site.log(site.workers[0])
        file.unlink()
        with pytest.raises(redis.AuthenticationError, match="broker_password_file"):
            connect(site.settings).ping()
    finally:
        for worker in site.workers:
            worker.kill()
            worker.wait()


def _finished(site: Site) -> bool:
    try:
        return site.progress("run").state == "finished"
    except redis.RedisError:
        return False
