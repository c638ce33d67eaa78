"""Storage is atomic for readers, and its faults say what to do."""

import errno
import gzip
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Barrier, BrokenBarrierError
from typing import Any

import pytest
from aiobotocore.session import AioSession
from botocore.exceptions import ClientError, NoCredentialsError, ProfileNotFound

from jobs.errors import FatalError, ImagemillError, NoCredentials, TransientError, UsageError
from jobs.output.refusals import classify
from jobs.output.storage import _make_s3_session, open_file, open_storage


@pytest.fixture(params=["file", "memory"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "out") if request.param == "file" else f"memory://{tmp_path}"


def test_what_is_written_is_read(location: str) -> None:
    storage = open_storage(location)
    storage.write("a/b.txt", b"one")
    storage.write("a/b.txt", b"two")
    with storage.writer("a/c.txt") as file:
        file.write(b"three")
    assert storage.read("a/b.txt") == b"two"
    assert storage.read("a/c.txt") == b"three"
    assert storage.list("a") == list(storage.times("a")) == ["b.txt", "c.txt"]
    assert all(abs(at - time.time()) < 60 for at in storage.times("a").values())
    assert storage.times("nowhere") == {}
    assert storage.exists("a/b.txt")
    storage.remove("a")
    assert storage.list("a") == []


def test_a_writer_that_fails_leaves_the_old_content_and_no_litter(location: str) -> None:
    storage = open_storage(location)
    storage.write("x", b"old")

    def fail() -> None:
        with storage.writer("x") as file:
            file.write(b"half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert storage.read("x") == b"old"
    assert storage.list("") == ["x"]


def test_ranges_of_files_are_read(location: str) -> None:
    _read_ranges(location)


def test_ranges_of_objects_are_read(bucket: str) -> None:
    _read_ranges(f"{bucket}/a")


def _read_ranges(location: str) -> None:
    storage = open_storage(location)
    storage.write("a/b", bytes(range(256)))
    storage.write("c", b"other")
    wanted = [("a/b", 200, 203), ("c", 1, 3), ("a/b", 0, 2), ("a/b", 200, 203)]
    found = [b"\xc8\xc9\xca", b"th", b"\0\1", b"\xc8\xc9\xca"]
    assert storage.read_ranges(wanted) == found
    assert storage.read_ranges([]) == []
    assert abs(storage.times("a")["b"] - time.time()) < 60
    with pytest.raises(FileNotFoundError):
        storage.read_ranges([("a/b", 0, 2), ("gone", 0, 2)])


def test_the_first_to_create_an_object_wins(location: str) -> None:
    _compete(location)


def test_the_first_to_create_an_object_wins_on_s3(bucket: str) -> None:
    _compete(f"{bucket}/a")


def _compete(location: str) -> None:
    storage = open_storage(location)
    with ThreadPoolExecutor(8) as threads:
        told = set(threads.map(lambda i: storage.create("a/b", b"%d" % i), range(8)))
    assert told == {storage.read("a/b")}
    assert storage.create("a/b", b"late") in told
    assert storage.list("a") == ["b"]


def test_a_store_without_conditional_writes_still_keeps_what_is_there(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(bucket)
    pipe_file = storage.filesystem.pipe_file

    def refuse_conditions(path: str, data: bytes, **options: str) -> None:
        if options:
            error = OSError(errno.EIO, "a header implies what is not implemented")
            error.__cause__ = ClientError({"Error": {"Code": "NotImplemented"}}, "PutObject")
            raise error
        pipe_file(path, data)

    monkeypatch.setattr(storage.filesystem, "pipe_file", refuse_conditions)
    assert storage.create("a", b"one") == b"one"
    assert storage.create("a", b"two") == b"one"


def test_an_object_moves(location: str) -> None:
    storage = open_storage(location)
    storage.write("a/b", b"one")
    storage.write("c/d", b"two")
    storage.move("a/b", "c/d")
    assert (storage.list("a"), storage.read("c/d")) == ([], b"one")
    with pytest.raises(FileNotFoundError):
        storage.move("a/b", "c/d")


def test_an_object_is_copied(location: str) -> None:
    storage = open_storage(location)
    storage.write("a/b.gz", b"one")  # as it is
    storage.write("c/d", b"two")
    storage.copy("a/b.gz", "c/d")
    assert (storage.read("a/b.gz"), storage.read("c/d")) == (b"one", b"one")
    assert storage.list("c") == ["d"]
    with pytest.raises(FileNotFoundError):
        storage.copy("none", "c/d")


def test_a_missing_object_is_not_found(location: str) -> None:
    with pytest.raises(FileNotFoundError):
        open_storage(location).read("nothing")


def test_gzip_is_read_through(location: str) -> None:
    storage = open_storage(location)
    storage.write("a.gz", gzip.compress(b"x\ny\n"))
    with storage.reader("a.gz") as lines:
        assert list(lines) == [b"x\n", b"y\n"]


def test_threads_share_the_client_of_an_object_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes tenths of a second of the processor."""
    together = Barrier(2)

    class Slow(AioSession):
        def __init__(self, **options: Any) -> None:
            with suppress(BrokenBarrierError):
                together.wait(0.2)  # for another thread
            super().__init__(**options)

    monkeypatch.setattr("aiobotocore.session.AioSession", Slow)
    _make_s3_session.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(open_storage, [f"s3://bucket/{n}" for n in range(8)]))
    assert len({id(one.filesystem) for one in opened}) == 1


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(UsageError, match="nope"):
        open_storage("nope://bucket")


def test_a_protocol_that_needs_more_than_a_uri_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'github://folder': .* 'org'"):
        open_storage("github://folder")


def test_a_protocol_that_connects_at_once_may_be_away() -> None:
    with pytest.raises(TransientError, match=r"ftp://127\.0\.0\.1:1/folder failed"):
        open_storage("ftp://127.0.0.1:1/folder")


@pytest.mark.parametrize("location", ["", " ", "file://"])
def test_an_empty_location_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    """To fsspec it is the working folder."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="it is empty"):
        open_storage(location)
    with pytest.raises(UsageError, match="it is empty"), open_file(location):
        pass


@pytest.mark.parametrize("location", ["zip://x", "zip://x::a.zip", "tar://x", "out/a::b"])
def test_what_means_something_else_to_fsspec_is_refused(location: str) -> None:
    with pytest.raises(UsageError, match="archives and '::' are not taken"):
        open_storage(location)


def test_a_file_where_a_folder_is_needed_is_fatal(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FatalError, match="file where a folder is needed"):
        open_storage(str(tmp_path / "file")).write("a", b"x")


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (NoCredentialsError(), NoCredentials),
        (ProfileNotFound(profile="x"), NoCredentials),
        (OSError(errno.ENOSPC, "full"), FatalError),
        (PermissionError(errno.EACCES, "no"), FatalError),
        (ConnectionResetError("gone"), TransientError),
        (TimeoutError("slow"), TransientError),
        (OSError(errno.EIO, "disk"), TransientError),
    ],
)
def test_faults_are_classified(fault: Exception, kind: type[Exception]) -> None:
    assert isinstance(classify(fault, "s3://b/x"), kind)
    assert "s3://b/x" in str(classify(fault, "s3://b/x"))


def s3_error(kind: type[Exception], code: str, number: int = 0) -> Exception:
    """As s3fs raises it: an OSError whose cause is the server's own error."""
    cause = Exception(code)
    cause.response = {"Error": {"Code": code}}  # type: ignore[attr-defined]
    error = kind(number, code) if number else kind(code)
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (s3_error(PermissionError, "AccessDenied"), FatalError, "refuses access (AccessDenied)"),
        (s3_error(PermissionError, "InvalidAccessKeyId"), FatalError, "refuses access"),
        (s3_error(PermissionError, "SignatureDoesNotMatch"), FatalError, "refuses access"),
        (s3_error(PermissionError, "ExpiredToken"), FatalError, "credentials have expired"),
        (s3_error(OSError, "TokenRefreshRequired", errno.EINVAL), FatalError, "have expired"),
        (s3_error(OSError, "InvalidBucketName", errno.EINVAL), FatalError, "InvalidBucketName"),
        (s3_error(OSError, "400", errno.EINVAL), FatalError, "refuses the request (400)"),
        (s3_error(FileNotFoundError, "NoSuchBucket"), UsageError, "does not exist"),
        (s3_error(OSError, "SlowDown", errno.EBUSY), TransientError, "SlowDown"),
        (s3_error(OSError, "InternalError", errno.EREMOTEIO), TransientError, "InternalError"),
        (s3_error(OSError, "IncompleteBody", errno.EINVAL), TransientError, "IncompleteBody"),
        (s3_error(OSError, "BadDigest", errno.EINVAL), TransientError, "BadDigest"),
        (s3_error(TimeoutError, "RequestTimeout"), TransientError, "RequestTimeout"),
        (PermissionError(errno.EACCES, "no"), FatalError, "refuses access"),
        (OSError(errno.EINVAL, "of a disk"), TransientError, "of a disk"),
    ],
)
def test_faults_of_s3_that_no_wait_can_mend(
    error: Exception, kind: type[ImagemillError], text: str
) -> None:
    found = classify(error, "s3://bucket/a")
    assert type(found) is kind
    assert text in str(found)


def test_a_file_is_opened_by_its_uri(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"x"))
    for uri, how, content in (
        (str(path), "infer", b"x"),
        (path.as_uri(), "infer", b"x"),
        (str(path), None, path.read_bytes()),
    ):
        with open_file(uri, how) as file:
            assert file.read() == content
    open_storage("memory://opened").write("b.gz", path.read_bytes())
    with open_file("memory://opened/b.gz") as file:
        assert file.read() == b"x"
    for wrong in (str(tmp_path / "none"), "memory://opened/none", "nowhere://x"):
        with pytest.raises(UsageError), open_file(wrong):
            pass


def test_a_fault_of_whoever_reads_a_file_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    with pytest.raises(ValueError, match="mine"), open_file(str(tmp_path / "a")):
        raise ValueError("mine")
