"""Does something again and again while a block runs, such as renewing what it holds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

import redis

log = logging.getLogger(__name__)


@contextmanager
def heartbeat(name: str, seconds: float, beat: Callable[[], object]) -> Iterator[None]:
    """Call `beat` every so many seconds, in a thread. When Redis is away, it is called later."""
    done = Event()

    def run() -> None:
        while not done.wait(seconds):
            try:
                beat()
            except redis.RedisError as error:
                log.warning("Redis did not answer, for the %s: %s", name, error)

    thread = Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
