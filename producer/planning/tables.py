"""Tables as manifests: Parquet, Arrow, CSV, TSV and lines of text. A row is a line of JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING

import orjson
from pydantic import ValidationError

from jobs.errors import FatalError, UsageError, printable, resembling
from jobs.output.kept import KEPT
from jobs.requests import MAX_PROMPT
from producer.planning.recipes import Recipe

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 1024  # in memory at a time, as Python values
SHOWN_COLUMNS = 1000  # characters of their names
TEXT = ".txt"
DELIMITERS = {".csv": ",", ".tsv": "\t"}
KINDS = (".parquet", ".arrow", *DELIMITERS, TEXT)

_PROMPTS = ("caption", "text", "description")  # what others call columns of prompts
_VARYING = ("sweep", "zip", "sample")
FIELDS = ("custom_id", *(name for name in Recipe.model_fields if name not in _VARYING))
_WHOLE = ("seed", "num_inference_steps", "width", "height", "n")
_LONGEST = 4 * MAX_PROMPT + 2  # bytes of a line of text: as many hold a character too many
_ARROW_FILE = b"ARROW1"
_REAL = ("guidance_scale", "strength")


class UnfitTable(UsageError):
    """A table that lacks a column."""


class DamagedTable(FatalError):
    """No table of the kind that its name says."""


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
            f"--keep {printable(str(error['input']), 64)}: {error['msg']}",
            "Give the column another name in the table.",
        ) from wrong
    return names


def table_lines(
    file: IO[bytes], uri: str, columns: Mapping[str, str], keep: Sequence[str] = ()
) -> Iterator[bytes]:
    """The rows of a table as manifest lines. Memory does not grow with it.

    columns: field of a line → the table's column; without an entry a field has the column of its
    own name, if there is one. Empty cells are fields that are not given, other columns are left
    out, and a custom_id that is a whole number becomes its text. keep: columns that the dataset is
    to have, by their own names; text, where the table's form tells no types.

    Raises:
        UnfitTable: a column does not exist or cannot be kept, or none holds prompts.
        DamagedTable: it is no such table.
    """
    import pyarrow as pa

    try:
        if kind_of(uri) == TEXT:
            if keep:
                raise UnfitTable(f"{uri} has no columns to keep", "Leave --keep out.")
            yield from _text_lines(file)
            return
        for batch, names in _batches(file, kind_of(uri), columns, keep, uri):
            fields = [batch.column(at).to_pylist() for at in range(batch.num_columns)]
            for row in zip(*fields, strict=True):
                cells = zip(names, row, strict=False)  # those to keep follow
                given = {n: v for n, v in cells if v is not None and v != ""}
                if isinstance(given.get("custom_id"), int):
                    given["custom_id"] = str(given["custom_id"])
                cells = zip(keep, row[len(names) :], strict=True)
                kept = {n: v for n, v in cells if v is not None and v != "" and v == v}
                yield _line(given | {"keep": kept} if given and kept else given)
    except (pa.ArrowException, TypeError, UnicodeDecodeError) as error:
        reason = printable(str(error), 300)
        raise DamagedTable(f"manifest {uri} cannot be read: {reason}", "Check the file.") from error


def _text_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Each line is a prompt, blank ones none."""
    for raw in iter(lambda: file.readline(_LONGEST), b""):
        whole = raw.endswith(b"\n") or len(raw) < _LONGEST
        prompt = raw.decode("utf-8", "strict" if whole else "replace").rstrip("\r\n")
        yield _line({"prompt": prompt} if prompt.strip() else None)
        while not whole:  # the prompt is too long already, which planning says
            raw = file.readline(_LONGEST)
            whole = raw.endswith(b"\n") or not raw


def _line(given: dict[str, object] | None) -> bytes:
    return orjson.dumps(given, option=orjson.OPT_APPEND_NEWLINE) if given else b"\n"


def _batches(
    file: IO[bytes], kind: str, columns: Mapping[str, str], keep: Sequence[str], uri: str
) -> Iterator[tuple[pa.RecordBatch, list[str]]]:
    """The rows of the columns that stand for fields, then of those to keep; the fields' names."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    batches: Iterable[pa.RecordBatch]
    if kind == ".parquet":
        table = parquet.ParquetFile(file)
        chosen = _choose(table.schema_arrow.names, columns, keep, uri)
        batches = table.iter_batches(ROWS, columns=[*{*chosen.values(), *keep}])
    elif kind == ".arrow":
        header, batches = _arrow(file)
        chosen = _choose(header, columns, keep, uri)
    else:
        parse = csv.ParseOptions(delimiter=DELIMITERS[kind], newlines_in_values=True)
        header = csv.open_csv(file, parse_options=parse).schema.names
        chosen = _choose(header, columns, keep, uri)
        file.seek(0)
        types = dict.fromkeys(keep, pa.string())
        types |= {column: _type(field) for field, column in chosen.items()}
        convert = csv.ConvertOptions(
            column_types=types, include_columns=[*types], strings_can_be_null=True,
            null_values=[""], quoted_strings_can_be_null=True,
        )  # fmt: skip
        batches = csv.open_csv(file, parse_options=parse, convert_options=convert)
    names = list(chosen)
    for batch in batches:
        for column in keep:
            _check_kept(batch.schema.field(column), uri)
        kept = batch.select([*(chosen[name] for name in names), *keep])
        for start in range(0, kept.num_rows, ROWS):
            yield kept.slice(start, ROWS), names


def _arrow(file: IO[bytes]) -> tuple[list[str], Iterator[pa.RecordBatch]]:
    """Columns and rows of either of Arrow's two formats; what `datasets` saves is a stream."""
    from pyarrow import ipc

    if file.read(len(_ARROW_FILE)) != _ARROW_FILE:
        file.seek(0)
        stream = ipc.open_stream(file)
        return stream.schema.names, iter(stream)
    file.seek(0)
    table = ipc.open_file(file)
    numbers = range(table.num_record_batches)
    return table.schema.names, (table.get_batch(number) for number in numbers)


def _check_kept(column: pa.Field, uri: str) -> None:
    """Raises UnfitTable for a column whose cells are no text, truths, numbers or times."""
    from pyarrow import types

    kind = column.type.value_type if types.is_dictionary(column.type) else column.type
    is_text = types.is_string(kind) or types.is_large_string(kind)
    is_number = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
    if not (is_text or is_number or types.is_timestamp(kind) or types.is_date(kind)):
        raise UnfitTable(
            f"column {column.name!r} of {uri} holds {kind}",
            "Text, truths, numbers and times can be kept.",
        )


def _choose(
    found: list[str], columns: Mapping[str, str], keep: Sequence[str], uri: str
) -> dict[str, str]:
    """The column of each field that has one.

    Raises:
        UnfitTable: one that was asked for does not exist, or none holds prompts.
    """
    chosen = {name: columns.get(name, name) for name in FIELDS}
    chosen = {n: column for n, column in chosen.items() if column in found or n in columns}
    has = f"Its columns: {printable(', '.join(found), SHOWN_COLUMNS)}"
    for column in (*chosen.values(), *keep):
        if column not in found:
            raise UnfitTable(f"{uri} has no column {column!r}{resembling(column, found)}", has)
    if "prompt" not in chosen:
        likely = next((column for column in found if column.lower() in _PROMPTS), "…")
        hint = f"{has}. Name one: --map prompt={likely}"
        raise UnfitTable(f"no column of {uri} is called prompt", hint)
    return chosen


def _type(field: str) -> pa.DataType:
    import pyarrow as pa

    if field in _WHOLE:
        return pa.uint64()
    return pa.float64() if field in _REAL else pa.string()
