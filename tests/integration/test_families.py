"""Every family renders every kind of request, and a pixel never depends on its neighbours."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.auto_pipeline import (
    AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
    AUTO_INPAINT_PIPELINES_MAPPING,
    AUTO_TEXT2IMAGE_PIPELINES_MAPPING,
    _get_task_class,
)
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch._dynamo.testing import CompileCounter

from jobs.errors import FatalError
from jobs.models.families import FAMILIES, GENERIC, family_of
from jobs.models.fingerprints import fingerprint, route_digest
from jobs.models.options import Options
from jobs.models.table import ModelTable, load_models
from jobs.requests import BatchKey, Task
from tests.pipelines import tiny
from tests.samples import make_key, make_request
from worker.inputs import Prepared
from worker.interludes import Interlude
from worker.pipelines.arguments import arguments
from worker.pipelines.load import PipelineRenderer, load_pipeline
from worker.pipelines.pixels import to_8_bits
from worker.pipelines.placement import tune
from worker.render import BatchRenderer, Flaw, Pause, Rendered, Renderer, batches
from worker.renderers import Choice, Renderers

WIDTH = 4
GENERATES = ["sd", "sdxl", "sd3", "flux", "kontext", "klein", "fluxdev2"]
INPAINTS = ["sd", "sdxl", "sd3", "flux", "inpaint", "xlinpaint", "fill"]
EDITS = ["sd", "sdxl", "sd3", "flux", "kontext", "klein", "fluxdev2", "pix2pix"]
RAGGED = [
    "a red circle",
    "",
    "a large green star on a blue background, beside a square",
    "🟥 دائرة",
]


@dataclass
class Studio:
    """Loads tiny models on demand, each once."""

    folder: Path
    config: pytest.Config
    device: str
    dtype: str
    loaded: dict[str, BatchRenderer] = field(default_factory=dict)

    def table(self, name: str, row: str = "", parts: str = "", width: int = WIDTH) -> ModelTable:
        """A table of one model, named as its weights are."""
        weights = tiny(name, self.config)
        pipeline = json.loads((weights / "model_index.json").read_text())["_class_name"]
        if family := family_of(pipeline):
            row = f'family = "{family}"\n{row}'
        if "dtype" not in row:
            row = f'dtype = "{self.dtype}"\n{row}'
        file = self.folder / f"{name}.toml"
        file.write_text(
            f'default = "{name}"\n[models.{name}]\nrepo = "{weights}"\nbatch_width = {width}\n'
            f"size = [64, 64]\nsteps = 2\nthreads = 1\n{row}\n{parts}"
        )
        return load_models(file)

    def load(self, name: str, row: str = "", parts: str = "", width: int = WIDTH) -> BatchRenderer:
        """A model with a row of its own; nobody else gets it."""
        table = self.table(name, row, parts, width)
        model = table.get(name)
        loaded = load_pipeline(table, model, fingerprint(table, model), self.device)
        return BatchRenderer(Exact(loaded))

    def get(self, name: str) -> BatchRenderer:
        if name not in self.loaded:
            self.loaded[name] = self.load(name)
        return self.loaded[name]

    def part(self, name: str) -> Path:
        return tiny(name, self.config)


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Studio:
    folder, config = tmp_path_factory.mktemp("models"), request.config
    return Studio(folder, config, config.getoption("--device"), config.getoption("--dtype"))


def picture(number: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(pixels).resize(size)


PLAIN = make_key(model="m", steps=2)


def ask(
    prompt: str = "a red circle",
    seed: int = 1,
    key: BatchKey = PLAIN,
    images: tuple[Image.Image, ...] = (),
    controls: tuple[Image.Image, ...] = (),
    negative: str = "",
    mask: Image.Image | None = None,
) -> Prepared:
    if images:
        task: Task = "inpaint" if mask else "edit"
        key = key._replace(task=task, inputs=len(images), steps=max(4, key.steps))
    request = make_request(seed, key, prompt=prompt, negative_prompt=negative)
    return Prepared(request, images, controls, mask)


@dataclass(frozen=True)
class Exact:
    """A renderer that does not round its pixels, so that the least difference is seen."""

    renderer: PipelineRenderer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.renderer, name)

    def render(self, batch: list[Prepared], pause: Pause) -> list[Any]:
        images, unsafe = self.renderer.draw(batch, pause)
        exact = images.float().cpu().numpy()
        return [
            made if isinstance(made, Flaw) else drawn
            for made, drawn in zip(to_8_bits(images, unsafe), exact, strict=True)
        ]


def one(renderer: BatchRenderer, request: Prepared) -> NDArray[np.float32]:
    return pixels(renderer.render([request])[0])


def pixels(rendered: Rendered) -> NDArray[np.float32]:
    assert rendered.pixels is not None, rendered.message
    return rendered.pixels


def same(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    return a.tobytes() == b.tobytes()


def assert_independent(renderer: BatchRenderer, asked: list[Prepared]) -> None:
    """Alone, together, in another order, one of them twice: the same bytes."""
    together = [pixels(result) for result in renderer.render(asked)]
    assert same(one(renderer, asked[0]), together[0])
    assert same(one(renderer, asked[1]), together[1])
    order = [2, 0, 0, 1]
    again = renderer.render([asked[i] for i in order])
    for i, result in zip(order, again, strict=True):
        assert same(pixels(result), together[i])
    assert len({image.tobytes() for image in together}) == len(asked)


@pytest.mark.parametrize("name", GENERATES)
def test_generations_do_not_depend_on_neighbours(studio: Studio, name: str) -> None:
    """Guarantee 2: also with prompts of very different length."""
    asked = [ask(prompt, seed) for seed, prompt in enumerate(RAGGED)]
    assert_independent(studio.get(name), asked)


@pytest.mark.parametrize("name", EDITS)
def test_edits_do_not_depend_on_neighbours(studio: Studio, name: str) -> None:
    asked = [
        ask(prompt, seed, images=(picture(seed, (64 + 16 * seed, 80)),))
        for seed, prompt in enumerate(RAGGED[:3])
    ]
    assert_independent(studio.get(name), asked)


@pytest.mark.parametrize(
    ("name", "task"),
    [(name, task) for name in ("sd", "sdxl", "sd3", "flux") for task in get_args(Task)]
    + [("inpaint", "inpaint"), ("xlinpaint", "inpaint"), ("fill", "inpaint")]
    + [("kontext", "generate"), ("kontext", "edit"), ("klein", "generate")]
    + [("fluxdev2", "generate")]
    + [("pix2pix", "edit"), ("xlpix2pix", "edit")],
)
def test_requests_with_a_guidance_each_share_a_call(studio: Studio, name: str, task: Task) -> None:
    """Their bytes are those of a call with one value; those that guide nothing have their own."""
    renderer = studio.get(name)
    asked = guided_each(task)
    assert_independent(renderer, asked[:3])
    requests = [one.request for one in asked]
    shared = [len(batch) for batch in batches(requests, renderer.slots, renderer.call_key)]
    embedded = FAMILIES[family_of(renderer_class(renderer)) or ""].mixes_guidance == "embedded"
    assert shared == ([4] if embedded else [3, 1])


def guided_each(task: Task, key: BatchKey = PLAIN, steered: bool = False) -> list[Prepared]:
    """Requests that differ in everything, the guidance included."""
    return [
        ask(
            prompt, seed, key._replace(guidance_scale=scale),
            images=() if task == "generate" else (picture(seed),),
            mask=mask(*BOXES[0]) if task == "inpaint" else None,
            controls=(picture(seed + 5),) if steered else (),
        )
        for seed, (prompt, scale) in enumerate(zip(RAGGED, (1.1, 7.3, 12.7, 0.5), strict=True))
    ]  # fmt: skip


# Diffusers' FLUX ControlNet imports it from there itself.
@pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")
def test_controlnets_are_told_the_guidance_of_each(studio: Studio) -> None:
    """The one that FLUX has; it sees the guidance as the transformer does."""
    part = f'[models.flux.controlnets.edges]\nrepo = "{studio.part("fluxcontrolnet")}"\n'
    renderer = studio.load("flux", parts=part)
    asked = guided_each("generate", PLAIN._replace(controlnet_weights=(0.8,)), steered=True)
    assert_independent(renderer, asked[:3])
    other = replace(asked[0], controls=(picture(9),))
    assert not same(one(renderer, other), one(renderer, asked[0]))


@pytest.mark.parametrize("guest", [2.0, None])
def test_a_guidance_each_outlasts_a_call_between_two_steps(
    studio: Studio, guest: float | None
) -> None:
    """Which has its own, or the pipeline's."""
    renderer = studio.get("flux")
    asked = guided_each("generate", PLAIN._replace(steps=4))
    key = PLAIN._replace(slots=1, steps=3, guidance_scale=guest)
    visitor = ask("a green star", 7, key)
    alone, expected = [one(renderer, request) for request in asked], one(renderer, visitor)
    visits = Visits(renderer, [visitor])
    rendered = renderer.render(asked, interlude(visits))
    assert all(same(pixels(got), want) for got, want in zip(rendered, alone, strict=True))
    assert same(visits.drawn[0], expected)


