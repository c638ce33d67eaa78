"""Storage is atomic for readers, and its faults say what to do."""

import errno
from pathlib import Path

import pytest

from jobs.errors import FatalError, TransientError, UsageError
from jobs.output.storage import classify, open_storage


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
    assert storage.list("a") == ["b.txt", "c.txt"]
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


def test_a_missing_object_is_not_found(location: str) -> None:
    with pytest.raises(FileNotFoundError):
        open_storage(location).read("nothing")


def test_gzip_is_read_through(location: str) -> None:
    import gzip

    storage = open_storage(location)
    storage.write("a.gz", gzip.compress(b"x\ny\n"))
    with storage.reader("a.gz") as lines:
        assert list(lines) == [b"x\n", b"y\n"]


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(UsageError, match="nope"):
        open_storage("nope://bucket")


def test_a_file_where_a_folder_is_needed_is_fatal(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FatalError, match="file where a folder is needed"):
        open_storage(str(tmp_path / "file")).write("a", b"x")


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
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
