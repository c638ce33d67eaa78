"""A dataset as a site: what a browser finds that opens it from a disk or a bucket."""

from __future__ import annotations

import re
from html import unescape
from io import BytesIO
from pathlib import Path

import orjson
import pytest
from PIL import Image

from jobs.errors import UsageError
from jobs.output import layout
from jobs.output.dataset import Summary, write_summary
from jobs.output.records import encode_part
from jobs.output.storage import Storage, open_storage
from producer.upkeep.site import COLUMNS, PICTURES, ROWS, SIDE, write_site
from tests.datasets import make_dataset
from tests.pages import plan_run, settle

IMAGES = 2 * PICTURES + 5
HOSTILE = "</title><script>alert(1)</script> \"'><img src=//evil.example>"


def places(storage: Storage, page: str, text: str) -> set[str]:
    """The files that a page of the site links to; none may be missing."""
    found = {unescape(one) for one in re.findall(r'(?:href|src)="([^"#]*)"', text)}
    found |= set(re.findall(r'url\("([^"]*)"\)', text))
    for one in found:
        path = f"page/{one}".replace("page/../", "")
        assert storage.exists(path), f"{page} links to {one}"
    return found


def test_every_picture_is_on_one_page_and_in_its_place(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    rows = make_dataset(out, IMAGES, {3: {"prompt": HOSTILE}})
    storage = open_storage(out)
    storage.remove(rows[1]["file_name"])
    storage.write(rows[2]["file_name"], b"torn")
    seen = list[tuple[int, int]]()
    site = write_site(out, lambda done, total: seen.append((done, total)))
    assert (site.images, site.pages, site.unreadable) == (IMAGES, 3, 2)
    assert seen[-1] == (2 * PICTURES, IMAGES)
    index = orjson.loads(storage.read("page/index.json"))
    images = list[str]()
    for number, page in enumerate(index["pages"], 1):
        text = storage.read(f"page/{page['name']}").decode()
        assert "<script>alert" not in text
        linked = re.findall(r'href="\.\./(images/[^"]*)"', text)
        assert len(linked) == page["images"]
        images += linked
        sheet = Image.open(BytesIO(storage.read(f"page/sprites/{number:05d}.webp")))
        assert sheet.size == (COLUMNS * SIDE, ROWS * SIDE)
        for place, name in enumerate(linked):
            if name in (rows[1]["file_name"], rows[2]["file_name"]):
                continue
            there = Image.open(BytesIO(storage.read(name))).getpixel((4, 4))
            across, down = place % COLUMNS * SIDE, place // COLUMNS * SIDE
            shown = sheet.convert("RGB").getpixel((across + SIDE // 2, down + SIDE // 2))
            assert all(abs(a - b) < 12 for a, b in zip(there, shown, strict=True))  # type: ignore[arg-type]
    assert images == [row["file_name"] for row in rows]


def test_pages_lead_to_each_other_and_to_nothing_else(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    make_dataset(out, IMAGES)
    failed = {
        "index": 7,
        "job_id": "f" * 32,
        "status": "failed",
        "code": "nsfw",
        "message": HOSTILE,
    }
    storage = open_storage(out)
    storage.write(layout.ERRORS, encode_part([failed]))  # type: ignore[list-item]
    write_summary(
        storage,
        Summary(
            run_id="0" * 12,
            state="finished",
            manifest="m",
            seed=7,
            created_at="",
            requests=IMAGES + 1,
            done=IMAGES,
            failed=1,
        ),
    )
    write_site(out, lambda *_: None)
    text = storage.read("page/index.html").decode()
    assert "line 8" in text
    assert "<script>alert" not in text
    first = places(storage, "index.html", text)
    assert {"00002.html", "00003.html", "sprites/00001.webp", "files/page.css"} <= first
    second = places(storage, "00002.html", storage.read("page/00002.html").decode())
    assert {"index.html", "00003.html", "sprites/00002.webp"} <= second
    third = places(storage, "00003.html", storage.read("page/00003.html").decode())
    assert "00004.html" not in third


def test_a_run_that_goes_on_shows_what_it_has(tmp_path: Path) -> None:
    """Its records are in parts, also in those of chunks that were interrupted."""
    out = str(tmp_path / "out")
    with pytest.raises(UsageError, match="not the output of a run"):
        write_site(out, lambda *_: None)
    storage = open_storage(out)
    plan = plan_run(storage, "0" * 12, 200, shard=120, chunk=60)
    with pytest.raises(UsageError, match="has no images"):
        write_site(out, lambda *_: None)
    settle(storage, plan, 1, 0, {130: HOSTILE})
    settle(storage, plan, 0, 1)
    part = layout.done_part(plan.run_id, 0, 1)
    storage.move(part, layout.interrupted_part(plan.run_id, 0, 1, "ab"))
    site = write_site(out, lambda *_: None)
    assert (site.state, site.images, site.pages, site.unreadable) == ("running", 119, 3, 0)
    pages = [storage.read(f"page/{name}").decode() for name in ("index.html", "00002.html")]
    shown = re.findall(r'aria-label="scene (\d+)"', "".join(pages))
    assert shown == [str(n) for n in range(60, 141) if n != 130]
    assert "119<small> of 200</small>" in pages[0]
    assert "not finished; as of 20" in pages[0]
    assert "line 131" in pages[0]
    assert "<script>alert" not in pages[0]
    places(storage, "index.html", pages[0])
    assert write_site(out, lambda *_: None, 50).pages == 2
    assert "1 to 40 of 50, the first of 119" in storage.read("page/index.html").decode()
