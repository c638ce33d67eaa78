"""What only a GPU shows, each the twin of a test that fakes it on a CPU.

`make gpu` runs tests/integration/test_families.py there as well, which fakes nothing and has the
twins of what is not here: adapters and graphs of compiled models, safety checkers, step caches.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.models.fingerprints import fingerprint
from jobs.models.table import ModelTable, load_models
from tests.pipelines import tiny
from tests.samples import make_key, make_request
from worker.faults import Unfit
from worker.inputs import Prepared
from worker.pipelines.load import load_pipeline
from worker.pipelines.memory import give_back
from worker.process.devices import choose_devices
from worker.process.gpus import Machine, memory
from worker.render import BatchRenderer
from worker.renderers import Renderers

pytestmark = pytest.mark.gpu

KEY = make_key(model="m", steps=4)
PROMPTS = ["a red circle", "", "a large green star on a blue background", "🟥 دائرة"]


def table_of(folder: Path, config: pytest.Config, row: str = "") -> ModelTable:
    file = folder / "models.toml"
    file.write_text(
        f'default = "m"\n[models.m]\nrepo = "{tiny("sd", config)}"\nbatch_width = 4\n'
        f"size = [64, 64]\nthreads = 1\n{row}"
    )
    return load_models(file)


def load(folder: Path, config: pytest.Config, device: str, row: str = "") -> BatchRenderer:
    table = table_of(folder, config, row)
    model = table.get("m")
    return BatchRenderer(load_pipeline(table, model, fingerprint(table, model), device))


def asked() -> list[Prepared]:
    """Half of the seeds are as long as derived ones."""
    return [
        Prepared(make_request(number, KEY, prompt=prompt, seed=number + 2**40 * (number % 2)))
        for number, prompt in enumerate(PROMPTS)
    ]


def test_the_same_seed_is_the_same_picture_on_both_devices(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    requests = asked()
    cpu, cuda = (
        [
            one.pixels
            for one in load(tmp_path, pytestconfig, device, 'dtype = "float32"').render(requests)
        ]
        for device in ("cpu", "cuda")
    )
    for first, second in zip(cpu, cuda, strict=True):
        assert first is not None
        assert second is not None
        assert np.abs(first.astype(np.int16) - second).max() <= 5


def test_memory_that_runs_out_is_a_record_with_the_bytes(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    renderer = load(tmp_path, pytestconfig, "cuda")
    renderer.render(asked())
    torch.cuda.set_per_process_memory_fraction(1e-4)
    try:
        huge = KEY._replace(width=2048, height=2048)
        requests = [replace(one, request=one.request._replace(key=huge)) for one in asked()]
        rendered = renderer.render(requests)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert {one.code for one in rendered} == {"out_of_memory"}
    assert "bytes more were needed" in rendered[0].message


def test_the_machine_tells_its_gpus_and_its_driver() -> None:
    devices = choose_devices("auto")
    assert {device.kind for device in devices} == {"cuda"}
    assert len({device.visible for device in devices}) == len(devices)
    assert Machine().driver()
    gpus, problem = Machine().gpus()
    assert problem == ""
    assert all(gpu.pci for gpu in gpus), "not by NVML: processes are not pinned near their GPU"
    used, whole = memory(devices[0].visible)
    assert 0 < used <= whole


def test_a_gpu_is_named_by_its_uuid_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus, _ = Machine().gpus()
    name = next(iter(gpus[0].slices), gpus[0].uuid)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", name)
    assert [device.visible for device in choose_devices("auto")] == [name]


def test_a_gpu_that_a_stranger_fills_is_a_fault_of_this_worker_alone(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    renderers = Renderers(table_of(tmp_path, pytestconfig), "cuda", 2)
    give_back()
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        with pytest.raises(Unfit, match="does not fit into the device's memory"):
            renderers.get("m")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert renderers.get("m").render(asked())[0].status == "done"


def test_a_model_that_makes_room_gives_its_memory_back(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    table = table_of(tmp_path, pytestconfig)
    renderers = Renderers(replace(table, models={**table.models, "n": table.get("m")}), "cuda", 1)
    taken = []
    for name in ("m", "n", "m", "n"):
        renderers.get(name)
        give_back()
        taken.append(torch.cuda.memory_allocated())
    assert max(taken[1:]) <= 1.1 * taken[0]


def test_a_fault_of_the_device_is_told_from_memory_that_runs_out() -> None:
    """In a process of its own: after such a fault nothing works in it any more."""
    script = (
        "import torch\n"
        "from worker.pipelines.memory import is_device_lost, is_out_of_memory\n"
        "try:\n"
        "    torch.zeros(1, device='cuda')[torch.full((1,), 9, device='cuda')].cpu()\n"
        "except RuntimeError as error:\n"
        "    print(is_device_lost(error), is_out_of_memory(error))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "True False\n", done.stderr


@pytest.mark.parametrize("offload", ["sequential", "encoders"])
def test_weights_that_are_offloaded_make_the_same_pictures(
    tmp_path: Path, pytestconfig: pytest.Config, offload: str
) -> None:
    row = f'options = {{ offload = "{offload}" }}'
    here, there = (load(tmp_path, pytestconfig, "cuda", one).render(asked()) for one in ("", row))
    for first, second in zip(here, there, strict=True):
        assert first.pixels is not None
        assert second.pixels is not None
        np.testing.assert_array_equal(first.pixels, second.pixels)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, about its own code
def test_a_compiled_unet_is_whole_and_its_bytes_do_not_go_by_what_came_before(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    row = "options = { compile = true }"
    other = KEY._replace(width=96)
    requests = asked()
    fresh = load(tmp_path, pytestconfig, "cuda", row)
    fresh.render([replace(one, request=one.request._replace(key=other)) for one in requests])
    late = fresh.render(requests)
    first = load(tmp_path, pytestconfig, "cuda", row).render(requests)
    assert fresh.renderer.variants.base.unet._compiled_call_impl  # type: ignore[attr-defined]
    for one, another in zip(first, late, strict=True):
        assert one.pixels is not None
        assert another.pixels is not None
        np.testing.assert_array_equal(one.pixels, another.pixels)


def test_a_row_without_a_type_renders_in_one_that_the_device_is_fast_in(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    (rendered, *_) = load(tmp_path, pytestconfig, "cuda").render(asked())
    half = "bfloat16" if torch.cuda.get_device_capability() >= (8, 0) else "float16"
    assert rendered.stack.dtype == half
    assert {"cuda", "cudnn", "driver"} <= {
        one.partition(" ")[0] for one in rendered.stack.versions.split(", ")
    }


def test_a_vae_that_runs_out_of_memory_saves_before_fewer_are_rendered(
    tmp_path: Path, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    renderer = load(tmp_path, pytestconfig, "cuda")
    vae = renderer.renderer.variants.base.vae  # type: ignore[attr-defined]
    decode = vae.decoder.forward

    def hungry(latents: torch.Tensor, *rest: object) -> object:
        if len(latents) > 1:
            torch.empty(2**50, dtype=torch.uint8, device="cuda")  # of a petabyte: what torch says
        return decode(latents, *rest)

    monkeypatch.setattr(vae.decoder, "forward", hungry)
    rendered = renderer.render(asked())
    assert {one.status for one in rendered} == {"done"}
    assert {(one.stack.modes, one.stack.batch_width) for one in rendered} == {("vae_slicing", 4)}


def test_bytes_repeat_on_this_device(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    load(tmp_path, pytestconfig, "cuda")  # writes the table
    options = ["m", "--models-file", str(tmp_path / "models.toml")]
    command = [sys.executable, "-m", "worker.commands.determinism", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
