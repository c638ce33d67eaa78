"""Reads a manifest: JSONL, plain or .gz, or a table; local or any fsspec URI; one request a line.

Two forms, also mixed: OpenAI Batch lines ({"custom_id", "method", "url", "body"}) and bare bodies
with an optional "custom_id". Blank lines are skipped.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import file_digest, sha256
from io import BufferedReader, BytesIO, RawIOBase
from itertools import chain, groupby
from reprlib import Repr
from typing import IO, Annotated, Any, ClassVar, Literal, cast

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails

from jobs.errors import FatalError, LineError, UsageError, plain, printable, resembling
from jobs.output.kept import Kept
from jobs.output.plan import SHARD_LINES
from jobs.output.refusals import DAMAGED
from jobs.output.storage import open_file
from jobs.requests import MAX_CUSTOM_ID, STRICT, Body, ImageInput, Input, Task
from producer.planning.folders import files_of
from producer.planning.plain import COLONS, PlainBatchLine, PlainLine, parse_plain
from producer.planning.recipes import KEYS, Recipe
from producer.planning.strict_json import MAX_MARKS, check_marks, describe, parse_json
from producer.planning.tables import UnfitManifest, UnfitRow, kind_of, table_lines

MAX_LINE = 128 << 20  # bytes: a 50 MiB image in base64 fits, with another beside it
BLOCK_BYTES = 16 << 20  # of lines with images: what a block holds beside its last line
IMAGE_LINE = 64 << 10  # bytes of a line, from which on most of it is an image in base64
READ_BYTES = 1 << 20
SHOWN_ERRORS = 20  # of one line
SHOWN_NAME = 64  # characters of a field's name
SHOWN_VALUE = 60  # characters of a wrong value

_NO_OBJECT = "must be a JSON object"
_ARRAY = f"{_NO_OBJECT}, not an array; one object a line is what jq -c '.[]' FILE writes"
_PIECE = "not valid JSON: an object must stand on one line, as jq -c . FILE writes it"

# What other tools call fields, and letters alone do not tell.
_ELSEWHERE = {
    "caption": ("prompt",),
    "cfg": ("guidance_scale",),
    "cfg_scale": ("guidance_scale",),
    "format": ("response_format",),
    "guidance": ("guidance_scale",),
    "id": ("custom_id",),
    "key": ("custom_id",),
    "lora": ("model",),
    "mask": ("mask_image",),
    "negative": ("negative_prompt",),
    "num_images": ("n",),
    "num_images_per_prompt": ("n",),
    "output_format": ("response_format",),
    "resolution": ("width", "height"),
    "size": ("width", "height"),
    "steps": ("num_inference_steps",),
    "text": ("prompt",),
}

Slots = Annotated[int, Field(ge=1)]
CustomId = Annotated[str, Field(min_length=1, max_length=MAX_CUSTOM_ID)]


class BareLine(Body):
    """A body with an optional custom_id; an edit if it has an `image`.

    slots: of the pipeline call that renders it; None if the plan is to decide. keep: columns of
    its image in the dataset.
    """

    has_recipe: ClassVar[bool] = False
    custom_id: CustomId | None = None
    slots: Slots | None = None
    keep: Kept | None = None

    @property
    def body(self) -> Body:
        return self

    @property
    def task(self) -> Task:
        return "generate" if self.image is None else "edit"


class BatchLine(BaseModel):
    """A line of OpenAI's Batch API."""

    model_config = STRICT

    has_recipe: ClassVar[bool] = False
    custom_id: CustomId
    method: Literal["POST"]
    url: Literal["/v1/images/generations", "/v1/images/edits"]
    body: Body
    slots: ClassVar[None] = None  # OpenAI's form has no such fields
    keep: ClassVar[None] = None

    @property
    def task(self) -> Task:
        return "generate" if self.url == "/v1/images/generations" else "edit"


