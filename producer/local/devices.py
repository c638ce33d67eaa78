"""Which devices this machine has: asked of the worker's side, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import orjson

from jobs.errors import FatalError

SECONDS = 120.0


def device_names(devices: str) -> list[str]:
    """The devices that `--devices` names: one worker each.

    Raises:
        FatalError: there are none of these, or they do not answer.
    """
    command = [sys.executable, "-P", "-m", "worker.process.devices", devices]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise FatalError(
            f"they do not answer within {SECONDS:.0f} s",
            "Look at nvidia-smi; restart the machine if that hangs as well.",
        ) from error
    if done.returncode:
        message, _, hint = done.stderr.strip().partition("\n")
        raise FatalError(message, hint)
    names: list[str] = orjson.loads(done.stdout)
    return names
