"""What tests of several tiers share: waiting with a deadline, and the real command line."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import orjson
import psutil

T = TypeVar("T")

COMMAND_SECONDS = 120.0


def eventually(probe: Callable[[], T], seconds: float = 30.0) -> T:
    """The first true value of `probe`; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := probe()):
        assert time.monotonic() < deadline, f"still {found!r} after {seconds} s"
        time.sleep(0.02)
    return found


@dataclass(frozen=True)
class Cli:
    """`imagemill` as a user runs it: its own process, in a folder of its own.

    Every process that it starts, however deep, carries `mark` in its environment or, as Valkey
    overwrites that, works in a temporary folder below `folder`.
    """

    folder: Path
    mark: str

    def __call__(self, *args: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; its exit code must be `code`."""
        done = subprocess.run(
            self._command(args),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
        )
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *args: object, code: int = 0) -> Any:
        """Run a command with --json and return what it printed."""
        return json.loads(self(*args, "--json", code=code).stdout)

    def imports(self, *args: object) -> set[str]:
        """The modules that a command loads."""
        command = self._command(args)
        traced = subprocess.run(
            [command[0], "-X", "importtime", *command[1:]],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=True,
        )
        lines = traced.stderr.splitlines()
        return {line.rsplit("|", 1)[-1].strip() for line in lines if line.startswith("import time")}

    def start(self, *args: object) -> subprocess.Popen[str]:
        """Start a command and return at once."""
        return subprocess.Popen(
            self._command(args),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def processes(self) -> list[psutil.Process]:
        """Every living process that any command of this test has started."""
        return [p for p in psutil.process_iter() if self._is_ours(p)]

    def manifest(self, *lines: dict[str, Any], name: str = "manifest.jsonl") -> Path:
        """Write a manifest."""
        path = self.folder / name
        path.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
        return path

    @staticmethod
    def _command(args: Iterable[object]) -> list[str]:
        return [sys.executable, "-m", "producer", *map(str, args)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            marked = process.environ().get("IMAGEMILL_TEST_MARK") == self.mark
            return marked or process.cwd().startswith(f"{self.folder}/")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False


def circles(count: int) -> list[dict[str, Any]]:
    """Manifest lines that differ in custom_id, prompt and derived seed."""
    return [
        {"custom_id": f"circle-{i}", "prompt": f"a red circle on a blue background {i}"}
        for i in range(count)
    ]


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def alive(process: psutil.Process) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
