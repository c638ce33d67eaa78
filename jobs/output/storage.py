"""The one door to storage: a folder, a bucket prefix or memory, through fsspec.

A write is visible whole or not at all: one PUT on object stores, write-then-rename on disks.
Faults come out as TransientError (tried again first, with backoff) or FatalError.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from threading import Lock
from typing import IO, Any, TypeVar, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from jobs.errors import FatalError, TransientError, UsageError
from jobs.output.disk import beside, missing, renamed_into, sync
from jobs.output.refusals import DAMAGED, classify, s3_code

T = TypeVar("T")

RETRY_SECONDS = 60.0
CONNECTIONS = 32  # to an S3 store, a process
ARCHIVES = ("zip://", "tar://", "libarchive://")
_MAKING = Lock()


@dataclass(frozen=True)
class Storage:
    """A location that paths are relative to. Safe to share between threads.

    patience: seconds that what fails is tried again for.
    """

    uri: str
    filesystem: fsspec.AbstractFileSystem = field(repr=False)
    root: str
    patience: float = RETRY_SECONDS

    @property
    def local_root(self) -> str | None:
        """The folder on this machine's disk; None for object stores and memory."""
        return self.root if isinstance(self.filesystem, LocalFileSystem) else None

    def holds(self, other: Storage) -> bool:
        """Whether the other location is this one or lies below it, links followed."""
        if type(other.filesystem) is not type(self.filesystem):
            return False
        own, others = self.root, other.root
        if self.local_root is not None:
            own, others = os.path.realpath(own), os.path.realpath(others)
        return f"{others}/".startswith(f"{own}/")

    def write(self, path: str, data: bytes, durable: bool = True) -> None:
        """Store `data` under `path`; a reader sees the old content or the new, never a mixture.

        durable: after a power cut it is there or not, but never empty. On a local disk that takes
        milliseconds, for images too many.
        """
        target = self._full(path)
        try:
            self.attempt(path, lambda: self._put(target, data, durable))
        except FileNotFoundError as error:  # the bucket
            raise classify(error, self.uri) from error

    def _put(self, target: str, data: bytes, durable: bool) -> None:
        if self.local_root is None:
            self.filesystem.pipe_file(target, data)
            return
        with renamed_into(target) as temporary, open(temporary, "wb") as file:
            file.write(data)
            if durable:
                sync(file)

    def create(self, path: str, data: bytes) -> bytes:
        """Store `data` under `path` unless something is there; returns what is there now.

        Of several that do so at once one wins, and all are told its data. A store that knows no
        conditional writes keeps the last one's.
        """
        target = self._full(path)

        def put() -> None:
            try:
                self._put_new(target, data)
            except FileExistsError:
                return

        try:
            self.attempt(path, put)
        except FileNotFoundError as error:  # the bucket
            raise classify(error, self.uri) from error
        return self.read(path)

    def _put_new(self, target: str, data: bytes) -> None:
        """Raises FileExistsError."""
        if self.local_root is None:
            try:
                self.filesystem.pipe_file(target, data, mode="create")
            except OSError as error:
                code = s3_code(error)
                if code in ("PreconditionFailed", "ConditionalRequestConflict"):
                    raise FileExistsError(target) from error
                if code != "NotImplemented":
                    raise
                if not self.filesystem.exists(target):
                    self.filesystem.pipe_file(target, data)
            return
        with beside(target) as temporary:
            with open(temporary, "wb") as file:
                file.write(data)
                sync(file)
            os.link(temporary, target)  # unlike a rename, it replaces nothing

    def move(self, path: str, to: str) -> None:
        """Give an object another path; what is there is replaced.

        One step on disks; object stores copy it, then delete the first.

        Raises:
            FileNotFoundError: there is no such object.
        """
        source, target = self._full(path), self._full(to)

        def rename() -> None:
            if self.local_root is None:
                self.filesystem.cp_file(source, target)
                self.filesystem.rm_file(source)
            else:
                os.makedirs(os.path.dirname(target), exist_ok=True)
                os.replace(source, target)

        self.attempt(path, rename)

    def copy(self, path: str, to: str) -> None:
        """Give an object's content another path as well; what is there is replaced.

        Of object stores it goes through nobody's network.

        Raises:
            FileNotFoundError: there is no such object.
        """
        source, target = self._full(path), self._full(to)

        def duplicate() -> None:
            if self.local_root is None:
                self.filesystem.cp_file(source, target)
                return
            with renamed_into(target) as temporary:
                shutil.copyfile(source, temporary)
                with open(temporary, "rb") as file:
                    sync(file)

        self.attempt(path, duplicate)

    @contextmanager
    def writer(self, path: str) -> Iterator[IO[bytes]]:
        """A binary stream into `path`, visible only when the block ends without an error.

        For object stores it is spooled to a temporary file first, so that an upload can be retried.
        """
        target = self._full(path)
        try:
            if self.local_root is not None:
                with renamed_into(target) as temporary, open(temporary, "wb", 1 << 20) as file:
                    yield file
                    sync(file)
                return
            with tempfile.NamedTemporaryFile("wb", 1 << 20) as spool:
                yield cast("IO[bytes]", spool)
                spool.flush()
                self.attempt(path, lambda: self.filesystem.put_file(spool.name, target))
        except FileNotFoundError as error:  # the bucket
            raise classify(error, self.uri) from error
        except OSError as error:
            raise classify(error, self.name(path)) from error

    def read(self, path: str) -> bytes:
        """The whole content of `path`.

        Raises:
            FileNotFoundError: there is no such object.
        """
        # Of several pieces at a time s3fs asks for the size first, which is another round trip.
        options = {"max_concurrency": 1} if "s3" in self.filesystem.protocol else {}
        return self.attempt(
            path, lambda: cast("bytes", self.filesystem.cat_file(self._full(path), **options))
        )

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """The bytes [start, stop) of files, of each (path, start, stop) its own; many at a time.

        Raises:
            FileNotFoundError: there is no such object.
        """
        if not ranges:
            return []
        paths, starts, stops = zip(*ranges, strict=True)
        full = [self._full(path) for path in paths]
        return self.attempt(
            paths[0],
            lambda: cast(
                "list[bytes]",
                self.filesystem.cat_ranges(full, list(starts), list(stops), on_error="raise"),
            ),
        )

    @contextmanager
    def reader(self, path: str) -> Iterator[IO[bytes]]:
        """A binary stream from `path`, decompressed if its name ends in .gz.

        Object stores fill a temporary file first, so that a download can be retried.

        Raises:
            FileNotFoundError: there is no such object.
        """
        target, compression = self._full(path), "gzip" if path.endswith(".gz") else None
        try:
            with ExitStack() as stack:
                if self.local_root is None:
                    spool = stack.enter_context(tempfile.NamedTemporaryFile())
                    self.attempt(path, lambda: self.filesystem.get_file(target, spool.name))
                    target = spool.name
                local = fsspec.open(target, "rb", compression=compression)
                yield cast("IO[bytes]", stack.enter_context(local))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise classify(error, self.name(path)) from error

    def exists(self, path: str) -> bool:
        return self.attempt(path, lambda: bool(self.filesystem.exists(self._full(path))))

    def modified(self, path: str) -> float:
        """When `path` was written, in Unix seconds by the store's clock.

        Raises:
            FileNotFoundError: there is no such object.
        """
        return self.attempt(
            path, lambda: float(self.filesystem.modified(self._full(path)).timestamp())
        )

    def folders(self, folder: str) -> list[str]:
        """The names of the folders directly in `folder`, sorted."""

        found = self._listed(folder)
        return sorted(name for name, one in found.items() if one["type"] == "directory")

    def list(self, folder: str) -> list[str]:
        """The names directly in `folder`, sorted; empty if there is no such folder."""

        def names() -> list[str]:
            try:
                if self.local_root is not None:  # in a fifth of fsspec's time
                    return sorted(os.listdir(self._full(folder)))
                found = self.filesystem.ls(self._full(folder), detail=False, refresh=True)
            except (FileNotFoundError, NotADirectoryError):
                return []
            return sorted(name.rsplit("/", 1)[-1] for name in found)

        return self.attempt(folder, names)

    def times(self, folder: str) -> dict[str, float]:
        """Name → when it was written, in Unix seconds by the store's clock, sorted by names.

        Of what lies directly in `folder`; 0 where the store's listings do not say it.
        """

        return {name: _time_of(one) for name, one in sorted(self._listed(folder).items())}

    def _listed(self, folder: str) -> dict[str, Any]:
        """Name → what fsspec says of it, of what lies directly in `folder`."""

        def look() -> dict[str, Any]:
            try:
                found = self.filesystem.ls(self._full(folder), detail=True, refresh=True)
            except (FileNotFoundError, NotADirectoryError):
                return {}
            return {one["name"].rstrip("/").rsplit("/", 1)[-1]: one for one in found}

        return self.attempt(folder, look)

    def sizes(self, folder: str) -> dict[str, int]:
        """Path → bytes of every object below `folder`; empty if there is no such folder."""

        def find() -> dict[str, int]:
            self.filesystem.invalidate_cache()
            try:
                found = self.filesystem.find(self._full(folder), detail=True)
            except FileNotFoundError:
                return {}
            return {name[len(self.root) + 1 :]: info["size"] for name, info in found.items()}

        return self.attempt(folder, find)

    def remove(self, path: str) -> None:
        """Delete an object or a folder with all that is in it; nothing happens if it is absent."""

        def delete() -> None:
            try:
                self.filesystem.rm(self._full(path), recursive=True)
            except FileNotFoundError:
                return

        self.attempt(path, delete)

    def begin(self, folder: str) -> Callable[[], None]:
        """Says that a folder will be written; the result takes back what was.

        It deletes the folder with all that is in it, and on a disk also those above it that were
        not there when this was called, as far as they are empty.
        """
        made = missing(self._full(folder)) if self.local_root is not None else []

        def undo() -> None:
            self.remove(folder)
            with suppress(OSError):
                for path in made[1:]:
                    os.rmdir(path)

        return undo

    def local_file(self, path: str) -> str | None:
        """Where a file lies on this machine's disk, be it there or not; None for other stores."""
        return None if self.local_root is None else self._full(path)

    def presigned_url(self, path: str, seconds: int) -> str | None:
        """A URL that reads the object for so many seconds; None where the store has no such."""

        def sign() -> str | None:
            try:
                return cast("str", self.filesystem.sign(self._full(path), expiration=seconds))
            except NotImplementedError:
                return None

        return self.attempt(path, sign)

    def _full(self, path: str) -> str:
        """Where a name lies. Raises FatalError for one that is not below this location."""
        if path.startswith("/") or "\0" in path or ".." in path.split("/"):
            raise FatalError(f"storage {self.uri}: {path!r} names no place below it")
        return f"{self.root}/{path}" if path else self.root

    def name(self, path: str) -> str:
        """The URI of `path`, for messages."""
        return f"{self.uri}/{path}".rstrip("/")

    def attempt(self, path: str, action: Callable[[], T]) -> T:
        """The result of an operation on `path`, tried again as long as its fault may pass."""

        def classified() -> T:
            try:
                return action()
            except FileNotFoundError:
                raise
            except Exception as error:
                raise classify(error, self.name(path)) from error

        retrying = Retrying(
            retry=retry_if_exception_type(TransientError),
            stop=stop_after_delay(self.patience),
            wait=wait_random_exponential(multiplier=0.2, max=10),
            reraise=True,
        )
        return retrying(classified)