@pytest.mark.parametrize("name", GENERATES)
def test_each_field_of_a_generation_has_its_effect(studio: Studio, name: str) -> None:
    renderer = studio.get(name)
    before = one(renderer, ask())
    assert before.shape == (64, 64, 3)
    assert same(one(renderer, ask()), before)
    changed = [
        ask("a blue star"),
        ask(seed=2),
        ask(key=PLAIN._replace(steps=3)),
        ask(key=PLAIN._replace(guidance_scale=6.0)),
    ]
    if "negative_prompt" in FAMILIES[family_of(renderer_class(renderer)) or ""].takes:
        changed.append(ask(key=PLAIN._replace(negative=True), negative="a blue star"))
    for request in changed:
        assert not same(one(renderer, request), before), request.request
    wide = one(renderer, ask(key=PLAIN._replace(width=96)))
    assert wide.shape == (64, 96, 3)


def renderer_class(renderer: BatchRenderer) -> str:
    return renderer.renderer.stack_for(PLAIN).pipeline


@pytest.mark.parametrize("name", EDITS)
def test_each_field_of_an_edit_has_its_effect(studio: Studio, name: str) -> None:
    renderer = studio.get(name)
    images = (picture(1),)
    before = one(renderer, ask(images=images))
    assert before.shape == (64, 64, 3)
    assert same(one(renderer, ask(images=images)), before)
    assert not same(one(renderer, ask(images=(picture(2),))), before)
    assert not same(one(renderer, ask("a blue star", images=images)), before)
    wide = one(renderer, ask(key=PLAIN._replace(width=96), images=images))
    assert wide.shape == (64, 96, 3)
    if name != "pix2pix":  # which draws nothing else
        assert not same(one(renderer, ask()), before)


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
def test_strength_says_how_far_an_edit_goes(studio: Studio, name: str) -> None:
    renderer, image = studio.get(name), picture(1)
    far, near = (
        one(renderer, ask(key=PLAIN._replace(steps=10, strength=strength), images=(image,)))
        for strength in (0.9, 0.2)
    )
    assert not same(far, near)


def mask(*box: int) -> Image.Image:
    """White within the box."""
    shade = Image.new("L", (64, 64))
    shade.paste(255, box)
    return shade


BOXES = [(0, 0, 32, 64), (16, 16, 56, 40), (40, 0, 64, 64)]


@pytest.mark.parametrize("name", INPAINTS)
def test_masked_edits_do_not_depend_on_neighbours(studio: Studio, name: str) -> None:
    """Each has an image and a mask of its own."""
    asked = [
        ask(prompt, seed, images=(picture(seed),), mask=mask(*box))
        for seed, (prompt, box) in enumerate(zip(RAGGED[:3], BOXES, strict=True))
    ]
    assert_independent(studio.get(name), asked)


@pytest.mark.parametrize("name", INPAINTS)
def test_each_field_of_a_masked_edit_has_its_effect(studio: Studio, name: str) -> None:
    renderer, image = studio.get(name), (picture(1),)
    box = BOXES[1]
    before = one(renderer, ask(images=image, mask=mask(*box)))
    assert before.shape == (64, 64, 3)
    assert same(one(renderer, ask(images=image, mask=mask(*box))), before)
    stronger = PLAIN._replace(steps=10, strength=0.9)
    changed = [
        ask(images=(picture(2),), mask=mask(*box)),
        ask(images=image, mask=mask(*BOXES[0])),
        ask("a blue star", images=image, mask=mask(*box)),
        ask(seed=2, images=image, mask=mask(*box)),
        ask(images=image, mask=mask(*box), key=stronger),
        ask(images=image, mask=mask(*box), key=stronger._replace(strength=0.3)),
    ]
    made = {one(renderer, request).tobytes() for request in changed}
    assert len(made | {before.tobytes()}) == len(changed) + 1


@pytest.mark.parametrize("name", INPAINTS)
def test_what_is_not_masked_stays_as_it_is(studio: Studio, name: str) -> None:
    """Pixel for pixel, though all of it went through the autoencoder; within there is a new one."""
    renderer: Any = studio.get(name).renderer
    asked = [
        ask(seed=seed, images=(picture(seed),), mask=mask(*box)) for seed, box in enumerate(BOXES)
    ]
    for made, request in zip(renderer.renderer.render([*asked, asked[-1]]), asked, strict=False):
        within, image = np.asarray(request.mask) > 0, np.asarray(request.images[0])
        assert np.array_equal(made[~within], image[~within])
        assert (made[within] != image[within]).any(axis=-1).mean() > 0.9


def test_masks_and_control_images_go_together(studio: Studio) -> None:
    """Of both families that have ControlNets here; the control image has its effect."""
    for name, net in (("sd", "controlnet-1"), ("sdxl", "xlcontrolnet-1")):
        part = f'[models.{name}.controlnets.edges]\nrepo = "{studio.part(net)}"\n'
        renderer = studio.load(name, parts=part)
        key = PLAIN._replace(controlnet_weights=(0.8,))
        asked = [
            ask(
                seed=seed, key=key, images=(picture(seed),), controls=(picture(seed + 5),),
                mask=mask(*box),
            )
            for seed, box in enumerate(BOXES)
        ]  # fmt: skip
        assert_independent(renderer, asked)
        other = replace(asked[0], controls=(picture(9),))
        assert not same(one(renderer, other), one(renderer, asked[0]))


