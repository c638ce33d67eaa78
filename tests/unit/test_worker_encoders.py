"""What a text encoder made of a prompt, with a small one in its place."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from worker.pipelines.encoders import Encoder

WORDS = torch.arange(12).reshape(4, 3)


class Small:
    """Encodes by one multiplication, and counts its rows."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []

    def __call__(self, input_ids: Tensor, **options: object) -> object:
        self.rows.append(input_ids[:, 0].tolist())
        if "pixel_values" in options:
            return "seen"
        hidden = input_ids.float()[:, :, None] * torch.ones(5)
        layers = (hidden, hidden + 1) if options.get("output_hidden_states") else None
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden, pooler_output=hidden[:, 0], hidden_states=layers
        )


def encoder(most: int = 1 << 20, adapter: list[str] | None = None) -> tuple[Encoder, Small]:
    small, used = Small(), adapter or [""]
    return Encoder(small, lambda: used[0], most), small


def test_rows_that_are_known_are_not_encoded_again() -> None:
    kept, small = encoder()
    plain = Small()
    for order in ([0, 1], [1, 0], [2, 0], [2, 2]):
        made, expected = kept(WORDS[order]), plain(WORDS[order])
        assert torch.equal(made.last_hidden_state, expected.last_hidden_state)  # type: ignore[attr-defined]
        assert torch.equal(made[1], expected[1])  # type: ignore[index]
        assert made.hidden_states is None
    assert small.rows == [[0, 3], [6, 6]]  # in as many rows as were asked for


def test_as_many_rows_as_were_asked_for_are_another_call() -> None:
    """Their bytes may differ."""
    kept, small = encoder()
    kept(WORDS[[0, 1]])
    kept(WORDS[[0]])
    assert small.rows == [[0, 3], [0]]


def test_options_masks_and_adapters_are_told_apart() -> None:
    adapter = [""]
    kept, small = encoder(adapter=adapter)
    mask = torch.ones_like(WORDS)
    asked = (
        {}, {"output_hidden_states": True}, {"attention_mask": mask[:1]},
        {"attention_mask": 0 * mask[:1]},
    )  # fmt: skip
    for options in (*asked, *asked):
        kept(WORDS[:1], **options)
    assert len(small.rows) == 4
    assert len(kept(input_ids=WORDS[:1], output_hidden_states=True).hidden_states) == 2
    assert len(small.rows) == 4
    adapter[0] = "ink"
    kept(WORDS[:1])
    assert len(small.rows) == 5


def test_what_is_not_text_alone_is_not_kept() -> None:
    kept, small = encoder()
    for _ in range(2):
        assert kept(WORDS, pixel_values=WORDS) == "seen"
    assert len(small.rows) == 2


def test_an_output_that_does_not_tell_rows_apart_is_not_kept() -> None:
    calls: list[int] = []

    def joined(input_ids: Tensor) -> Tensor:
        calls.append(len(input_ids))
        return input_ids.sum()

    kept = Encoder(joined, lambda: "")
    assert [kept(WORDS[:2]), kept(WORDS[:2])] == [15, 15]
    assert calls == [2, 2, 2]  # the first time twice


def test_memory_is_bounded_and_given_back() -> None:
    row = 4 * (3 * 5 + 5)
    kept, small = encoder(most=2 * row)
    for n in (0, 1, 2, 1, 2, 0):
        kept(WORDS[[n]])
    assert small.rows == [[0], [3], [6], [0]]  # the oldest left
    assert kept.forget()
    assert not kept.forget()
    kept(WORDS[[2]])
    kept(WORDS[[2]])
    assert small.rows[4:] == [[6], [6]]
