"""Exports: what lies where now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from producer.report.console import counted, show

if TYPE_CHECKING:
    from producer.upkeep.export.job import Outcome as Export
    from producer.upkeep.export.layouts import LaidOut
    from producer.upkeep.export.pushing import Pushed


def show_export(export: Export) -> None:
    """What lies at an export's target, and how much of it is new."""
    new = f", {export.written:,} of them written now" if export.written < export.shards else ""
    splits = ", ".join(f"{images:,} {split}" for split, images in export.splits.items())
    show(
        f"{counted(export.images, 'image')} ({splits}) in {counted(export.shards, 'shard')}{new}: "
        f"{export.target}"
    )


def show_layout(laid_out: LaidOut) -> None:
    """What lies where a suite's scorer looks for it, and how much of it is new."""
    show(
        f"{counted(laid_out.images, 'image')} of {counted(laid_out.prompts, 'prompt')}, "
        f"{counted(laid_out.written, 'file')} of {laid_out.suite} written now: {laid_out.target}"
    )


def show_pushed(pushed: Pushed) -> None:
    """What is on the hub now."""
    show(f"{counted(pushed.files, 'file')} ({pushed.bytes:,} bytes) in {pushed.repo}: {pushed.url}")
