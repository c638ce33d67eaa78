"""What a worker renders to warm a compiled model up."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from jobs.models.table import Model
from worker import warmup
from worker.warmup import kinds, warm_up


def test_all_kinds_of_calls_that_the_row_tells_are_warmed_bare_ones_last() -> None:
    adapters = {name: {"repo": name} for name in ("ink", "oil")}
    row = {"repo": "x", "size": [64, 96], "batch_width": 4, "call_slots": [1, 2, 4]}
    found = list(kinds("m", Model.model_validate(row | {"adapters": adapters})))
    assert [(key.adapter, key.slots) for key in found] == [
        ("ink", 4), ("ink", 1), ("ink", 2), ("", 4), ("", 1), ("", 2),
    ]  # fmt: skip
    assert {(key.model, key.task, key.width, key.height) for key in found} == {
        ("m", "generate", 64, 96)
    }


def test_an_edit_has_steps_left_whatever_its_strength() -> None:
    row = {"repo": "x", "takes": ["edit", "strength"], "strength": 0.3}
    (key,) = kinds("m", Model.model_validate(row))
    assert (key.task, key.inputs) == ("edit", 1)
    assert int(key.steps * 0.3) == 2


class Broken:
    """A renderer that counts its calls and renders none."""

    calls = 0

    def render(self, _: object) -> list[Any]:
        self.calls += 1
        raise RuntimeError("no graph of this")


def test_what_does_not_warm_up_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    broken: Any = Broken()
    with caplog.at_level(logging.ERROR):
        warm_up(broken, "m", Model(repo="x", batch_width=2))
    assert broken.calls == 2
    assert "no graph of this" in caplog.text


def test_messages_do_not_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(warmup, "WARM_SECONDS", -1)
    broken: Any = Broken()
    warm_up(broken, "m", Model(repo="x"))
    assert broken.calls == 0
    assert "is not warm after" in caplog.text
