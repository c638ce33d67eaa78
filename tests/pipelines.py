"""Tiny pipelines with random weights, one for each family: a megabyte and some 20 ms an image.

Built without a download from the classes that the real ones use, and kept between test runs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    ControlNetModel,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxControlNetModel,
    FluxFillPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
)

VERSION = "3"  # of the pipelines below: another number builds them anew
DIM = 32


def tiny(name: str, config: pytest.Config) -> Path:
    """The folder of a tiny pipeline, ControlNet or adapter, built on first use."""
    folder = config.cache.mkdir(f"pipelines-{VERSION}") / name
    if not folder.exists():
        kind = name.partition("-")[0]
        if kind in OWNERS:
            tiny(OWNERS[kind], config)
        torch.manual_seed(sum(name.encode()))
        building = folder.with_suffix(f".{os.getpid()}")  # another process may build it as well
        BUILDERS[kind](building)
        try:
            building.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            shutil.rmtree(building)
    return folder


def _clip() -> CLIPTokenizer:
    demo = Path(__file__).parents[1] / "configs/demo/shapes/tokenizer"
    return CLIPTokenizer.from_pretrained(demo)


def _clip_text(projection: bool = False) -> Any:
    tokenizer = _clip()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=DIM,
        intermediate_size=DIM,
        projection_dim=DIM,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def _bytes(template: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are bytes; with a chat template it adds no special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<pad>", "</s>", "<unk>", *alphabet]
    raw = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [], unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    if template is None:
        raw.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", 1)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )
    tokenizer.chat_template = template
    return tokenizer


def _t5() -> T5EncoderModel:
    config = T5Config(
        vocab_size=300, d_model=DIM, d_ff=DIM, d_kv=8, num_layers=1, num_heads=4
    )  # fmt: skip
    return T5EncoderModel(config).eval()


def _vae(channels: int = 4, **options: Any) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        norm_num_groups=4,
        latent_channels=channels,
        sample_size=64,
        **options,
    ).eval()


def _unet(channels: int = 4, **options: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        **(
            {
                "sample_size": 8,
                "in_channels": channels,
                "out_channels": 4,
                "block_out_channels": (16, 32),
                "layers_per_block": 1,
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
                "cross_attention_dim": DIM,
                "attention_head_dim": 4,
                "norm_num_groups": 8,
            }
            | options
        )
    ).eval()


def _ddim() -> DDIMScheduler:
    return DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)


def build_sd(folder: Path) -> None:
    StableDiffusionPipeline(
        _vae(), _clip_text(), _clip(), _unet(), _ddim(), None, None, requires_safety_checker=False
    ).save_pretrained(folder)


def build_prude(folder: Path) -> None:
    """Stable Diffusion with a safety checker that refuses every image."""
    vision = {"hidden_size": DIM, "intermediate_size": DIM, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 4, "image_size": 64, "patch_size": 32}
    config = CLIPConfig(vision_config=vision, projection_dim=DIM)
    checker = StableDiffusionSafetyChecker(config).eval()
    checker.concept_embeds_weights.data.fill_(-2.0)  # below any similarity
    size = {"height": 64, "width": 64}
    StableDiffusionPipeline(
        _vae(), _clip_text(), _clip(), _unet(), _ddim(), checker,
        CLIPImageProcessor(size=size, crop_size=size),
    ).save_pretrained(folder)  # fmt: skip


def build_pix2pix(folder: Path) -> None:
    StableDiffusionInstructPix2PixPipeline(
        _vae(), _clip_text(), _clip(), _unet(8), _ddim(), None, None, requires_safety_checker=False
    ).save_pretrained(folder)


def build_xlpix2pix(folder: Path) -> None:
    _sdxl(StableDiffusionXLInstructPix2PixPipeline, 8).save_pretrained(folder)


def build_inpaint(folder: Path) -> None:
    """Its UNet sees the mask and the rest of the picture."""
    StableDiffusionInpaintPipeline(
        _vae(), _clip_text(), _clip(), _unet(9), _ddim(), None, None, requires_safety_checker=False
    ).save_pretrained(folder)


def build_sdxl(folder: Path) -> None:
    _sdxl(StableDiffusionXLPipeline, 4).save_pretrained(folder)


def build_xlinpaint(folder: Path) -> None:
    _sdxl(StableDiffusionXLInpaintPipeline, 9).save_pretrained(folder)


def _sdxl(pipeline: Any, channels: int) -> Any:
    unet = _unet(
        channels,
        cross_attention_dim=2 * DIM,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=DIM + 6 * 8,
        use_linear_projection=True,
    )
    return pipeline(_vae(), _clip_text(), _clip_text(True), _clip(), _clip(), unet, _ddim())


def build_sd3(folder: Path) -> None:
    transformer = SD3Transformer2DModel(
        sample_size=8, in_channels=16, out_channels=16, num_layers=1, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=2 * DIM, caption_projection_dim=DIM,
        pooled_projection_dim=2 * DIM, pos_embed_max_size=16,
    ).eval()  # fmt: skip
    t5 = T5EncoderModel(
        T5Config(vocab_size=300, d_model=2 * DIM, d_ff=DIM, d_kv=8, num_layers=1, num_heads=4)
    ).eval()
    StableDiffusion3Pipeline(
        transformer, FlowMatchEulerDiscreteScheduler(shift=3.0),
        _vae(16, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
        _clip_text(True), _clip(), _clip_text(True), _clip(), t5, _bytes(),
    ).save_pretrained(folder)  # fmt: skip


def _flux(pipeline: Any, seen: int = 0) -> Callable[[Path], None]:
    """seen: channels beside the latent's own."""

    def build(folder: Path) -> None:
        transformer = FluxTransformer2DModel(
            in_channels=16 + seen, out_channels=16, num_layers=1, num_single_layers=1,
            attention_head_dim=16, num_attention_heads=2, joint_attention_dim=DIM,
            pooled_projection_dim=DIM, guidance_embeds=True, axes_dims_rope=(4, 4, 8),
        ).eval()  # fmt: skip
        pipeline(
            FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            _vae(4, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
            _clip_text(), _clip(), _t5(), _bytes(), transformer,
        ).save_pretrained(folder)  # fmt: skip

    return build


def build_klein(folder: Path) -> None:
    layers = {"num_hidden_layers": 27, "num_attention_heads": 1, "num_key_value_heads": 1}
    text = Qwen3Config(vocab_size=300, hidden_size=16, intermediate_size=16, head_dim=8, **layers)
    template = "{% for m in messages %}{{ '<u>' + m['content'] + '</u>' }}{% endfor %}"
    _flux2(Flux2KleinPipeline, Qwen3ForCausalLM(text), template).save_pretrained(folder)


def build_fluxdev2(folder: Path) -> None:
    """FLUX.2 dev; its encoder sees pictures as well, and its system prompt is long."""
    layers = {"num_hidden_layers": 31, "num_attention_heads": 1, "num_key_value_heads": 1}
    text = MistralConfig(vocab_size=300, hidden_size=16, intermediate_size=16, head_dim=8, **layers)
    vision = PixtralVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        image_size=28, patch_size=14,
    )  # fmt: skip
    config = Mistral3Config(text_config=text, vision_config=vision)
    template = "{% for m in messages[1:] %}{{ m['content'][0]['text'] }}{% endfor %}"
    encoder = Mistral3ForConditionalGeneration(config)
    _flux2(Flux2Pipeline, encoder, template, guidance_embeds=True).save_pretrained(folder)


