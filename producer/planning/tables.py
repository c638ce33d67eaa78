"""Tables as manifests: Parquet, Arrow, CSV, TSV and lines of text. A row is a line of JSON."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import chain, repeat
from math import inf
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from msgspec import Raw, defstruct
from msgspec.json import Encoder
from pydantic import ValidationError

from jobs.errors import UsageError, plain, printable, resembling
from jobs.output.kept import KEPT
from jobs.requests import MAX_PROMPT, Body
from producer.planning.recipes import Recipe

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 1024  # in memory at a time, as Python values
MAX_UNFIT = 10_000  # rows that are none, before the next that is one: more are another table
SHOWN_COLUMNS = 1000  # characters of their names
TEXT = ".txt"
DELIMITERS = {".csv": ",", ".tsv": "\t"}
KINDS = (".parquet", ".arrow", *DELIMITERS, TEXT)

_PROMPTS = ("caption", "text", "description")  # what others call columns of prompts
_VARYING = ("sweep", "zip", "sample")
_NAMED = ("custom_id", *Body.model_fields)  # what a column of its own name stands for, unasked
FIELDS = ("custom_id", *(name for name in Recipe.model_fields if name not in _VARYING))
_WHOLE = ("seed", "num_inference_steps", "width", "height", "n", "best_of", "max_tries")
_LONGEST = 4 * MAX_PROMPT + 2  # bytes of a line of text: as many hold a character too many
_ARROW_FILE = b"ARROW1"
_NUMBERS = (*_WHOLE, "guidance_scale", "strength")
_EXACT = 2**53  # up to here a float is the whole number that was meant
# A group takes part in what is not written as a whole number.
_NUMBER = re.compile(r"\s*[+-]?(?:[0-9]{1,20}(\.[0-9]*)?|(\.[0-9]+))([eE][+-]?[0-9]{1,3})?\s*")
_ROW = re.compile(r"Row #(\d+)")  # of a CSV file, as pyarrow says it: the header is the first
_BLANK = Raw()
# Otherwise written as null, which is not given. The line is refused for it, with its field.
_INFINITE: dict[object, Raw] = {inf: Raw(b"1e999"), -inf: Raw(b"-1e999")}
_ENCODER = Encoder()


class UnfitManifest(UsageError):
    """A file that is not what its name says, or a table that lacks a column."""


@dataclass(frozen=True, slots=True)
class UnfitRow:
    """A row that is no line, and why."""

    reason: str


_Unfit = deque[tuple[int, UnfitRow]]  # with the numbers of the rows, from 1


def kind_of(uri: str) -> str:
    """ ".parquet", …, or "" for what is no table."""
    suffix = PurePosixPath(uri).suffix.lower()
    return suffix if suffix in KINDS else ""


def columns_of(options: Sequence[str] | None) -> tuple[tuple[str, str], ...]:
    """What FIELD=COLUMN options say, sorted.

    Raises:
        UsageError: one is none, or names no field, or one that has a column already.
    """
    columns: dict[str, str] = {}
    for option in options or ():
        name, _, column = option.partition("=")
        if name not in FIELDS or not column:
            hint = f"Write --map FIELD=COLUMN. Fields: {', '.join(FIELDS)}"
            near = resembling(name, FIELDS)
            raise UsageError(f"--map {option}: names no field and its column{near}", hint)
        if name in columns:
            raise UsageError(f"--map {option}: {name} is {columns[name]} already", "Name it once.")
        columns[name] = column
    return tuple(sorted(columns.items()))


def kept_columns(options: Sequence[str] | None) -> tuple[str, ...]:
    """What COLUMN options say. Raises UsageError for one that no dataset can have."""
    names = tuple(dict.fromkeys(options or ()))
    try:
        KEPT.validate_python(dict.fromkeys(names, ""))
    except ValidationError as wrong:
        error = wrong.errors(include_url=False)[0]
        raise UsageError(
            f"--keep {printable(str(error['input']), 64)}: {plain(error['msg'])}",
            "Give the column another name in the table.",
        ) from wrong
    return names


def table_lines(
    file: IO[bytes], uri: str, columns: Mapping[str, str], keep: Sequence[str] = ()
) -> Iterator[bytes | UnfitRow]:
    """The rows of a table as manifest lines. Memory does not grow with it.

    columns: field of a line → the table's column; without an entry a field of a request has the
    column of its own name, if there is one that is no struct. What a line has beside (n, min, …)
    needs an entry: those are anybody's names. Empty cells are fields that are not given, other
    columns are left out, and a custom_id that is a whole number becomes its text. Where the table's
    form tells no types, a text that says a number is one in a field of numbers; any other stays,
    and its line is refused for it. In a field of whole numbers 7.0 is 7, as a column with gaps is
    often one of floats. keep: columns
    that the dataset is to have, by their own names; text, where the table's form tells no types,
    and of times.

    Raises:
        UnfitManifest: it is no such table, a column does not exist, exists twice or cannot be kept,
            none holds prompts, or MAX_UNFIT rows on end are no lines.
    """
    import pyarrow as pa

    unfit: _Unfit = deque()
    try:
        if kind_of(uri) == TEXT:
            for option, given in (("--map", columns), ("--keep", keep)):
                if given:
                    raise UnfitManifest(f"{uri} has no columns", f"Leave {option} out.")
            yield from _text_lines(file)
            return
        # The default one would hold 40 MB for reading a table by 3 MB at a time.
        pa.set_memory_pool(pa.system_memory_pool())
        names, batches = _batches(file, kind_of(uri), columns, keep, uri, unfit)
        lines = _Lines(names, keep, is_typed=kind_of(uri) not in DELIMITERS)
        yield from _with_unfit(map(lines.of, batches), unfit)
    except (pa.ArrowException, TypeError, UnicodeDecodeError) as error:
        reason = printable(_ROW.sub(_number_of_row, str(error)), 300)
        message = f"manifest {uri} cannot be read: {reason}"
        raise UnfitManifest(message, "Check the file.") from error


def _with_unfit(batches: Iterable[list[bytes]], unfit: _Unfit) -> Iterator[bytes | UnfitRow]:
    """Lines, and the rows that are none in their places among them. unfit: grows meanwhile."""
    row = 1
    for lines in batches:
        start = 0
        while unfit and (before := unfit[0][0] - row) < len(lines) - start:
            yield from lines[start : start + before]
            yield unfit.popleft()[1]
            start, row = start + before, row + before + 1
        yield from lines[start:]
        row += len(lines) - start
    yield from (one for _, one in unfit)


class _Lines:
    """Writes rows as lines: by a struct of msgspec, in half of the time that dicts take."""

    def __init__(self, names: Sequence[str], keep: Sequence[str], is_typed: bool) -> None:
        self._names, self._keep = names, keep
        self._untyped = [] if is_typed else [n for n, name in enumerate(names) if name in _NUMBERS]
        self._whole = [n for n, name in enumerate(names) if name in _WHOLE]
        fields = [(name, object, None) for name in (*names, "keep")]
        self._line = defstruct("Line", fields, omit_defaults=True)

    def of(self, columns: Sequence[pa.Array]) -> list[bytes]:
        """A line a row; it is blank if no field is given. columns: of fields, then to keep."""
        cells = [_cells(one) for one in columns]
        fields, kept = cells[: len(self._names)], cells[len(self._names) :]
        if "custom_id" in self._names:
            at = self._names.index("custom_id")
            fields[at] = [str(v) if isinstance(v, int) else v for v in fields[at]]
        for at in self._untyped:
            fields[at] = [v and _number(v) for v in fields[at]]
        for at in self._whole:
            if at in self._untyped or _is_floating(columns[at]):
                fields[at] = [_whole(v) if isinstance(v, float) else v for v in fields[at]]
        rows = zip(*kept, strict=True) if kept else repeat(())
        lines = [
            self._line(*row, self._kept(cells)) if row.count(None) < len(row) else _BLANK
            for row, cells in zip(zip(*fields, strict=True), rows, strict=False)
        ]
        return BytesIO(_ENCODER.encode_lines(lines)).readlines()

    def _kept(self, cells: tuple[object, ...]) -> dict[str, object] | None:
        named = zip(self._keep, cells, strict=False)
        return {name: cell for name, cell in named if cell is not None} or None


def _cells(column: pa.Array) -> list[Any]:
    """The values of a column; None for empty cells, of which NaN is one."""
    values = [None if v == "" or v != v else v for v in column.to_pylist()]
    if _is_floating(column) and (inf in values or -inf in values):
        return [_INFINITE.get(v, v) for v in values]
    return values


def _is_floating(column: pa.Array) -> bool:
    from pyarrow import types

    kind = column.type.value_type if types.is_dictionary(column.type) else column.type
    return bool(types.is_floating(kind))


def _number_of_row(found: re.Match[str]) -> str:
    return f"row {int(found[1]) - 1}"


def _number(text: str) -> str | int | float:
    """The number that a cell of text says; the text itself if it says none that JSON's have."""
    if not (found := _NUMBER.fullmatch(text)):
        return text
    value = float(text) if found.lastindex else int(text)
    return value if -(2**63) <= value < 2**64 else text


