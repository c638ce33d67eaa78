"""The forms of an export, one writer each: WebDataset's tar files, Parquet with the images, and
folders of images.

A writer makes one shard; the same rows give the same bytes. To add a form, add its writer and its
entry; everything else reads them here.
"""

from __future__ import annotations

import json
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.output.records import Row
from jobs.output.storage import Storage
from jobs.output.writers import DatasetWriter, FilesWriter
from producer.upkeep.export.columns import Columns, Kind
from producer.upkeep.export.credentials import SIGNED
from producer.upkeep.export.order import FormName
from producer.upkeep.export.shards import Shard

GROUP_BYTES = 32 << 20  # of images in a row group: what a reader of one row has to read
GROUP_ROWS = 1000
INDEX = "metadata.parquet"  # of a folder of images, as `datasets` has it
FILES = 16  # of such a folder that are written at once

_TYPES: Mapping[str, pa.DataType] = {
    "string": pa.string(),
    "json": pa.string(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
}
# As `datasets` cuts pages, so that stores that know equal pages (Hugging Face's) keep them once.
_CUTTING = {"min_chunk_size": 256 << 10, "max_chunk_size": 1 << 20, "norm_level": 0}
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


# Reads rows' images, in their order; a row may come back with more in it.
Samples = Callable[[Sequence[Row]], Iterable[tuple[Row, bytes]]]


@dataclass(frozen=True, slots=True)
class Target:
    """Where a shard goes, and the columns it gets."""

    storage: Storage
    shard: Shard
    columns: Columns


class WebDatasetWriter(FilesWriter):
    """00042.tar with an image, a .json and a .txt a sample, and 00042.parquet with the columns.

    A key is the shard's number and the sample's within it, as NeMo Curator numbers them. The .json
    has the columns that every sample has; the Parquet file has all. It appears last.

    Only the .json tells the hash of a signed image: of two that sign a shard at once, one may have
    written the tar file and the other the Parquet file.
    """

    def __init__(self, samples: Samples, target: Target) -> None:
        super().__init__()
        self._samples, self._shard = samples, target.shard
        self._columns, self._even = target.columns.lacking(SIGNED), target.columns.even()
        path = target.shard.name
        index = self._files.enter_context(target.storage.writer(f"{path}.parquet"))
        self._index = _Table(
            index, self._columns, first={"key": (pa.string(), _feature(Kind("string")))}
        )
        self._files.callback(self._index.close)
        self._tar = self._files.enter_context(target.storage.writer(f"{path}.tar"))
        self._files.callback(self._tar.write, bytes(2 * tarfile.BLOCKSIZE))  # a tar file's end
        self._written = 0

    def add(self, rows: Sequence[Row]) -> None:
        """Samples that follow all earlier ones."""
        for row, image in self._samples(rows):
            key = f"{self._shard.number:05d}{self._written:04d}"
            self._member(f"{key}.{row['file_name'].rsplit('.', 1)[-1]}", image)
            self._member(f"{key}.json", orjson.dumps(self._even.filled(row)))
            self._member(f"{key}.txt", str(row.get("prompt", "")).encode())
            self._index.add({"key": key, **self._columns.values(row)}, 0)
            self._written += 1

    def _member(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)  # of nobody, of 1970: the same bytes whoever writes them
        member.size = len(data)
        self._tar.write(member.tobuf(tarfile.USTAR_FORMAT))
        self._tar.write(data)
        self._tar.write(bytes(-len(data) % tarfile.BLOCKSIZE))


class ParquetWriter(FilesWriter):
    """00042.parquet: a row an image, which is a column as `datasets` stores its `Image`."""

    def __init__(self, samples: Samples, target: Target) -> None:
        super().__init__()
        self._samples, self._columns = samples, target.columns
        stream = self._files.enter_context(target.storage.writer(f"{target.shard.name}.parquet"))
        self._table = _Table(stream, target.columns, first={"image": (_IMAGE, {"_type": "Image"})})
        self._files.callback(self._table.close)

    def add(self, rows: Sequence[Row]) -> None:
        """Rows that follow all earlier ones."""
        for row, image in self._samples(rows):
            cell = {"bytes": image, "path": row["file_name"].rsplit("/", 1)[-1]}
            self._table.add({"image": cell, **self._columns.values(row)}, len(image))


class ImageFolderWriter(FilesWriter):
    """00042/ with the images as files, and metadata.parquet with the columns, which appears last.

    Not metadata.jsonl, of which each would have to tell the types of all columns by its own rows.

    The hash of a signed image is left out: of two that sign a shard at once, one may have written
    the image and the other the line about it.
    """

    def __init__(self, samples: Samples, target: Target) -> None:
        super().__init__()
        self._samples, self._storage, self._shard = samples, target.storage, target.shard
        self._columns = target.columns.lacking(SIGNED).lacking("file_name")
        path = f"{self._shard.name}/{INDEX}"
        stream = self._files.enter_context(self._storage.writer(path))
        name = {"file_name": (pa.string(), _feature(Kind("string")))}
        self._index = _Table(stream, self._columns, first=name)
        self._files.callback(self._index.close)
        self._threads = self._files.enter_context(ThreadPoolExecutor(FILES))
        self._pending: deque[Future[None]] = deque()
        self._written = 0

    def add(self, rows: Sequence[Row]) -> None:
        """Images that follow all earlier ones."""
        for row, image in self._samples(rows):
            extension = row["file_name"].rsplit(".", 1)[-1]
            name = f"{self._shard.number:05d}{self._written:04d}.{extension}"
            path = f"{self._shard.name}/{name}"
            self._pending.append(self._threads.submit(self._storage.write, path, image, False))
            if len(self._pending) > FILES:
                self._pending.popleft().result()
            self._index.add({"file_name": name, **self._columns.values(row)}, 0)
            self._written += 1
        while self._pending:
            self._pending.popleft().result()


@dataclass(frozen=True, slots=True)
class Form:
    """writer: makes it; endings: what a shard's name and these are its files, the last to appear
    first; mixed: whether images of several formats can stand side by side.

    images, tables: patterns below a split's folder, of what `datasets` is to load and of the
    Parquet files with the columns.
    """

    writer: Callable[[Samples, Target], DatasetWriter]
    endings: tuple[str, ...]
    mixed: bool
    images: str
    tables: str = "*.parquet"


FORMS: Mapping[FormName, Form] = {
    # Samples must have the same members, and a JPEG's is another than a PNG's.
    "webdataset": Form(WebDatasetWriter, (".tar", ".parquet"), mixed=False, images="*.tar"),
    "parquet": Form(ParquetWriter, (".parquet",), mixed=True, images="*.parquet"),
    "imagefolder": Form(
        ImageFolderWriter, (f"/{INDEX}",), mixed=True, images="**", tables=f"*/{INDEX}"
    ),
}


class _Table:
    """A Parquet file that grows by row groups, with what `datasets` wants to know of its columns.

    first: columns before those of the dataset: name → (type, feature).
    """

    def __init__(
        self, stream: IO[bytes], columns: Columns, first: Mapping[str, tuple[pa.DataType, Any]]
    ) -> None:
        types = {name: kind for name, (kind, _) in first.items()}
        features = {name: feature for name, (_, feature) in first.items()}
        for name, kind in columns.kinds.items():
            types[name] = pa.list_(_TYPES[kind.dtype]) if kind.many else _TYPES[kind.dtype]
            features[name] = _feature(kind)
        about = json.dumps({"info": {"features": features}})
        self._schema = pa.schema(list(types.items()), metadata={"huggingface": about})
        leaves = [
            leaf
            for name, kind in types.items()
            if kind != _IMAGE
            for leaf in (f"{name}.list.element" if pa.types.is_list(kind) else name,)
        ]
        # Images are compressed already, and all different: neither is tried again.
        self._writer = pq.ParquetWriter(
            stream,
            self._schema,
            compression=dict.fromkeys(leaves, "zstd") | {"image.bytes": "none"},
            use_dictionary=leaves,
            write_page_index=True,
            use_content_defined_chunking=_CUTTING,
        )
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def add(self, row: dict[str, Any], size: int) -> None:
        """size: bytes of its image."""
        self._rows.append(row)
        self._bytes += size
        if self._bytes >= GROUP_BYTES or len(self._rows) == GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema))
        self._rows, self._bytes = [], 0

    def close(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()


def _feature(kind: Kind) -> dict[str, Any]:
    value = {"dtype": "string" if kind.dtype == "json" else kind.dtype, "_type": "Value"}
    return {"feature": value, "_type": "List"} if kind.many else value
