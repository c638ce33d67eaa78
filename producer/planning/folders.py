"""Manifests of several files: the tables of a folder, or those whose names fit a pattern."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from jobs.errors import UsageError, printable
from jobs.output.storage import open_storage
from producer.planning.tables import KINDS, kind_of

_KINDS = (".parquet", ".arrow")  # of a folder: a .txt beside them may be anything
_LINES = (".jsonl", ".json", ".gz", ".bz2", ".xz", ".zst", ".zip")
_SPLIT = re.compile(r"(.+)-\d{5}-of-\d{5}\.\w+")  # as `datasets` and the hub name files of a split
SHOWN = 10


def files_of(uri: str) -> list[str]:
    """The files of a manifest, in the order of their names: mostly itself.

    uri: of a file; FOLDER/PATTERN, with * in its last part; or a folder of .parquet or .arrow
        files, as `datasets` saves and the hub holds them.

    Raises:
        UsageError: a folder or a pattern has no tables, those of several splits, or of several
            kinds.
        TransientError, FatalError: the storage is not to be had.
    """
    folder, _, name = uri.rpartition("/")
    if "*" in name:
        found = open_storage(folder or ".").list("")
        return _checked(uri, [f"{folder}/{one}" if folder else one for one in sorted(found)
                              if fnmatchcase(one, name) and kind_of(one)])  # fmt: skip
    if not uri or not _may_be_folder(uri):
        return [uri]
    base = uri.rstrip("/")
    tables = [path for path in open_storage(uri).sizes("") if _is_table(path)]
    if not tables and not ("://" not in uri and Path(uri).is_dir()):
        return [uri]  # or there is none, which opening it tells
    _check_splits(uri, tables)
    return _checked(uri, [f"{base}/{path}" for path in sorted(tables)])


def _may_be_folder(uri: str) -> bool:
    if "://" not in uri:
        return Path(uri).is_dir()
    return PurePosixPath(uri).suffix.lower() not in (*KINDS, *_LINES)


def _is_table(path: str) -> bool:
    """Whether it is one of a folder; `datasets` leaves others that begin with "cache-"."""
    parts = PurePosixPath(path).parts
    hidden = any(part.startswith((".", "_")) for part in parts)
    return bool(parts) and kind_of(path) in _KINDS and not hidden and parts[-1][:6] != "cache-"


def _check_splits(uri: str, tables: Iterable[str]) -> None:
    """Raises UsageError where a folder holds more than one split."""
    splits = set[str]()
    for path in tables:
        folder, _, name = path.rpartition("/")
        found = _SPLIT.fullmatch(name)
        split = f"{found[1]}-*{PurePosixPath(name).suffix}" if found else ""
        splits.add(f"{folder}/{split}" if folder else split)
    if len(splits) > 1:
        some = ", ".join(sorted(splits)[:SHOWN])
        raise UsageError(
            f"{uri} holds tables of several splits: {printable(some, 500)}",
            f"Name one of them: {uri.rstrip('/')}/{printable(min(splits, key=len), 200)}",
        )


def _checked(uri: str, tables: list[str]) -> list[str]:
    kinds = sorted({kind_of(table) for table in tables})
    if not tables:
        raise UsageError(
            f"no table fits {uri}" if "*" in uri else f"{uri} is a folder without tables",
            f"Name a manifest, or a folder of {' or '.join(_KINDS)} files.",
        )
    if len(kinds) > 1:
        raise UsageError(
            f"{uri} holds {' and '.join(kinds)} tables", f"Choose: {_beside(uri)}/*{kinds[0]}"
        )
    return tables


def _beside(uri: str) -> str:
    return uri.rpartition("/")[0] if "*" in uri else uri.rstrip("/")
