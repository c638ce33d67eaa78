"""The type and the variant that weights are read in."""

from __future__ import annotations

import pytest
import torch

from worker.pipelines.weights import dtype_for, find_variant


@pytest.mark.parametrize(
    ("device", "in_hardware", "expected"),
    [
        ("cpu", True, torch.float32),
        ("cuda", True, torch.bfloat16),
        ("cuda", False, torch.float16),
    ],
)
def test_auto_is_what_the_device_is_fast_in(
    device: str, in_hardware: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_supported(including_emulation: bool = True) -> bool:
        return in_hardware or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    assert dtype_for("auto", device) == expected
    assert dtype_for("float32", device) == torch.float32


@pytest.mark.parametrize(
    ("files", "whole", "variant"),
    [
        (["unet/model.safetensors", "unet/model.fp16.safetensors"], True, None),
        (["unet/model.safetensors", "vae/model.fp16.safetensors"], True, "fp16"),
        (["unet/model.fp16-00001-of-00002.safetensors", "unet/model.bin"], True, "fp16"),
        (["one-file.fp16.safetensors", "unet/model.safetensors"], True, None),
        (["model.fp16.safetensors"], False, "fp16"),
        (["model.fp16.safetensors", "model.safetensors"], False, None),
        ([], True, None),
    ],
)
def test_a_variant_is_found_where_there_is_no_other(
    files: list[str], whole: bool, variant: str | None
) -> None:
    assert find_variant(files, whole) == variant