@dataclass
class Visits:
    """Renders something else in each interlude, and keeps what came of it."""

    renderer: BatchRenderer
    requests: list[Prepared]
    drawn: list[NDArray[np.float32]] = field(default_factory=list)

    def __call__(self) -> bool:
        if self.requests:
            (found,) = self.renderer.render([self.requests.pop(0)], beside=True)
            self.drawn.append(pixels(found))
        return True


def interlude(visits: Visits) -> Interlude:
    due: Any = SimpleNamespace(is_set=lambda: True, clear=lambda: None)
    return Interlude(due, visits)


@pytest.mark.parametrize("name", GENERATES)
def test_a_call_between_two_steps_changes_no_byte(studio: Studio, name: str) -> None:
    """Neither of its own image, of a batch of fewer slots, nor of the batch that makes way."""
    renderer = studio.get(name)
    long = PLAIN._replace(steps=4)
    asked = [ask(prompt, seed, key=long) for seed, prompt in enumerate(RAGGED[:3])]
    alone = [pixels(result) for result in renderer.render(asked)]
    key = PLAIN._replace(slots=1, steps=3)
    guests = [ask("a green star", 7, key), ask("a green star", 8, key._replace(width=96))]
    if name in EDITS:
        guests.append(ask("a green star", 9, key, images=(picture(1),)))
    if name in INPAINTS:
        guests.append(ask("a star", 9, key, images=(picture(1),), mask=mask(*BOXES[0])))
    expected = [one(renderer, guest) for guest in guests]
    visits = Visits(renderer, list(guests))
    rendered = renderer.render(asked, interlude(visits))
    assert [same(*pair) for pair in zip(visits.drawn, expected, strict=True)] == [True] * len(
        guests
    )
    assert all(same(pixels(got), want) for got, want in zip(rendered, alone, strict=True))


def test_a_call_with_an_adapter_between_two_steps_changes_no_byte(studio: Studio) -> None:
    """Both ways round; and that of a run stays the one that its batch is rendered with."""
    part = f'[models.sd.adapters.ink]\nrepo = "{studio.part("lora-ink")}"\n'
    renderer = studio.load("sd", parts=part)
    plain, styled = ask(key=PLAIN._replace(steps=4)), adapted("ink")
    expected = one(renderer, plain), one(renderer, styled)
    fresh = studio.load("sd", parts=part)  # which has not loaded the adapter before
    for asked, guest, (host, visitor) in (
        (plain, styled, expected), (styled, plain, expected[::-1]),
    ):  # fmt: skip
        visits = Visits(fresh, [guest])
        (rendered,) = fresh.render([asked], interlude(visits))
        assert same(pixels(rendered), host)
        assert same(visits.drawn[0], visitor)


@pytest.mark.parametrize(
    "row", ['offload = "sequential"', 'step_cache = {kind = "FirstBlockCache"}']
)
def test_what_leaves_something_in_its_modules_makes_no_way(studio: Studio, row: str) -> None:
    loaded = studio.get("flux").renderer
    variants: Any = replace(loaded.variants, options=Options.model_validate(tomllib.loads(row)))  # type: ignore[attr-defined]
    variant = variants.get(PLAIN)
    assert "callback_on_step_end" in variant.accepted
    assert loaded.variants.can_pause(variant)  # type: ignore[attr-defined]
    assert not variants.can_pause(variant)


@pytest.mark.parametrize("name", GENERATES)
def test_equal_prompts_are_encoded_once_and_no_byte_changes(studio: Studio, name: str) -> None:
    renderer, plain = studio.load(name), studio.load(name)
    for encoder in plain.renderer.encoders:  # type: ignore[attr-defined]
        encoder.most = 0
    encoders = renderer.renderer.encoders  # type: ignore[attr-defined]
    assert encoders
    calls: list[int] = []
    for encoder in encoders:
        encode = encoder.forward
        encoder.forward = lambda *a, encode=encode, **k: calls.append(1) or encode(*a, **k)
    first = [ask("a red circle", 1), ask("a red circle", 2), ask(RAGGED[2], 3)]
    second = [ask(RAGGED[2], 4), ask("a red circle", 5), ask("a red circle", 6)]
    third = [ask("a blue star", 7), ask("a red circle", 8)]
    for batch, encoded in ((first, True), (second, False), (third, True), (first[:1], False)):
        calls.clear()
        images = [pixels(one) for one in renderer.render(batch)]
        assert bool(calls) == encoded
        expected = [pixels(one) for one in plain.render(batch)]
        assert all(same(*pair) for pair in zip(images, expected, strict=True))


def test_what_an_adapter_makes_of_a_prompt_is_its_own(studio: Studio) -> None:
    """It may change the text encoder."""
    part = f'[models.sd.adapters.ink]\nrepo = "{studio.part("lora-ink")}"\n'
    renderer, plain = studio.load("sd", parts=part), studio.load("sd", parts=part)
    for encoder in plain.renderer.encoders:  # type: ignore[attr-defined]
        encoder.most = 0
    for request in (ask(), adapted("ink"), ask(), adapted("ink")):
        assert same(one(renderer, request), one(plain, request))


def test_klein_takes_several_images_in_their_order(studio: Studio) -> None:
    renderer = studio.get("klein")
    first, second = picture(1), picture(2)
    both = one(renderer, ask(images=(first, second)))
    assert not same(both, one(renderer, ask(images=(first,))))
    assert not same(both, one(renderer, ask(images=(second, first))))
    (rendered,) = renderer.render([ask(images=(first, second))])
    assert rendered.stack.batch_width == 1


def test_records_name_every_library_below(studio: Studio) -> None:
    stack = studio.get("sd").renderer.stack_for(PLAIN)
    named = {one.split(" ")[0] for one in stack.versions.split(", ")}
    assert named >= {"torch", "diffusers", "transformers", "accelerate", "peft", "pillow"}
    assert (named >= {"cuda", "cudnn", "driver"}) == (studio.device == "cuda")


def test_records_name_the_pipeline_that_rendered(studio: Studio) -> None:
    renderer = studio.get("sd")
    (drawn,) = renderer.render([ask()])
    (edited,) = renderer.render([ask(images=(picture(1),))])
    assert drawn.stack.pipeline == "StableDiffusionPipeline"
    assert edited.stack.pipeline == "StableDiffusionImg2ImgPipeline"


def test_any_other_pipeline_renders_one_request_a_call(studio: Studio) -> None:
    """The generic fallback, here PixArt: nobody has proven it independent of neighbours."""
    with pytest.raises(FatalError, match="renders one request a call"):
        studio.load("pixart")
    renderer = studio.load("pixart", width=1)
    first, second = renderer.render([ask(seed=1), ask(seed=2)])
    assert not same(pixels(first), pixels(second))
    assert first.stack.batch_width == 1
    (edit,) = renderer.render([ask(images=(picture(1),))])
    assert (edit.status, edit.code) == ("rejected", "invalid_request")


# --- ControlNets -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guided(studio: Studio) -> BatchRenderer:
    """Stable Diffusion with two ControlNets."""
    parts = "".join(
        f'[models.sd.controlnets.{name}]\nrepo = "{studio.part(f"controlnet-{name}")}"\n'
        for name in ("edges", "depth")
    )
    return studio.load("sd", parts=parts)


