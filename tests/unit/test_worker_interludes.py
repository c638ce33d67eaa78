"""Calls between two steps of a batch, with renderers that do as they are told."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from threading import Event
from typing import Any

import pytest

from jobs.models.fingerprints import Fingerprint
from jobs.models.options import Options
from jobs.models.table import Model
from tests.unit.test_worker_render import Fake, prepared
from worker.counts import Counts
from worker.interludes import Interlude, Lookout, NoRoom
from worker.null import NullRenderer
from worker.render import BatchRenderer


def due() -> Event:
    event = Event()
    event.set()
    return event


def ticking(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Time that passes when it is told to."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def pass_by(seconds: float) -> None:
        now[0] += seconds

    return pass_by


def test_nobody_waits_nothing_happens() -> None:
    served: list[bool] = []
    calls = Interlude(Event(), lambda: bool(served.append(True)))
    assert not calls()
    assert not served


def test_its_time_is_not_the_batchs(monkeypatch: pytest.MonkeyPatch) -> None:
    pass_by = ticking(monkeypatch)

    def serve() -> bool:
        pass_by(10)
        return True

    calls, counts = Interlude(due(), serve), Counts(["m"])
    fake = Fake(lambda _: pass_by(4))
    with counts.timed("m", "render", calls):
        rendered = BatchRenderer(fake).render(prepared(1, 2), calls)
    assert [one.seconds for one in rendered] == [2, 2]
    assert calls.seconds == 10
    told: list[Any] = []
    counts.report(type("Told", (), {"add": lambda _, sums: told.append(dict(sums))})())  # type: ignore[arg-type]
    assert told == [{("seconds", "m", "render"): 4}]


def test_a_batch_that_is_halved_makes_way_in_both_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    pass_by = ticking(monkeypatch)

    def serve() -> bool:
        pass_by(10)
        calls.due.set()
        return True

    def fault(seeds: list[int]) -> None:
        pass_by(4)
        if {1, 3} <= set(seeds):
            raise ValueError("both at once")

    calls = Interlude(due(), serve)
    rendered = BatchRenderer(Fake(fault)).render(prepared(1, 3), calls)
    assert [(one.status, one.seconds) for one in rendered] == [("done", 4), ("done", 4)]
    assert calls.seconds == 20


def test_without_memory_beside_the_batch_a_call_waits_for_its_end() -> None:
    """It makes no room, saves nothing and halves nothing: the batch under way needs all of that."""
    asked: list[str] = []

    def full(_: list[int]) -> None:
        raise MemoryError("full")

    guest = BatchRenderer(Fake(full), lambda: bool(asked.append("room")))

    def serve() -> bool:
        asked.append("served")
        return bool(guest.render(prepared(5), beside=True))

    calls = Interlude(due(), serve)
    with pytest.raises(NoRoom):
        guest.render(prepared(5), beside=True)
    host = Fake()
    (one,) = BatchRenderer(host).render(prepared(1), calls)
    assert one.status == "done"
    calls.due.set()
    assert not calls()  # nor is it tried again
    assert asked == ["served"]
    assert guest.slots(prepared(5)[0].request.key) == 4


class Waiting:
    """Calls that wait, as a worker's claims see them."""

    def __init__(self) -> None:
        self.answers: Iterator[bool] = iter([False, True, False, False])
        self.asked: list[object] = []

    def any_waits(self, models: object) -> bool:
        self.asked.append(models)
        return next(self.answers, False)


def test_calls_are_looked_for_while_the_batch_renders() -> None:
    waiting: Any = Waiting()
    lookout = Lookout(waiting)
    with lookout.interlude({"m"}, lambda: True) as calls:
        lookout.look()
        assert not calls()
        lookout.look()
        assert calls()
        lookout.look()
        assert not calls()
    assert waiting.asked == [{"m"}] * 3
    lookout.look()
    assert waiting.asked[3:] == [()]  # that is no command


def test_the_end_of_a_batch_is_told_once_and_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    pass_by, lookout, told = ticking(monkeypatch), Lookout(Waiting()), list[float]()  # type: ignore[arg-type]

    def tell() -> None:
        told.append(time.monotonic())

    with lookout.interlude({"m"}, lambda: True, tell, 104.0):
        for _ in range(6):
            pass_by(1)
            lookout.look()
    with lookout.interlude({"m"}, lambda: True, tell, 108.0):
        pass_by(1)
        lookout.look()
    pass_by(1)
    lookout.look()  # that batch has ended
    assert told == [104.0]


def test_no_thread_begins_or_ends_with_a_batch() -> None:
    lookout = Lookout(Waiting())  # type: ignore[arg-type]
    before = threading.enumerate()
    with lookout.interlude({"m"}, lambda: True, lambda: None, 0.0):
        assert threading.enumerate() == before


def test_a_device_of_the_null_model_takes_its_time_however_late_the_processor_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It stands for a device, which goes on while Python sleeps too long."""
    pass_by = ticking(monkeypatch)
    monkeypatch.setattr(time, "sleep", lambda seconds: pass_by(seconds + 0.01))
    row = Model(repo="null:", threads=1, options=Options(sleep=4.0), batch_width=2)
    renderer = NullRenderer(row, Fingerprint("null:", "1", "d"))
    steps = iter([True])

    def pause() -> bool:
        if next(steps, False):
            pass_by(3)
            return True
        return False

    started = time.monotonic()
    renderer.render(prepared(1, 2), pause)
    assert time.monotonic() - started == pytest.approx(7.01)  # three of them are a call's


_NESTED = """
import sys, time
from worker.process.watchdog import Watchdog
dog, inner, outer = Watchdog(), float(sys.argv[1]), float(sys.argv[2])
with dog.watch(0.4):
    with dog.watch(5):
        time.sleep(inner)
    time.sleep(outer)
time.sleep(0.6)
print("alive")
"""


@pytest.mark.parametrize(("inner", "outer", "lives"), [(0.6, 0.0, True), (0.0, 5.0, False)])
def test_the_time_of_a_watched_batch_stands_still_within_another(
    inner: float, outer: float, lives: bool
) -> None:
    """Neither does the inner one end the outer one's watch, nor use up its time."""
    command = [sys.executable, "-c", _NESTED, str(inner), str(outer)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode == 0) == lives
    assert ("alive" in done.stdout) == lives
    assert ("Timeout" in done.stderr) != lives
