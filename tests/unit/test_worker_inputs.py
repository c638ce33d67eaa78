"""Inputs are loaded ahead, and one that cannot be had is a reason, not a crash."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from threading import Barrier, Event

import pytest
from PIL import ExifTags, Image

from jobs.inputs.decoding import Decoding
from jobs.inputs.images import InputPolicy, store_input
from jobs.output.storage import Storage, open_storage
from jobs.requests import BatchKey, Request
from tests.samples import make_key, make_request
from worker.inputs import Loader

KEY = make_key(task="edit", width=16, height=16, inputs=1)


def png(colour: str, side: int = 8) -> bytes:
    file = BytesIO()
    Image.new("RGB", (side, side), colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "out"))


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


def asks(*images: str, controls: tuple[str, ...] = (), key: BatchKey = KEY) -> Request:
    return make_request(key=key, images=images, control_images=controls)


def make_loader(
    executor: ThreadPoolExecutor, storage: Storage, *stores: str, fitted: bool = True
) -> Loader:
    return Loader(
        executor=executor,
        storage=storage,
        policy=InputPolicy(),
        stores=frozenset(stores),
        decoding=Decoding(),
        fitted=lambda: fitted,
    )


def test_inputs_of_every_kind(
    tmp_path: Path, storage: Storage, executor: ThreadPoolExecutor
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.png").write_bytes(png("blue"))
    loader = make_loader(executor, storage, "file:///")
    stored = store_input(storage, png("red"))
    (one,) = loader.load([asks(stored, controls=((tmp_path / "photos/cat.png").as_uri(),))]).wait()
    assert one.problem is None
    assert one.images[0].getpixel((0, 0)) == (255, 0, 0)
    assert one.controls[0].getpixel((0, 0)) == (0, 0, 255)
    assert one.seconds > 0


def file_of(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


MASKED = KEY._replace(task="inpaint")


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "P", "I;16", "RGBA", "LA", "PA"])
def test_masks_say_where_in_their_own_way(
    storage: Storage, executor: ThreadPoolExecutor, mode: str
) -> None:
    """Transparent where the file can be so; else white. It is scaled and cropped like its image."""
    left = (0, 0, 8, 8)
    if mode.endswith("A"):
        shown = Image.new("RGBA", (16, 8), "white")
        shown.paste((0, 0, 0, 0), left)
        mask = shown.quantize(2) if mode == "PA" else shown.convert(mode)
        assert mask.has_transparency_data
    else:
        shown = Image.new("L", (16, 8))
        shown.paste(255, left)
        mask = Image.merge("RGB", [shown] * 3) if mode == "RGB" else shown.convert(mode)
        if mode == "I;16":
            mask = shown.point(lambda value: value * 257, "I").convert("I;16")
    loader = make_loader(executor, storage)
    image = store_input(storage, file_of(Image.new("RGB", (16, 8), "red")))
    name = store_input(storage, file_of(mask))
    (one,) = loader.load([asks(image, name, key=MASKED)]).wait()
    assert one.problem is None
    assert len(one.images) == 1
    assert one.mask is not None
    assert (one.mask.mode, one.mask.size) == ("L", (16, 16))
    assert [one.mask.getpixel((x, 8)) for x in (0, 15)] == [255, 0]


def test_a_mask_of_another_size_names_both(storage: Storage, executor: ThreadPoolExecutor) -> None:
    """A picture that lies on its side is as large as it is upright."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = store_input(storage, file_of(Image.new("RGB", (16, 8)), "JPEG", exif=exif))
    loader = make_loader(executor, storage)
    for size, fits in (((8, 16), True), ((16, 8), False)):
        mask = store_input(storage, file_of(Image.new("L", size, "white")))
        (one,) = loader.load([asks(turned, mask, key=MASKED)]).wait()
        assert (one.problem is None) == fits
    assert str(one.problem) == "mask_image: 16 x 8 pixels, but the image has 8 x 16"


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (Image.new("L", (8, 8), 127), "no pixel is white, and none can be transparent"),
        (Image.new("RGBA", (8, 8), "white"), "no pixel is transparent"),
    ],
)
def test_a_mask_that_shows_nothing_is_refused(
    storage: Storage, executor: ThreadPoolExecutor, mask: Image.Image, reason: str
) -> None:
    image, name = store_input(storage, png("red")), store_input(storage, file_of(mask))
    (one,) = make_loader(executor, storage).load([asks(image, name, key=MASKED)]).wait()
    assert str(one.problem) == f"mask_image: repaints nothing: {reason}"


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
    loader = make_loader(executor, storage, "memory://photos/")
    good = store_input(storage, png("red"))
    bad, fine = loader.load([asks(reference), asks(good)]).wait()
    assert bad.problem is not None
    assert bad.problem.code == code
    assert fine.problem is None


