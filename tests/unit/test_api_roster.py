"""Who hears that a model is not served, and whether to come back."""

from __future__ import annotations

import asyncio

import pytest

from jobs.broker.fleet import Fleet, Worker
from producer.api.roster import Roster
from producer.api.wire.errors import ApiError


class Town(Fleet):
    """Workers that a test names, one a model."""

    served: tuple[str, ...] = ()

    def workers(self) -> list[Worker]:
        return [
            Worker(name=model, models=(model,), device="cpu", host="here", pid=1)
            for model in self.served
        ]


def test_who_waits_for_a_worker_is_told_so_and_who_waits_in_vain_as_well() -> None:
    town = Town(None, "")  # type: ignore[arg-type]
    roster = Roster(town, look_seconds=0)

    def status() -> int:
        try:
            return asyncio.run(roster.require("a"))
        except ApiError as error:
            return error.status

    assert status() == 503  # no worker at all: the first is still to come
    object.__setattr__(town, "served", ("b",))
    assert status() == 404
    object.__setattr__(town, "served", ("a", "b"))
    assert status() == 1
    object.__setattr__(town, "served", ("b",))
    assert status() == 503  # its worker starts again
    roster.return_seconds = 0
    assert status() == 404


@pytest.mark.parametrize(
    ("workers", "expected"),
    [
        ([], "no worker is there"),
        ([("a", False)], "a worker is loading a"),
        ([("a", False), ("b", True)], "a worker is loading a"),
        ([("a", False), ("a", True)], None),
        ([("ba", True)], None),  # it loads the model when it is asked for
        ([("b", False)], "a worker is loading b"),
        ([("b", True)], None),
    ],
)
def test_ready_is_that_the_default_model_is_loaded(
    workers: list[tuple[str, bool]], expected: str | None
) -> None:
    class Hall(Fleet):
        def workers(self) -> list[Worker]:
            return [
                Worker(name="w", models=tuple(one), device="cpu", host="", pid=1, ready=ready)
                for one, ready in workers
            ]

    roster = Roster(Hall(None, ""))  # type: ignore[arg-type]
    assert asyncio.run(roster.awaited("a")) == expected
