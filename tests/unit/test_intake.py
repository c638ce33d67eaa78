"""Inputs at planning: bytes go to storage once, names of other places stay names."""

from __future__ import annotations

import json
from base64 import b64encode
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from jobs.errors import InvalidRequest
from jobs.models.table import ModelTable, load_models
from jobs.output import layout
from jobs.output.storage import open_storage
from jobs.requests import Request
from producer.planning.blocks import plan_blocks
from producer.planning.intake import Intake, local_folder
from producer.planning.manifest import parse_line
from producer.planning.resolution import PlanOptions, Resolver

ROWS = """
default = "draws"
[models.draws]
repo = "a/b"
family = "stable-diffusion"
strength = 0.7
[models.draws.controlnets.edges]
repo = "a/edges"
[models.draws.controlnets.depth]
repo = "a/depth"
[models.edits]
repo = "a/c"
family = "flux2-klein"
max_inputs = 2
[models.fills]
repo = "a/e"
family = "flux-fill"
strength = 0.7
[models.plain]
repo = "a/d"
"""
FINGERPRINTS = {"draws": "d", "edits": "e", "plain": "p", "fills": "f"}


def png(colour: str = "red", size: tuple[int, int] = (8, 8)) -> bytes:
    file = BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


PNG = png()
BASE64 = b64encode(PNG).decode()
NAME = f"sha256:{sha256(PNG).hexdigest()}"


@pytest.fixture
def table(tmp_path: Path) -> ModelTable:
    file = tmp_path / "models.toml"
    file.write_text(ROWS)
    return load_models(file)


def resolve(table: ModelTable, intake: Intake | None = None, **body: Any) -> Request:
    line = parse_line(1, json.dumps({"prompt": "p"} | body).encode())
    assert not isinstance(line, list), line
    return Resolver(table, PlanOptions(), FINGERPRINTS, intake).resolve(
        0, line.task, line.body, line.custom_id or ""
    )


@pytest.mark.parametrize("given", [BASE64, f"data:image/png;base64,{BASE64}"])
def test_bytes_go_to_storage_under_their_hash(tmp_path: Path, given: str) -> None:
    intake = Intake(open_storage(str(tmp_path)))
    assert intake.take(given, "image") == NAME
    assert (tmp_path / layout.stored_input(NAME[7:])).read_bytes() == PNG


