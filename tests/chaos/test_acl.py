"""A shared server: the rules of docs/14-security.md are enough; seals and TLS keep others out."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import trustme
from pydantic import SecretStr

from jobs.broker.backlog import Backlog
from jobs.broker.connection import connect
from jobs.errors import FatalError
from jobs.settings import Settings
from tests.chaos.ledger import Ledger
from tests.chaos.proxies import tls_link
from tests.chaos.servers import Valkey
from tests.sites import MODELS, Site, queue_chunks
from tests.support import eventually

GUIDE = Path(__file__).parents[2] / "docs/14-security.md"


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """An installation whose users have just the rights that the guide gives them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "models.toml").write_text(MODELS)
    valkey = Valkey(tmp_path, aof=False)
    valkey.start()
    admin = connect(Settings(broker=valkey.url))
    rules = [
        line for line in GUIDE.read_text().splitlines() if line.startswith("ACL SETUSER imagemill-")
    ]
    assert len(rules) == 2
    for rule in rules:
        admin.execute_command(*rule.split())
    site = Site(tmp_path, as_user(valkey, tmp_path, "producer"))
    site.settings = as_user(valkey, tmp_path, "worker")
    yield site
    for worker in site.workers:
        worker.kill()
        worker.wait()
    valkey.stop()


def as_user(valkey: Valkey, folder: Path, name: str) -> Settings:
    url = valkey.url.replace("redis://", f"redis://imagemill-{name}:SECRET@")
    return Settings(broker=url, models=folder / "models.toml", visibility_timeout=5)


def test_the_rules_are_enough(shared: Site, ledger: Ledger) -> None:
    """every right on the server but those of docs/14-security.md."""
    ledger.times = 1
    shared.start_worker("slow")
    shared.start(shared.plan("run", "slow", list(range(4)), chunk=2))
    shared.wait("run")
    ledger.check(shared, "run", list(range(4)))
    assert "No permissions" not in shared.log(shared.workers[0])


@pytest.mark.parametrize(
    "command",
    ["FLUSHALL", "KEYS *", "CONFIG GET *", "GET other", "SET other 1", "ACL LIST", "SHUTDOWN"],
)
def test_the_rules_are_no_more(shared: Site, command: str) -> None:
    for client in (shared.client, connect(shared.settings)):  # the producer's, the worker's
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.execute_command(*command.split())


def test_seals(site: Site, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """messages and runs of somebody who does not know the secret."""
    monkeypatch.setenv("IMAGEMILL_BROKER_SECRET", "of the installation")
    secret = {"broker_secret": SecretStr("of the installation")}
    ours = Site(site.folder, site.settings.model_copy(update=secret))
    theirs = site
    theirs.workers.append(ours.start_worker("null"))
    ours.start(ours.plan("ours", "null", list(range(8)), chunk=4))
    ours.wait("ours")
    ledger.check(ours, "ours", list(range(8)))

    backlog = Backlog(ours.client, ours.settings.key_prefix)
    queue_chunks(theirs.dispatcher, "ours", 1, 0, "null", [0])
    eventually(lambda: backlog.quarantined() == 1)
    # A run of theirs, and a way to have a worker of ours look at it.
    epoch = theirs.runs.open(theirs.plan("theirs", "null", [1], chunk=1), "/tmp", [])
    queue_chunks(ours.dispatcher, "theirs", epoch, 0, "null", [0])
    state = f"{ours.settings.key_prefix}run:theirs"
    eventually(lambda: ours.client.hget(state, "state") == b"paused")
    with pytest.raises(FatalError, match="was not written by this installation"):
        ours.progress("theirs")
    ledger.times = 2


def test_tls(shared: Site, ledger: Ledger, tmp_path: Path) -> None:
    """a network that everybody reads."""
    authority, stranger = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    stranger.cert_pem.write_to_path(tmp_path / "stranger.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    place = shared.settings.broker.partition("@")[2]
    with tls_link(int(place.partition(":")[2].partition("/")[0]), context) as port:

        def secured(settings: Settings, ca: str) -> Settings:
            user = settings.broker.removeprefix("redis://").partition("@")[0]
            url = f"rediss://{user}@localhost:{port}/0?ssl_cert_reqs=required&ssl_ca_certs="
            return settings.model_copy(update={"broker": f"{url}{tmp_path}/{ca}"})

        with pytest.raises(redis.exceptions.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
            connect(secured(shared.settings, "stranger.pem")).ping()
        site = Site(tmp_path, secured(shared.settings, "ca.pem"), workers=shared.workers)
        site.start_worker("slow")
        site.start(site.plan("run", "slow", list(range(4)), chunk=2))
        site.wait("run")
        ledger.check(site, "run", list(range(4)))
    ledger.times = 1