def steered(*weights: float, edit: bool = False, controls: tuple[int, ...] = (7, 8)) -> Prepared:
    key = PLAIN._replace(controlnet_weights=weights)
    images = (picture(1),) if edit else ()
    guides = tuple(picture(number, (80, 64)) for number in controls[: len(weights)])
    return ask(key=key, images=images, controls=guides)


def test_control_images_and_weights_have_their_effect(guided: BatchRenderer) -> None:
    plain = one(guided, ask())
    full = one(guided, steered(1.0))
    assert not same(full, plain)
    assert not same(one(guided, steered(0.5)), full)
    assert not same(one(guided, steered(1.0, controls=(8,))), full)
    assert not same(one(guided, steered(1.0, 1.0)), full)
    assert not same(one(guided, steered(1.0, 1.0, controls=(8, 7))), one(guided, steered(1.0, 1.0)))


def test_a_weight_of_0_disables_a_controlnet(guided: BatchRenderer) -> None:
    plain = one(guided, ask())
    assert same(one(guided, steered(0.0)), plain)
    assert same(one(guided, steered(0.0, 0.0)), plain)
    assert same(one(guided, steered(1.0, 0.0)), one(guided, steered(1.0)))
    second = one(guided, steered(0.0, 1.0))
    assert not same(second, plain)
    assert not same(second, one(guided, steered(1.0, 0.0, controls=(8, 7))))


@pytest.mark.parametrize("edit", [False, True])
@pytest.mark.parametrize("weights", [(1.0,), (0.7, 0.4)])
def test_control_images_do_not_mix_between_neighbours(
    guided: BatchRenderer, weights: tuple[float, ...], edit: bool
) -> None:
    asked = [
        replace(
            steered(*weights, edit=edit, controls=(seed, seed + 1)),
            request=steered(*weights, edit=edit).request._replace(seed=seed, prompt=prompt),
        )
        for seed, prompt in enumerate(RAGGED[:3])
    ]
    assert_independent(guided, asked)


def test_sdxl_has_controlnets_too(studio: Studio) -> None:
    net = studio.part("xlcontrolnet")
    parts = f'[models.sdxl.controlnets.edges]\nrepo = "{net}"\n'
    renderer = studio.load("sdxl", parts=parts)
    plain = one(renderer, ask())
    assert not same(one(renderer, steered(1.0)), plain)
    assert same(one(renderer, steered(0.0)), plain)
    assert same(plain, one(studio.get("sdxl"), ask()))
    (rendered,) = renderer.render([steered(1.0)])
    assert rendered.stack.pipeline == "StableDiffusionXLControlNetPipeline"


# --- Adapters ---------------------------------------------------------------------------------


def adapted(adapter: str, seed: int = 1) -> Prepared:
    return ask(seed=seed, key=PLAIN._replace(adapter=adapter))


@pytest.mark.parametrize(("name", "lora"), [("sd", "lora"), ("flux", "fluxlora")])
def test_adapters_switch_and_leave_no_trace(studio: Studio, name: str, lora: str) -> None:
    parts = "".join(
        f'[models.{name}.adapters.{one_of}]\nrepo = "{studio.part(f"{lora}-{one_of}")}"\n'
        for one_of in ("ink", "oil")
    )
    weak = f'[models.{name}.adapters.weak]\nrepo = "{studio.part(f"{lora}-ink")}"\nweight = 0.3\n'
    renderer = studio.load(name, parts=parts + weak)
    base = one(renderer, ask())
    images = {adapter: one(renderer, adapted(adapter)) for adapter in ("ink", "oil", "weak")}
    assert len({base.tobytes(), *(image.tobytes() for image in images.values())}) == 4
    for adapter in ("ink", "", "oil", "ink", "weak", ""):
        expected = images.get(adapter, base)
        assert same(one(renderer, adapted(adapter)), expected), adapter
    assert_independent(renderer, [adapted("ink", seed) for seed in range(3)])


def test_an_adapter_that_the_table_lacks_is_named(studio: Studio) -> None:
    renderer = studio.load("sd")
    with pytest.raises(FatalError, match=r"(?s)no adapter 'ink'.*same models table"):
        renderer.check_weights(PLAIN._replace(adapter="ink"), "planned")


def test_adapters_that_do_not_fit_leave_and_come_back(studio: Studio) -> None:
    parts = "".join(
        f'[models.sd.adapters.{name}]\nrepo = "{studio.part(f"lora-{name}")}"\n'
        for name in ("ink", "oil")
    )
    renderer = studio.load("sd", parts=parts)
    adapters = renderer.renderer.adapters  # type: ignore[attr-defined]
    adapters.budget = 1
    base, ink = one(renderer, ask()), one(renderer, adapted("ink"))
    one(renderer, adapted("oil"))
    assert adapters.loaded == ["oil"]
    assert same(one(renderer, adapted("ink")), ink)
    assert adapters.loaded == ["ink"]
    assert same(one(renderer, ask()), base)