class BareRecipe(Recipe):
    """A bare body that stands for several."""

    has_recipe: ClassVar[bool] = True
    custom_id: CustomId | None = None
    slots: Slots | None = None
    keep: Kept | None = None

    @property
    def body(self) -> Recipe:
        return self

    @property
    def task(self) -> Task:
        return "generate" if self.image is None and not self.varies("image") else "edit"


class BatchRecipe(BatchLine):
    """A line of OpenAI's Batch API for several images."""

    has_recipe: ClassVar[bool] = True
    body: Recipe


# Two pairs: a model with the fields of a recipe takes a fifth longer, and most lines have none.
_Checked = BareLine | BatchLine | BareRecipe | BatchRecipe
_RECIPES: dict[type[_Checked], type[_Checked]] = {BareLine: BareRecipe, BatchLine: BatchRecipe}

Line = PlainLine | PlainBatchLine | _Checked


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive lines, the first of them line number `first` (from 1) of the manifest.

    A line that is too long to read is blank here, as is a row that is none, and has its error.
    """

    first: int
    lines: list[bytes] = field(default_factory=list)
    errors: list[LineError] = field(default_factory=list)

    def __reduce__(self) -> tuple[object, ...]:
        """As one text: that goes to another process in a tenth of the time of thousands."""
        return _whole_block, (self.first, b"".join(self.lines), self.errors)

    def numbered(self) -> Iterator[tuple[int, bytes]]:
        """The lines that are not blank, with their numbers."""
        return ((n, raw) for n, raw in enumerate(self.lines, self.first) if not raw.isspace())

    def gzipped(self) -> bytes:
        """The lines, compressed; the same bytes each time."""
        size = sum(map(len, self.lines))
        # In the base64 of images nothing repeats: to look for it takes three times as long.
        repeats = size <= IMAGE_LINE * len(self.lines)
        strategy = zlib.Z_DEFAULT_STRATEGY if repeats else zlib.Z_HUFFMAN_ONLY
        packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS | 16, strategy=strategy)
        return packer.compress(b"".join(self.lines)) + packer.flush()

    def cut(self, images: Mapping[int, int]) -> Iterator[Block]:
        """This block as several of at most SHARD_LINES images, or of a single line.

        images: those of each numbered line.
        """
        start, inside = self.first, 0
        for number in range(self.first, end := self.first + len(self.lines)):
            if inside and inside + images.get(number, 0) > SHARD_LINES:
                yield self._slice(start, number)
                start, inside = number, 0
            inside += images.get(number, 0)
        yield self._slice(start, end)

    def _slice(self, start: int, stop: int) -> Block:
        errors = [error for error in self.errors if start <= error.line < stop]
        return Block(start, self.lines[start - self.first : stop - self.first], errors)


def _whole_block(first: int, text: bytes, errors: list[LineError]) -> Block:
    return Block(first, BytesIO(text).readlines(), errors)


def parse_line(number: int, raw: bytes) -> Line | list[LineError]:
    """The line's request, or the reasons why it is none, at most SHOWN_ERRORS."""
    if len(raw) > MAX_MARKS:
        try:
            check_marks(raw)
        except ValueError as reason:
            return [LineError(number, "", "", _json_reason(raw, reason))]
    plain = parse_plain((raw,))
    return plain.lines[0] if plain else parse_checked(number, raw)


def parse_lines(block: Block) -> Iterator[tuple[int, Line | list[LineError]]]:
    """The number of each line that is not blank, and what parse_line gives of it."""
    return ((number, parse_line(number, raw)) for number, raw in block.numbered())


