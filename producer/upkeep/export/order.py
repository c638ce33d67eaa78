"""What somebody wants of an export. Imports nothing heavy: the command line needs it for --help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from producer.upkeep.export.credentials import Credentials
    from producer.upkeep.export.shards import Selection

FormName = Literal["webdataset", "parquet", "imagefolder"]
NO_LICENSE = "unknown"  # to whom none is given


@dataclass(frozen=True, slots=True)
class Order:
    """where: the text of the selection's condition; license: for the dataset card; credentials: of
    whoever signs the images, None if nobody does."""

    form: FormName
    selection: Selection
    where: str = ""
    license: str = NO_LICENSE
    processes: int = 1
    credentials: Credentials | None = None
