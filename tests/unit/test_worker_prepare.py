"""A device process that cannot load its first model starts all the same."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.errors import FatalError
from jobs.models.table import load_models
from worker.device import Device
from worker.renderers import Renderers


@pytest.mark.parametrize("error", [FatalError("no weights"), ValueError("a broken file")])
def test_any_error_of_the_first_load_leaves_a_process_that_listens(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def load(*_: object) -> None:
        raise error

    monkeypatch.setattr(Renderers, "_load", load)
    said: list[tuple[str, str]] = []
    shop: Any = SimpleNamespace(models=["null"], renderers=Renderers(load_models(), "cpu", 1))
    connection: Any = SimpleNamespace(send=said.append)
    with caplog.at_level(logging.ERROR):
        Device(shop, connection).prepare()
    assert said == [("ready", "")]
    assert str(error) in caplog.text
