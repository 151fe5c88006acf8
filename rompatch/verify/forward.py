"""One forward pass over a batch of rows: logits where they are asked for and nowhere else, layers below handed back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rompatch.offload import input_device
from rompatch.recording import capture_outputs, handing_back, hidden_states, with_hidden_states
from rompatch.verify.layout import Batch
from rompatch.verify.prefix_tree import PrefixForest
from rompatch.verify.updates import Edit, adding


class LayerRecording:
    """What the last of some lower layers gave at each node of a forest.

    Args:
        layers: the layers below the lowest edited one.
        n_nodes: nodes of the forest.
    """

    def __init__(self, layers: Sequence[nn.Module], n_nodes: int) -> None:
        self._layers, self._n_nodes = list(layers), n_nodes
        self._form: Any = None
        self._states = torch.empty(0)

    @contextmanager
    def recording(self, batch: Batch) -> Iterator[None]:
        """Keep what the layers give for *batch* while the context lasts.

        Raises:
            TypeError: a layer returns more than hidden states.
        """
        with capture_outputs(self._layers[-1]) as seen:
            yield
        states = hidden_states(seen[-1])
        if self._form is None:
            self._form = with_hidden_states(seen[-1], torch.empty(0))
            self._states = states.new_empty(self._n_nodes, states.shape[-1])
        nodes = batch.nodes().to(states.device)
        self._states[nodes[nodes >= 0]] = states[nodes >= 0]

    @contextmanager
    def replaying(self, batch: Batch, twins: Tensor) -> Iterator[None]:
        """The layers hand back, at each token of *batch*, what was recorded at ``twins[node]``."""
        nodes = batch.nodes()
        found = torch.where(nodes < 0, 0, twins[nodes.clamp(min=0)]).to(self._states.device)
        output = with_hidden_states(self._form, self._states[found])
        with handing_back(self._layers, [output] * len(self._layers)):
            yield


@dataclass(frozen=True)
class Pass:
    """How a batch is run: on which model, padded with which id, hidden states gathered before the head or not."""

    model: PreTrainedModel
    pad_id: int
    gathers: bool = True

    def logits(self, forest: PrefixForest, batch: Batch, cells: Tensor, edits: Sequence[Edit] = ()) -> Tensor:
        """(n_cells, vocab): the logits at the tokens *cells*, counted row by row over the padded batch.

        Tokens whose node has the edit number r run under ``edits[r]``.
        """
        device = input_device(self.model)
        inputs = {name: value.to(device) for name, value in batch.inputs(forest, self.pad_id, self.model.dtype).items()}
        where = cells.to(device)
        with ExitStack() as stack:
            if edits:
                edit_of = torch.tensor(forest.edits)[batch.nodes().clamp(min=0)].flatten().to(device)
                stack.enter_context(adding(edits, edit_of))
            if self.gathers:
                stack.enter_context(_gathered(self.model.get_output_embeddings(), where, batch.n_tokens))
            logits: Tensor = self.model(**inputs, use_cache=False).logits
        if logits.shape[:2] == (1, len(where)) and self.gathers:
            return logits[0]
        return logits.reshape(batch.n_tokens, -1)[where.to(logits.device)]


@contextmanager
def _gathered(head: nn.Module | None, cells: Tensor, n_tokens: int) -> Iterator[None]:
    """Hand *head* the hidden states at *cells* alone, in one piece of memory, as (1, n_cells, width)."""

    def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        flat = args[0].reshape(-1, args[0].shape[-1])
        return (flat[cells.to(flat.device)][None], *args[1:]) if len(flat) == n_tokens else None

    handle = None if head is None else head.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()