def test_equal_inputs_of_a_batch_are_loaded_once_and_scaled(
    storage: Storage, executor: ThreadPoolExecutor
) -> None:
    red, blue = store_input(storage, png("red")), store_input(storage, png("blue"))
    asked = [asks(red), asks(red, controls=(red,)), asks(blue)]
    first, second, third = make_loader(executor, storage).load(asked).wait()
    assert first.images[0].size == (16, 16)
    assert first.images[0] is second.images[0] is not third.images[0]
    whole = make_loader(executor, storage, fitted=False)
    (one,) = whole.load([asks(red, controls=(red,))]).wait()
    assert (one.images[0].size, one.controls[0].size) == ((8, 8), (16, 16))


def test_large_images_leave_their_threads_little_memory() -> None:
    """glibc kept what each of 12 threads had freed: 2.7 GB for pictures that took turns."""
    script = """
import resource
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from PIL import Image
from jobs.inputs.decoding import Decoding
file = BytesIO()
Image.new("P", (8192, 8192)).save(file, "PNG", transparency=0)
data, decoding = file.getvalue(), Decoding()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with ThreadPoolExecutor(12) as threads:
    for _ in threads.map(lambda _: decoding.open(data, "image", (64, 64)) and None, range(12)):
        pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) / 1024 < 1000  # MiB; two of 350 each, and what threads may keep


def test_a_small_file_of_many_pixels_costs_a_worker_little() -> None:
    """32 lines that name one palette PNG of 2 KB would be two batches of whole pictures."""
    script = """
import resource, sys, tempfile
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from PIL import Image
from jobs.inputs.images import store_input
from jobs.output.storage import open_storage
from tests.unit.test_worker_inputs import asks, make_loader
file = BytesIO()
Image.new("P", (4096, 4096)).save(file, "PNG")
with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(8) as executor:
    storage = open_storage(folder)
    one = asks(store_input(storage, file.getvalue()))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for batch in make_loader(executor, storage).ahead([[one] * 16] * 2):
        assert len(batch.wait()) == 16
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) / 1024 < 250  # MiB


def test_so_many_pixels_are_decoded_at_a_time(
    executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two large images meet each time, never three; a small one passes them."""
    at_work: list[int] = []
    seen: list[int] = []
    pair = Barrier(2)

    def check(_: bytes, __: str) -> None:
        at_work.append(1)
        seen.append(len(at_work))
        pair.wait(10)
        at_work.pop()

    monkeypatch.setattr("jobs.inputs.decoding.check_pixels", check)
    budget = Decoding(pixels=2 * 64, small=16)
    with ThreadPoolExecutor(6) as threads:
        large = [threads.submit(budget.check, png("red")) for _ in range(6)]
        for one in large:
            one.result()
    assert max(seen) == 2
    monkeypatch.setattr("jobs.inputs.decoding.check_pixels", lambda *_: pair.wait(10))
    full = Decoding(pixels=64, small=16)
    large = [executor.submit(full.check, png("red"))]
    full.check(png("red", 4))
    large[0].result()


def test_the_next_batch_is_under_way_while_one_is_rendered(
    storage: Storage, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, slow = Event(), Event()

    def load(_: Loader, reference: str, *__: object) -> None:
        if reference == "second":
            started.set()
            slow.wait(10)

    monkeypatch.setattr(Loader, "_load", load)
    batches = [[asks("first")], [asks("second")], [asks("third")]]
    ahead = make_loader(executor, storage).ahead(batches)
    assert next(ahead).requests == batches[0]
    assert started.wait(10)
    second = next(ahead)
    assert not second.arrives(0)
    slow.set()
    assert second.arrives(10)
    assert [batch.requests for batch in (second, *ahead)] == batches[1:]


def test_with_care_nothing_is_loaded_before_it_is_asked_for(
    storage: Storage, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(Loader, "_load", lambda _, reference, *__: loaded.append(reference))
    batch = next(
        make_loader(executor, storage).ahead([[asks("first")], [asks("second")]], eager=False)
    )
    assert loaded == []
    assert batch.arrives(10)
    assert loaded == ["first"]
