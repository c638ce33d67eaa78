"""Equal prompts are encoded once: what a text encoder makes of them is kept for later calls."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.utils.generic import ModelOutput

from jobs.models.options import Options
from worker.pipelines.placement import ENCODER

KEPT_BYTES = 256 << 20  # of each encoder, where it is: 60 prompts of FLUX.1, 2 of FLUX.2-klein
_INPUTS = {"input_ids", "attention_mask"}
_OPTIONS = {"output_hidden_states", "use_cache"}

Tensors = torch.Tensor | tuple[torch.Tensor, ...]
Row = dict[str, Tensors]
Key = tuple[object, ...]


@dataclass
class Encoder:
    """The forward of a text encoder, which remembers what rows of its input became.

    That depends on the row, on how many there are and on the adapter, never on its neighbours. So
    rows that are not known are encoded in as many as were asked for, and no byte changes.
    """

    forward: Callable[..., Any]
    adapter: Callable[[], str | None]
    most: int = KEPT_BYTES
    _kept: OrderedDict[Key, Row] = field(default_factory=OrderedDict)
    _bytes: int = 0
    _kind: type[ModelOutput] | None = None
    _opaque: bool = False  # its output does not tell rows apart

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """As the forward. Whatever it is called with but text is not kept."""
        if len(arguments) == 1:
            options, arguments = {"input_ids": arguments[0], **options}, ()
        inputs: dict[str, Any] = {
            name: options[name] for name in _INPUTS if options.get(name) is not None
        }
        others = {name: options[name] for name in options.keys() - _INPUTS}
        are_rows = all(isinstance(one, torch.Tensor) and one.ndim == 2 for one in inputs.values())
        if self._opaque or arguments or not inputs or not are_rows or not others.keys() <= _OPTIONS:
            return self.forward(*arguments, **options)
        keys = self._keys(inputs, others)
        found = {key: self._kept[key] for key in keys if key in self._kept}
        for key in found:
            self._kept.move_to_end(key)
        if new := list(dict.fromkeys(key for key in keys if key not in found)):
            places = [keys.index(key) for key in new]
            places += places[-1:] * (len(keys) - len(new))
            made = self.forward(**others, **{name: one[places] for name, one in inputs.items()})
            rows = _rows(made, len(keys))
            if rows is None:
                self._opaque = True
                return self.forward(**options)
            self._kind = type(made)
            found |= dict(zip(new, rows, strict=False))
            for key in new:
                self._keep(key, found[key])
            if new == keys:  # as most prompts are: nothing is to be copied together
                return made
        return self._kind(**_joined([found[key] for key in keys]))  # type: ignore[misc]

    def forget(self) -> bool:
        """Give the memory back, and take none any more; false if nothing was kept."""
        had = bool(self._kept)
        self._kept.clear()
        self.most = self._bytes = 0
        return had

    def _keys(self, inputs: dict[str, torch.Tensor], others: dict[str, Any]) -> list[Key]:
        columns = [inputs[name].cpu().numpy() for name in sorted(inputs)]
        common = (len(columns[0]), self.adapter(), *sorted(others.items()))
        return [
            (*common, *(column[n].tobytes() for column in columns)) for n in range(len(columns[0]))
        ]

    def _keep(self, key: Key, row: Row) -> None:
        if (size := _size(row)) > self.most:
            return
        # Copied: a view would hold on to what the other rows became.
        self._kept[key] = {name: _each(value, torch.clone) for name, value in row.items()}
        self._bytes += size
        while self._bytes > self.most:
            self._bytes -= _size(self._kept.popitem(last=False)[1])


def keep_encoded(
    pipeline: Any, options: Options, adapter: Callable[[], str | None]
) -> list[Encoder]:
    """Have each text encoder of a pipeline remember. adapter: the one that is in use.

    Not with an offload whose hooks replace the forward after each call.
    """
    if options.hooks_calls:
        return []
    parts = [part for name, part in pipeline.components.items() if name.startswith(ENCODER)]
    encoders = []
    for part in parts:
        if isinstance(part, torch.nn.Module):
            part.forward = Encoder(part.forward, adapter)
            encoders.append(part.forward)
    return encoders


def _rows(made: object, count: int) -> list[Row] | None:
    """What each row became; None if that cannot be told apart. A cache of keys is left out."""
    if not isinstance(made, ModelOutput):
        return None
    fields = {name: one for name, one in made.items() if _is_tensors(one)}
    if any(len(one) != count for value in fields.values() for one in _flat(value)):
        return None

    def row(n: int) -> Row:
        return {name: _each(value, lambda one: one[n : n + 1]) for name, value in fields.items()}

    return [row(n) for n in range(count)]


def _joined(rows: Sequence[Row]) -> Row:
    joined: Row = {}
    for name, first in rows[0].items():
        columns = zip(*(_flat(row[name]) for row in rows), strict=True)
        tensors = tuple(torch.cat(column) for column in columns)
        joined[name] = tensors if isinstance(first, tuple) else tensors[0]
    return joined


def _each(value: Tensors, change: Callable[[torch.Tensor], torch.Tensor]) -> Tensors:
    return tuple(map(change, value)) if isinstance(value, tuple) else change(value)


def _flat(value: Tensors) -> Sequence[torch.Tensor]:
    return value if isinstance(value, tuple) else (value,)


def _is_tensors(value: object) -> bool:
    flat = value if isinstance(value, tuple) else (value,)
    return all(isinstance(one, torch.Tensor) for one in flat)


def _size(row: Row) -> int:
    return sum(one.numel() * one.element_size() for value in row.values() for one in _flat(value))
