"""Scenes: everything the demo model can picture, with the captions that name it.

The world is finite. `every_scene()` lists it in a fixed order, a scene's one true picture follows
from the scene alone (`drawing.draw`), and `held_out()` decides by hash which scenes are never
trained on.

    one      a [small|large] COLOUR SHAPE [in the centre|on the left|...] on a COLOUR background
    counted  two|three COLOUR SHAPEs on a COLOUR background
    paired   a COLOUR SHAPE to the left of|above a COLOUR SHAPE on a COLOUR background
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import ClassVar, Literal

SIDE = 64  # pixels, width and height of a drawing

# sRGB. Any two are at least 90 units apart, so that "within 60" and "nearest" agree.
PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "orange": (245, 140, 20),
    "yellow": (250, 225, 50),
    "green": (40, 160, 70),
    "blue": (40, 80, 220),
    "purple": (140, 50, 180),
    "white": (250, 250, 250),
    "black": (20, 20, 20),
    "grey": (128, 128, 128),
}
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
BACKGROUNDS = ("white", "black", "grey", "blue", "green", "yellow")
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
PLURALS = {"cross": "crosses"}  # every other shape takes an s
SIZES = {"small": 9.0, "medium": 13.0, "large": 18.0}  # radius in pixels
POSITIONS = {  # name: (phrase, x, y of the centre in pixels)
    "centre": ("in the centre", 32.0, 32.0),
    "left": ("on the left", 20.0, 32.0),
    "right": ("on the right", 44.0, 32.0),
    "top": ("at the top", 32.0, 20.0),
    "bottom": ("at the bottom", 32.0, 44.0),
}
COUNTS = {  # word: centres in pixels
    "two": ((17.0, 32.0), (47.0, 32.0)),
    "three": ((32.0, 17.0), (17.0, 47.0), (47.0, 47.0)),
}
RELATIONS = {  # name: (phrase, the same seen from the second object, centres in pixels)
    "left": ("to the left of", "to the right of", ((17.0, 32.0), (47.0, 32.0))),
    "above": ("above", "below", ((32.0, 17.0), (32.0, 47.0))),
}
SHARED_RADIUS = 12.0  # pixels, of each object in a scene of several
AMERICAN = {"grey": "gray", "centre": "center"}
HELD_OUT_ONE_IN = 8

Kind = Literal["one", "counted", "paired"]
KINDS: tuple[Kind, ...] = ("one", "counted", "paired")


@dataclass(frozen=True)
class Item:
    """One object as drawn: names from SHAPES and PALETTE, centre and radius in pixels."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class One:
    """A single object of a chosen size at a chosen place."""

    kind: ClassVar[Kind] = "one"
    shape: str
    colour: str
    size: str
    position: str
    background: str

    def items(self) -> tuple[Item, ...]:
        _, x, y = POSITIONS[self.position]
        return (Item(self.shape, self.colour, x, y, SIZES[self.size]),)

    def captions(self) -> tuple[str, ...]:
        thing, place = f"{self.colour} {self.shape}", POSITIONS[self.position][0]
        # medium and centre are what a caption means when it does not say
        sized = [] if self.size != "medium" else [indefinite(thing)]
        sized += [f"a {self.size} {thing}"]
        placed = [""] if self.position == "centre" else []
        placed += [f" {place}"]
        texts = [f"{what}{where}" for where, what in product(placed, sized)]
        return spelled(texts, self.background)


@dataclass(frozen=True)
class Counted:
    """Two or three equal objects in a fixed layout."""

    kind: ClassVar[Kind] = "counted"
    count: str
    shape: str
    colour: str
    background: str

    def items(self) -> tuple[Item, ...]:
        centres = COUNTS[self.count]
        return tuple(Item(self.shape, self.colour, x, y, SHARED_RADIUS) for x, y in centres)

    def captions(self) -> tuple[str, ...]:
        plural = PLURALS.get(self.shape, f"{self.shape}s")
        return spelled([f"{self.count} {self.colour} {plural}"], self.background)


@dataclass(frozen=True)
class Paired:
    """Two different objects, the first to the left of or above the second."""

    kind: ClassVar[Kind] = "paired"
    first: tuple[str, str]  # colour, shape
    second: tuple[str, str]
    relation: str
    background: str

    def items(self) -> tuple[Item, ...]:
        centres = RELATIONS[self.relation][2]
        return tuple(
            Item(shape, colour, x, y, SHARED_RADIUS)
            for (colour, shape), (x, y) in zip((self.first, self.second), centres, strict=True)
        )

    def captions(self) -> tuple[str, ...]:
        forward, backward, _ = RELATIONS[self.relation]
        a, b = (indefinite(f"{colour} {shape}") for colour, shape in (self.first, self.second))
        return spelled([f"{a} {forward} {b}", f"{b} {backward} {a}"], self.background)


Scene = One | Counted | Paired


def indefinite(words: str) -> str:
    """The words with their article: `a red heart`, `an orange heart`."""
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def spelled(texts: list[str], background: str) -> tuple[str, ...]:
    """Full captions, the canonical one first, each also in American spelling where it differs."""
    captions = [f"{text} on a {background} background" for text in texts]
    american = [" ".join(AMERICAN.get(w, w) for w in caption.split()) for caption in captions]
    return tuple(dict.fromkeys(captions + american))


def every_scene() -> Iterator[Scene]:
    """All scenes in a fixed order. No object has the colour of its background."""
    things = list(product(COLOURS, SHAPES))
    for background, (colour, shape) in product(BACKGROUNDS, things):
        if colour == background:
            continue
        for size, position in product(SIZES, POSITIONS):
            yield One(shape, colour, size, position, background)
        for count in COUNTS:
            yield Counted(count, shape, colour, background)
        for second, relation in product(things, RELATIONS):
            if second != (colour, shape) and second[0] != background:
                yield Paired((colour, shape), second, relation, background)


def held_out(scene: Scene) -> bool:
    """Whether the scene is kept for checking: one in eight, by hash of its canonical caption."""
    digest = hashlib.sha256(scene.captions()[0].encode()).digest()
    return digest[0] % HELD_OUT_ONE_IN == 0


def vocabulary() -> list[str]:
    """Every word that occurs in a caption, sorted."""
    return sorted({w for scene in every_scene() for c in scene.captions() for w in c.split()})
