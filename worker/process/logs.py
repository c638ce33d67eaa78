"""What a worker's processes write to stderr."""

from __future__ import annotations

import logging


def log_plainly(**_: object) -> None:
    """Log what we say, and of others only what is wrong."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(processName)s: %(message)s"
    )
    for noisy in ("celery", "kombu", "httpx", "diffusers", "transformers"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
