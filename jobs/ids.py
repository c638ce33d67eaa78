"""Identities and seeds, all derived from content and never from a position in a batch.

Every hash is BLAKE2b (RFC 7693) with a `person` tag, so that two kinds of identity never collide.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from hashlib import blake2b

# What may become part of a path, wherever it was read.
COMMIT = re.compile(r"[0-9a-f]{40}")  # of a repository
RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
JOB_ID = re.compile(r"[0-9a-f]{32}")
SCORER = re.compile(r"[a-z][a-z0-9_-]{0,31}")  # the name of one
COLUMN = re.compile(r"[a-z][a-z0-9_]{0,63}")  # of scores
STORED_INPUT = re.compile(r"sha256:([0-9a-f]{64})")  # a reference to an input in storage

DERIVED_SEED_BITS = 53  # exact in JSON readers that keep numbers as doubles

SEEDS = 2**64  # as many as torch.Generator.manual_seed takes


def name_hasher(run_seed: int) -> Callable[[bytes], int]:
    """What gives 64 bits for what stands for a request, its custom_id or content. From them its
    seed is derived."""
    hash_names = names_hasher(run_seed)
    return lambda name: int.from_bytes(hash_names((name,)), "little")


def names_hasher(run_seed: int) -> Callable[[Iterable[bytes]], bytes]:
    """The same of many, in two thirds of the time: 8 bytes for each, the least first."""
    begun = blake2b(digest_size=8, salt=run_seed.to_bytes(16, "little"), person=b"seed")

    def hash_names(names: Iterable[bytes]) -> bytes:
        digests: list[bytes] = []
        for name in names:
            digest = begun.copy()
            digest.update(name)
            digests.append(digest.digest())
        return b"".join(digests)

    return hash_names


def derived_seed(hashed: int) -> int:
    """The seed in [0, 2**53) that follows from a name's hash."""
    return hashed >> (64 - DERIVED_SEED_BITS)


def seed_deriver(run_seed: int) -> Callable[[bytes], int]:
    """What derives a seed for each request, given what stands for it."""
    hash_name = name_hasher(run_seed)
    return lambda name: derived_seed(hash_name(name))


def draw(run_seed: int, image: str, name: str) -> float:
    """A point in [0, 1) for what an image samples under a name."""
    salt = run_seed.to_bytes(16, "little")
    content = f"{image}\0{name}".encode()
    digest = blake2b(content, digest_size=8, salt=salt, person=b"draw").digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53


def short_digest(text: str) -> str:
    """16 hexadecimal digits that stand for a text."""
    return blake2b(text.encode(), digest_size=8, person=b"text").hexdigest()


def job_identifier(beginning: bytes) -> Callable[[bytes], str]:
    """What gives 32 hexadecimal digits for each request's canonical form, its model's fingerprint
    included, given the rest of it. To begin anew for each takes twice as long."""
    begun = blake2b(beginning, digest_size=16, person=b"job")

    def identify(rest: bytes) -> str:
        digest = begun.copy()
        digest.update(rest)
        return digest.hexdigest()

    return identify


def job_id(content: bytes) -> str:
    """The same, of the whole of it."""
    return job_identifier(content)(b"")


def run_id(content: bytes) -> str:
    """12 hexadecimal digits for a manifest and everything that decides what becomes of it."""
    return blake2b(content, digest_size=6, person=b"run").hexdigest()
