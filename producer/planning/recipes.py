"""One manifest line that stands for many images: `n`, `sweep`, `zip`, `sample` and templates; and
candidates for each: `best_of`, `min`, `max`.

{"prompt": "a {{ color }} cat", "custom_id": "cat", "n": 2, "sweep": {"color": ["red", "blue"]}}
stands for cat[color=red], cat[color=red]#1, cat[color=blue] and cat[color=blue]#1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import accumulate, product
from math import prod
from typing import Annotated, NamedTuple

from pydantic import BaseModel, Field, ValidationError

from jobs.errors import InvalidRequest, UsageError, plain, resembling
from jobs.ids import COLUMN, draw, short_digest
from jobs.output.plan import MAX_ROUNDS
from jobs.requests import MAX_CUSTOM_ID, STRICT, Body, Prompt, Rule
from producer.planning.plain import PlainBody

MAX_IMAGES = 10_000  # that one line may stand for
MAX_CHARACTERS = 1 << 25  # of the prompts of all images of a line
MAX_PLACES = 100  # of names in its prompts
MAX_NAMES = 16  # of each of sweep, zip and sample
MAX_VALUES = 256  # of each name
MAX_LABEL = 128  # characters of a custom_id that name the values of a sweep; more become a hash

KEYS = re.compile(
    rb'"(?:n|sweep|zip|sample|best_of|by|min|max|max_tries)"'
)  # what tells a line that has a recipe
_BODY = frozenset(Body.model_fields)
PLACEHOLDER = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]{0,63})\s*\}\}")
_TEMPLATES = ("prompt", "negative_prompt")

Value = Prompt | int | float
_Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]
_Values = Annotated[list[Value], Field(min_length=1, max_length=MAX_VALUES)]
_Weight = Annotated[float, Field(gt=0, le=1e9)]
_Weights = Annotated[dict[str, _Weight], Field(min_length=1, max_length=MAX_VALUES)]
_Grid = Annotated[dict[_Name, _Values], Field(max_length=MAX_NAMES)]
_Choices = Annotated[dict[_Name, _Values | _Weights], Field(max_length=MAX_NAMES)]


_Column = Annotated[str, Field(pattern=f"^{COLUMN.pattern}$")]
_Bounds = Annotated[dict[_Column, float], Field(min_length=1, max_length=MAX_NAMES)]
_Tries = Annotated[int, Field(ge=1, le=MAX_ROUNDS)]


class Image(NamedTuple):
    """One image of a line. number: among those that differ only in their seeds, from 0."""

    body: Body
    custom_id: str
    number: int


class Choosing(BaseModel):
    """How each image of a line is chosen among candidates, if at all.

    best_of, by: of so many candidates for each image that with the highest score is chosen; min,
    max: bounds of scores, which a candidate must meet; max_tries: candidates until enough do.
    """

    model_config = STRICT

    best_of: _Tries | None = None
    by: _Column | None = None
    min: _Bounds | None = None
    max: _Bounds | None = None
    max_tries: _Tries | None = None

    @property
    def rule(self) -> Rule | None:
        """How each image is chosen; None if there is nothing to choose.

        Raises:
            InvalidRequest: fields that belong together are not.
        """
        if self.by is None and (self.best_of or 1) > 1:
            raise InvalidRequest("by", "is required: the column by which best_of chooses")
        if self.by is not None and (self.best_of or 1) == 1:
            raise InvalidRequest("by", "belongs to a best_of of 2 or more")
        for name, bound in (self.min or {}).items():
            if bound > (other := (self.max or {}).get(name, bound)):
                raise InvalidRequest(f"min.{name}", f"is above its max, {other:g}: nothing passes")
        if self.max_tries is not None and not (self.min or self.max):
            raise InvalidRequest("max_tries", "belongs to bounds: min, max")
        wanted = self.best_of or 1
        if self.max_tries is not None and self.max_tries < wanted:
            raise InvalidRequest("max_tries", f"is less than best_of, {wanted}")
        if not (self.min or self.max or self.by):
            return None
        least, most = (tuple(sorted((one or {}).items())) for one in (self.min, self.max))
        return Rule(wanted, self.max_tries or wanted, self.by or "", least, most)


class Recipe(Body, Choosing):
    """A body that may stand for many.

    A name of sweep, zip or sample is a field of the body, or stands as {{ name }} in its prompts.
    sweep: every combination; zip: the first values of all names, then the second ones, …; sample:
    one value for each image, drawn evenly from a list or as often as its weight says.
    """

    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] | None = None
    sweep: _Grid | None = None
    zip: _Grid | None = None
    sample: _Choices | None = None

    def varies(self, name: str) -> bool:
        """Whether a field differs from image to image."""
        return any(name in (part or {}) for part in (self.sweep, self.zip, self.sample))

    def count(self, n: int, rule: Rule | None) -> int:
        """The images that it stands for, all candidates counted. n: of each combination, rule: for
        each image, where it does not say.

        Raises: as rule.
        """
        rows = min(map(len, (self.zip or {}).values()), default=1)
        rule = self.rule or rule
        tries = rule.tries if rule else 1
        return prod(map(len, (self.sweep or {}).values())) * rows * (self.n or n) * tries

    def images(
        self, custom_id: str, seed: int, n: int, rule: Rule | None = None
    ) -> Iterator[Image]:
        """All images, those of one combination side by side.

        Number 0 of the only combination has the line's own custom_id, so that a line that is given
        an `n` keeps the image it had. seed: of the run, which samples are drawn with; n, rule: as
        for count.

        Raises:
            InvalidRequest: something does not fit together, or a value its field.
        """
        if (count := self.count(n, rule)) > MAX_IMAGES:
            rule = self.rule or rule
            of = "images and further candidates for them" if rule else "images"
            what = f"the line stands for {count:,} {of}, more than {MAX_IMAGES:,}"
            raise InvalidRequest("sweep" if self.sweep else "n", what)
        given = {name: getattr(self, name) for name in self.model_fields_set & _BODY}
        self._check(given)
        samples = {name: _weighed(values) for name, values in sorted((self.sample or {}).items())}
        characters = 0
        for combination in self._combinations():
            name = custom_id + _label(combination)
            body = None if samples else _body(given, combination)
            for number in range(self.n or n):
                own = name_of(name, number)
                if custom_id and len(own) > MAX_CUSTOM_ID:
                    reason = f"with {own[len(custom_id) :]!r} it has more than {MAX_CUSTOM_ID}"
                    raise InvalidRequest("custom_id", f"{reason} characters")
                image = body
                if image is None:
                    what = own if custom_id else f"{self.prompt}{own}"
                    drawn = {
                        name: values[_place(draw(seed, what, name), bounds)]
                        for name, (values, bounds) in samples.items()
                    }
                    image = _body(given, combination | drawn)
                characters += len(image.prompt) + len(image.negative_prompt or "")
                if characters > MAX_CHARACTERS:
                    reason = f"all of the line's have more than {MAX_CHARACTERS:,} characters"
                    raise InvalidRequest("prompt", reason)
                yield Image(image.numbered(number), own if custom_id else "", number)

    def _combinations(self) -> Iterator[dict[str, Value]]:
        sweep, zipped = self.sweep or {}, self.zip or {}
        rows = list(zip(*zipped.values(), strict=True)) if zipped else [()]
        for values in product(*sweep.values()):
            for row in rows:
                yield dict(zip(sweep, values, strict=True)) | dict(zip(zipped, row, strict=True))

    def _check(self, given: dict[str, object]) -> None:
        """Raises InvalidRequest for names that are known twice, or nowhere."""
        parts = {"sweep": self.sweep, "zip": self.zip, "sample": self.sample}
        places = [
            name for field in _TEMPLATES for name in PLACEHOLDER.findall(getattr(self, field) or "")
        ]
        asked = set(places)
        known = dict[str, str]()
        for part, values in parts.items():
            for name, choices in (values or {}).items():
                place = f"{part}.{name}"
                if name in known:
                    raise InvalidRequest(place, f"{known[name]} has it as well")
                if name in given:
                    hint = "; write {{ a_name }} in it" if name in _TEMPLATES else ""
                    raise InvalidRequest(place, f"the line gives it a value as well{hint}")
                if name not in Body.model_fields and name not in asked:
                    near = resembling(name, (*Body.model_fields, *asked))
                    raise InvalidRequest(
                        place, f"is no field, and no prompt has {{{{ {name} }}}}{near}"
                    )
                if part != "zip" and len(set(choices)) < len(choices):
                    raise InvalidRequest(place, "has a value twice")
                known[name] = part
        if len({len(values) for values in (self.zip or {}).values()}) > 1:
            raise InvalidRequest("zip", "its lists have different lengths")
        if known and len(places) > MAX_PLACES:
            raise InvalidRequest("prompt", f"has names in more than {MAX_PLACES} places")
        # A line that varies nothing has no templates: its braces are its own.
        if known and (unknown := asked - known.keys()):
            raise InvalidRequest("prompt", f"nothing says what {{{{ {min(unknown)} }}}} stands for")


def name_of(custom_id: str, number: int) -> str:
    """The custom_id of one of several images that differ only in their seeds."""
    return f"{custom_id}#{number}" if number else custom_id


def as_recipe(body: Body | PlainBody) -> Recipe:
    """A body that stands for itself alone, as often as n says."""
    given = {name: value for name in _BODY if (value := getattr(body, name)) is not None}
    return Recipe.model_construct(set(given), **given)


def _body(given: dict[str, object], values: dict[str, Value]) -> Body:
    """A body with the values in its fields and prompts.

    Raises:
        InvalidRequest: a value is none of its field.
    """
    filled = given | {name: value for name, value in values.items() if name in Body.model_fields}
    if values:
        for name in _TEMPLATES:
            if isinstance(text := filled.get(name), str):
                filled[name] = PLACEHOLDER.sub(lambda found: _text(values[found[1]]), text)
    try:
        return Body.model_validate(filled)
    except ValidationError as wrong:
        error = wrong.errors(include_url=False)[0]
        name = str(error["loc"][0])
        got = f" (got {_text(values[name])[:60]})" if name in values else ""
        said = plain(error["msg"])
        reason = f"{said[:1].lower()}{said[1:]}{got}"
        raise InvalidRequest(name, reason) from wrong


def _label(combination: dict[str, Value]) -> str:
    """What tells a combination from the line's others, whatever is added to the sweep later."""
    if not combination:
        return ""
    text = ",".join(f"{name}={_text(value)}" for name, value in sorted(combination.items()))
    return f"[{text if len(text) <= MAX_LABEL else short_digest(text)}]"


