"""One batch on its way through a device process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from jobs.broker.fleet import UNFIT_SECONDS
from jobs.errors import FatalError
from jobs.models.table import load_models
from jobs.output.plan import Plan
from jobs.requests import Request
from tests.samples import STACK, make_key, make_plan, make_request
from worker.counts import Counts
from worker.faults import LIKE_FAILURES, Unfit
from worker.inputs import Prepared
from worker.render import Rendered
from worker.renderers import Renderers
from worker.stage import Stage, refuse_broken

KEY = make_key(model="m", width=16, height=8)
PLAN = make_plan("run", {}, ())


def request(number: int) -> Request:
    return make_request(number, KEY)


def rendered(*shape: int) -> Rendered:
    return Rendered(request(1), STACK, 0.5, np.zeros(shape, np.uint8))


@dataclass
class Scene:
    """Everything around a stage, and in which order it was asked."""

    happened: list[str] = field(default_factory=list)
    taken: list[Rendered] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)

    requests: list[Request] = field(default_factory=lambda: [request(i) for i in range(2)])

    def wait(self) -> list[Prepared]:
        self.happened.append("inputs")
        return [Prepared(one) for one in self.requests]

    def get(self, model: str, _: Mapping[str, str]) -> Scene:
        self.happened.append(model)
        return self

    def render(self, batch: list[Prepared], *_: object) -> list[Rendered]:
        self.happened.append("render")
        good = rendered(8, 16, 3)
        return [replace(good, request=one.request) for one in batch]

    def take(self, batch: list[Rendered]) -> None:
        self.happened.append("store")
        self.taken += batch

    @contextmanager
    def watch(self, _: float) -> Iterator[None]:
        self.happened.append("clock on")
        yield
        self.happened.append("clock off")


def test_the_clock_times_the_device_alone() -> None:
    """Slow inputs, a slow load and slow storage are no hung batch."""
    scene: Any = Scene()
    Stage(scene, 1.0, watchdog=scene).run("shapes", scene, scene)
    assert scene.happened == ["inputs", "shapes", "clock on", "render", "clock off", "store"]
    assert [one.request.seed for one in scene.taken] == [0, 1]


def test_each_image_takes_the_steps_after_rendering_in_order() -> None:
    def name(text: str) -> Any:
        return lambda one: replace(one, message=one.message + text)

    scene: Any = Scene()
    Stage(scene, 1.0, (name("a"), name("b"))).run("shapes", scene, scene)
    assert [one.message for one in scene.taken] == ["ab", "ab"]


@pytest.mark.parametrize("shape", [(8, 16, 4), (8, 16, 1), (8, 16), (2, 8, 16, 3)])
def test_what_is_not_rgb_is_a_failure(shape: tuple[int, ...]) -> None:
    broken = refuse_broken(rendered(*shape))
    assert (broken.status, broken.code, broken.pixels) == ("failed", "render_error", None)
    assert " x ".join(map(str, shape)) in broken.message


def test_a_picture_passes_as_it_is() -> None:
    good = rendered(8, 16, 3)
    assert refuse_broken(good) is good
    gone = replace(good, pixels=None, status="rejected", code="c")
    assert refuse_broken(gone) is gone


@pytest.mark.parametrize("error", [FatalError("no weights"), RuntimeError("CUDA error"), OSError()])
def test_a_model_that_does_not_load_is_this_workers_fault(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def load(*_: object) -> None:
        raise error

    monkeypatch.setattr(Renderers, "_load", load)
    with pytest.raises(Unfit) as unfit:
        Renderers(load_models(), "cpu", 1).get("null")
    assert (unfit.value.model, unfit.value.whole) == ("null", True)
    assert str(error) in str(unfit.value)


@pytest.mark.parametrize(("adapter", "whole"), [("", True), ("ink", False)])
def test_a_device_that_does_not_render_is_this_workers_fault(adapter: str, whole: bool) -> None:
    """An adapter's fault concerns those that ask for it alone."""

    def render(*_: object) -> None:
        raise FatalError("does not load")

    scene: Any = Scene()
    scene.render = render
    key = KEY._replace(adapter=adapter)
    scene.requests = [request(0)._replace(key=key)]
    with pytest.raises(Unfit) as unfit:
        Stage(scene, 1.0).run("m", scene, scene)
    assert (unfit.value.model, unfit.value.whole) == ("m", whole)


def test_a_model_that_fails_every_request_is_given_up_for_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene: Any = Scene()
    outcome = ["failed"]
    code, text = ["c"], "weights of NaN"

    def render(batch: list[Prepared], *_: object) -> list[Rendered]:
        one = rendered(8, 16, 3)
        if outcome[0] != "done":
            one = replace(one, pixels=None, status=outcome[0], code=code[0], message=text)
        return [replace(one, request=asked.request) for asked in batch]

    scene.render = render
    stage = Stage(scene, 1.0)

    def run_often(plan: Plan | None = PLAN) -> None:
        for _ in range(LIKE_FAILURES):
            stage.run("m", scene, scene, plan)

    def run_until_it_stops() -> int:
        scene.taken.clear()
        with pytest.raises(Unfit, match=f"{LIKE_FAILURES} requests in a row .*weights of NaN") as e:
            run_often()
        assert not e.value.whole  # other runs of the model go on
        return len(scene.taken)

    run_often(None)  # calls do not count
    assert run_until_it_stops() == LIKE_FAILURES - 2  # the last batch has no records
    assert run_until_it_stops() == 0  # it still fails: no more rows are lost to it
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + UNFIT_SECONDS + 1)
    assert run_until_it_stops() == LIKE_FAILURES - 4  # counted anew, from the last batch on
    for outcome[0], code[0] in (("done", ""), ("rejected", "c"), ("failed", "out_of_memory")):
        run_often()
    outcome[0], code[0] = "failed", "c"
    assert run_until_it_stops() == LIKE_FAILURES - 2
