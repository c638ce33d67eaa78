"""Models: the table, their weights, a row for models.toml."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import orjson
from rich.text import Text

from producer.report.console import new_table, show

if TYPE_CHECKING:
    from jobs.models.table import ModelTable
    from producer.upkeep.weights import Weights


def show_models(models: ModelTable) -> None:
    """The models table and its default."""
    table = new_table("model", "takes", "size", "steps", "width", "adapters", "description")
    for name, model in models.models.items():
        takes = [*model.takes, *(f"control:{control}" for control in model.controlnets)]
        table.add_row(
            name,
            ", ".join(takes),
            f"{model.size[0]} x {model.size[1]}",
            str(model.steps),
            str(model.batch_width),
            ", ".join(model.adapters) or "none",
            Text(model.description),
        )
    show(table)
    for alias, route in models.aliases.items():
        show(f"{alias} is another name of {route}.")
    show(f"Lines that name no model get {models.default}.")


def show_weights(found: Sequence[Weights]) -> None:
    """A table of where weights are."""
    table = new_table("model", "part", "state", "size", "type", "commit", "license", "where")
    for one in found:
        table.add_row(
            one.model,
            one.part,
            one.state,
            f"{one.bytes / 1e9:,.2f} GB" if one.bytes >= 1e7 else f"{one.bytes / 1e6:,.2f} MB",
            one.dtype,
            one.commit[:12],
            Text(one.license),
            Text(one.folder or one.source),
        )
    show(table)
    missing = dict.fromkeys(one.model for one in found if one.state != "here")
    if missing:
        show(f"Downloads what is missing: imagemill models fetch {' '.join(missing)}")


def toml_row(name: str, row: dict[str, Any]) -> str:
    """A row of models.toml; its values are of kinds that JSON and TOML write alike."""
    lines = [f"{field} = {orjson.dumps(value).decode()}" for field, value in row.items()]
    return "\n".join([f"[models.{name}]", *lines])