def _whole(value: float) -> int | float:
    """A whole number that a column of floats holds exactly, as one; any other number as it is."""
    return int(value) if value.is_integer() and abs(value) <= _EXACT else value


def _text_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Each line is a prompt, blank ones none."""
    for raw in iter(lambda: file.readline(_LONGEST), b""):
        whole = raw.endswith(b"\n") or len(raw) < _LONGEST
        prompt = raw.decode("utf-8", "strict" if whole else "replace").rstrip("\r\n")
        yield _ENCODER.encode({"prompt": prompt} if prompt.strip() else _BLANK) + b"\n"
        while not whole:  # the prompt is too long already, which planning says
            raw = file.readline(_LONGEST)
            whole = raw.endswith(b"\n") or not raw


def _batches(
    file: IO[bytes], kind: str, columns: Mapping[str, str], keep: Sequence[str], uri: str,
    unfit: _Unfit,
) -> tuple[list[str], Iterator[list[pa.Array]]]:  # fmt: skip
    """The fields that have a column; by some rows, the cells of these, then of those to keep.

    unfit: takes rows with other cells than the header has, before any row that comes after them.
    """
    import pyarrow as pa
    from pyarrow import csv, parquet

    batches: Iterable[pa.RecordBatch]
    if kind == ".parquet":
        table = parquet.ParquetFile(file)
        chosen = _choose(table.schema_arrow, columns, keep, uri)
        asked = [*{*chosen.values(), *keep}]
        # By groups: in one go, a reader keeps 6 MB of each million rows until its end.
        batches = chain.from_iterable(
            table.iter_batches(ROWS, row_groups=[group], columns=asked)
            for group in range(table.num_row_groups)
        )
    elif kind == ".arrow":
        schema, batches = _arrow(file)
        chosen = _choose(schema, columns, keep, uri)
    else:
        delimiter = DELIMITERS[kind]

        def skip(row: csv.InvalidRow) -> str:
            if len(unfit) == MAX_UNFIT:
                return "error"
            has = f"has {row.actual_columns} cells, the header {row.expected_columns}"
            hint = f"a text with {delimiter!r} in it stands in quotes"
            unfit.append((row.number - 1, UnfitRow(f"{has}; {hint}")))  # the header is the first
            return "skip"

        parse = csv.ParseOptions(
            delimiter=delimiter, newlines_in_values=True, invalid_row_handler=skip
        )
        numbered = csv.ReadOptions(use_threads=False)  # threads know no numbers of rows
        schema = csv.open_csv(file, numbered, parse).schema
        chosen = _choose(schema, columns, keep, uri)
        file.seek(0)
        unfit.clear()  # they are met again
        types = dict.fromkeys((*chosen.values(), *keep), pa.string())
        convert = csv.ConvertOptions(
            column_types=types, include_columns=[*types], strings_can_be_null=True,
            null_values=[""], quoted_strings_can_be_null=True,
        )  # fmt: skip
        batches = csv.open_csv(file, numbered, parse, convert)
    return list(chosen), _slices(batches, [*chosen.values()], keep, uri)


def _slices(
    batches: Iterable[pa.RecordBatch], columns: Sequence[str], keep: Sequence[str], uri: str
) -> Iterator[list[pa.Array]]:
    for batch in batches:
        for column in keep:
            _check_kept(batch.schema.field(column), uri)
        cells = [*map(batch.column, columns), *(_kept(batch.column(column)) for column in keep)]
        for start in range(0, batch.num_rows, ROWS):
            yield [column.slice(start, ROWS) for column in cells]


def _arrow(file: IO[bytes]) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Columns and rows of either of Arrow's two formats; what `datasets` saves is a stream."""
    from pyarrow import ipc

    if file.read(len(_ARROW_FILE)) != _ARROW_FILE:
        file.seek(0)
        stream = ipc.open_stream(file)
        return stream.schema, iter(stream)
    file.seek(0)
    table = ipc.open_file(file)
    numbers = range(table.num_record_batches)
    return table.schema, (table.get_batch(number) for number in numbers)


