"""The contact sheet: one picture with some of a run's images and their prompts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import islice

from PIL import Image, ImageDraw, ImageFont

from jobs.errors import UsageError
from jobs.output import layout
from jobs.output.dataset import read_summary
from jobs.output.records import read_part
from jobs.output.storage import Storage, open_storage

TILE = 160  # pixels a side that an image may take
GAP = 16
TEXT_SIZE = 13
TEXT_LINES = 3
LINE_HEIGHT = 17
PAPER, INK = "white", "#333333"


@dataclass(frozen=True, slots=True)
class Tile:
    """One image and what stands under it."""

    image: Image.Image
    caption: str


def write_sheet(out: str, images: int, target: str | None = None) -> str:
    """Store a PNG with `images` images of a finished run; returns its URI.

    The images are spread evenly over the dataset. Without a target it lies beside the output, as
    OUT-sheet.png: an image inside OUT without a row of its own would break the dataset.

    Raises:
        UsageError: the run has no images, or the target cannot be used.
    """
    storage = open_storage(out)
    folder, name = _target(storage, target)
    tiles = list(_tiles(storage, images))
    if not tiles:
        raise UsageError(f"{out} has no images", "Run its manifest to the end first.")
    picture = BytesIO()
    draw_sheet(tiles).save(picture, "PNG", optimize=True)
    folder.write(name, picture.getvalue())
    return f"{folder.uri}/{name}"


def draw_sheet(tiles: list[Tile]) -> Image.Image:
    """A grid that is a little wider than high, each caption on at most three lines."""
    columns = min(len(tiles), round(math.sqrt(len(tiles) * 1.4)))
    rows = math.ceil(len(tiles) / columns)
    across, down = TILE + GAP, TILE + GAP + TEXT_LINES * LINE_HEIGHT
    sheet = Image.new("RGB", (columns * across + GAP, rows * down + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(TEXT_SIZE)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        x, y = GAP + column * across, GAP + row * down
        image = _fitted(tile.image)
        sheet.paste(image, (x + (TILE - image.width) // 2, y + TILE - image.height))
        for line, text in enumerate(_wrapped(tile.caption, font)):
            draw.text((x, y + TILE + 4 + line * LINE_HEIGHT), text, INK, font)
    return sheet


def _target(storage: Storage, target: str | None) -> tuple[Storage, str]:
    where = target or f"{storage.uri.rstrip('/')}-sheet.png"
    folder, slash, name = where.rpartition("/")
    if (slash and not folder) or folder.endswith("/") or not name.endswith(".png"):
        raise UsageError(f"no contact sheet at {where!r}", "Name a .png file: --to FILE.")
    place = open_storage(folder or ".")
    if storage.holds(place):
        raise UsageError(
            f"{where} is inside the dataset, which holds only images with a row",
            "Choose a place outside of it: --to FILE.",
        )
    return place, name


def _tiles(storage: Storage, images: int) -> Iterator[Tile]:
    summary = read_summary(storage)
    if summary is None or summary.state != "finished":
        return
    step = max(1, summary.done // images)
    for row in islice(read_part(storage, layout.METADATA), 0, step * images, step):
        picture = Image.open(BytesIO(storage.read(row["file_name"]))).convert("RGB")
        yield Tile(picture, row["prompt"])


def _fitted(image: Image.Image) -> Image.Image:
    scale = TILE / max(image.size)
    return image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))),
        Image.Resampling.LANCZOS,
    )


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """The caption's first lines, none wider than a tile; an ellipsis where it goes on."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= TILE or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    shown = [_cut(line, font) for line in lines[:TEXT_LINES]]
    if len(lines) > TEXT_LINES:
        shown[-1] = _cut(f"{shown[-1]} …", font)
    return shown


def _cut(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    if font.getlength(line) <= TILE:
        return line
    kept = line.rstrip("… ")
    while kept and font.getlength(f"{kept}…") > TILE:
        kept = kept[:-1]
    return f"{kept}…"
