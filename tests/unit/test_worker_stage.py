"""One batch on its way through a device process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from jobs.errors import FatalError
from jobs.models.table import load_models
from jobs.output.records import Stack
from jobs.requests import BatchKey, Request
from worker import stage as staging
from worker.faults import Unfit
from worker.inputs import Prepared
from worker.render import Rendered
from worker.renderers import Renderers
from worker.stage import Stage, refuse_broken

KEY = BatchKey("generate", "m", "", 16, 8, 8)
STACK = Stack("r", "1", "f", "P", "S", "float32", "cpu", "c", 4, 1, "v")


def request(number: int) -> Request:
    return Request(number, str(number), KEY, "", "", number, "png", f"{number:032x}")


def rendered(*shape: int) -> Rendered:
    return Rendered(request(1), STACK, 0.5, np.zeros(shape, np.float32))


@dataclass
class Scene:
    """Everything around a stage, and in which order it was asked."""

    happened: list[str] = field(default_factory=list)
    taken: list[Rendered] = field(default_factory=list)

    requests: list[Request] = field(default_factory=lambda: [request(i) for i in range(2)])

    def wait(self) -> list[Prepared]:
        self.happened.append("inputs")
        return [Prepared(one) for one in self.requests]

    def get(self, model: str) -> Scene:
        self.happened.append(model)
        return self

    def render(self, batch: list[Prepared]) -> list[Rendered]:
        self.happened.append("render")
        good = rendered(8, 16, 3)
        return [replace(good, request=one.request) for one in batch]

    def take(self, batch: list[Rendered]) -> None:
        self.happened.append("store")
        self.taken += batch

    @contextmanager
    def watchdog(self, _: float) -> Iterator[None]:
        self.happened.append("clock on")
        yield
        self.happened.append("clock off")


def test_the_clock_times_the_device_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow inputs, a slow load and slow storage are no hung batch."""
    scene: Any = Scene()
    monkeypatch.setattr(staging, "watchdog", scene.watchdog)
    Stage(scene, 1.0).run("shapes", scene, scene)
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

    def render(_: object) -> None:
        raise FatalError("does not load")

    scene: Any = Scene()
    scene.render = render
    key = replace(KEY, adapter=adapter)
    scene.requests = [request(0)._replace(key=key)]
    with pytest.raises(Unfit) as unfit:
        Stage(scene, 1.0).run("m", scene, scene)
    assert (unfit.value.model, unfit.value.whole) == ("m", whole)