def _time_of(listed: Mapping[str, Any]) -> float:
    """When an entry of a listing was written; each kind of store has a word of its own for it."""
    at = next((listed[w] for w in ("mtime", "LastModified", "created") if listed.get(w)), 0.0)
    return at.timestamp() if isinstance(at, datetime) else float(at)


@contextmanager
def open_file(uri: str, compression: str | None = "infer") -> Iterator[IO[bytes]]:
    """A binary stream from one file: a path, file://, s3:// or any fsspec URI.

    compression: "infer" goes by the name's end. What is not on this machine fills a temporary file
    first, so that a download can be retried.

    Raises:
        UsageError: the URI is empty, there is no such file, or its protocol is unknown.
        TransientError, FatalError: it cannot be opened.
    """
    _check_location(uri)
    with ExitStack() as stack:
        try:
            filesystem, path = fsspec.core.url_to_fs(uri, use_listings_cache=False)
            how = fsspec.utils.infer_compression(path) if compression == "infer" else compression
            if not isinstance(filesystem, LocalFileSystem):
                spool = stack.enter_context(tempfile.NamedTemporaryFile())
                remote, path = path, spool.name
                Storage(uri, filesystem, remote).attempt(
                    "", lambda: filesystem.get_file(remote, path)
                )
            file = stack.enter_context(_open_local(path, how))
        except DAMAGED as error:
            raise UsageError(f"{uri} cannot be read: {error}", "Check the file.") from error
        except FileNotFoundError as error:
            raise UsageError(f"{uri} does not exist", "Check the path.") from error
        except IsADirectoryError as error:
            raise UsageError(f"{uri} is a folder, not a file", "Name a file.") from error
        except (ValueError, ImportError) as error:
            raise UsageError(f"{uri}: {error}", "Use a path, file:// or s3://.") from error
        except OSError as error:
            raise classify(error, uri) from error
        yield file


