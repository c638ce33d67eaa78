"""A device process that cannot load its first model starts all the same."""

from __future__ import annotations

import logging
from threading import Event
from types import SimpleNamespace

import pytest

from jobs.errors import FatalError
from worker import tasks


@pytest.mark.parametrize("error", [FatalError("no weights"), ValueError("a broken file")])
def test_any_error_of_the_first_load_leaves_a_process_that_listens(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def get(_: str) -> None:
        raise error

    shop = SimpleNamespace(models=["m"], renderers=SimpleNamespace(get=get), stopping=Event())
    handled: list[int] = []
    sent: list[int] = []
    monkeypatch.setattr(tasks, "workshop", lambda: shop)
    monkeypatch.setattr(tasks, "die_with_parent", lambda: None)
    monkeypatch.setattr(tasks.signal, "signal", lambda number, _: handled.append(number))
    monkeypatch.setattr(tasks.os, "kill", lambda _, number: sent.append(number))
    with caplog.at_level(logging.ERROR):
        tasks.prepare()
    assert handled == [tasks.STOP_SIGNAL]
    assert sent == [tasks.READY_SIGNAL]
    assert str(error) in caplog.text
