"""Models of real size with random weights, for benchmarks on a GPU without a download.

    python -m benchmarks.real_sizes FOLDER            # 5 GB for SDXL, 24 GB for FLUX.1-dev
    export IMAGEMILL_MODELS=FOLDER/models.toml
    python -m benchmarks.throughput --model sdxl-1024-w4 --images 64

Writes a row for each model, size and batch width. Denoisers and VAEs are as large as the released
ones, and so are their text encoders except that FLUX has a T5 of one layer. Compile with
`options = { compile = true }` in the row.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
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


def build_sdxl(folder: Path) -> None:
    """The shape of stable-diffusion-xl-base-1.0."""
    unet = UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
        use_linear_projection=True,
    )
    StableDiffusionXLPipeline(
        _vae(4, scaling_factor=0.13025),
        CLIPTextModel(_clip(768, 12, 12)),
        CLIPTextModelWithProjection(_clip(1280, 32, 20)),
        _tokenizer(),
        _tokenizer(),
        unet,
        EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
    ).save_pretrained(folder)


def build_flux(folder: Path) -> None:
    """The shape of FLUX.1-dev."""
    transformer = FluxTransformer2DModel(guidance_embeds=True)  # whose defaults are its sizes
    t5 = T5Config(vocab_size=300, d_model=4096, d_ff=10240, d_kv=64, num_layers=1, num_heads=64)
    FluxPipeline(
        FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        _vae(
            16,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        CLIPTextModel(_clip(768, 12, 12)),
        _tokenizer(),
        T5EncoderModel(t5),
        _bytes(),
        transformer,
    ).save_pretrained(folder)


def _vae(channels: int, **options: Any) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=channels,
        sample_size=1024,
        **options,
    )


def _tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(DEMO_TOKENIZER)


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
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )


MODELS = {
    "sdxl": (build_sdxl, "stable-diffusion-xl", 20, 5.0),
    "flux": (build_flux, "flux", 28, 3.5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options = parser.parse_args()
    torch.set_default_dtype(torch.bfloat16)
    torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    rows = [f'default = "{options.models[0]}-{SIZES[0]}-w1"\n']
    for name in options.models:
        build, family, steps, guidance = MODELS[name]
        build(options.folder / name)
        rows += [
            f'[models.{name}-{size}-w{width}]\nrepo = "{name}"\nfamily = "{family}"\n'
            f'dtype = "bfloat16"\nsize = [{size}, {size}]\nbatch_width = {width}\n'
            f"steps = {steps}\nguidance_scale = {guidance}\n"
            for size in SIZES
            for width in WIDTHS
        ]
    (options.folder / "models.toml").write_text("\n".join(rows))
    print(f"export IMAGEMILL_MODELS={(options.folder / 'models.toml').resolve()}")


if __name__ == "__main__":
    main()
