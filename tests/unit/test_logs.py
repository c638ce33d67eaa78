"""JSON logs: one object a line, with the ids of what a thread is at."""

from __future__ import annotations

import subprocess
import sys

import orjson

PROGRAM = """
import logging
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from jobs.logs import about, log_to_stderr

log_to_stderr("json")
log = logging.getLogger("worker.tasks")
with about(run="abc", shard=1), about(chunk=2):
    log.info("of a chunk", extra={"job": "j", "color_message": "\\033[1m"})
    with ThreadPoolExecutor(1) as device:
        device.submit(copy_context().run, log.warning, "on the device").result()
        device.submit(log.warning, "of another thread").result()
try:
    raise ValueError("two\\nlines")
except ValueError:
    log.exception("broken \\u00e4")
logging.getLogger("kombu").info("of no interest")
"""


def test_lines_are_objects_with_ids() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True)
    chunk, device, other, broken = map(orjson.loads, done.stderr.splitlines())
    ids = {"run": "abc", "shard": 1, "chunk": 2}
    assert chunk.items() >= {"message": "of a chunk", "level": "INFO", "job": "j", **ids}.items()
    assert "color_message" not in chunk
    assert device.items() >= ids.items()
    assert not other.keys() & ids.keys()
    assert "two\nlines" in broken["exc_info"]
    assert {"time", "level", "logger", "process", "message"} <= chunk.keys()
