"""The stock parts of the demo pipeline, small and untrained, and how they are stored."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from configs.demo.training.scenes import SIDE

stock: Any = diffusers  # untyped: strict checks find neither constructors nor torch's methods

CONTEXT = 24  # tokens a caption is padded or cut to
TEXT_WIDTH = 64


def new_vae() -> Any:
    """64 x 64 x 3 pixels to 16 x 16 x 4 latents and back, 0.65M parameters."""
    return stock.AutoencoderKL(
        sample_size=SIDE,
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
    )


def new_unet() -> Any:
    """Text attention at 8 x 8 and 4 x 4, 2.9M parameters."""
    return stock.UNet2DConditionModel(
        sample_size=SIDE // 4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(48, 64, 96),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two CLIP layers, trained together with the UNet, 0.15M parameters."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_scheduler() -> Any:
    """v-prediction down to zero signal (Lin et al. 2023, arXiv:2305.08891), trailing steps."""
    return stock.DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,
    )


def new_tokenizer(words: list[str]) -> CLIPTokenizer:
    """A CLIP tokenizer that reads each of `words` as one token and any other text as bytes."""
    vocabulary = byte_alphabet()
    vocabulary += [f"{symbol}</w>" for symbol in vocabulary]
    merges = learn_merges(words)
    vocabulary += [a + b for a, b in merges] + ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(vocabulary)},
        merges=merges,  # type: ignore[arg-type]  # declared list[str], used as pairs
        model_max_length=CONTEXT,
    )


def byte_alphabet() -> list[str]:
    """The 256 printable stand-ins of byte-level BPE, in byte order (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte pair merges, the most frequent first, until every word is a single symbol."""
    spelt = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while any(len(word) > 1 for word in spelt):
        pairs = Counter(pair for word in spelt for pair in pairwise(word))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelt = [merged(word, best) for word in spelt]
    return merges


def merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    """The symbols of a word with each occurrence of `pair` joined, left to right."""
    joined: list[str] = []
    for symbol in word:
        if joined and (joined[-1], symbol) == pair:
            joined[-1] += symbol
        else:
            joined.append(symbol)
    return joined


def save_pipeline(
    folder: Path,
    vae: Any,
    unet: Any,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
) -> None:
    """Write a pipeline folder, replacing an older one; the models given are left as they are.

    UNet and VAE are stored in fp16. The text encoder stays in fp32: a load without `torch_dtype`
    keeps a transformers model in its stored type but widens a diffusers one, and a Half text
    encoder before a Float UNet fails.
    """
    half_unet, half_vae = new_unet(), new_vae()
    half_unet.load_state_dict(unet.state_dict())
    half_vae.load_state_dict(vae.state_dict())
    half_vae.register_to_config(scaling_factor=vae.config.scaling_factor)
    pipeline = stock.StableDiffusionPipeline(
        vae=half_vae.to(torch.float16),
        unet=half_unet.to(torch.float16),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    fresh = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    pipeline.save_pretrained(fresh, safe_serialization=True)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(fresh, folder)
