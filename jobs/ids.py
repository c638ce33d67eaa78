"""Identities and seeds, all derived from content and never from a position in a batch.

Every hash is BLAKE2b (RFC 7693) with a `person` tag, so that two kinds of identity never collide.
"""

from __future__ import annotations

import re
from hashlib import blake2b

# What may become part of a path, wherever it was read.
COMMIT = re.compile(r"[0-9a-f]{40}")  # of a repository
RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
JOB_ID = re.compile(r"[0-9a-f]{32}")
SCORER = re.compile(r"[a-z][a-z0-9_-]{0,31}")  # the name of one
COLUMN = re.compile(r"[a-z][a-z0-9_]{0,63}")  # of scores
STORED_INPUT = re.compile(r"sha256:([0-9a-f]{64})")  # a reference to an input in storage

DERIVED_SEED_BITS = 53  # exact in JSON readers that keep numbers as doubles


def derive_seed(run_seed: int, name: bytes) -> int:
    """A seed in [0, 2**53) for the request that `name` (its custom_id or content) stands for."""
    salt = run_seed.to_bytes(16, "little")
    digest = blake2b(name, digest_size=8, salt=salt, person=b"seed").digest()
    return int.from_bytes(digest, "little") >> (64 - DERIVED_SEED_BITS)


def draw(run_seed: int, image: str, name: str) -> float:
    """A point in [0, 1) for what an image samples under a name."""
    salt = run_seed.to_bytes(16, "little")
    content = f"{image}\0{name}".encode()
    digest = blake2b(content, digest_size=8, salt=salt, person=b"draw").digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53


def short_digest(text: str) -> str:
    """16 hexadecimal digits that stand for a text."""
    return blake2b(text.encode(), digest_size=8, person=b"text").hexdigest()


def job_id(content: bytes) -> str:
    """32 hexadecimal digits for a request's canonical form, its model's fingerprint included."""
    return blake2b(content, digest_size=16, person=b"job").hexdigest()


def run_id(content: bytes) -> str:
    """12 hexadecimal digits for a manifest and everything that decides what becomes of it."""
    return blake2b(content, digest_size=6, person=b"run").hexdigest()
