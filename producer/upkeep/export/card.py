"""The dataset card, README.md: its head tells `datasets` and the hub what to load."""

from __future__ import annotations

import orjson

from jobs.output.dataset import Summary
from producer.upkeep.export.credentials import SIGNED
from producer.upkeep.export.forms import FORMS
from producer.upkeep.export.order import Order
from producer.upkeep.export.shards import Survey

CARD = "README.md"
SHEET = "sheet.png"  # contact sheet
SHOWN = 50  # models in its table
_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B")
_TASKS = {"generate": "text-to-image", "edit": "image-to-image"}


def make_card(found: Survey, summary: Summary, order: Order, with_sheet: bool) -> bytes:
    """The card of an export; UTF-8. with_sheet: whether a contact sheet lies beside it."""
    return f"---\n{_head(found, order)}---\n\n{_body(found, summary, order, with_sheet)}".encode()


def _head(found: Survey, order: Order) -> str:
    """YAML; each value is written as JSON, which is YAML too."""
    thousands = found.images // 1000
    size = _SIZES[min(len(str(thousands)) if thousands else 0, len(_SIZES) - 1)]
    pattern = FORMS[order.form].images
    files = [{"split": split, "path": f"{split}/{pattern}"} for split in found.splits]
    head = {
        "license": order.license,
        "task_categories": sorted(_TASKS[task] for task in found.tasks & _TASKS.keys()),
        "tags": ["synthetic", "imagemill"],
        "size_categories": [size],
        "configs": [{"config_name": "default", "data_files": files}],
    }
    return "".join(f"{name}: {orjson.dumps(value).decode()}\n" for name, value in head.items())


def _body(found: Survey, summary: Summary, order: Order, with_sheet: bool) -> str:
    models = [
        f"| {' | '.join(_cell(field) for field in source)} | {images:,} |"
        for source, images in found.sources.most_common(SHOWN)
    ]
    if (more := len(found.sources) - SHOWN) > 0:
        models.append(f"| … {more:,} more | | | | | |")
    splits = [f"| {split} | {images:,} |" for split, images in found.splits.items()]
    selected = f" Chosen with {_cell(order.where)}." if order.where else ""
    return "\n".join(
        [
            "# Images made by diffusion models",
            "",
            f"{found.images:,} images ({found.bytes:,} bytes) in {len(found.shards):,} shards, "
            f"rendered with imagemill as run `{summary.run_id}`.{selected}",
            "Every image is synthetic.",
            *_choices(summary),
            "",
            *([f"![Some of the images]({SHEET})", ""] if with_sheet else []),
            "| split | images |",
            "|---|---|",
            *splits,
            "",
            "| model | adapter | source | revision | fingerprint | images |",
            "|---|---|---|---|---|---|",
            *models,
            "",
            *_credentials(order),
            "## Seeds",
            "",
            "`seed` is the seed of an image's generator, as text: it may be larger than what a "
            "float64 holds.",
            "Where the manifest gave none, it is 53 bits of the BLAKE2b hash of `custom_id` (or of "
            f"the request, where it has none), salted with the run's seed, {summary.seed}.",
            *(
                ["That of a further candidate follows from the first one's."]
                if summary.rejects
                else []
            ),
            "With `prompt`, the parameters and the stack in a row's columns its image can be "
            "rendered again, byte by byte on the same stack; `sha256` is that of the image's file.",
            "",
        ]
    )


def _choices(summary: Summary) -> list[str]:
    if not summary.rejects:
        return []
    return [
        f"Of {summary.done + summary.rejects:,} images that the run made, {summary.rejects:,} were "
        "not chosen, by their scores: `candidates` tells of how many an image is the chosen one."
    ]


def _credentials(order: Order) -> list[str]:
    if order.credentials is None:
        return []
    return [
        "## Content credentials",
        "",
        "Every image holds C2PA content credentials: that a model made it, and which. They are "
        f"signed by {_cell(order.credentials.name)}.",
        f"`{SIGNED}` is the SHA-256 of the file as it is here, `sha256` that of the file without "
        "its credentials.",
        "",
    ]


def _cell(text: str) -> str:
    """Somebody else's text as Markdown's code, which it cannot end."""
    return (
        "`" + "".join(c if c.isprintable() and c not in "`|" else " " for c in text or "none") + "`"
    )
