"""How well an image fits its prompt, by a CLIP model that the user names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from transformers import AutoTokenizer, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from jobs.errors import FatalError, UsageError
from jobs.models.fingerprints import files_digest
from jobs.models.hub import advice, commit_of
from jobs.output.records import Row, Score


class ClipScore:
    """clip: the cosine of image and prompt, -1 to 1 (Hessel et al., "CLIPScore", 2021, without its
    factor). Of a prompt only what the text encoder takes is read, usually 77 tokens."""

    columns = ("clip",)

    def __init__(self, weights: str, device: str) -> None:
        if not weights:
            raise UsageError(
                "scorer clip needs weights",
                "Name a folder or a repository: clip=openai/clip-vit-large-patch14",
            )
        folder = Path(weights)
        commit = "main" if folder.is_dir() else commit_of(weights, None)
        self.version = f"sha:{files_digest(folder)}" if folder.is_dir() else f"{weights}@{commit}"
        # Never pickled weights: they run what is in them.
        try:
            model: Any = CLIPModel.from_pretrained(
                weights, revision=commit, use_safetensors=True, dtype=torch.float32
            )
            self._tokenizer: Any = AutoTokenizer.from_pretrained(weights, revision=commit)
            self._processor: Any = CLIPImageProcessorPil.from_pretrained(weights, revision=commit)
        except (OSError, ValueError, KeyError) as error:
            raise FatalError(
                f"{weights} does not load as a CLIP model: {error}",
                advice(error) or "It needs config.json, tokenizer, and .safetensors weights.",
            ) from error
        self._model = model.to(device).eval()
        self._device = device
        self._length = model.config.text_config.max_position_embeddings

    @torch.inference_mode()
    def score(self, images: Sequence[Image], rows: Sequence[Row]) -> Mapping[str, Sequence[Score]]:
        """The cosine of each, to six digits."""
        both = zip(images, rows, strict=True)
        return {"clip": [round(self._cosine(image, row["prompt"]), 6) for image, row in both]}

    def _cosine(self, image: Image, prompt: str) -> float:
        # One at a time: in a batch the last digits hang on what else is in it.
        texts = self._tokenizer(
            [prompt],
            padding="max_length", max_length=self._length, truncation=True, return_tensors="pt",
        ).to(self._device)  # fmt: skip
        pixels = self._processor(images=[image], return_tensors="pt").to(self._device)
        found = self._model(
            input_ids=texts["input_ids"],
            attention_mask=texts["attention_mask"],
            pixel_values=pixels["pixel_values"],
        )
        return float((found.image_embeds * found.text_embeds).sum())
