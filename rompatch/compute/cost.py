"""What computing an edit costs, in operations and in bytes (docs/speed.md explains the formulas).

The floor: nothing but the products of the weights with the tokens that an edit can change. Attention's own products
grow with the length of a row and are counted too; norms, rotations and activations are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from rompatch.architectures import Architecture
from rompatch.compute.rows import ValueRows
from rompatch.sites import layer_modules

FLOAT = 4
"""Bytes of a float32."""
_HIDDEN_PER_TOKEN, _INNER_PER_TOKEN = 18, 6
"""Tensors of the residual stream's width and of the MLP's that one layer keeps for the backward pass."""
_LOGITS_PER_READ = 5
"""Tensors of the vocabulary's width that the loss keeps."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder.

    Args:
        layer_weights: entries of one layer's matrices, the mean over layers.
        head_weights: entries of the output head, vocab * hidden.
        n_layers, hidden, inner, vocab: layers; widths of the residual stream and the MLP; tokens.
        cache_width: entries that one token keeps in one layer's cache.
    """

    layer_weights: float
    head_weights: int
    n_layers: int
    hidden: int
    inner: int
    vocab: int
    cache_width: int


def shape_of(model: PreTrainedModel, architecture: Architecture, d_in: int) -> ModelShape:
    """The sizes of *model*, whose sites are *d_in* wide; read from its parameters, offloaded ones too."""
    layers = layer_modules(model, architecture)
    matrices = sum(p.numel() for layer in layers for p in layer.parameters() if p.dim() == 2)
    config = model.config.get_text_config()
    hidden, heads = int(config.hidden_size), int(config.num_attention_heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    vocab = int(model.get_output_embeddings().weight.shape[0])
    head_dim = int(getattr(config, "head_dim", None) or hidden // heads)
    return ModelShape(
        layer_weights=matrices / len(layers),
        head_weights=vocab * hidden,
        n_layers=len(layers),
        hidden=hidden,
        inner=d_in,
        vocab=vocab,
        cache_width=2 * kv_heads * head_dim,
    )


@dataclass(frozen=True)
class EditCost:
    """Floating-point operations of one edit by phase (a multiplication and an addition count as two).

    Args:
        keys: gathering k* for every context, up to the site.
        record: the pass over the prefixes, and the layers below the site over the tails.
        forward, backward: one step of each.
    """

    keys: float
    record: float
    forward: float
    backward: float

    def total(self, steps: int) -> float:
        """With *steps* evaluations of the objective: the last one needs no gradient."""
        return self.keys + self.record + steps * self.forward + (steps - 1) * self.backward


def replay_cost(shape: ModelShape, layer: int, requests: Sequence[ValueRows], n_key_tokens: int = 0) -> EditCost:
    """The operations that replaying *requests* at *layer* needs, without any padding.

    Args:
        n_key_tokens: tokens of all contexts up to the subject, for the phase "keys".
    """
    rows = [row for request in requests for row in request.rows]
    lengths, tails = [len(row.ids) for row in rows], [row.tail for row in rows]
    prefix = sum(lengths) - sum(tails)
    n_read = sum((len(request.rows) - 1) * request.n_target + 1 for request in requests)
    above = shape.n_layers - layer
    tail_attention = sum(tail * length for tail, length in zip(tails, lengths, strict=True)) * 4 * shape.hidden
    one_layer = 2 * shape.layer_weights * sum(tails) + tail_attention
    head = 2 * shape.head_weights * n_read
    return EditCost(
        keys=2 * shape.layer_weights * (layer + 1) * n_key_tokens,
        record=2 * shape.layer_weights * (shape.n_layers * prefix + layer * sum(tails)),
        forward=one_layer * above + head,
        backward=one_layer * (above - 1) + head,  # delta enters behind the site's layer
    )


def naive_cost(shape: ModelShape, layer: int, requests: Sequence[ValueRows]) -> EditCost:
    """The operations of the plain loop: every layer and every position at every step, all logits, padding included."""
    width = max(request.length for request in requests)
    n_tokens = width * sum(len(request.rows) for request in requests)
    attention = 4 * shape.hidden * width * n_tokens
    one_layer = 2 * shape.layer_weights * n_tokens + attention
    head = 2 * shape.head_weights * n_tokens
    return EditCost(
        keys=0.0,
        record=0.0,
        forward=one_layer * shape.n_layers + head,
        backward=one_layer * (shape.n_layers - layer - 1) + head,
    )


def step_bytes(shape: ModelShape, layer: int, requests: Sequence[ValueRows]) -> int:
    """Memory of one step of a replayed batch, recordings included, padding too; the weights not. An estimate on the
    safe side, for choosing the batch."""
    tail, width = max(request.tail for request in requests), max(request.length for request in requests)
    n_rows = sum(len(request.rows) for request in requests)
    n_read = sum((len(request.rows) - 1) * request.n_target + 1 for request in requests)
    graph = n_rows * tail * (shape.n_layers - layer)
    kept = graph * (_HIDDEN_PER_TOKEN * shape.hidden + _INNER_PER_TOKEN * shape.inner)
    cache = n_rows * width * shape.n_layers * shape.cache_width
    recorded = n_rows * tail * layer * shape.hidden
    return FLOAT * (kept + cache + recorded + n_read * shape.vocab * _LOGITS_PER_READ)


def plain_step_bytes(shape: ModelShape, requests: Sequence[ValueRows]) -> int:
    """The same of the plain loop: every layer, every position, all logits."""
    n_tokens = max(request.length for request in requests) * sum(len(request.rows) for request in requests)
    kept = shape.n_layers * (_HIDDEN_PER_TOKEN * shape.hidden + _INNER_PER_TOKEN * shape.inner)
    return FLOAT * n_tokens * (kept + shape.vocab * _LOGITS_PER_READ)
