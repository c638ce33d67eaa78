"""What tests of the inside of a device process share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from jobs.broker.fleet import Worker
from jobs.broker.heartbeat import heartbeat
from jobs.calls.claims import RENEW_SECONDS
from tests.sites import Site
from worker.interludes import LOOK_SECONDS
from worker.scoring.raters import Raters
from worker.storing import Shelf
from worker.workshop import Workshop, make_workshop


@pytest.fixture
def shop(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    """The tools of a device process of the null model, in this process."""
    for name, value in site.settings.environment().items():
        monkeypatch.setenv(name, value)
    worker = Worker(name="w", models=("null",), device="cpu", host="host", pid=1)
    shop = make_workshop(worker, Shelf.put_all, Raters("cpu").score)
    with (
        heartbeat("look-out", LOOK_SECONDS, shop.lookout.look),
        heartbeat("claims on calls", RENEW_SECONDS, shop.claims.renew),
    ):
        yield shop
    for threads in (shop.device, shop.executor, shop.inputs, shop.call_inputs):
        threads.shutdown()
