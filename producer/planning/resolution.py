"""Fills every default of a body in and checks it against what its model takes. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count, repeat
from operator import attrgetter, getitem
from typing import Any, NamedTuple

import numpy as np
import orjson
from msgspec.structs import astuple

from jobs.errors import InvalidRequest
from jobs.formats import ImageFormat, format_named
from jobs.ids import derived_seed, job_identifier, name_hasher, names_hasher, seed_deriver
from jobs.models.families import Family, family_named
from jobs.models.table import Model, ModelTable
from jobs.output.scorers import check_rule
from jobs.requests import (
    KEYS_KEPT,
    BatchKey,
    Body,
    Candidate,
    ImageInput,
    Input,
    Request,
    Rule,
    Task,
)
from producer.planning.intake import Intake
from producer.planning.plain import (
    PARAMETERS,
    PlainBatchLine,
    PlainBody,
    PlainLine,
    PlainLines,
)


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What a submission decides for all its lines.

    seed: of the run, in [0, SEEDS); model: for lines that name none; limit: lines to read; n:
    images of each combination of a line that does not say, 1 to 10,000; columns: of a table that
    stand for fields, as (field, column), sorted; keep: columns of one that the dataset is to have;
    scorers: that are to score the images, as jobs.output.scorers names them; rule: how the images
    of lines that do not say are chosen; local_files: whether inputs may be files of this machine;
    stores: see jobs.inputs.stores.
    """

    seed: int = 0
    model: str | None = None
    format: ImageFormat = "jpeg"
    limit: int | None = None
    skip_invalid: bool = False
    local_files: bool = False
    stores: tuple[str, ...] = ()
    n: int = 1
    columns: tuple[tuple[str, str], ...] = ()
    keep: tuple[str, ...] = ()
    scorers: tuple[str, ...] = ()
    rule: Rule | None = None


AnyBody = Body | PlainBody


