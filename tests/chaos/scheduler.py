"""A scheduler that its test may kill, with the test's clock: FILE CLOCK, beside IMAGEMILL_*.

The clock is a file that holds Unix seconds, replaced whole.
"""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from jobs.models.table import load_models
from jobs.settings import load_settings
from producer.control.installation import installation
from producer.schedules.firing import Firing
from producer.schedules.scheduler import Scheduler


def main(file: str, clock: Path) -> None:
    """Like `imagemill schedule run`, but faster: it looks and gives locks up sooner."""
    settings = load_settings()
    firing = Firing(installation(settings), load_models(settings.models), (), print)
    scheduler = Scheduler(
        file,
        firing,
        lambda: datetime.fromtimestamp(float(clock.read_text()), UTC),
        look_seconds=0.5,
        lock_seconds=1.0,
    )
    while True:
        scheduler.tick()
        time.sleep(0.02)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