def _flux2(pipeline: Any, encoder: Any, template: str, guidance_embeds: bool = False) -> Any:
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    ).eval()
    transformer = Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=3 * 16, timestep_guidance_channels=DIM,
        axes_dims_rope=(4, 4, 4, 4), guidance_embeds=guidance_embeds,
    ).eval()  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return pipeline(
        scheduler=scheduler, vae=vae, text_encoder=encoder.eval(), tokenizer=_bytes(template),
        transformer=transformer,
    )  # fmt: skip


def build_pixart(folder: Path) -> None:
    """A family that imagemill has no entry for."""
    transformer = PixArtTransformer2DModel(
        sample_size=8, num_layers=1, attention_head_dim=8, num_attention_heads=4, in_channels=4,
        cross_attention_dim=DIM, caption_channels=DIM, out_channels=8, norm_type="ada_norm_single",
        use_additional_conditions=False, attention_bias=True,
    ).eval()  # fmt: skip
    PixArtSigmaPipeline(_bytes(), _t5(), _vae(), transformer, _ddim()).save_pretrained(folder)


def build_controlnet(folder: Path) -> None:
    unet = StableDiffusionPipeline.from_pretrained(folder.parent / "sd").unet
    _save_controlnet(unet, folder)


def build_xlcontrolnet(folder: Path) -> None:
    unet = StableDiffusionXLPipeline.from_pretrained(folder.parent / "sdxl").unet
    _save_controlnet(unet, folder)