def parse_checked(number: int, raw: bytes) -> _Checked | list[LineError]:
    """As parse_line, by the models that say what is wrong."""
    # Cheap and almost always right; what it gets wrong is parsed again below.
    form: type[_Checked] = BatchLine if b'"body"' in raw else BareLine
    try:
        # What model_validate_json calls, without its half a microsecond of checking options.
        line: _Checked = form.__pydantic_validator__.validate_json(raw)
    except ValidationError as error:
        if not KEYS.search(raw):
            return _explain(number, raw, form, error)
        form = _RECIPES[form]
        try:
            line = form.__pydantic_validator__.validate_json(raw)
        except ValidationError as wrong:
            return _explain(number, raw, form, wrong)
    # Each key has a colon, so as many colons as fields leave none for a key that is there twice.
    if raw.count(b":") != len(line.__pydantic_fields_set__) and not _repeats_no_key(raw, line):
        try:
            parse_json(raw)
        except ValueError as reason:
            return [LineError(number, line.custom_id or "", "", _json_reason(raw, reason))]
    return line


def _repeats_no_key(raw: bytes, line: _Checked) -> bool:
    """Whether a look at its colons tells that the line's JSON repeats no key."""
    keys = _keys(line)
    # Colons of texts do not follow a quotation mark, or that one is escaped.
    return raw.count(b":") == keys or len(COLONS.findall(raw)) == keys


def _keys(line: _Checked) -> int:
    """The keys of a line's JSON, if it repeats none."""
    body = line.body
    keys = len(body.model_fields_set)
    if line is not body:
        keys += len(line.model_fields_set)
    if body.image is None and body.control_images is None:
        return keys
    return keys + sum(map(_nested, (body.image, body.control_images, body.mask_image)))


def _nested(inputs: Input | list[Input] | None) -> int:
    several = inputs if isinstance(inputs, list) else [inputs]
    return sum(isinstance(one, ImageInput) for one in several)


def _explain(
    number: int, raw: bytes, form: type[_Checked], wrong: ValidationError
) -> _Checked | list[LineError]:
    """The reasons why a line is no request of a form; the request, if it is one of the other."""
    try:
        content = parse_json(raw.rstrip())  # or a column may be one of the next line
    except ValueError as reason:
        return [LineError(number, "", "", _json_reason(raw, reason))]
    if not isinstance(content, dict):
        return [LineError(number, "", "", _ARRAY if isinstance(content, list) else _NO_OBJECT)]
    right: type[_Checked] = BatchLine if "body" in content else BareLine
    if form in _RECIPES.values():
        right = _RECIPES[right]
    if right is not form:
        try:
            return right.model_validate_json(raw)
        except ValidationError as error:
            wrong = error
    custom_id = content.get("custom_id")
    name = _quotable(custom_id)[:MAX_CUSTOM_ID] if isinstance(custom_id, str) else ""
    errors = wrong.errors(include_url=False)[:SHOWN_ERRORS]
    if errors[0]["type"] == "json_invalid":  # of what Python takes, only this is refused
        column = errors[0]["ctx"]["error"].rpartition(" ")[2]
        why = ValueError(f"half of a surrogate pair at column {column}")
        return [LineError(number, name, "", _json_reason(raw, why))]
    return list(dict.fromkeys(_line_error(number, name, e, right) for e in _meant(errors, content)))


def _quotable(text: str) -> str:
    """A text that has UTF-8: escapes stand for halves of surrogate pairs."""
    return text.encode("utf-8", "backslashreplace").decode()


def _json_reason(raw: bytes, reason: ValueError) -> str:
    if raw.startswith(b"\xef\xbb\xbf"):
        return "starts with a byte order mark; save the file as plain UTF-8"
    if raw.rstrip() == b"{":
        return _PIECE
    return describe(reason)


# Errors that say only of what kind a value must be, of which a union has one for each alternative.
_KINDS = {
    "model_type": "an object",
    "dict_type": "an object",
    "list_type": "a list",
    "string_type": "a text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
}


_Place = tuple[str | int, ...]


