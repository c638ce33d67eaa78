"""Inputs are loaded ahead, and one that cannot be had is a reason, not a crash."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from threading import Event

import pytest
from PIL import Image

from jobs.inputs.images import InputPolicy, store_input
from jobs.output.storage import Storage, open_storage
from jobs.requests import BatchKey, Request
from worker.inputs import Loader

KEY = BatchKey("edit", "m", "", 16, 16, 8, inputs=1)


def png(colour: str) -> bytes:
    file = BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "out"))


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


def asks(*images: str, controls: tuple[str, ...] = ()) -> Request:
    return Request(0, "", KEY, "", "", 1, "png", "0" * 32, images, controls)


def test_inputs_of_every_kind(
    tmp_path: Path, storage: Storage, executor: ThreadPoolExecutor
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.png").write_bytes(png("blue"))
    loader = Loader(executor, storage, InputPolicy(), frozenset({"file:///"}))
    stored = store_input(storage, png("red"))
    (one,) = loader.load([asks(stored, controls=((tmp_path / "photos/cat.png").as_uri(),))]).wait()
    assert one.problem is None
    assert one.images[0].getpixel((0, 0)) == (255, 0, 0)
    assert one.controls[0].getpixel((0, 0)) == (0, 0, 255)
    assert one.seconds > 0


@pytest.mark.parametrize(
    ("reference", "code"),
    [
        ("sha256:" + "0" * 64, "input_unreachable"),
        ("s3://secret/cat.png", "input_forbidden"),
        ("memory://photos/none.png", "input_unreachable"),
        ("http://127.0.0.1/cat.png", "input_forbidden"),
        ("bm90IGFuIGltYWdl", "input_not_an_image"),
    ],
)
def test_an_input_that_cannot_be_had_is_a_reason(
    storage: Storage, executor: ThreadPoolExecutor, reference: str, code: str
) -> None:
    loader = Loader(executor, storage, InputPolicy(), frozenset({"memory://photos/"}))
    good = store_input(storage, png("red"))
    bad, fine = loader.load([asks(reference), asks(good)]).wait()
    assert bad.problem is not None
    assert bad.problem.code == code
    assert fine.problem is None


def test_the_next_batch_is_under_way_while_one_is_rendered(
    storage: Storage, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = Loader(executor, storage, InputPolicy(), frozenset())
    started = Event()

    def load(_: Loader, request: Request) -> None:
        if request.images == ("second",):
            started.set()

    monkeypatch.setattr(Loader, "_load", load)
    batches = [[asks("first")], [asks("second")], [asks("third")]]
    ahead = loader.ahead(batches)
    assert next(ahead).requests == batches[0]
    assert started.wait(10)
    assert [batch.requests for batch in ahead] == batches[1:]


def test_with_care_nothing_is_loaded_before_it_is_asked_for(
    storage: Storage, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = Loader(executor, storage, InputPolicy(), frozenset())
    loaded: list[str] = []
    monkeypatch.setattr(Loader, "_load", lambda _, request: loaded.append(request.images[0]))
    batch = next(loader.ahead([[asks("first")], [asks("second")]], eager=False))
    assert loaded == []
    batch.wait()
    assert loaded == ["first"]