def _text(value: Value) -> str:
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value) if whole else value)


def _weighed(choices: list[Value] | dict[str, float]) -> tuple[list[Value], list[float]]:
    """The values, and where in [0, 1] the share of each ends."""
    values = list[Value](choices)
    weights = list(choices.values()) if isinstance(choices, dict) else [1.0] * len(values)
    total = sum(weights)
    return values, [one / total for one in accumulate(weights)]


def _place(point: float, bounds: list[float]) -> int:
    return next((n for n, bound in enumerate(bounds) if point < bound), len(bounds) - 1)


def rule_of(text: str | None) -> Rule | None:
    """How images are chosen, as a command's option says it: JSON with the fields of a line.

    Raises:
        UsageError: they are none, or do not fit together.
    """
    if text is None:
        return None
    example = """--choose '{"min": {"clip": 0.25}, "max_tries": 8}'"""
    try:
        rule = Choosing.model_validate_json(text).rule
    except ValidationError as wrong:
        error = wrong.errors(include_url=False)[0]
        where = ".".join(map(str, error["loc"]))
        said = plain(error["msg"])
        if error["type"] == "extra_forbidden":
            said = f"unknown field{resembling(where, Choosing.model_fields)}"
        reason = f"{where}: {said}" if where else said
        raise UsageError(f"--choose: {reason}", f"For example: {example}.") from wrong
    except InvalidRequest as error:
        raise UsageError(f"--choose: {error}", f"For example: {example}.") from error
    if rule is None:
        raise UsageError("--choose says nothing to choose by", f"For example: {example}.")
    return rule
