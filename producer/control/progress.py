"""Follows a run until it ends, and shows how far it is."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

import redis
from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from jobs.broker.progress import Progress
from jobs.broker.runs import Runs
from jobs.errors import FatalError, TransientError
from producer.planning.listener import Listener

POLL_SECONDS = 0.2
LINE_SECONDS = 10.0  # between two lines where there is no terminal
PACE_SECONDS = 30.0  # what the shown rate is an average of


class Display(Listener, Protocol):
    """What a user sees of a run."""

    def rendering(self, progress: Progress, rate: float | None) -> None:
        """The run stands there. rate: images a second; 0: not known yet; None: none so far."""

    def exporting(self, images: int, total: int) -> None:
        """So many images of a dataset are written."""

    def comparing(self, images: int, total: int) -> None:
        """So many images of two datasets are compared."""


def follow(
    runs: Runs,
    run_id: str,
    display: Display,
    check: Callable[[], None] = lambda: None,
    advice: str = "The run goes on when it is back: imagemill watch {run_id}.",
) -> Progress:
    """Wait until a run is finished or cancelled; `check` may raise what ended it otherwise.

    advice: what to do when the broker is away.

    Raises:
        FatalError: a worker paused the run; the message is its reason.
        TransientError: the broker went away or forgot the run.
    """
    pace = Pace()
    while True:
        check()
        try:
            progress = runs.progress(run_id)
        except redis.RedisError as error:
            check()  # knows better why, if the broker is our own
            raise TransientError(
                f"run {run_id}: the broker went away: {error}",
                advice.format(run_id=run_id),
            ) from error
        if progress is None:
            raise TransientError(
                f"run {run_id} is not known to the broker any more",
                "imagemill resume OUT goes on from storage.",
            )
        display.rendering(progress, pace.rate(progress.settled))
        if progress.state == "paused":
            raise FatalError(f"run {run_id} is paused: {progress.problem}")
        if progress.state in ("finished", "cancelled"):
            return progress
        time.sleep(POLL_SECONDS)


class Pace:
    """Images a second over the last half minute, the wait for the first of them left out."""

    def __init__(self) -> None:
        self._before: int | None = None
        self._seen: deque[tuple[float, int]] = deque()

    def rate(self, settled: int) -> float | None:
        """The rate, given how many requests are settled now; None until one more is."""
        now = time.monotonic()
        if self._before is None:
            self._before = settled
        if settled > (self._seen[-1][1] if self._seen else self._before):
            self._seen.append((now, settled))
        if not self._seen:
            return None
        while len(self._seen) > 2 and self._seen[0][0] < now - PACE_SECONDS:
            self._seen.popleft()
        then, first = self._seen[0]
        return (settled - first) / (now - then) if settled > first else 0.0


@contextmanager
def display(quiet: bool) -> Iterator[Display]:
    """A bar on a terminal, a line now and then elsewhere, nothing if quiet; all on stderr."""
    console = Console(stderr=True)
    if quiet:
        yield _Nothing()
    elif console.is_terminal:
        with Bars(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}"),
            console=console,
            transient=True,
        ) as bars:
            yield _Bar(bars, bars.add_task("Reading the manifest", total=None, text=""))
    else:
        yield _Lines()


class _Nothing:
    def planning(self, lines: int) -> None:
        pass

    def warning(self, text: str) -> None:
        pass

    def rendering(self, progress: Progress, rate: float | None) -> None:
        pass

    def exporting(self, images: int, total: int) -> None:
        pass

    def comparing(self, images: int, total: int) -> None:
        pass


class _Bar:
    def __init__(self, bars: Bars, task: TaskID) -> None:
        self._bars, self._task = bars, task

    def planning(self, lines: int) -> None:
        self._bars.update(self._task, text=f"{lines:,} lines")

    def warning(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def rendering(self, progress: Progress, rate: float | None) -> None:
        self._bars.update(
            self._task,
            description=_stage(progress, rate),
            total=progress.requests,
            completed=progress.settled,
            text=_counts(progress, rate),
        )

    def exporting(self, images: int, total: int) -> None:
        self._images("Exporting", images, total)

    def comparing(self, images: int, total: int) -> None:
        self._images("Comparing", images, total)

    def _images(self, stage: str, images: int, total: int) -> None:
        text = f"{images:,}/{total:,} images"
        self._bars.update(self._task, description=stage, total=total, completed=images, text=text)


class _Lines:
    def __init__(self) -> None:
        self._last = time.monotonic()

    def planning(self, lines: int) -> None:
        self._say(f"Reading the manifest: {lines:,} lines")

    def warning(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def rendering(self, progress: Progress, rate: float | None) -> None:
        self._say(f"{_stage(progress, rate)}: {_counts(progress, rate)}")

    def exporting(self, images: int, total: int) -> None:
        self._say(f"Exporting: {images:,}/{total:,} images")

    def comparing(self, images: int, total: int) -> None:
        self._say(f"Comparing: {images:,}/{total:,} images")

    def _say(self, text: str) -> None:
        now = time.monotonic()
        if now - self._last >= LINE_SECONDS:
            self._last = now
            print(text, file=sys.stderr, flush=True)


def _stage(progress: Progress, rate: float | None) -> str:
    if progress.choosing:
        return "Choosing"
    if not progress.pending:
        return "Writing the dataset"
    return "Waiting for a worker" if rate is None else "Rendering"


def _counts(progress: Progress, rate: float | None) -> str:
    settled = progress.settled
    text = f"{settled:,}/{progress.requests:,} done"
    if progress.failed:
        text += f", {progress.failed:,} of them without an image"
    if rate and progress.pending:
        left = timedelta(seconds=round(progress.pending / rate))
        text += f", {rate:.1f} images/s, {left} left"
    return text