def test_a_dry_run_checks_but_stores_nothing(tmp_path: Path) -> None:
    assert Intake().take(BASE64, "image") == NAME
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("given", ["https://example.com/a.png", "HTTP://a/b", NAME])
def test_names_of_other_places_stay(given: str) -> None:
    assert Intake().take(given, "image") == given


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("file:///etc/passwd", "input_forbidden"),
        ("s3://elsewhere/cat.png", "input_forbidden"),
        ("s3://photos/../elsewhere/cat.png", "input_forbidden"),
        ("cat.png", "input_not_an_image"),
        (b64encode(b"no image").decode(), "input_not_an_image"),
        ("data:image/png;base64,?", "input_not_an_image"),
    ],
)
def test_what_can_never_be_had_is_refused(given: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Intake(stores=frozenset({"s3://photos/"})).take(given, "image")
    assert (caught.value.code, caught.value.field) == (code, "image")


def test_storage_uris_of_the_settings_are_taken() -> None:
    intake = Intake(stores=frozenset({"s3://photos/"}))
    assert intake.take("s3://photos/cat.png", "image") == "s3://photos/cat.png"


def test_local_manifests_may_name_files_beside_them(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/cat 1.png").write_bytes(PNG)
    intake = Intake(open_storage(str(tmp_path / "out")), tmp_path)
    uri = (tmp_path / "in/cat 1.png").as_uri()
    for given in ("in/cat 1.png", str(tmp_path / "in/cat 1.png"), uri, BASE64):
        assert intake.take(given, "image") == NAME
    with pytest.raises(InvalidRequest, match=r"in/dog\.png: No such file"):
        intake.take("in/dog.png", "image")
    with pytest.raises(InvalidRequest) as caught:
        intake.take("models.toml", "image")
    assert caught.value.code == "input_unreachable"


def test_only_a_local_manifest_has_a_folder(tmp_path: Path) -> None:
    assert local_folder(str(tmp_path / "m.jsonl")) == tmp_path
    assert local_folder(f"file://{tmp_path}/m.jsonl") == tmp_path
    assert local_folder("s3://bucket/m.jsonl") is None


def test_a_planned_manifest_holds_no_bytes_and_names_the_bad_line(
    tmp_path: Path, table: ModelTable
) -> None:
    manifest = tmp_path / "m.jsonl"
    lines = [
        {"prompt": "a", "image": {"image": BASE64}},
        {"prompt": "b", "image": b64encode(b"no image").decode()},
    ]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    storage = open_storage(str(tmp_path / "out"))
    (block,) = plan_blocks(str(manifest), table, PlanOptions(), dict(FINGERPRINTS), storage)
    assert block.requests == 1
    assert [(error.line, error.field) for error in block.errors] == [(2, "image")]
    assert storage.exists(layout.stored_input(NAME[7:]))


def test_the_same_image_is_the_same_request_however_it_is_written(table: ModelTable) -> None:
    data_uri = f"data:image/png;base64,{BASE64}"
    first, second = (resolve(table, Intake(), image=image) for image in (BASE64, data_uri))
    assert first.job_id == second.job_id
    other = b64encode(png("blue")).decode()
    assert resolve(table, Intake(), image=other).job_id != first.job_id


def test_an_edit_has_its_defaults(table: ModelTable) -> None:
    key = resolve(table, image=NAME).key
    assert (key.task, key.inputs, key.strength) == ("edit", 1, 0.7)
    assert resolve(table, image=NAME, strength=0.5).key.strength == 0.5
    assert resolve(table).key.strength is None


def test_a_mask_is_an_input_of_its_own(table: ModelTable, tmp_path: Path) -> None:
    """It is stored, the request carries its name, and another one is another request."""
    intake = Intake(open_storage(str(tmp_path / "out")))
    mask = png("white")
    line = {"image": BASE64, "mask_image": {"image": b64encode(mask).decode()}}
    request = resolve(table, intake, **line)
    name = f"sha256:{sha256(mask).hexdigest()}"
    assert (request.key.task, request.inputs, request.mask) == ("inpaint", (NAME,), name)
    assert open_storage(str(tmp_path / "out")).exists(layout.stored_input(name[7:]))
    other = line | {"mask_image": b64encode(png("silver")).decode()}
    jobs = {resolve(table, intake, **one).job_id for one in (line, other, {"image": BASE64})}
    assert len(jobs) == 3
    assert resolve(table, intake, image=NAME, mask_image=name).job_id == request.job_id


def test_of_a_masked_edit_the_strength_is_the_pipelines_own(table: ModelTable) -> None:
    """What a model's row says is for pictures that are changed as a whole."""
    for model in ("draws", "fills"):
        line = {"image": NAME, "mask_image": NAME, "model": model}
        assert resolve(table, **line).key.strength is None
        assert resolve(table, strength=0.5, **line).key.strength == 0.5


def test_a_mask_has_its_images_size(table: ModelTable) -> None:
    """Where planning sees both; what an EXIF rotation may explain is left to the worker."""

    def asks(*mask: int) -> Request:
        drawn = b64encode(png("white", (mask[0], mask[1]))).decode()
        image = b64encode(png("red", (8, 16))).decode()
        return resolve(table, Intake(), image=image, mask_image=drawn)

    assert asks(8, 16).mask
    assert asks(16, 8).mask
    with pytest.raises(InvalidRequest) as caught:
        asks(8, 8)
    assert caught.value.message == "mask_image: 8 x 8 pixels, but the image has 8 x 16"
    elsewhere = resolve(table, Intake(), image="https://a/b.png", mask_image=BASE64)
    assert elsewhere.images == ("https://a/b.png", NAME)


def test_control_weights_are_1_when_omitted(table: ModelTable) -> None:
    request = resolve(table, control_images=[NAME, NAME])
    assert request.key.controlnet_weights == (1.0, 1.0)
    assert request.control_images == (NAME, NAME)


def test_for_a_model_that_edits_control_images_are_its_inputs(table: ModelTable) -> None:
    request = resolve(table, model="edits", control_images=[NAME])
    assert (request.key.task, request.images, request.control_images) == ("edit", (NAME,), ())
    assert request.job_id == resolve(table, model="edits", image=NAME).job_id


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"image": [NAME, NAME]}, "image"),
        ({"model": "edits", "image": [NAME] * 3}, "image"),
        ({"model": "plain", "image": NAME}, "image"),
        ({"model": "plain", "control_images": [NAME]}, "control_images"),
        ({"control_images": [NAME] * 3}, "control_images"),
        ({"control_images": [NAME], "controlnet_weights": [1.0, 0.5]}, "controlnet_weights"),
        (
            {"model": "edits", "control_images": [NAME], "controlnet_weights": [1.0]},
            "controlnet_weights",
        ),
        ({"strength": 0.5}, "strength"),
        ({"image": NAME, "strength": 0.01, "num_inference_steps": 10}, "strength"),
        ({"model": "edits", "image": NAME, "negative_prompt": "x"}, "negative_prompt"),
        ({"model": "edits", "width": 72}, "width"),
        ({"mask_image": NAME}, "mask_image"),
        ({"mask_image": NAME, "control_images": [NAME]}, "mask_image"),
        ({"image": [NAME, NAME], "mask_image": NAME}, "mask_image"),
        ({"model": "edits", "image": NAME, "mask_image": NAME}, "mask_image"),
        ({"model": "plain", "image": NAME, "mask_image": NAME}, "mask_image"),
        ({"model": "fills", "image": NAME}, "mask_image"),
        ({"model": "fills"}, "model"),
    ],
)
def test_what_the_family_does_not_take_is_refused(
    table: ModelTable, body: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolve(table, **body)
    assert caught.value.field == field