def _meant(errors: list[ErrorDetails], content: dict[str, Any]) -> Iterator[ErrorDetails]:
    """The errors at their places in a line's JSON, without those of alternatives of a union that
    were not meant: another got further. Several that say only of what kind a value must be are one.

    errors: of one line; content: its JSON.
    """
    placed = [(_place(error, content), error) for error in errors]
    meant = [one for one in placed if not any(_is_told_better(*one, *other) for other in placed)]
    # Those of the alternatives of one union stand side by side.
    for (place, is_kind), group in groupby(meant, lambda one: (one[0], one[1]["type"] in _KINDS)):
        found = [error for _, error in group]
        kinds = list(dict.fromkeys(_KINDS[error["type"]] for error in found)) if is_kind else []
        if len(kinds) > 1:
            found = [{**found[0], "msg": f"must be {', '.join(kinds[:-1])} or {kinds[-1]}"}]
        for error in found:
            yield {**error, "loc": place}


def _is_told_better(
    place: _Place, error: ErrorDetails, other_place: _Place, other: ErrorDetails
) -> bool:
    """Whether an error is only of the kind of a value, of which another one tells more."""
    further = len(other_place) > len(place) or other["type"] not in _KINDS
    return error["type"] in _KINDS and further and other_place[: len(place)] == place


def _place(error: ErrorDetails, content: Any) -> _Place:
    """Where in a line's JSON an error is, as names of a union's alternatives stand among its steps.

    content: the line's JSON.
    """
    place: list[str | int] = []
    for step in error["loc"]:
        is_key = isinstance(content, dict) and step in content
        if is_key or (isinstance(content, list) and isinstance(step, int)):
            content = content[step]
            place.append(step)
    if error["type"] == "missing":
        place.append(error["loc"][-1])
    return tuple(place)


def _line_error(
    number: int, custom_id: str, error: ErrorDetails, form: type[_Checked]
) -> LineError:
    in_body = error["loc"][:1] == ("body",) and len(error["loc"]) > 1
    first, *inner = error["loc"][in_body:]
    steps = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in inner]
    field_name = printable(f"{first}{''.join(steps)}", SHOWN_NAME)
    match error["type"]:
        case "missing":
            reason = "is required"
        case "extra_forbidden":
            known = (Recipe if in_body else _RECIPES.get(form, form)).model_fields
            meant = _ELSEWHERE.get(field_name.lower(), ())
            if meant and known.keys() >= set(meant):
                near = f"; did you mean {' and '.join(map(repr, meant))}?"
            else:
                near = "" if inner else resembling(field_name, known)
            reason = f"unknown field{near}"
        case _:
            said = plain(error["msg"])
            reason = f"{said[:1].lower()}{said[1:]}{_got(error['input'])}"
    return LineError(number, custom_id, f"body.{field_name}" if in_body else field_name, reason)


def _got(value: Any) -> str:
    return f" (got {printable(_Shortened().repr(value), SHOWN_VALUE)})"


class _Shortened(Repr):
    """Writes a value of a line's JSON as it stands there, without most of what is long or deep."""

    def repr1(self, x: Any, level: int) -> str:
        if x is None or isinstance(x, str | bool):
            return json.dumps(x[:SHOWN_VALUE] if isinstance(x, str) else x, ensure_ascii=False)
        return super().repr1(x, level)