@contextmanager
def _open_local(path: str, compression: str | None) -> Iterator[IO[bytes]]:
    # A pipe, a device and what the kernel makes up may be waited for for ever.
    with open(path, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is a pipe or a device, which cannot be read twice")
        if compression is None:
            yield file
        else:
            with fsspec.compression.compr[compression](file, mode="rb") as plain:
                yield plain


def _check_location(uri: str) -> None:
    """Refuse what fsspec would take for something else than it says.

    Raises:
        UsageError: it is empty, has "::", or names an archive.
    """
    if not uri.strip().removeprefix("file://"):  # fsspec takes it for the working folder
        hint = "Name a path, file:// or s3://; perhaps a variable in the command is not set."
        raise UsageError(f"location {uri!r}: it is empty", hint)
    if "::" in uri or uri.startswith(ARCHIVES):
        reason = "archives and '::' are not taken"
        raise UsageError(f"location {uri!r}: {reason}", "Use a path, file:// or s3://.")


def open_storage(uri: str, **options: Any) -> Storage:
    """A location by URI: a path, file://, s3://bucket/prefix, memory:// or any fsspec protocol.

    Credentials and endpoints come the ecosystem's way: AWS_* and FSSPEC_* variables, profiles.

    Raises:
        UsageError: the URI is empty or an archive, its protocol is unknown or needs more than a
            URI, or the protocol's package is not installed.
        TransientError, FatalError: its protocol connects at once, and cannot.
    """
    _check_location(uri)
    if uri.startswith(("s3://", "s3a://")):
        options = {
            "session": _s3_session(fsspec.config.conf.get("s3", {}).get("profile"))
        } | options
    try:
        # Others write there too: what a listing said once is no longer true.
        filesystem, root = fsspec.core.url_to_fs(uri, use_listings_cache=False, **options)
    except (ValueError, TypeError, AttributeError, ImportError) as error:
        raise UsageError(f"location {uri!r}: {error}", "Use a path, file:// or s3://.") from error
    except OSError as error:
        raise classify(error, uri) from error
    # A relative path means something else to a worker with another working directory.
    absolute = root if isinstance(filesystem, LocalFileSystem) else uri
    return Storage(absolute.rstrip("/"), filesystem, root.rstrip("/"))


def _s3_session(profile: str | None) -> Any:
    # One after the other: with a session of its own each thread would get a client of its own,
    # each of which takes tenths of a second of the processor.
    with _MAKING:
        return _make_s3_session(profile)


@cache
def _make_s3_session(profile: str | None) -> Any:
    """What s3fs makes clients with, but for "Expect: 100-continue", URLs signed the old way and ten
    connections.

    With that header, each PUT takes a second round trip before its body is sent. Without the
    version, URLs are presigned as no new bucket and hardly another store takes them. Of a store far
    away each connection has few answers a second.
    """
    from aiobotocore.config import AioConfig
    from aiobotocore.session import AioSession
    from botocore.handlers import add_expect_header

    session = AioSession(profile=profile)
    session.unregister("before-call.s3", add_expect_header)
    session.set_default_client_config(
        AioConfig(signature_version="s3v4", max_pool_connections=CONNECTIONS)
    )
    return session
