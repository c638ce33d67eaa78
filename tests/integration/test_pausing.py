"""A run that a person stops for a while."""

from __future__ import annotations

import pytest

from jobs.errors import UsageError
from producer.control.installation import installation
from producer.control.status import look
from producer.control.stopping import pause, resume
from tests.sites import Site
from tests.support import eventually

RUN = "0123456789ab"


def test_a_paused_run_goes_on_where_it_stopped(site: Site) -> None:
    known = installation(site.settings)
    site.start_worker("slow")
    site.start(site.plan(RUN, "slow", list(range(12)), chunk=4))
    site.wait_for_images(RUN, 2)
    paused = pause(RUN, known)
    assert paused.state == "paused"
    assert f"imagemill resume {paused.out} goes on" in paused.problem
    unacked = f"{site.settings.key_prefix}unacked"
    eventually(lambda: site.client.hlen(unacked) == 0)
    stopped = len(list((site.folder / RUN / "images").rglob("*.png")))
    assert stopped < 12
    resume(RUN, known)
    assert {row["attempt"] for row in site.wait(RUN)} == {1, 2}
    assert (look(RUN, known).retries, look(RUN, known).deaths) == (1, 0)
    with pytest.raises(UsageError, match="finished already"):
        pause(RUN, known)