class UnknownFingerprint(Exception):
    """The resolver has met a model whose fingerprint it was not given."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.model = model


# What of a body decides its batch key, besides its guidance and what of it there is at all.
_parameters = attrgetter(*PlainBody.__struct_fields__[PARAMETERS])
_Inputs = tuple[tuple[str, ...], tuple[str, ...]]  # images (a mask is the last), control images


class _Key(NamedTuple):
    """What requests share that differ in prompts, inputs, names and seeds.

    call: what those of one pipeline call share; content: the canonical form of both, and identify:
    what gives the job ids of requests that begin with it.
    """

    key: BatchKey
    call: BatchKey
    format: ImageFormat
    content: bytes
    identify: Callable[[bytes], str]


class _Kind(dict[float | None, _Key]):
    """What requests share that differ in their guidance too: a key for each, None for the model's
    own.

    key: with that; content: its canonical form, in parts: the second is the guidance.
    """

    def __init__(
        self, key: BatchKey, family: Family, form: ImageFormat, content: tuple[bytes, bytes, bytes]
    ) -> None:
        super().__init__()
        self._key, self._family, self._format, self._content = key, family, form, content
        self._calls: dict[float | None, BatchKey] = {}

    def __missing__(self, scale: float | None) -> _Key:
        key, (before, guidance, after) = self._key, self._content
        if scale is not None:
            scale = float(scale) + 0.0  # equal keys are written alike, and -0.0 is 0.0
            key, guidance = key.with_guidance(scale), orjson.dumps(scale)
        shared = self._family.call_guidance(key.guidance_scale)
        call = key if shared == key.guidance_scale else self._calls.get(shared)
        if call is None:
            call = self._calls[shared] = key.with_guidance(shared)
        content = before + guidance + after
        found = _Key(key, call, self._format, content, job_identifier(content))
        self[scale] = found
        return found


class Resolved(NamedTuple):
    """Requests, what those of one pipeline call share, of each, and what identifies each."""

    requests: list[Request]
    calls: Sequence[BatchKey]
    identities: list[int]


@dataclass(frozen=True)
class Resolver:
    """Turns bodies into requests.

    intake: what takes inputs in; without one they stay as they are.
    """

    table: ModelTable
    options: PlanOptions
    fingerprints: Mapping[str, str]
    intake: Intake | None = None
    _kinds: dict[tuple[Any, ...], _Kind] = field(default_factory=dict, init=False, repr=False)
    _taken: dict[tuple[Task, _Inputs], _Inputs] = field(
        default_factory=dict, init=False, repr=False
    )

    @cached_property
    def hash_name(self) -> Callable[[bytes], int]:
        """See jobs.ids.name_hasher; of its run."""
        return name_hasher(self.options.seed)

    @cached_property
    def _hash_names(self) -> Callable[[Iterable[bytes]], bytes]:
        return names_hasher(self.options.seed)

    def resolve(
        self,
        index: int,
        task: Task,
        body: AnyBody,
        custom_id: str,
        number: int = 0,
        slots: int = 0,
        hashed: int | None = None,
    ) -> Request:
        """The request that a body stands for.

        index: of its line, from 0; number: of the image among the line's that differ only in their
        seeds, from 0, which the custom_id tells already; slots: see BatchKey; hashed: of the
        custom_id, by hash_name, if it is known.

        Raises:
            InvalidRequest: the model does not take what the body asks for.
            UnknownFingerprint: see there.
        """
        images: tuple[str, ...] = ()
        controls: tuple[str, ...] = ()
        parameters: tuple[Any, ...]
        if isinstance(body, PlainBody):
            parameters = (
                slots, body.negative_prompt is None, body.guidance_scale is None,
                astuple(body)[PARAMETERS],
            )  # fmt: skip
        else:
            images = _references(body.image) if body.image else ()
            controls = _references(body.control_images) if body.control_images else ()
            if body.mask_image:
                task, images = _masked(task, images, body.mask_image)
            weights = body.controlnet_weights
            parameters = (
                task, slots, len(images), len(controls), body.negative_prompt is None,
                body.guidance_scale is None, weights if weights is None else tuple(weights),
                _parameters(body),
            )  # fmt: skip
        kind = self._kinds.get(parameters)
        if kind is None:
            inputs = len(images) - (task == "inpaint")
            kind = self._kinds[parameters] = self._kind(task, body, inputs, len(controls), slots)
        key, _, image_format, content, job_id = kind[body.guidance_scale]
        if images or controls:
            if key.task != task:  # a model that edits takes control images as its inputs
                images, controls = controls, ()
            if self.intake:
                images, controls = self._take(self.intake, task, (images, controls))

        negative = body.negative_prompt or ""
        seed = body.seed
        if seed is None:
            if hashed is None:
                asked = (body.prompt, negative, images, controls)
                name = custom_id.encode() or content + orjson.dumps(asked) + _suffix(number)
                hashed = self.hash_name(name)
            seed = derived_seed(hashed)
        # The weights' fingerprint, in `content`, stands for the model, whatever its name.
        identity = (custom_id, seed, body.prompt, negative, images, controls)
        # As its class would, in less than half the time.
        return Request._make((
            index, custom_id, key, body.prompt, negative, seed, image_format,
            job_id(orjson.dumps(identity)), images, controls, None,
        ))  # fmt: skip

    def resolve_all(self, index: int, plain: PlainLines) -> Resolved:
        """What `resolve` and `identity` give of consecutive plain lines, in half the time.

        index: of the first.

        Raises: as resolve, for one of them.
        """
        columns = list(zip(*plain.values, strict=True))
        prompts, given_negatives, given_seeds, scales = columns[:4]
        negatives = [negative or "" for negative in given_negatives]
        custom_ids = [line.custom_id or "" for line in plain.lines]
        parameters = list(zip(
            [line.slots or 0 for line in plain.lines],
            [negative is None for negative in given_negatives],
            [scale is None for scale in scales],
            zip(*columns[PARAMETERS], strict=True),
            strict=True,
        ))  # fmt: skip
        examples: dict[tuple[Any, ...], PlainLine | PlainBatchLine]
        examples = dict(zip(parameters, plain.lines, strict=True))
        for some, line in examples.items():
            if some not in self._kinds:
                self._kinds[some] = self._kind("generate", line.body, 0, 0, slots=some[0])
        kinds = map(self._kinds.__getitem__, parameters)
        found = map(getitem, kinds, scales)
        keys, calls, formats, contents, identifiers = zip(*found, strict=True)
        names = [
            custom_id.encode()
            if custom_id or seed is not None
            else content + orjson.dumps((prompt, negative, (), ()))
            for custom_id, seed, content, prompt, negative in zip(
                custom_ids, given_seeds, contents, prompts, negatives, strict=True
            )
        ]
        hashed = np.frombuffer(self._hash_names(names), "<u8").tolist()
        seeds = [
            derived_seed(name) if seed is None else seed
            for seed, name in zip(given_seeds, hashed, strict=True)
        ]
        identity = zip(custom_ids, seeds, prompts, negatives, repeat(()), repeat(()))
        # One at a time: to keep thousands of small texts takes three times as long.
        texts = map(orjson.dumps, identity)
        jobs = [job_id(text) for job_id, text in zip(identifiers, texts, strict=True)]
        rows = zip(
            count(index), custom_ids, keys, prompts, negatives, seeds, formats, jobs,
            repeat(()), repeat(()), repeat(None),
        )  # fmt: skip
        identities = [
            name if custom_id else int(job[:16], 16)
            for custom_id, name, job in zip(custom_ids, hashed, jobs, strict=True)
        ]
        # As Request._make would, in half the time.
        requests = list(map(tuple.__new__, repeat(Request), rows))
        return Resolved(requests, calls, identities)

    def identity(self, request: Request) -> int:
        """64 bits that no two requests of a manifest may share."""
        # A custom_id identifies its line; without one the whole request does, its seed included. So
        # it does for further candidates.
        if request.custom_id and not (request.candidate and request.candidate.number):
            return self.hash_name(request.custom_id.encode())
        return int(request.job_id[:16], 16)

    def forget(self) -> None:
        """Forget what kinds of bodies there were, if they are many."""
        if sum(map(len, self._kinds.values())) > KEYS_KEPT:
            self._kinds.clear()

    def candidates(self, first: Request, rule: Rule) -> Iterator[Request]:
        """All the candidates for an image, the first of them the request that it is without others.

        They differ in their seeds, which follow from that of the first and their numbers.

        Raises:
            InvalidRequest: the rule reads a column that no scorer gives, or that is no number.
        """
        check_rule(rule, self.options.scorers)
        yield first._replace(candidate=Candidate(first.job_id, 0, rule))
        fingerprint = self.fingerprints[first.key.route]
        identify = job_identifier(b"".join(_content(first.key, first.format, fingerprint)))
        derive = seed_deriver(first.seed)
        for number in range(1, rule.tries):
            seed = derive(b"candidate %d" % number)
            identity = (
                first.custom_id, seed, first.prompt, first.negative_prompt, first.images,
                first.control_images,
            )  # fmt: skip
            yield first._replace(
                seed=seed,
                job_id=identify(orjson.dumps(identity)),
                candidate=Candidate(first.job_id, number, rule),
            )

    def _take(self, intake: Intake, task: Task, given: _Inputs) -> _Inputs:
        """References for the inputs; the images of one line mostly have the same, taken in once."""
        if (known := self._taken.get((task, given))) is None:
            images, controls = given
            if task == "inpaint":
                images = intake.take_masked(*images)
            else:
                images = tuple(intake.take(one, "image") for one in images)
            known = images, tuple(intake.take(one, "control_images") for one in controls)
            self._taken.clear()  # it may be many megabytes
            self._taken[task, given] = known
        return known

    def _kind(self, task: Task, body: AnyBody, images: int, controls: int, slots: int) -> _Kind:
        """What bodies with the same parameters share.

        images, controls: how many of each the body has. Raises: as resolve.
        """
        route = self.table.route(body.model or self.options.model)
        model = self.table.get(route.model)
        if task == "generate" and controls and not model.controlnets and "edit" in model.takes:
            task, images, controls = "edit", controls, 0
        steps = body.num_inference_steps or model.steps
        strength = model.strength if body.strength is None else body.strength
        if task == "generate" or "strength" not in model.takes:
            strength = None
        elif task == "inpaint":  # what a model's own says is for images that are seen whole
            strength = body.strength
        _check(body, model, _Shape(route.model, task, images, controls))
        if strength is not None and strength * steps < 1:
            raise InvalidRequest("strength", f"{strength} of {steps} steps is less than one step")
        if slots and not model.takes_slots(slots):
            most = f"up to {model.batch_width}, {route.model}'s batch_width"
            raise InvalidRequest("slots", f"{slots} is no power of two {most}")
        guidance = model.guidance_scale
        weights = body.controlnet_weights or [1.0] * controls
        key = BatchKey(  # + 0.0: see _Kind
            task=task,
            model=route.model,
            adapter=route.adapter,
            width=model.size[0] if body.width is None else body.width,
            height=model.size[1] if body.height is None else body.height,
            steps=steps,
            guidance_scale=None if guidance is None else float(guidance) + 0.0,
            negative=body.negative_prompt is not None,
            strength=None if strength is None else float(strength),
            controlnet_weights=tuple(float(weight) + 0.0 for weight in weights),
            inputs=images,
            slots=slots,
        )
        fingerprint = self.fingerprints.get(key.route)
        if fingerprint is None:
            raise UnknownFingerprint(key.route)
        image_format = _format(body, self.options.format)
        content = _content(key, image_format, fingerprint)
        return _Kind(key, family_named(model.family), image_format, content)


def _suffix(number: int) -> bytes:
    return b"#%d" % number if number else b""


def _content(key: BatchKey, image_format: str, fingerprint: str) -> tuple[bytes, bytes, bytes]:
    """The canonical form of what makes another image, in parts: the second is the guidance.

    The fingerprint says the model of a key, the record of an image the slots.
    """
    parts = key._asdict() | {"model": "", "guidance_scale": None}
    del parts["slots"]
    name = b'"guidance_scale":'
    text = orjson.dumps((parts, image_format, fingerprint))
    before, _, after = text.partition(name + b"null")
    return before + name, orjson.dumps(key.guidance_scale), after


def _references(inputs: Input | list[Input] | tuple[Input, ...]) -> tuple[str, ...]:
    several = inputs if isinstance(inputs, list | tuple) else (inputs,)
    return tuple(i.image if isinstance(i, ImageInput) else i for i in several)


def _masked(task: Task, images: tuple[str, ...], mask: Input) -> tuple[Task, tuple[str, ...]]:
    """The task and the images of a body with a mask.

    Raises:
        InvalidRequest: it does not have exactly one image to be edited.
    """
    if task == "generate":
        raise InvalidRequest("mask_image", "belongs to the image of an edit")
    if len(images) != 1:
        raise InvalidRequest("mask_image", f"belongs to one image, but {len(images)} are given")
    return "inpaint", (*images, *_references(mask))


def _format(body: AnyBody, default: ImageFormat) -> ImageFormat:
    if body.response_format in (None, "url"):
        return default
    if found := format_named(body.response_format):
        return found
    raise InvalidRequest(
        "response_format", f"a dataset holds no {body.response_format} images; use png or jpeg"
    )


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a line comes to with its model: the model's name, its task and numbers of images."""

    model: str
    task: Task
    images: int
    controls: int


