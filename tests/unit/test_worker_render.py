"""Batches to images, with renderers that fail on purpose."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from jobs.errors import FatalError, InvalidRequest
from jobs.output.records import Stack
from jobs.requests import BatchKey
from tests.samples import KEY, STACK, make_key, make_request
from worker.inputs import Prepared
from worker.meter import Meter
from worker.render import NON_FINITE, NSFW, BatchRenderer, Flaw, Image, Pause, Pixels, batches


def prepared(*seeds: int) -> list[Prepared]:
    return [Prepared(make_request(seed, prompt="a prompt")) for seed in seeds]


def image(seed: int) -> Pixels:
    return np.full((16, 16, 3), seed, np.uint8)


class Fake:
    """Renders the seed as a grey level; `fault` may raise for a call's seeds."""

    def __init__(self, fault: Callable[[list[int]], None] = lambda _: None) -> None:
        self.fault = fault
        self.calls: list[list[int]] = []
        self.savings: list[str] = []

    def render(self, batch: list[Prepared], pause: Pause) -> list[Image]:
        seeds = [one.request.seed for one in batch]
        self.calls.append(seeds)
        self.fault(seeds)
        pause()
        return [image(seed) for seed in seeds]

    def call_key(self, key: BatchKey) -> BatchKey:
        return key

    def slots(self, key: BatchKey) -> int:
        return 1 if key.inputs else STACK.batch_width

    def fits_inputs(self) -> bool:
        return True

    def save_memory(self, _: BatchKey) -> bool:
        return bool(self.savings and self.savings.pop())

    def stack_for(self, key: BatchKey) -> Stack:
        return replace(STACK, pipeline="Edit") if key.inputs else STACK

    def compile_seconds(self) -> float:
        return 0.0

    def tokens_cut(self, prompt: str) -> int:
        return max(0, len(prompt) - 8)


def test_batches_keep_order_and_never_mix_keys() -> None:
    large = make_key(width=96, height=96)
    requests = [make_request(i, large if i == 4 else KEY) for i in range(1, 6)]
    seeds = [[request.seed for request in batch] for batch in batches(requests, lambda _: 2)]
    assert seeds == [[1, 2], [3], [4], [5]]


def test_a_short_batch_is_padded_and_the_padding_dropped() -> None:
    fake = Fake()
    rendered = BatchRenderer(fake).render(prepared(1, 2))
    assert fake.calls == [[1, 2, 2, 2]]
    assert [one.request.seed for one in rendered] == [1, 2]
    assert all(one.stack.batch_width == 4 for one in rendered)
    np.testing.assert_array_equal(rendered[1].pixels, image(2))


def test_one_bad_request_never_costs_another() -> None:
    """Guarantee 3; and every call has the full width, so the others' pixels do not change."""

    def fault(seeds: list[int]) -> None:
        if 3 in seeds:
            raise RuntimeError("a bad prompt")

    fake = Fake(fault)
    rendered = BatchRenderer(fake).render(prepared(1, 2, 3, 4))
    assert [one.code for one in rendered] == ["", "", "render_error", ""]
    assert "a bad prompt" in rendered[2].message
    assert {len(call) for call in fake.calls} == {4}
    np.testing.assert_array_equal(rendered[3].pixels, image(4))


def test_short_memory_halves_the_width_for_good() -> None:
    def fault(seeds: list[int]) -> None:
        if len(seeds) > 2:
            raise MemoryError("16 GiB more, please")

    fake = Fake(fault)
    renderer = BatchRenderer(fake)
    rendered = renderer.render(prepared(1, 2, 3))
    assert [one.stack.batch_width for one in rendered] == [2, 2, 2]
    assert [one.request.seed for one in rendered] == [1, 2, 3]
    renderer.render(prepared(5))
    assert fake.calls == [[1, 2, 3, 3], [1, 2], [3, 3], [5, 5]]


def test_a_request_too_big_for_the_device_fails_alone() -> None:
    def fault(_: list[int]) -> None:
        raise MemoryError("no")

    rendered = BatchRenderer(Fake(fault)).render(prepared(1, 2))
    assert [one.code for one in rendered] == ["out_of_memory", "out_of_memory"]
    assert all(one.pixels is None for one in rendered)