def build_fluxcontrolnet(folder: Path) -> None:
    transformer = FluxPipeline.from_pretrained(folder.parent / "flux").transformer
    net = FluxControlNetModel.from_transformer(
        transformer, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2
    )
    for module in (
        *net.controlnet_blocks,
        *net.controlnet_single_blocks,
        net.controlnet_x_embedder,
    ):
        torch.nn.init.normal_(module.weight, std=0.5)  # it starts at zero
    net.save_pretrained(folder)


def _save_controlnet(unet: UNet2DConditionModel, folder: Path) -> None:
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16, 16, 16))
    # It starts at zero, which would hide that it takes part.
    for module in (*net.controlnet_down_blocks, net.controlnet_mid_block):
        torch.nn.init.normal_(module.weight, std=0.5)
    torch.nn.init.normal_(net.controlnet_cond_embedding.conv_out.weight, std=0.5)
    net.save_pretrained(folder)


def build_lora(folder: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(folder.parent / "sd")
    _add_lora(pipeline.unet)
    _save_unet_lora(pipeline, folder)


def build_smalllora(folder: Path) -> None:
    """Of a lower rank, in fewer layers, and with an alpha that is not its rank."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder.parent / "sd")
    _add_lora(pipeline.unet, r=2, lora_alpha=6, target_modules=["attn2.to_q"])
    _save_unet_lora(pipeline, folder)


def build_textlora(folder: Path) -> None:
    """In the text encoder as well."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder.parent / "sd")
    _add_lora(pipeline.unet)
    _add_lora(pipeline.text_encoder, target_modules=["q_proj"])
    _save_unet_lora(pipeline, folder, _layers(pipeline.text_encoder, "text_encoder"))


def build_fluxlora(folder: Path) -> None:
    pipeline = FluxPipeline.from_pretrained(folder.parent / "flux")
    _add_lora(pipeline.transformer)
    layers = get_peft_model_state_dict(pipeline.transformer)
    pipeline.save_lora_weights(folder, transformer_lora_layers=layers)


def _save_unet_lora(pipeline: Any, folder: Path, more: dict[str, Any] | None = None) -> None:
    pipeline.save_lora_weights(folder, **_layers(pipeline.unet, "unet"), **(more or {}))


def _layers(model: Any, part: str) -> dict[str, Any]:
    return {
        f"{part}_lora_layers": get_peft_model_state_dict(model),
        f"{part}_lora_adapter_metadata": model.peft_config["default"].to_dict(),
    }


def _add_lora(model: Any, **config: Any) -> None:
    model.add_adapter(LoraConfig(**({"r": 4, "target_modules": ["to_q", "to_k", "to_v"]} | config)))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # starts at zero
            torch.nn.init.normal_(parameter, std=0.5)


OWNERS = {  # what ControlNets and adapters are of, which is built before them
    "controlnet": "sd",
    "xlcontrolnet": "sdxl",
    "fluxcontrolnet": "flux",
    "lora": "sd",
    "smalllora": "sd",
    "textlora": "sd",
    "fluxlora": "flux",
}
BUILDERS: dict[str, Callable[[Path], None]] = {
    "sd": build_sd,
    "prude": build_prude,
    "sdxl": build_sdxl,
    "inpaint": build_inpaint,
    "xlinpaint": build_xlinpaint,
    "sd3": build_sd3,
    "flux": _flux(FluxPipeline),
    "fill": _flux(FluxFillPipeline, 16 + 4 * 64),  # the masked picture's, and the mask's pixels
    "kontext": _flux(FluxKontextPipeline),
    "klein": build_klein,
    "fluxdev2": build_fluxdev2,
    "pix2pix": build_pix2pix,
    "xlpix2pix": build_xlpix2pix,
    "pixart": build_pixart,
    "controlnet": build_controlnet,
    "xlcontrolnet": build_xlcontrolnet,
    "fluxcontrolnet": build_fluxcontrolnet,
    "lora": build_lora,
    "smalllora": build_smalllora,
    "textlora": build_textlora,
    "fluxlora": build_fluxlora,
}
