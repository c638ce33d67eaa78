"""The HTTP facade as its users meet it: server processes in a folder of their own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import httpx
from PIL import Image

from tests.support import eventually

MODELS = """
default = "null"
aliases = { gpt-image-1 = "null", dall-e-2 = "null", dall-e-3 = "null:ink", "org/slow" = "slow" }

[models.null]
repo = "null:"
takes = ["generate", "edit", "negative_prompt", "guidance_scale", "strength"]
batch_width = 4
call_slots = [1, 4]
max_inputs = 16
size = [64, 64]
steps = 8
threads = 1
seconds_per_image = 0.01
adapters.ink.repo = "ink.safetensors"

[models.slow]
repo = "null:"
takes = ["generate"]
batch_width = 4
size = [64, 64]
steps = 8
threads = 1
seconds_per_image = 0.01
options = { sleep = 0.25 }

[models.absent]
repo = "org/absent"
takes = ["generate"]
seconds_per_image = 0.01

[models.plain]
repo = "null:"
takes = ["generate"]
size = [32, 32]
steps = 4
threads = 1
seconds_per_image = 0.01
"""


@dataclass(frozen=True)
class Premises:
    """A folder with a models table, keys and a store; commands run in it."""

    folder: Path

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def environment(self, extra: Mapping[str, str] = {}) -> dict[str, str]:
        return {
            **os.environ,
            "IMAGEMILL_KEYS_FILE": str(self.folder / "keys.json"),
            "IMAGEMILL_SIGNING_FILE": str(self.folder / "signing.key"),
            "IMAGEMILL_MODELS": str(self.folder / "models.toml"),
            "IMAGEMILL_STORE": str(self.store),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "TMPDIR": str(self.folder),
            **extra,
        }

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "producer", *args],
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )

    def key(self, *teams: str) -> str:
        """A new token of these teams."""
        options = [option for team in teams for option in ("--team", team)]
        done = self.run("keys", "create", *options)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def start(self, *args: str, **extra: str) -> subprocess.Popen[bytes]:
        """Start a command; what it says goes to a log of its own."""
        with self.log(args[0]).open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "producer", *args],
                cwd=self.folder,
                env=self.environment(extra),
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def serve(self, *args: str, **extra: str) -> tuple[subprocess.Popen[bytes], str]:
        """Start `serve` or `up`; returns when it is ready, with its URL."""
        process = self.start(args[0], "--port", "0", *args[1:], **extra)

        def url() -> str | None:
            text = self.log(args[0]).read_text()
            assert process.poll() is None, text
            found = re.search(r"Ready: (http://\S+)", text)
            return found[1] if found else None

        return process, eventually(url, 60)


@dataclass(frozen=True)
class Facade:
    """A running facade. Tokens: `red` is of the teams red and blue, `green` of green."""

    premises: Premises
    url: str
    red: str
    green: str

    def post(self, path: str, body: object, token: str | None = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.red if token is None else token}"}
        return httpx.post(self.url + path, json=body, headers=headers, timeout=30)

    def get(self, path: str, token: str | None = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.red if token is None else token}"}
        return httpx.get(self.url + path, headers=headers, timeout=30)


def make_premises(folder: Path) -> Premises:
    (folder / "models.toml").write_text(MODELS)
    (folder / "ink.safetensors").write_bytes(b"")  # models without weights load none
    return Premises(folder)


def stop(process: subprocess.Popen[bytes], log: Path) -> None:
    """Ctrl-C ends a facade cleanly."""
    process.send_signal(signal.SIGINT)
    try:
        code = process.wait(30)
    finally:
        process.kill()
    assert code == 0, log.read_text()


def picture(colour: str = "red", size: tuple[int, int] = (48, 32)) -> bytes:
    """A PNG file."""
    file = BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()