def test_an_adapter_that_loads_half_way_leaves_no_trace(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = f'[models.sd.adapters.ink]\nrepo = "{studio.part("lora-ink")}"\n'
    renderer = studio.load("sd", parts=part)
    base = one(renderer, ask())

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("no such layer")

    pipeline = renderer.renderer.adapters.pipeline  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(type(pipeline), "load_lora_into_text_encoder", refuse)
        with pytest.raises(FatalError, match="no such layer"):
            renderer.render([adapted("ink")])
    assert same(one(renderer, ask()), base)
    assert not same(one(renderer, adapted("ink")), base)


def test_an_adapter_works_with_edits_and_controlnets(studio: Studio) -> None:
    parts = (
        f'[models.sd.adapters.ink]\nrepo = "{studio.part("lora-ink")}/'
        'pytorch_lora_weights.safetensors"\n'
        f'[models.sd.controlnets.edges]\nrepo = "{studio.part("controlnet-edges")}"\n'
    )
    renderer = studio.load("sd", parts=parts)
    for request in (steered(1.0), steered(1.0, edit=True), ask(images=(picture(1),))):
        plain = one(renderer, request)
        key = request.request.key._replace(adapter="ink")
        styled = replace(request, request=request.request._replace(key=key))
        assert not same(one(renderer, styled), plain)
        assert same(one(renderer, request), plain)


def test_an_adapters_fingerprint_is_that_of_its_plan(studio: Studio) -> None:
    parts = f'[models.sd.adapters.ink]\nrepo = "{studio.part("lora-ink")}"\n'
    table = studio.table("sd", parts=parts)
    renderer = studio.load("sd", parts=parts)
    for adapter, route in (("", "sd"), ("ink", "sd:ink")):
        renderer.check_weights(PLAIN._replace(adapter=adapter), route_digest(table, route))
    with pytest.raises(FatalError):
        renderer.check_weights(PLAIN, route_digest(table, "sd:ink"))


def test_a_pickled_adapter_is_refused(studio: Studio, tmp_path: Path) -> None:
    pickled = tmp_path / "ink.bin"
    weights = load_file(studio.part("lora-ink") / "pytorch_lora_weights.safetensors")
    torch.save(weights, pickled)
    parts = f'[models.sd.adapters.ink]\nrepo = "{pickled}"\n'
    with pytest.raises(FatalError, match=r"ink.bin is no \.safetensors file"):
        route_digest(studio.table("sd", parts=parts), "sd:ink")
    with pytest.raises(FatalError, match=r"ink.bin"):
        studio.load("sd", parts=parts).render([adapted("ink")])


@pytest.mark.parametrize("place", ["pipeline", "component"])
def test_a_model_folder_runs_no_code(studio: Studio, tmp_path: Path, place: str) -> None:
    """Nor are weights read that are pickled."""
    folder, ran = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(studio.part("sd"), folder)
    index = json.loads((folder / "model_index.json").read_text())
    code = (
        f"from diffusers import *\nopen({str(ran)!r}, 'w')\nclass Own(UNet2DConditionModel): pass\n"
    )
    if place == "pipeline":
        (folder / "own.py").write_text(code)
        index["_class_name"] = ["own", "Own"]
    else:
        (folder / "unet/own.py").write_text(code)
        index["unet"] = ["own", "Own"]
    table = own_table(tmp_path, folder)
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(FatalError, match="custom code"):
        load_pipeline(table, table.get("m"), fingerprint(table, table.get("m")), "cpu")
    assert not ran.exists()


def test_pickled_weights_are_not_read(studio: Studio, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(studio.part("sd"), folder)
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    table = own_table(tmp_path, folder)
    with pytest.raises(FatalError, match=r"no file named .*\.safetensors"):
        load_pipeline(table, table.get("m"), fingerprint(table, table.get("m")), "cpu")


def own_table(place: Path, folder: Path) -> ModelTable:
    """Of one model, whose weights lie in the folder."""
    file = place / "models.toml"
    file.write_text(f'default = "m"\n[models.m]\nrepo = "{folder}"\nthreads = 1\n')
    return load_models(file)


def test_a_missing_adapter_is_named(studio: Studio) -> None:
    parts = f'[models.sd.adapters.ink]\nrepo = "{studio.part("sd")}"\n'
    renderer = studio.load("sd", parts=parts)
    with pytest.raises(FatalError, match=r"has 0 \.safetensors files"):
        renderer.render([adapted("ink")])


# --- Prompts ----------------------------------------------------------------------------------

STRANGE = {
    "empty": "",
    "emoji": "🟥🟦 a 👩‍👩‍👧 family",
    "right to left": "دائرة حمراء كبيرة",
    "control characters": "a\x00red\x1b[31m\ncircle\t\u202e",
    "10,000 characters": "a red circle " * 769,
}


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "klein"])
def test_strange_prompts_render(studio: Studio, name: str) -> None:
    rendered = studio.get(name).render([ask(prompt) for prompt in STRANGE.values()][:WIDTH])
    assert [result.status for result in rendered] == ["done"] * len(rendered)
    (long,) = studio.get(name).render([ask(STRANGE["10,000 characters"])])
    assert long.status == "done"
    assert long.tokens_cut > 1000
    assert rendered[0].tokens_cut == 0


@pytest.mark.parametrize(("name", "limit"), [("sd", 24), ("flux", 512), ("sd3", 256)])
def test_what_is_cut_has_no_effect_and_is_counted(studio: Studio, name: str, limit: int) -> None:
    """`limit` tokens are read, of which CLIP's start and end are two, T5's end is one."""
    own = limit - (2 if name == "sd" else 1)
    word = "circle " if name == "sd" else "x"  # a token each
    full, longer = (
        studio.get(name).render([ask((word * own + tail).strip())])[0] for tail in ("", word * 5)
    )
    assert (full.tokens_cut, longer.tokens_cut) == (0, 5)
    if name == "sd":  # the others' short encoder (CLIP) reads less anyway
        assert same(pixels(full), pixels(longer))


# --- Memory -----------------------------------------------------------------------------------


@dataclass
class Hungry:
    """A pipeline that fits so many images in memory."""

    inner: Callable[..., object]
    fits: int

    def __call__(self, **call: object) -> object:
        prompts = call["prompt"]
        assert isinstance(prompts, list)
        if len(prompts) > self.fits:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of …"
            )
        return self.inner(**call)


@pytest.mark.parametrize(("fits", "widths"), [(2, [2, 2, 2]), (0, [1, 1, 1])])
def test_out_of_memory(studio: Studio, fits: int, widths: list[int]) -> None:
    renderer = studio.load("sd")
    variants = renderer.renderer.variants  # type: ignore[attr-defined]
    variant = variants.get(PLAIN)
    variants._made["generate", ()] = replace(variant, pipeline=Hungry(variant.pipeline, fits))
    rendered = renderer.render([ask(seed=seed) for seed in range(3)])
    assert [result.stack.batch_width for result in rendered] == widths
    if fits:
        assert all(result.status == "done" for result in rendered)
        assert renderer.slots(PLAIN) == 2
    else:
        assert [result.code for result in rendered] == ["out_of_memory"] * 3
        assert rendered[0].message.startswith("2684354560 bytes more were needed")


@pytest.mark.parametrize(
    ("fits", "modes", "slots"),
    [(1, "vae_slicing", 4), (0, "vae_slicing, vae_tiling", 1)],
)
def test_a_vae_without_memory_saves_before_fewer_are_rendered(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, fits: int, modes: str, slots: int
) -> None:
    renderer = studio.load("sd")
    before = one(renderer, ask())
    vae = renderer.renderer.variants.base.vae  # type: ignore[attr-defined]
    decode = vae.decoder.forward

    def hungry(latents: torch.Tensor, *rest: object) -> object:
        if len(latents) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB.")
        return decode(latents, *rest)

    monkeypatch.setattr(vae.decoder, "forward", hungry)
    (rendered,) = renderer.render([ask()])
    assert (rendered.stack.modes, rendered.stack.batch_width) == (modes, slots)
    if fits:
        assert np.abs(pixels(rendered) - before).max() < 0.01
    else:
        assert rendered.code == "out_of_memory"
    monkeypatch.undo()
    (other,) = renderer.render([ask(key=PLAIN._replace(width=96))])
    assert (other.stack.modes, vae.use_slicing, vae.use_tiling) == ("", False, False)


