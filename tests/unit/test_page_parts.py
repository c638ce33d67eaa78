"""What the page is made of: records by row numbers, thumbnails, what a record can be used as."""

from __future__ import annotations

import asyncio
import shlex
from io import BytesIO
from pathlib import Path

import orjson
import pytest
from PIL import Image

from jobs.errors import InvalidRequest
from jobs.output.storage import Storage, open_storage
from jobs.requests import Body
from producer.api.page.gallery import SHARDS_A_LOOK, Album, Gallery, Wanted
from producer.api.page.pictures import THUMBNAIL_SIDE, Thumbnails
from producer.api.page.reproduction import curl, manifest_line
from producer.look.small import shrink
from producer.look.writing import duration, percent, rate
from tests.pages import plan_run, settle
from tests.samples import make_key, make_request

RUN = "0123456789ab"


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "out"))


def album_of(storage: Storage) -> Album:
    return Gallery().open(storage, RUN)


def test_pages_forward_and_backward_show_every_picture_once(storage: Storage) -> None:
    plan = plan_run(storage, RUN, 100, shard=40, chunk=10)
    for shard, chunk in [(0, 0), (0, 2), (1, 3), (2, 1)]:  # the others are still to come
        settle(storage, plan, shard, chunk, {25: "out of paint"})
    expected = [*range(10), *range(20, 25), *range(26, 30), *range(70, 80), *range(90, 100)]
    album = album_of(storage)
    forward, at = list[int](), 0
    while at is not None:
        found = album.after(at, Wanted(), 7)
        forward += [card.row for card in found.cards]
        at = found.after
    backward, at = list[int](), 100
    while at is not None:
        found = album.before(at, Wanted(), 7)
        backward = [card.row for card in found.cards] + backward
        at = found.before
    assert forward == backward == expected
    assert [card.message for card in album.after(0, Wanted("failures")).cards] == ["out of paint"]
    assert [card.row for card in album.after(0, Wanted("all", "PAINT")).cards] == [25]
    assert [card.row for card in album.after(0, Wanted(text="scene 7")).cards] == [
        7,
        *range(70, 80),
    ]
    with pytest.raises(InvalidRequest):
        album.record(15)  # not yet
    with pytest.raises(InvalidRequest):
        album.record(100)


def test_one_look_reads_so_many_shards_at_most(storage: Storage) -> None:
    plan = plan_run(storage, RUN, 30, shard=2, chunk=2, prompts={29: "a needle"})
    for shard in range(15):
        settle(storage, plan, shard, 0)
    found = album_of(storage).after(0, Wanted(text="needle"))
    assert (found.cards, found.stopped, found.after) == ((), True, 2 * SHARDS_A_LOOK)
    on = album_of(storage).after(found.after, Wanted(text="needle"))
    assert [card.row for card in on.cards] == [29]
    assert not on.stopped


def test_what_comes_while_one_looks_is_found(storage: Storage) -> None:
    plan, gallery = plan_run(storage, RUN, 20, chunk=10), Gallery()
    settle(storage, plan, 0, 0)
    assert len(gallery.open(storage, RUN).after(0, Wanted()).cards) == 10
    settle(storage, plan, 0, 1)
    assert len(gallery.open(storage, RUN).after(0, Wanted()).cards) == 20


def test_thumbnails_are_small_and_made_once(storage: Storage) -> None:
    picture = BytesIO()
    Image.effect_noise((1200, 600), 80).convert("RGB").save(picture, "JPEG")
    storage.write("images/00000/a.jpg", picture.getvalue())
    thumbnails = Thumbnails()
    data = asyncio.run(thumbnails.get(storage, "images/00000/a.jpg"))
    image = Image.open(BytesIO(data))
    assert (image.format, image.size) == ("WEBP", (THUMBNAIL_SIDE, THUMBNAIL_SIDE // 2))
    storage.remove("images/00000/a.jpg")
    assert asyncio.run(thumbnails.get(storage, "images/00000/a.jpg")) == data
    with pytest.raises(InvalidRequest, match="not in the run"):
        asyncio.run(thumbnails.get(storage, "images/00000/b.jpg"))


def test_thumbnails_are_made_once_and_before_they_are_asked_for(storage: Storage) -> None:
    paths = [f"images/00000/{number}.png" for number in range(6)]
    for path in paths[:5]:  # the last is gone
        picture = BytesIO()
        Image.new("RGB", (64, 64)).save(picture, "PNG")
        storage.write(path, picture.getvalue())
    read = list[str]()

    class Noting(Storage):
        def read(self, path: str) -> bytes:
            read.append(path)
            return super().read(path)

    noting = Noting(storage.uri, storage.filesystem, storage.root)

    async def visit() -> None:
        thumbnails = Thumbnails()
        thumbnails.prepare(noting, paths)
        some = await asyncio.gather(*[thumbnails.get(noting, path) for path in paths[:5] * 2])
        assert some[:5] == some[5:]
        with pytest.raises(InvalidRequest):
            await thumbnails.get(noting, paths[5])
        await thumbnails.strip(noting, paths[:5])

    asyncio.run(visit())
    assert sorted(read[:6]) == paths
    assert set(read[6:]) <= {paths[5]}


def test_a_file_that_lies_about_its_pixels_is_refused() -> None:
    file = BytesIO()
    Image.new("1", (16, 16)).save(file, "PNG")
    data = bytearray(file.getvalue())
    data[16:24] = (60_000).to_bytes(4, "big") * 2  # the header's width and height
    for hostile in (bytes(data), b"GIF89a", b""):
        with pytest.raises(InvalidRequest):
            shrink(hostile, 64)


def test_a_record_becomes_a_manifest_line_and_a_call() -> None:
    request = make_request(
        key=make_key(adapter="ink", negative=True),
        custom_id="it's",
        prompt="a 'red' \"circle\"",
        negative_prompt="blur",
        seed=2**63,
    )
    line = orjson.loads(manifest_line(request, 4))
    assert (line.pop("custom_id"), line.pop("slots")) == ("it's", 4)
    body = Body.model_validate(line)
    assert (body.seed, body.model, body.guidance_scale) == (2**63, "null:ink", 3.0)
    words = shlex.split((curl(request, "http://host", True) or "").replace("\\\n", ""))
    assert words[1] == "http://host/v1/images/generations"
    assert Body.model_validate_json(words[-1]).prompt == request.prompt
    assert curl(request._replace(images=("sha256:00",)), "http://host", False) is None


def test_numbers_are_written_for_people() -> None:
    assert [duration(s) for s in (0, 59.6, 3725, 200_000)] == [
        "0 s",
        "1 min 0 s",
        "1 h 2 min",
        "2 d 7 h",
    ]
    assert [rate(r) for r in (0.123, 12.34, 1234.5)] == ["0.12", "12.3", "1,234"]
    assert percent(0.9999) == "99 %"
