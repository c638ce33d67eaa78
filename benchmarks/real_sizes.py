"""Models of real size with random weights, for benchmarks on a GPU without a download.

    python -m benchmarks.real_sizes FOLDER            # 7 GB for SDXL, 24 GB for FLUX.1-dev
    export IMAGEMILL_MODELS=FOLDER/models.toml
    python -m benchmarks.throughput --model sdxl-1024-w4 --images 64

Writes a row for each model, size and batch width. Denoisers and VAEs are as large as the released
ones, and so are their text encoders except that FLUX has a T5 of one layer. Compile with
`options = { compile = true }` in the row. benchmarks/gpu_day.py measures with the same models, and
proves itself on a CPU with tiny ones of the same classes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

DEMO_TOKENIZER = Path(__file__).parents[1] / "configs/demo/shapes/tokenizer"
SIZES = (512, 1024)
WIDTHS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Shape:
    """How large the parts of pipelines are.

    unet, transformer, vae, t5: what their classes get beside what is the same at any size; clip,
    big_clip: hidden size, layers and heads of the two CLIP text encoders; sample: the side of
    latents.
    """

    unet: Mapping[str, Any]
    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    clip: tuple[int, int, int]
    big_clip: tuple[int, int, int]
    t5: Mapping[str, Any]
    sample: int


REAL = Shape(  # stable-diffusion-xl-base-1.0 and FLUX.1-dev
    unet={
        "block_out_channels": (320, 640, 1280),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "addition_time_embed_dim": 256,
    },
    transformer={},  # its defaults are FLUX.1-dev's sizes
    vae={"block_out_channels": (128, 256, 512, 512)},
    clip=(768, 12, 12),
    big_clip=(1280, 32, 20),
    t5={"d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64},
    sample=128,
)
TINY = Shape(
    unet={
        "block_out_channels": (8, 16, 16),
        "transformer_layers_per_block": 1,
        "attention_head_dim": (2, 4, 4),
        "addition_time_embed_dim": 8,
        "layers_per_block": 1,
        "norm_num_groups": 4,
    },
    transformer={
        "num_layers": 1,
        "num_single_layers": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "axes_dims_rope": (4, 6, 6),
        "joint_attention_dim": 32,
        "pooled_projection_dim": 16,
    },
    vae={"block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4},
    clip=(16, 2, 2),
    big_clip=(16, 2, 2),
    t5={"d_model": 32, "d_ff": 32, "d_kv": 8, "num_heads": 4},
    sample=8,
)


def build_sdxl(folder: Path, shape: Shape = REAL) -> None:
    """SDXL as a folder of weights."""
    StableDiffusionXLPipeline(
        _vae(shape, 4, scaling_factor=0.13025),
        CLIPTextModel(_clip(*shape.clip)),
        CLIPTextModelWithProjection(_clip(*shape.big_clip)),
        _tokenizer(),
        _tokenizer(),
        sdxl_unet(shape),
        EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
    ).save_pretrained(folder)


def sdxl_unet(shape: Shape = REAL) -> UNet2DConditionModel:
    """SDXL's denoiser."""
    clip, big = shape.clip[0], shape.big_clip[0]
    made: UNet2DConditionModel = UNet2DConditionModel(
        sample_size=shape.sample,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=clip + big,
        addition_embed_type="text_time",
        projection_class_embeddings_input_dim=big + 6 * shape.unet["addition_time_embed_dim"],
        use_linear_projection=True,
        **shape.unet,
    )
    return made


def build_flux(folder: Path, shape: Shape = REAL) -> None:
    """FLUX.1-dev as a folder of weights."""
    FluxPipeline(
        FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        _vae(
            shape,
            16,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        CLIPTextModel(_clip(*shape.clip)),
        _tokenizer(),
        T5EncoderModel(T5Config(vocab_size=300, num_layers=1, **shape.t5)),
        _bytes(),
        flux_transformer(shape),
    ).save_pretrained(folder)


def flux_transformer(shape: Shape = REAL) -> FluxTransformer2DModel:
    """FLUX.1-dev's denoiser alone, which takes all its time but for a few per cent."""
    made: FluxTransformer2DModel = FluxTransformer2DModel(guidance_embeds=True, **shape.transformer)
    return made.eval()


@contextmanager
def random_weights(device: str, dtype: torch.dtype = torch.bfloat16) -> Iterator[None]:
    """Models made within the block have the same random weights each time, on a device."""
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def _vae(shape: Shape, channels: int, **options: Any) -> AutoencoderKL:
    made: AutoencoderKL = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=channels,
        sample_size=8 * shape.sample,
        **shape.vae,
        **options,
    )
    return made


def _tokenizer() -> CLIPTokenizer:
    read: CLIPTokenizer = CLIPTokenizer.from_pretrained(DEMO_TOKENIZER)
    return read


def _clip(hidden: int, layers: int, heads: int) -> CLIPTextConfig:
    tokenizer = _tokenizer()
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        projection_dim=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _bytes() -> PreTrainedTokenizerFast:
    names = ["<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    raw = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [], unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=raw,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )


@dataclass(frozen=True)
class Kind:
    """A model that can be built, and its row in models.toml."""

    build: Callable[[Path, Shape], None]
    family: str
    steps: int
    guidance_scale: float


MODELS = {
    "sdxl": Kind(build_sdxl, "stable-diffusion-xl", 20, 5.0),
    "flux": Kind(build_flux, "flux", 28, 3.5),
}


def table_row(
    name: str,
    size: int,
    width: int,
    dtype: str = "bfloat16",
    steps: int | None = None,
    more: Iterable[str] = (),
) -> str:
    """A row of models.toml for a model in a folder of its name beside it. steps: others than its
    kind's."""
    kind = MODELS[name]
    return "\n".join(
        [
            f"[models.{name}-{size}-w{width}]",
            f'repo = "{name}"',
            f'family = "{kind.family}"',
            f'dtype = "{dtype}"',
            f"size = [{size}, {size}]",
            f"batch_width = {width}",
            f"steps = {steps or kind.steps}",
            f"guidance_scale = {kind.guidance_scale}",
            *more,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options = parser.parse_args()
    rows = [f'default = "{options.models[0]}-{SIZES[0]}-w1"\n']
    for name in options.models:
        with random_weights("cuda" if torch.cuda.is_available() else "cpu"):
            MODELS[name].build(options.folder / name, REAL)
        rows += [table_row(name, size, width) for size in SIZES for width in WIDTHS]
    (options.folder / "models.toml").write_text("\n".join(rows))
    print(f"export IMAGEMILL_MODELS={(options.folder / 'models.toml').resolve()}")


if __name__ == "__main__":
    main()