def _check(body: AnyBody, model: Model, shape: _Shape) -> None:
    """Refuse what the model does not take.

    Raises:
        InvalidRequest: for the first such field.
    """
    name = shape.model
    if shape.task not in model.takes:
        raise _cannot(shape, model)
    if shape.task == "generate" and shape.images:
        raise InvalidRequest("image", "belongs to /v1/images/edits")
    if shape.task == "edit" and not shape.images:
        raise InvalidRequest("image", "is required for an edit")
    if shape.images > model.max_inputs:
        raise InvalidRequest("image", f"{shape.images} given, but {name} takes {model.max_inputs}")
    for field_name in ("negative_prompt", "guidance_scale", "strength"):
        if getattr(body, field_name) is not None and field_name not in model.takes:
            raise InvalidRequest(field_name, f"{name} does not take it")
    if body.strength is not None and shape.task == "generate":
        raise InvalidRequest("strength", "belongs to edits")
    if shape.controls > len(model.controlnets):
        has = f"{len(model.controlnets)} ControlNets" if model.controlnets else "no ControlNet"
        raise InvalidRequest("control_images", f"{shape.controls} given, but {name} has {has}")
    weights = body.controlnet_weights
    if weights is not None and len(weights) != shape.controls:
        raise InvalidRequest(
            "controlnet_weights", f"{len(weights)} weights for {shape.controls} control_images"
        )
    for side in ("width", "height"):
        pixels = getattr(body, side)
        if pixels is not None and pixels % model.size_multiple:
            raise InvalidRequest(side, f"{pixels} is no multiple of {model.size_multiple}")
        if pixels is not None and pixels > model.max_size:
            raise InvalidRequest(side, f"{pixels} is more than {name} takes ({model.max_size})")


def _cannot(shape: _Shape, model: Model) -> InvalidRequest:
    """Why a model has not the task."""
    match shape.task:
        case "generate":
            return InvalidRequest("model", f"{shape.model} cannot generate without an input image")
        case "edit" if "inpaint" in model.takes:
            reason = f"is required: {shape.model} only repaints what a mask shows"
            return InvalidRequest("mask_image", reason)
        case "edit":
            return InvalidRequest("image", f"{shape.model} cannot edit images")
        case "inpaint":
            return InvalidRequest("mask_image", f"{shape.model} cannot inpaint")