def _kept(cells: pa.Array) -> pa.Array:
    """Times in microseconds, finer than which Python's are not."""
    import pyarrow as pa

    if pa.types.is_timestamp(cells.type):
        return cells.cast(pa.timestamp("us", cells.type.tz), safe=False)
    return cells


def _check_kept(column: pa.Field, uri: str) -> None:
    """Raises UnfitManifest for a column whose cells are no text, truths, numbers or times."""
    from pyarrow import types

    kind = column.type.value_type if types.is_dictionary(column.type) else column.type
    is_text = types.is_string(kind) or types.is_large_string(kind)
    is_number = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
    if not (is_text or is_number or types.is_timestamp(kind) or types.is_date(kind)):
        raise UnfitManifest(
            f"column {column.name!r} of {uri} holds {kind}",
            "Text, truths, numbers and times can be kept.",
        )


def _choose(
    schema: pa.Schema, columns: Mapping[str, str], keep: Sequence[str], uri: str
) -> dict[str, str]:
    """The column of each field that has one.

    Raises:
        UnfitManifest: one of them does not exist or exists twice, or none holds prompts.
    """
    from pyarrow import types

    found = schema.names
    # A picture as `datasets` keeps it is a struct, which no field of a request is.
    fit = {n for n, kind in zip(found, schema.types, strict=True) if not types.is_struct(kind)}
    unasked = fit.intersection(_NAMED)
    chosen = {n: columns.get(n, n) for n in FIELDS if n in columns or n in unasked}
    has = f"Its columns: {printable(', '.join(found), SHOWN_COLUMNS)}"
    for column in (*chosen.values(), *keep):
        if column not in found:
            raise UnfitManifest(f"{uri} has no column {column!r}{resembling(column, found)}", has)
        if found.count(column) > 1:
            raise UnfitManifest(f"{uri} has several columns {column!r}", "Rename all but one.")
    if "prompt" not in chosen:
        likely = next((column for column in found if column.lower() in _PROMPTS), "…")
        hint = f"{has}. Name one: --map prompt={likely}"
        raise UnfitManifest(f"no column of {uri} is called prompt", hint)
    return chosen
