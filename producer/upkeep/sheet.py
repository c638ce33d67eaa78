"""The contact sheet: one picture with some of a run's images, and what each was made of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from itertools import islice

from PIL import Image, ImageDraw, ImageFont

from jobs.errors import FatalError, InvalidRequest, UsageError
from jobs.ids import STORED_INPUT
from jobs.inputs.images import InputPolicy, load_input
from jobs.output.dataset import read_pictured, read_rows
from jobs.output.records import Row
from jobs.output.storage import Storage, open_storage
from producer.look.small import shrink

TILE = 160  # pixels a side that an image may take
INPUT = 72  # and an input of it, of which two fit beside it
INPUTS = 2
GAP = 16
TEXT_SIZE = 13
TEXT_LINES = 3  # of the caption
LINE_HEIGHT = 17
PAPER, INK, PALE = "white", "#333333", "#777777"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, slots=True)
class Tile:
    """One image, what stands under it, and the first of the images that it was made from.

    notes: lines below the caption, paler; all tiles of a sheet have as many.
    """

    image: Image.Image
    caption: str
    notes: tuple[str, ...] = ()
    inputs: tuple[Image.Image, ...] = ()


def write_sheet(out: str, images: int, target: str | None = None) -> str:
    """Store a PNG with `images` images of a finished run; returns its URI.

    The images are spread evenly over the dataset. Without a target it lies beside the output, as
    OUT-sheet.png: an image inside OUT without a row of its own would break the dataset.

    Raises:
        UsageError: no run has finished there, it has no images, or the target cannot be used.
        FatalError: one of the images is gone or damaged.
    """
    storage = open_storage(out)
    folder, name = _target(storage, target)
    total = read_pictured(storage).done
    chosen = {number * total // images for number in range(images)}
    rows = (row for number, row in enumerate(read_rows(storage)) if number in chosen)
    try:
        folder.write(name, sheet_of(storage, rows))
    except InvalidRequest as error:
        raise FatalError(
            str(error), f"imagemill fsck {out} finds all such images; --repair renders them again."
        ) from error
    return f"{folder.uri}/{name}"


def sheet_of(storage: Storage, rows: Iterable[Row]) -> bytes:
    """A PNG with the images of some rows of a dataset, at least one.

    Raises:
        InvalidRequest: an image is none, or gone; the field is its place.
    """
    picture = BytesIO()
    draw_sheet(list(_tiles(storage, rows))).save(picture, "PNG", optimize=True)
    return picture.getvalue()


def draw_sheet(tiles: list[Tile]) -> Image.Image:
    """A grid that is a little wider than high, each caption on at most three lines.

    Beside the images is room for their inputs if any of them has some.
    """
    columns = min(len(tiles), round(math.sqrt(len(tiles) * 1.4)))
    rows = math.ceil(len(tiles) / columns)
    beside = INPUT + GAP if any(tile.inputs for tile in tiles) else 0
    lines = TEXT_LINES + max(len(tile.notes) for tile in tiles)
    across, down = TILE + beside + GAP, TILE + GAP + lines * LINE_HEIGHT
    sheet = Image.new("RGB", (columns * across + GAP, rows * down + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(TEXT_SIZE)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        x, y = GAP + column * across, GAP + row * down
        image = _fitted(tile.image, TILE)
        sheet.paste(image, (x + (TILE - image.width) // 2, y + TILE - image.height))
        for place, source in enumerate(tile.inputs[:INPUTS]):
            small = _fitted(source, INPUT)
            sheet.paste(small, (x + TILE + GAP // 2, y + place * (INPUT + GAP)))
        texts = [(text, INK) for text in _wrapped(tile.caption, font, TILE + beside)]
        texts += [(_cut(text, font, TILE + beside), PALE) for text in tile.notes]
        for line, (text, colour) in enumerate(texts):
            draw.text((x, y + TILE + 4 + line * LINE_HEIGHT), text, colour, font)
    return sheet


def _target(storage: Storage, target: str | None) -> tuple[Storage, str]:
    where = f"{storage.uri.rstrip('/')}-sheet.png" if target is None else target
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


def _tiles(storage: Storage, rows: Iterable[Row]) -> Iterator[Tile]:
    for row in rows:
        name = storage.name(row["file_name"])
        try:
            picture = shrink(storage.read(row["file_name"]), 2 * TILE)
        except FileNotFoundError as error:
            raise InvalidRequest(name, "is gone") from error
        except InvalidRequest as error:
            raise InvalidRequest(name, error.reason, error.code) from error
        adapter = f":{row['adapter']}" if row["adapter"] else ""
        notes = (f"{row['model']}{adapter}", f"seed {row['seed']}")
        yield Tile(picture, row["prompt"], notes, tuple(_inputs(storage, row)))


def _inputs(storage: Storage, row: Row) -> Iterator[Image.Image]:
    """The input and control images of an image that lie in its run's storage.

    URLs are not fetched for a sheet.
    """
    for reference in islice([*row.get("input_images", ()), *row.get("control_images", ())], INPUTS):
        if STORED_INPUT.fullmatch(reference):
            with suppress(InvalidRequest):  # it is gone, or damaged
                yield shrink(load_input(reference, InputPolicy(), storage), INPUT)


def _fitted(image: Image.Image, side: int) -> Image.Image:
    scale = side / max(image.size)
    return image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))),
        Image.Resampling.LANCZOS,
    )


def _wrapped(text: str, font: Font, width: int) -> list[str]:
    """The caption's first lines, none wider than that; an ellipsis where it goes on."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    shown = [_cut(line, font, width) for line in lines[:TEXT_LINES]]
    if len(lines) > TEXT_LINES:
        shown[-1] = _cut(f"{shown[-1]} …", font, width)
    return shown


def _cut(line: str, font: Font, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    kept = line.rstrip("… ")
    while kept and font.getlength(f"{kept}…") > width:
        kept = kept[:-1]
    return f"{kept}…"
