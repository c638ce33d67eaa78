"""How much of a prompt a pipeline reads."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from jobs.models.families import Family


@dataclass(frozen=True)
class PromptLimit:
    """The tokenizer that decides, and the most tokens that it passes on; None has no limit."""

    tokenizer: Any
    tokens: int

    def cut(self, prompt: str) -> int:
        """How many tokens of a prompt's end the pipeline never reads."""
        if self.tokenizer is None:
            return 0
        # `verbose`: it would warn of what we are here to find out.
        found = self.tokenizer(prompt, truncation=False, verbose=False)["input_ids"]
        return max(0, len(found) - self.tokens)


def prompt_limit(pipeline: Any, family: Family) -> PromptLimit:
    """The limit of a pipeline, special tokens included where its tokenizer adds some."""
    tokenizer = getattr(pipeline, family.tokenizer, None) or getattr(pipeline, "tokenizer", None)
    if tokenizer is None or not hasattr(tokenizer, "model_max_length"):
        return PromptLimit(None, 0)
    longest = inspect.signature(type(pipeline).__call__).parameters.get("max_sequence_length")
    by_clip = tokenizer is not getattr(pipeline, family.tokenizer, None)  # the long one is missing
    limits = [tokenizer.model_max_length]
    if longest is not None and isinstance(longest.default, int) and not by_clip:
        limits.append(longest.default)
    return PromptLimit(tokenizer, min(limits) - family.template)
