"""What processes write to stderr: lines for people, or JSON with the ids of what they are at."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

LogFormat = Literal["text", "json"]

TEXT = "%(asctime)s %(levelname)s %(message)s"
PROCESS_TEXT = "%(asctime)s %(levelname)s %(processName)s: %(message)s"  # where there are several
_FIELDS = {"asctime": "time", "levelname": "level", "processName": "process", "name": "logger"}

_ids: ContextVar[dict[str, str | int] | None] = ContextVar("ids", default=None)


@contextmanager
def about(**ids: str | int) -> Iterator[None]:
    """Have what this thread logs within the block carry ids: run, shard, chunk, job, request."""
    token = _ids.set({**(_ids.get() or {}), **ids})
    try:
        yield
    finally:
        _ids.reset(token)


def log_to_stderr(form: LogFormat, text: str = TEXT) -> None:
    """Log what we say, and of others only what is wrong. `text`: how lines for people look."""
    logging.basicConfig(level=logging.INFO, format=text, stream=sys.stderr)
    if form == "json":
        for handler in logging.getLogger().handlers:
            handler.setFormatter(_json())
            handler.addFilter(_add_ids)
    for noisy in ("celery", "kombu", "httpx", "diffusers", "transformers"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _json() -> logging.Formatter:
    from pythonjsonlogger.core import RESERVED_ATTRS  # needed by few
    from pythonjsonlogger.orjson import OrjsonFormatter

    return OrjsonFormatter(
        [*_FIELDS, "message"],
        rename_fields=_FIELDS,
        datefmt="%Y-%m-%dT%H:%M:%S%z",
        reserved_attrs=[*RESERVED_ATTRS, "color_message"],  # uvicorn's message with colours
    )


def _add_ids(record: logging.LogRecord) -> bool:
    record.__dict__.update(_ids.get() or {})
    return True