class Metered(Fake):
    """A device that meters itself: `seconds` of each call go by, whatever becomes of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float = 2.0) -> None:
        super().__init__()
        self.seconds, self.clock = seconds, 100.0
        self.flaws: dict[int, Flaw | Exception] = {}
        monkeypatch.setattr("worker.render.time.monotonic", lambda: self.clock)

    def render(self, batch: list[Prepared], pause: Pause) -> list[Image]:
        images: list[Image] = list(super().render(batch, pause))
        self.clock += self.seconds
        for place, one in enumerate(batch):
            match self.flaws.get(one.request.seed):
                case Flaw() as flaw:
                    images[place] = flaw
                case Exception() as error:
                    raise error
        return images

    @property
    def metered(self) -> float:
        return len(self.calls) * self.seconds


@pytest.mark.parametrize(
    ("flaw", "calls"),
    [
        (NSFW, 1),
        (InvalidRequest("prompt", "not so"), 1),
        (RuntimeError("a bad prompt"), 5),  # 1234, 12, 34, 3, 4
        (MemoryError("no"), 5),  # the slots are halved twice: 1234, 12, 34, 3, 4
    ],
)
def test_all_seconds_of_the_device_are_on_record(
    flaw: Flaw | Exception, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Metered(monkeypatch)
    device.flaws[3] = flaw
    rendered = BatchRenderer(device).render(prepared(1, 2, 3, 4))
    assert len(device.calls) == calls
    assert sum(one.seconds + one.seconds_lost for one in rendered) == pytest.approx(device.metered)
    meter = Meter()
    meter.note(rendered)
    assert meter.effort().seconds == pytest.approx(device.metered)


def test_other_models_go_before_the_width_does() -> None:
    room = [True, False]

    def fault(_: list[int]) -> None:
        if room:
            raise MemoryError("no")

    (one,) = BatchRenderer(Fake(fault), lambda: room.pop(0)).render(prepared(1))
    assert (one.code, one.stack.batch_width) == ("", 2)


def test_savings_go_before_the_slots_do() -> None:
    fake = Fake()

    def fault(seeds: list[int]) -> None:
        if fake.savings or len(seeds) > 2:
            raise MemoryError("no")

    fake.fault, fake.savings = fault, ["tiling", "slicing"]
    (one,) = BatchRenderer(fake).render(prepared(1))
    assert [len(call) for call in fake.calls] == [4, 4, 4, 2]
    assert one.stack.batch_width == 2


def test_a_failed_call_holds_no_memory_during_the_next() -> None:
    used: list[weakref.ref[NDArray[np.float32]]] = []

    def fault(_: list[int]) -> None:
        assert all(reference() is None for reference in used)
        activations = np.zeros(8, np.float32)
        used.append(weakref.ref(activations))
        raise MemoryError("no")

    rendered = BatchRenderer(Fake(fault)).render(prepared(1, 2, 3, 4))
    assert [one.code for one in rendered] == ["out_of_memory"] * 4
    assert len(used) == 6


@pytest.mark.parametrize("flaw", [NON_FINITE, NSFW])
def test_a_flaw_costs_its_own_request_only(flaw: Flaw) -> None:
    class Broken(Fake):
        def render(self, batch: list[Prepared], pause: Pause) -> list[Image]:
            return [super().render(batch, pause)[0], flaw]

    good, bad = BatchRenderer(Broken()).render(prepared(1, 2))
    assert (good.status, good.together) == ("done", 2)
    assert (bad.status, bad.code, bad.pixels) == (flaw.status, flaw.code, None)


def test_other_weights_than_planned_are_refused() -> None:
    with pytest.raises(FatalError, match=r"fingerprint f.*planned for g"):
        BatchRenderer(Fake()).check_weights(KEY, "g")


def test_an_input_that_cannot_be_had_costs_its_request_alone() -> None:
    missing = Prepared(
        make_request(2), problem=InvalidRequest("image", "gone", "input_unreachable")
    )
    first, second, third = BatchRenderer(Fake()).render([*prepared(1), missing, *prepared(3)])
    assert (second.status, second.code) == ("rejected", "input_unreachable")
    assert "gone" in second.message
    np.testing.assert_array_equal(first.pixels, image(1))
    np.testing.assert_array_equal(third.pixels, image(3))


def test_what_the_model_does_not_take_is_rejected_not_tried_again() -> None:
    def fault(_: list[int]) -> None:
        raise InvalidRequest("negative_prompt", "not here")

    fake = Fake(fault)
    rendered = BatchRenderer(fake).render(prepared(1, 2))
    assert [(one.status, one.code) for one in rendered] == [("rejected", "invalid_request")] * 2
    assert len(fake.calls) == 1


def test_the_width_and_the_stack_are_those_of_the_key() -> None:
    edit = KEY._replace(task="edit", inputs=1)
    rendered = BatchRenderer(Fake()).render([Prepared(make_request(seed, edit)) for seed in (1, 2)])
    assert [(one.stack.batch_width, one.stack.pipeline) for one in rendered] == [(1, "Edit")] * 2


def test_records_tell_how_much_of_a_prompt_was_cut() -> None:
    (one,) = BatchRenderer(Fake()).render(
        [Prepared(make_request(1)._replace(prompt="a prompt of some length"))]
    )
    assert one.tokens_cut == len("a prompt of some length") - 8