def test_a_denoiser_without_memory_gains_nothing_from_the_vae(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    renderer = studio.load("sd")
    unet = renderer.renderer.variants.base.unet  # type: ignore[attr-defined]
    forward = unet.forward

    def hungry(latents: torch.Tensor, *rest: object, **more: object) -> object:
        if len(latents) > 4:  # guidance doubles them
            raise torch.AcceleratorError("CUDA error: out of memory")
        return forward(latents, *rest, **more)

    monkeypatch.setattr(unet, "forward", hungry)
    (rendered,) = renderer.render([ask()])
    assert (rendered.status, rendered.stack.modes) == ("done", "")
    assert rendered.stack.batch_width == 2


def test_a_lost_device_ends_the_process(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = studio.load("sd")
    pipeline = renderer.renderer.variants.base  # type: ignore[attr-defined]

    def fault(*_: object, **__: object) -> None:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    codes: list[int] = []
    monkeypatch.setattr(pipeline, "encode_prompt", fault)
    monkeypatch.setattr(os, "_exit", codes.append)
    renderer.render([ask()])
    assert codes == [1]


def test_models_that_do_not_fit_together_take_turns(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = studio.table("sd", parts='[models.other]\nrepo = "null:"')
    renderers = Renderers(table, "cpu", kept=2)
    load = Renderers._load

    def tight(self: Renderers, choice: Choice) -> Renderer:
        if self._loaded or choice.model == "sd":
            raise MemoryError("2684354560 bytes more were needed")
        return load(self, choice)

    renderers.get("other")
    monkeypatch.setattr(Renderers, "_load", tight)
    with pytest.raises(FatalError, match="sd does not fit into the device's memory"):
        renderers.get("sd")
    assert not renderers._loaded
    renderers.get("other")
    assert [one.model for one in renderers._loaded] == ["other"]


# --- Options ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "row", "least", "most"),
    [
        ("sd", 'scheduler = "DDPMScheduler"', 0.01, 1),
        ("sd", 'dtype = "float16"', 1e-4, 0.2),
        (
            "flux",
            'options = { step_cache = { kind = "FirstBlockCache", '
            "arguments = { threshold = 100.0 } } }",
            1e-3,
            1,
        ),
    ],
)
def test_options_change_pixels(
    studio: Studio, name: str, row: str, least: float, most: float
) -> None:
    """The largest difference to a pixel without the option says that it has its effect."""
    with_it, without = (one(studio.load(name, text, width=1), ask()) for text in (row, ""))
    assert least <= np.abs(with_it - without).max() <= most


@pytest.mark.parametrize("edit", [False, True])
def test_an_image_that_was_made_black_is_no_image(studio: Studio, edit: bool) -> None:
    """The checker of these weights refuses everything."""
    request = ask(images=(picture(1),) if edit else ())
    (refused,) = studio.get("prude").render([request])
    assert (refused.status, refused.code, refused.pixels) == ("rejected", "nsfw", None)
    assert refused.stack.modes == ""
    table = studio.table("prude", "options = { safety_checker = false }")
    bold = studio.load("prude", "options = { safety_checker = false }")
    (drawn,) = bold.render([request])
    assert (drawn.status, drawn.stack.modes) == ("done", "safety_checker off")
    assert drawn.stack.fingerprint == route_digest(table, "prude") != refused.stack.fingerprint
    assert pixels(drawn).any()


def test_no_watermark_unless_it_is_asked_for(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the package were installed, which makes diffusers mark all of SDXL's images."""

    class Mark:
        def apply_watermark(self, images: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(images)

    for kind in ("pipeline_stable_diffusion_xl", "pipeline_stable_diffusion_xl_img2img"):
        module = f"diffusers.pipelines.stable_diffusion_xl.{kind}"
        monkeypatch.setattr(f"{module}.is_invisible_watermark_available", lambda: True)
        monkeypatch.setattr(f"{module}.StableDiffusionXLWatermarker", Mark, raising=False)
    plain, marked = studio.load("sdxl"), studio.load("sdxl", "options = { watermark = true }")
    grey = one(marked, ask())
    assert np.ptp(grey) == 0
    for request in (ask(), ask(images=(picture(1),))):
        assert np.ptp(one(plain, request)) > 0


def test_weights_that_exist_in_fp16_alone_are_found(studio: Studio, tmp_path: Path) -> None:
    shutil.copytree(studio.part("sd"), tmp_path / "half")
    for file in tmp_path.rglob("*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    row = f'[models.half]\nrepo = "{tmp_path / "half"}"\nsize = [64, 64]\nthreads = 1\n'
    table = studio.table("sd", parts=row)
    model = table.get("half")
    loaded = load_pipeline(table, model, fingerprint(table, model), studio.device)
    (rendered,) = BatchRenderer(loaded).render([ask()])
    assert rendered.status == "done"
    assert rendered.stack.modes == "variant fp16"
    # The row says no type: that of the record is the device's.
    assert rendered.stack.dtype == ("float32" if studio.device == "cpu" else "bfloat16")


def test_an_offline_host_renders_with_what_its_cache_has(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its repository lists files that diffusers never fetches."""
    commit = "1" * 40
    folder = tmp_path / "models--org--name"
    shutil.copytree(studio.part("sd"), folder / "snapshots" / commit)
    listed = [one for one in (folder / "snapshots" / commit).rglob("*") if one.is_file()]
    names = [one.relative_to(folder / "snapshots" / commit).as_posix() for one in listed]
    extra = ["examples/settings.json", "sd.ckpt", "unet/diffusion_pytorch_model.bin"]
    tree = {name: {"size": 1, "blob_id": "0" * 40} for name in [*names, *extra]}
    for path, text in {
        "refs/main": commit,
        f"trees/{commit}.json": json.dumps({"format_version": 1, "files": tree}),
    }.items():
        (folder / path).parent.mkdir()
        (folder / path).write_text(text)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("diffusers.utils.constants.HF_HUB_CACHE", str(tmp_path), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    row = '[models.hub]\nrepo = "org/name"\nsize = [64, 64]\nthreads = 1\n'
    table = studio.table("sd", parts=row)
    model = table.get("hub")
    weights = fingerprint(table, model)
    assert weights.revision == commit
    loaded = load_pipeline(table, model, weights, studio.device)
    (rendered,) = BatchRenderer(loaded).render([ask()])
    assert (rendered.status, rendered.stack.revision) == ("done", commit)


def test_a_vae_takes_the_place_of_the_pipelines_own(studio: Studio) -> None:
    other = studio.part("sd-other")
    row = f'vae = {{ repo = "{other / "vae"}" }}'
    assert not same(one(studio.load("sd", row), ask()), one(studio.get("sd"), ask()))
    table = studio.table("sd", row)
    studio.load("sd", row).check_weights(PLAIN, route_digest(table, "sd"))


CACHES = {
    "FirstBlockCache": "threshold = 100.0",
    "MagCache": "threshold = 9.0, mag_ratios = [1.0, 0.9, 0.8, 0.7], num_inference_steps = 4",
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("flux", "FirstBlockCache"),
        ("kontext", "FirstBlockCache"),
        ("kontext", "MagCache"),
        ("klein", "MagCache"),
    ],
)
def test_steps_are_cached_by_every_pipeline_that_can(studio: Studio, name: str, kind: str) -> None:
    """By those as well that open no context for it."""
    arguments = f'{{ kind = "{kind}", arguments = {{ {CACHES[kind]} }} }}'
    cached = studio.load(name, f"options = {{ step_cache = {arguments} }}", width=1)
    key = PLAIN._replace(steps=4)
    for images in ((), (picture(1),)):
        request = ask(key=key, images=images)
        first = one(cached, request)
        assert not same(first, one(studio.load(name, width=1), request))
        assert same(one(cached, request), first)  # nothing of the call before is left


def test_a_cache_that_fails_in_each_request_is_refused_at_start(studio: Studio) -> None:
    row = 'options = { step_cache = { kind = "FirstBlockCache" } }'
    with pytest.raises(FatalError, match=r"option step_cache: .*MagCache does not"):
        studio.load("klein", row, width=1)


def test_options_that_only_cost_or_save_reach_diffusers(studio: Studio) -> None:
    options = "vae_slicing = true, vae_tiling = true, channels_last = true"
    tuned = studio.load("sd", f"options = {{ {options} }}", width=1)
    plain = studio.load("sd", width=1)
    assert np.abs(one(tuned, ask()) - one(plain, ask())).max() <= 0.05
    for renderer, expected in ((tuned, True), (plain, False)):
        base = renderer.renderer.variants.base  # type: ignore[attr-defined]
        weight = base.unet.conv_in.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == expected
        assert (base.vae.use_slicing, base.vae.use_tiling) == (expected, expected)


def test_an_attention_backend_reaches_diffusers(studio: Studio) -> None:
    for row, expected in (('options = { attention = "native" }', {"native"}), ("", {None})):
        renderer = studio.load("flux", row, width=1)
        transformer = renderer.renderer.variants.base.transformer  # type: ignore[attr-defined]
        found = {one._attention_backend for one in transformer.attn_processors.values()}
        assert found == expected


_QUANTIZED = """
import sys
from pathlib import Path
from jobs.models.fingerprints import fingerprint
from jobs.models.table import load_models
from worker.pipelines.load import load_pipeline

table = load_models(Path(sys.argv[1]))
model = table.get("flux")
pipeline = load_pipeline(table, model, fingerprint(table, model), "cpu").variants.base
for part in (pipeline.transformer, pipeline.text_encoder, pipeline.text_encoder_2):
    print(sum(type(weight.data).__name__ == "Int8Tensor" for weight in part.parameters()))
images = pipeline("a red circle", width=64, height=64, num_inference_steps=2, output_type="np")
print(images.images.mean())
"""


def test_quantization(studio: Studio) -> None:
    options = '{ backend = "torchao", components = ["transformer", "text_encoder"] }'
    studio.table("flux", f"options = {{ quantization = {options} }}", width=1)
    done = subprocess.run(
        [sys.executable, "-c", _QUANTIZED, studio.folder / "flux.toml"],
        env=os.environ | {"PYTHONPATH": f"{sys.prefix}/torchao"},  # see the Makefile
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    denoiser, encoder, other, mean = map(float, done.stdout.split())
    assert denoiser > 10
    assert encoder > 5
    assert other == 0
    assert 0 < mean < 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, about its own code
def test_a_compiled_model_takes_adapters_and_controlnets(studio: Studio) -> None:
    parts = (
        f'[models.sd.adapters.ink]\nrepo = "{studio.part("lora-ink")}"\n'
        f'[models.sd.controlnets.edges]\nrepo = "{studio.part("controlnet-edges")}"\n'
    )
    plain = studio.load("sd", parts=parts)
    compiled = studio.load("sd", "options = { compile = true }", parts)
    denoiser = compiled.renderer.variants.base.unet  # type: ignore[attr-defined]
    assert any(module._compiled_call_impl for module in denoiser.modules())
    bare = one(compiled, ask())
    tolerance = 1e-4 if studio.dtype == "float32" else 0.05
    for request in (ask(), adapted("ink"), steered(1.0)):
        np.testing.assert_allclose(one(compiled, request), one(plain, request), atol=tolerance)
    assert same(one(compiled, ask()), bare)
    assert_independent(compiled, [ask(seed=seed) for seed in range(3)])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, about its own code
def test_many_adapters_share_their_graphs(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those of other ranks, layers and weights; and no byte tells which ones came before.

    With graphs of their own the fifth was one too many, and the bare model failed after it.
    """
    counter = CompileCounter()
    monkeypatch.setattr(torch.nn.Module, "compile", _compiled_by(counter))
    files = [studio.part(name) for name in ("lora-ink", "smalllora-oil", "lora-oil")]
    rows = "".join(
        f'[models.sd.adapters.a{n}]\nrepo = "{files[n % 3]}"\nweight = {1 - n / 20}\n'
        for n in range(12)
    )
    rows += f'[models.sd.adapters.text]\nrepo = "{studio.part("textlora-ink")}"\n'
    key = PLAIN._replace(steps=1, guidance_scale=1.0)

    def drawn(renderer: BatchRenderer, adapter: str) -> NDArray[np.float32]:
        return one(renderer, ask(key=key._replace(adapter=adapter)))

    def modes(renderer: BatchRenderer, adapter: str) -> str:
        return renderer.renderer.stack_for(key._replace(adapter=adapter)).modes

    plain = studio.load("sd", parts=rows, width=1)
    renderer = studio.load("sd", "options = { compile = true }", rows, width=1)
    bare = drawn(renderer, "")
    images = [drawn(renderer, "a0")]
    before = counter.frame_count
    assert before > 0
    images += [drawn(renderer, f"a{n}") for n in range(1, 12)]
    assert counter.frame_count == before
    assert len({image.tobytes() for image in images}) == 12
    assert not any(same(image, bare) for image in images)
    assert modes(renderer, "a1") == "adapter frame of rank 4 in 24 layers"
    tolerance = 1e-5 if studio.dtype == "float32" else 0.05
    for n, image in enumerate(images):
        np.testing.assert_allclose(image, drawn(plain, f"a{n}"), atol=tolerance)
    # One that does not fit into the frame, and back.
    np.testing.assert_allclose(drawn(renderer, "text"), drawn(plain, "text"), atol=tolerance)
    assert modes(renderer, "text") == ""
    assert same(drawn(renderer, ""), bare)
    assert same(drawn(renderer, "a7"), images[7])
    fresh = studio.load("sd", "options = { compile = true }", rows, width=1)
    assert same(drawn(fresh, "a7"), images[7])


def test_a_frame_needs_all_adapters_of_its_model(studio: Studio) -> None:
    """Without one it would be another frame, and other bytes, from the day that it is there."""
    rows = f'[models.sd.adapters.ink]\nrepo = "{studio.part("lora-ink")}"\n'
    rows += '[models.sd.adapters.gone]\nrepo = "no/such"\n'
    renderer = studio.load("sd", "options = { compile = true }", rows, width=1)
    with pytest.raises(FatalError, match=r"adapter no/such is not to be had"):
        one(renderer, adapted("ink"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, about its own code
def test_compiling_is_no_rendering(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each record tells the seconds apart; those of a call between two steps are the call's."""
    monkeypatch.setattr(torch.nn.Module, "compile", _compiled_by(CompileCounter()))
    renderer = studio.load("sd", "options = { compile = true }", width=1)
    started = time.monotonic()
    (cold,), (warm,) = renderer.render([ask()]), renderer.render([ask(seed=2)])
    together = cold.seconds + cold.seconds_compile + warm.seconds
    assert cold.seconds_compile > 0
    assert warm.seconds_compile == 0
    assert together <= time.monotonic() - started
    guest = ask(key=PLAIN._replace(width=96))
    (host,) = renderer.render([ask()], interlude(Visits(renderer, [guest])))
    assert host.seconds_compile == 0
    (visitor,) = renderer.render([guest])
    assert visitor.seconds_compile == 0  # it was compiled then


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, about its own code
def test_a_compiled_model_is_warm_before_it_is_asked(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = CompileCounter()
    monkeypatch.setattr(torch.nn.Module, "compile", _compiled_by(counter))
    ink = f'[models.sd.adapters.ink]\nrepo = "{studio.part("lora-ink")}"\nweight = 0.5\n'
    ink += f'[models.sd.adapters.oil]\nrepo = "{studio.part("lora-oil")}"\n'
    row = "options = { compile = true }\ncall_slots = [1, 2]"
    renderer = Renderers(studio.table("sd", row, ink), studio.device, 1, warms=True).get("sd")
    before = counter.frame_count
    assert before > 0
    for adapter in ("", "ink", "oil"):
        for slots in (1, 2, 4):
            key = PLAIN._replace(model="sd", adapter=adapter, slots=slots, steps=3)
            (rendered,) = renderer.render([ask(key=key)])
            assert (rendered.status, rendered.seconds_compile) == ("done", 0)
    assert counter.frame_count == before


def test_a_unet_is_compiled_whole_on_a_gpu(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """In channels-last memory; each shape has a graph, whatever came before."""
    counter = CompileCounter()
    monkeypatch.setattr(torch.nn.Module, "compile", _compiled_by(counter))
    renderer = studio.load("sd")
    base = renderer.renderer.variants.base  # type: ignore[attr-defined]
    tune(base, Options(compile=True), "cuda")
    assert base.unet._compiled_call_impl
    assert base.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    for sizes, graphs in (([64], 1), ([64, 96], 2), ([96, 64, 128], 3)):
        for size in sizes:
            one(renderer, ask(key=PLAIN._replace(width=size)))
        assert counter.frame_count == graphs


def _compiled_by(counter: CompileCounter) -> Callable[..., None]:
    def compile_module(module: torch.nn.Module, backend: str, **options: bool) -> None:
        assert backend == "inductor"
        module._compiled_call_impl = torch.compile(module._call_impl, backend=counter, **options)

    return compile_module


@pytest.mark.parametrize("name", ["sd", "sd3", "flux", "klein"])
def test_encoders_may_wait_in_main_memory(studio: Studio, name: str) -> None:
    """Bytes stay what they are; of known prompts nothing is encoded, so nothing is moved."""
    renderer, plain = studio.load(name, 'options = { offload = "encoders" }'), studio.get(name)
    encoders = renderer.renderer.encoders  # type: ignore[attr-defined]
    for request in (ask(), ask(RAGGED[2], 2), ask(images=(picture(1),)), ask()):
        assert same(one(renderer, request), one(plain, request))
    for encoder in encoders:
        encoder.forward = None  # whoever encodes again fails
    assert same(one(renderer, ask(seed=9)), one(plain, ask(seed=9)))


def test_an_adapter_of_encoders_that_wait_in_main_memory(studio: Studio) -> None:
    part = f'[models.sd.adapters.ink]\nrepo = "{studio.part("textlora")}"\n'
    plain, renderer = (
        studio.load("sd", parts=part),
        studio.load("sd", 'options = { offload = "encoders" }', part),
    )
    for request in (ask(), adapted("ink"), ask(), adapted("ink")):
        assert same(one(renderer, request), one(plain, request))


def test_offload_needs_a_gpu(studio: Studio) -> None:
    row = 'options = { offload = "model" }'
    if studio.device == "cpu":
        with pytest.raises(FatalError, match="option offload: "):
            studio.load("sd", row)
    else:
        assert same(one(studio.load("sd", row), ask()), one(studio.get("sd"), ask()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, about its own code
def test_blocks_that_diffusers_does_not_name_are_compiled_too(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = CompileCounter()
    monkeypatch.setattr(torch.nn.Module, "compile", _compiled_by(counter))
    compiled = one(studio.load("sd3", "options = { compile = true }", width=1), ask())
    assert counter.frame_count > 0
    plain = one(studio.load("sd3", width=1), ask())
    np.testing.assert_allclose(compiled, plain, atol=1e-4 if studio.dtype == "float32" else 0.05)
    sana = diffusers.SanaTransformer2DModel(
        num_layers=1, num_attention_heads=1, attention_head_dim=8, num_cross_attention_heads=1,
        cross_attention_head_dim=8, cross_attention_dim=8, caption_channels=8, sample_size=8,
    )  # fmt: skip
    tune(SimpleNamespace(transformer=sana), Options(compile=True), "cpu")
    assert sana.transformer_blocks[0]._compiled_call_impl


def test_a_denoiser_that_cannot_be_compiled_is_refused_at_start(studio: Studio) -> None:
    with pytest.raises(FatalError, match=r"option compile: .*blocks of PixArtTransformer2D"):
        studio.load("pixart", "options = { compile = true }", width=1)


@pytest.mark.parametrize(
    ("row", "option"),
    [
        ('options = { attention = "telepathy" }', "attention"),
        ('scheduler = "NoSuchScheduler"', "scheduler"),
        ('options = { step_cache = { kind = "NoSuchCache" } }', "step_cache"),
        ('options = { quantization = { backend = "torchao" } }', "quantization"),  # no transformer
        ('options = { quantization = { backend = "torchao", kind = "X" } }', "quantization"),
        ("options = { watermark = true }", "watermark"),
    ],
)
def test_a_wrong_option_is_named_at_start(studio: Studio, row: str, option: str) -> None:
    with pytest.raises(FatalError, match=f"option {option}: "):
        studio.load("sd", row, width=1)


# --- The table --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_the_table_agrees_with_diffusers(name: str) -> None:
    """Also for families that no tiny pipeline exists of: every argument is one of the call's."""
    family = FAMILIES[name]
    for class_name in family.pipelines:
        assert family_of(class_name) == name
        own = getattr(diffusers, class_name)
        if "generate" in family.takes:
            assert_takes(name, own, PLAIN)
        if "edit" in family.takes:
            strength = 0.5 if "strength" in family.takes else None
            key = PLAIN._replace(task="edit", inputs=1, strength=strength)
            auto = _get_task_class(
                AUTO_IMAGE2IMAGE_PIPELINES_MAPPING, class_name, not family.edits_itself
            )
            assert_takes(name, own if family.edits_itself else auto, key)
        if "inpaint" in family.takes:
            strength = 0.5 if "strength" in family.takes else None
            key = PLAIN._replace(task="inpaint", inputs=1, strength=strength)
            auto = _get_task_class(
                AUTO_INPAINT_PIPELINES_MAPPING, class_name, not family.edits_itself
            )
            assert_takes(name, own if family.edits_itself else auto, key)
        if family.control:
            control = class_name.replace("Pipeline", "ControlNetPipeline")
            auto = _get_task_class(AUTO_TEXT2IMAGE_PIPELINES_MAPPING, control)
            assert_takes(name, auto, PLAIN._replace(controlnet_weights=(1.0,)))


def assert_takes(name: str, pipeline: type, key: BatchKey) -> None:
    family = FAMILIES[name]
    negative = "negative_prompt" in family.takes
    accepted = inspect.signature(pipeline.__call__).parameters
    images = (picture(1),) * key.inputs
    request = ask(
        key=key._replace(negative=negative), images=images, controls=(picture(2),),
        mask=mask(*BOXES[0]) if key.task == "inpaint" else None,
    )  # fmt: skip
    call = arguments(family, accepted, request.request.key, [request])
    assert call.keys() <= accepted.keys(), pipeline
    assert "guidance_scale" not in family.takes or family.guidance in call
    assert bool(key.inputs) == ("image" in call) or family.control == "image"
    assert key.strength is None or "strength" in call


def test_whatever_has_no_entry_is_generic() -> None:
    assert family_of("NobodyKnowsPipeline") is None
    assert not GENERIC.batches
