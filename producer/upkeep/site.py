"""A run as a site that needs no server: pages of pictures, a sprite sheet each, and an index.

OUT/page/index.html, 00002.html, …    40 pictures each, with links to the images themselves
OUT/page/sprites/00001.webp, …        what a page shows of them, in one file
OUT/page/index.json                   the run, and what each page holds
OUT/page/files/…                      style, icon, keys

Who loads OUT as a dataset does not meet it: its pictures have no rows.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import resources
from itertools import islice
from typing import Any

import orjson
from jinja2 import Environment
from PIL import Image

from jobs.errors import InvalidRequest
from jobs.output.dataset import now
from jobs.output.records import Row
from jobs.output.storage import Storage
from producer.look.small import encode, join, shrink
from producer.look.writing import make_environment
from producer.upkeep.collection import Collection, collect

FOLDER = "page"
COLUMNS, ROWS = 8, 5
PICTURES = COLUMNS * ROWS  # a page; page.css places so many
SIDE = 192  # pixels of a picture in a sprite sheet
FILES = ("page.css", "page.js", "icon.svg")
READERS = 16
SHOWN_FAILURES = 100
SHOWN_CHARACTERS = 300  # of a prompt or a message

Progress = Callable[[int, int], None]  # images so far, of how many


@dataclass(frozen=True, slots=True)
class Site:
    """What was written. index: where it begins; state: of the run; unreadable: images that are gone
    or damaged."""

    index: str
    state: str
    images: int
    pages: int
    unreadable: int


@dataclass(frozen=True, slots=True)
class _Page:
    """number: from 1; first: the number of its first picture, from 1."""

    number: int
    first: int
    rows: list[Row]

    @property
    def name(self) -> str:
        return page_name(self.number)

    @property
    def sprites(self) -> str:
        return f"sprites/{self.number:05d}.webp"


def page_name(number: int) -> str:
    """The file of a page, from 1."""
    return "index.html" if number == 1 else f"{number:05d}.html"


def write_site(out: str, progress: Progress, most: int | None = None) -> Site:
    """Write the site of a run into its output location, the first page last.

    Of a run that has not finished, it shows what is on record now. most: images that it shows.

    Raises:
        UsageError: there is no run, or it has no images yet.
        FatalError, TransientError: the storage does not work.
    """
    found = collect(out, SHOWN_FAILURES)
    storage, total = found.storage, min(found.summary.done, most or found.summary.done)
    for name in FILES:
        content = (resources.files("producer.look") / "files" / name).read_bytes()
        storage.write(f"{FOLDER}/files/{name}", content)
    writer = _Writer(found, total, now(), make_environment("producer.upkeep"))
    unreadable, pages, first = 0, list[dict[str, Any]](), None
    pending: deque[Future[int]] = deque()
    with ThreadPoolExecutor(READERS) as pool:
        for page in _pages(islice(found.rows(), total)):
            pages.append({"name": page.name, "first": page.first, "images": len(page.rows)})
            first = first or page
            pending.append(pool.submit(writer.write_sprites, page))
            if page.number > 1:
                writer.write_page(page)
            while len(pending) > READERS:
                unreadable += pending.popleft().result()
            progress(page.first - 1, total)
        unreadable += sum(one.result() for one in pending)
    index = {"summary": asdict(found.summary), "columns": COLUMNS, "side": SIDE, "pages": pages}
    storage.write(f"{FOLDER}/index.json", orjson.dumps(index))
    if first:
        writer.write_page(first)
    name = storage.name(f"{FOLDER}/index.html")
    return Site(name, found.summary.state, total, len(pages), unreadable)


@dataclass(frozen=True)
class _Writer:
    """total: images that the site shows; at: when that was, ISO 8601."""

    found: Collection
    total: int
    at: str
    templates: Environment

    @property
    def storage(self) -> Storage:
        return self.found.storage

    def write_page(self, page: _Page) -> None:
        last = math.ceil(self.total / PICTURES)
        text = self.templates.get_template("site.html").render(
            name=self.storage.uri.rstrip("/").rpartition("/")[2],
            summary=self.found.summary,
            total=self.total,
            at=self.found.summary.finished_at or self.at,
            page=page,
            before=page_name(page.number - 1) if page.number > 1 else None,
            after=page_name(page.number + 1) if page.number < last else None,
            last=page_name(last) if page.number < last - 1 else None,
            failures=self.found.failures if page.number == 1 else [],
            most=SHOWN_CHARACTERS,
        )
        self.storage.write(f"{FOLDER}/{page.name}", text.encode(), durable=False)

    def write_sprites(self, page: _Page) -> int:
        """Returns how many of its images cannot be read."""
        found = [self._small(row["file_name"]) for row in page.rows]
        blank = Image.new("RGB", (1, 1), "grey")
        data = encode(join([one or blank for one in found], SIDE, COLUMNS, ROWS))
        self.storage.write(f"{FOLDER}/{page.sprites}", data, durable=False)
        return found.count(None)

    def _small(self, path: str) -> Image.Image | None:
        try:
            return shrink(self.storage.read(path), SIDE)
        except (FileNotFoundError, InvalidRequest):
            return None


def _pages(rows: Iterator[Row]) -> Iterator[_Page]:
    number = 1
    while some := list(islice(rows, PICTURES)):
        yield _Page(number, 1 + (number - 1) * PICTURES, some)
        number += 1
