"""Images on their way into storage."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.errors import FatalError
from jobs.output.storage import open_storage
from tests.samples import STACK, make_key, make_request
from worker.encode import encode
from worker.render import Rendered
from worker.storing import Output

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 16, 3), np.uint8)


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


def rendered(seed: int, **fields: object) -> Rendered:
    request = make_request(seed, make_key(width=16, height=8))
    return Rendered(request, STACK, 0.5, **fields)  # type: ignore[arg-type]


def output(folder: Path, executor: ThreadPoolExecutor) -> Output:
    return Output(
        storage=open_storage(str(folder)), executor=executor, shard=3, worker="cpu0", attempt=1
    )


def test_png_holds_the_pixels() -> None:
    image = np.asarray(Image.open(BytesIO(encode(PIXELS, "png"))))
    np.testing.assert_array_equal(image, PIXELS)


def test_jpeg_keeps_full_colour_resolution_and_stays_close() -> None:
    red_beside_blue = np.zeros((16, 16, 3), np.uint8)
    red_beside_blue[:, ::2, 0] = 255
    red_beside_blue[:, 1::2, 2] = 255
    image = np.asarray(Image.open(BytesIO(encode(red_beside_blue, "jpeg"))), np.int16)
    assert abs(image - red_beside_blue).max() < 25


def test_the_same_pixels_give_the_same_bytes() -> None:
    assert encode(PIXELS, "jpeg") == encode(PIXELS.copy(), "jpeg")


def test_a_record_describes_the_stored_file(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    sink = output(tmp_path, executor)
    sink.take([rendered(1, pixels=PIXELS), rendered(2, pixels=PIXELS)])
    first, second = sink.records()
    data = (tmp_path / first.file_name).read_bytes()
    assert first.file_name == f"images/00003/{1:032x}.png"
    assert (first.sha256, first.bytes) == (sha256(data).hexdigest(), len(data))
    assert (first.status, first.stack.batch_width, first.timings.render) == ("done", 4, 0.5)
    assert second.request.seed == 2


def test_a_failure_becomes_a_record_without_a_file(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    sink = output(tmp_path, executor)
    sink.take([rendered(1, status="failed", code="render_error", message="why")])
    [record] = sink.records()
    assert (record.status, record.code, record.message) == ("failed", "render_error", "why")
    assert record.file_name == ""
    assert record.created_at
    assert not (tmp_path / "images").exists()


def test_an_image_that_cannot_be_stored_stops_the_chunk(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    (tmp_path / "images").write_text("a file where a folder is needed")
    sink = output(tmp_path, executor)
    sink.take([rendered(1, pixels=PIXELS)])
    with pytest.raises(FatalError, match="images"):
        sink.records()


def test_an_image_that_cannot_be_encoded_is_a_failure(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    sink = output(tmp_path, executor)
    sink.take([rendered(1, pixels=np.zeros((8, 16, 5), np.uint8)), rendered(2, pixels=PIXELS)])
    first, second = sink.records()
    assert (first.status, first.code, first.file_name) == ("failed", "render_error", "")
    assert "cannot be encoded" in first.message
    assert second.status == "done"
