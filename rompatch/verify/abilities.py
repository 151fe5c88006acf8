"""What a model can be asked for, found by trying it out on a few short sequences, once for each live model.

The oracle is the plain pass: a row for each sequence, every layer, all logits. What agrees with it is used; where it
does not agree (attention with its own idea of positions, an attention kernel without masks), the engine does without.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rompatch.trials import REFUSALS, is_refusal
from rompatch.verify.forward import LayerRecording, Pass
from rompatch.verify.layout import Batch
from rompatch.verify.prefix_tree import PrefixForest

_PROBE = ((3, 11, 19, 5, 7, 13), (3, 11, 19, 17, 2, 23, 29), (3, 31, 1, 6), (37, 4, 9, 14, 8))
"""Sequences with beginnings in common and without; made into tokens modulo the vocabulary."""

_WINDOW = re.compile(r"(window|window_size|attention_chunk_size)$")
"""Names under which configurations have the width of an attention window ("sliding_window", "window_size", ...)."""

_AGREEMENT = {torch.float32: 3e-5, torch.float64: 3e-5}
_ROUGH_AGREEMENT = 0.05
"""Largest difference of logits, relative to the largest logit, that counts as agreement; in half precision."""


@dataclass
class Abilities:
    """Args:
    packs: rows of several sequences with a mask over pairs of tokens give the plain pass's logits.
    gathers: the head may be given single positions.
    max_width: tokens that a packed row may have: no more than the narrowest attention window, which a mask given
        from outside would overrule.
    skips: by layer: the layers below it may hand back what they gave before.
    """

    packs: bool = False
    gathers: bool = True
    max_width: int = 0
    skips: dict[int, bool] = field(default_factory=dict)


_KNOWN: WeakKeyDictionary[PreTrainedModel, Abilities] = WeakKeyDictionary()


def known_abilities(model: PreTrainedModel) -> Abilities | None:
    """What was found for *model* before; None when it was not tried yet."""
    return _KNOWN.get(model)


def abilities_of(model: PreTrainedModel, pad_id: int) -> Abilities:
    """What *model* can do, tried out the first time. One whose weights are not finite is tried again the next time."""
    known = _KNOWN.get(model)
    if known is not None:
        return known
    probe = _Probe(model, pad_id)
    found = probe.abilities()
    if probe.expected.isfinite().all():
        _KNOWN[model] = found
    return found


def can_skip(model: PreTrainedModel, pad_id: int, layers: Sequence[nn.Module]) -> bool:
    """Whether *layers*, the lowest ones of *model*, may hand back what they gave before."""
    able = abilities_of(model, pad_id)
    if len(layers) not in able.skips:
        able.skips[len(layers)] = bool(layers) and _Probe(model, pad_id).skips(layers, able)
    return able.skips[len(layers)]


def narrowest_window(model: PreTrainedModel) -> int | None:
    """Tokens of the narrowest attention window that the configuration names; None where it names none."""
    config = model.config.get_text_config().to_dict()
    windows = [value for name, value in config.items() if _WINDOW.search(name) and type(value) is int and value > 0]
    return min(windows, default=None)


class _Probe:
    """A few short sequences, and the logits that the plain pass gives at the end of each."""

    def __init__(self, model: PreTrainedModel, pad_id: int) -> None:
        vocab = int(model.config.get_text_config().vocab_size)
        self._model, self._pad_id, self._forest = model, pad_id, PrefixForest()
        self._paths = [self._forest.add([token % vocab for token in sequence]) for sequence in _PROBE]
        self._rows = Batch(self._paths, packed=False)
        self._row = Batch([self._forest.preorder()], packed=True)
        self.expected = self._logits(self._rows, gathers=False)

    def abilities(self) -> Abilities:
        """All but what can be skipped."""
        width = narrowest_window(self._model) or 2**31
        takes_positions = "position_ids" in inspect.signature(self._model.forward).parameters
        if takes_positions and width >= self._row.width and self._agrees(lambda: self._logits(self._row)):
            return Abilities(packs=True, max_width=width)
        return Abilities(gathers=self._agrees(lambda: self._logits(self._rows)))

    def skips(self, layers: Sequence[nn.Module], able: Abilities) -> bool:
        """Whether a pass with *layers* handing back their recordings agrees."""
        batch = self._row if able.packs else self._rows
        recording = LayerRecording(layers, len(self._forest))

        def again() -> Tensor:
            with recording.recording(batch):
                self._logits(batch, able.gathers)
            with recording.replaying(batch, torch.arange(len(self._forest))):
                return self._logits(batch, able.gathers)

        return self._agrees(again)

    def _logits(self, batch: Batch, gathers: bool = True) -> Tensor:
        cells = {node: cell for cell, node in reversed(list(enumerate(batch.nodes().flatten().tolist())))}
        last = torch.tensor([cells[path[-1]] for path in self._paths])
        return Pass(self._model, self._pad_id, gathers).logits(self._forest, batch, last).float()

    def _agrees(self, attempt: Callable[[], Tensor]) -> bool:
        try:
            found = attempt()
        except REFUSALS as problem:
            if not is_refusal(problem):
                raise
            return False
        limit = _AGREEMENT.get(self._model.dtype, _ROUGH_AGREEMENT) * max(1.0, self.expected.abs().max().item())
        return found.shape == self.expected.shape and (found - self.expected).abs().max().item() <= limit


def layers_below(model: Any, module_name: str, layer: int) -> list[nn.Module]:
    """The decoder layers below *layer*, from the dotted name of a module in it ("model.layers.4.mlp.down_proj")."""
    path, found, _ = module_name.partition(f".{layer}.")
    layers = model.get_submodule(path) if found else None
    return list(layers[:layer]) if isinstance(layers, nn.ModuleList) else []