def read_blocks(
    uri: str,
    limit: int | None = None,
    n: int = 1,
    columns: Mapping[str, str] | None = None,
    keep: Sequence[str] = (),
    max_line: int = MAX_LINE,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[Block]:
    """The manifest's lines, at most SHARD_LINES / n or block_bytes a block, `limit` in all.

    uri: as files_of takes it; columns, keep: of a table, as producer.planning.tables takes them;
    max_line: bytes; what is longer is an error.

    Raises:
        UsageError: there is no such file or column. UnfitManifest: it is damaged. FatalError: it
            cannot be read.
    """
    most = max(1, SHARD_LINES // n)
    first, *others = files_of(uri)
    with _open(first) as stream:
        block, size, requests = Block(1), 0, 0
        lines: Iterator[bytes | UnfitRow] = _lines(stream, max_line)
        if kind_of(first):
            lines = table_lines(stream, first, columns or {}, keep)
            lines = chain(lines, _further(others, columns or {}, keep))
        elif keep:
            raise UsageError(
                f"--keep names columns of tables, and {uri} is none",
                'A line of JSON says itself what is kept: "keep": {"label": "cat"}.',
            )
        elif columns:
            raise UsageError(
                f"--map names columns of tables, and {uri} is none",
                "Leave --map out: what a line of JSON holds has the fields' own names.",
            )
        for raw in lines:
            is_first = block.first == 1 and not block.lines
            if is_first and isinstance(raw, bytes) and _begins_array(raw):
                yield Block(1, [b"\n"], [LineError(1, "", "", _ARRAY)])
                return  # the other lines are its pieces
            if isinstance(raw, UnfitRow) or len(raw) > max_line:
                number = block.first + len(block.lines)
                if isinstance(raw, UnfitRow):
                    reason = raw.reason
                else:
                    reason = f"is longer than {max_line} bytes"
                    _skip_line(stream, raw)
                block.errors.append(LineError(number, "", "", reason))
                requests += 1
                raw = b"\n"
            block.lines.append(raw)
            size += len(raw)
            if limit is not None:
                requests += not raw.isspace()
                if requests == limit:
                    break
            if len(block.lines) == most or size > block_bytes:
                yield block
                block, size = Block(block.first + len(block.lines)), 0
        if block.lines:
            yield block


def _further(
    files: Sequence[str], columns: Mapping[str, str], keep: Sequence[str]
) -> Iterator[bytes | UnfitRow]:
    for file in files:
        with _open(file) as stream:
            yield from table_lines(stream, file, columns, keep)


def _lines(stream: IO[bytes], most: int) -> Iterator[bytes]:
    """All lines; those of more than `most` bytes may come in pieces of which the first has more."""
    while piece := stream.read(READ_BYTES):  # in a third of the time of a readline each
        lines = BytesIO(piece).readlines()
        if not lines[-1].endswith(b"\n"):
            lines[-1] += stream.readline(max(0, most + 1 - len(lines[-1])))
        yield from lines


def _begins_array(raw: bytes) -> bool:
    """Whether a line begins an array that ends elsewhere, or has more items than a line may."""
    if not raw.lstrip().startswith(b"["):
        return False
    try:
        parse_json(raw)
    except ValueError:
        return True
    return False


def manifest_digest(uri: str) -> str:
    """SHA-256 of the manifest's bytes as they lie in storage; of several files of those of each.

    Raises: as read_blocks.
    """
    digests = list[str]()
    for file in files_of(uri):
        with _open(file, compression=None) as stream:
            digests.append(file_digest(cast("BufferedReader", stream), "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else sha256("".join(digests).encode()).hexdigest()


@contextmanager
def _open(uri: str, compression: str | None = "infer") -> Iterator[IO[bytes]]:
    if uri == "-":
        raise UsageError(
            "a manifest is read twice, which standard input cannot be",
            "Write it to a file first. (A file of the name - is ./-)",
        )
    with open_file(uri, compression) as file:
        try:
            # A compressed file does not know how to read at most so much of a line.
            with BufferedReader(cast("RawIOBase", file), READ_BYTES) as stream:
                yield cast("IO[bytes]", stream)
        except (OSError, *DAMAGED) as error:
            # What the system refuses has a number, which no damage to the file has.
            is_systems = isinstance(error, OSError) and error.errno is not None
            kind = FatalError if is_systems else UnfitManifest
            raise kind(f"manifest {uri} cannot be read: {error}", "Check the file.") from error


def _skip_line(stream: IO[bytes], raw: bytes) -> None:
    while raw and not raw.endswith(b"\n"):
        raw = stream.readline(READ_BYTES)
