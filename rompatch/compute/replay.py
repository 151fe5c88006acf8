"""Running what an edit can change, and nothing else.

An edit touches one position of a layer or a few, so most of a forward pass is the same at every optimisation step:

1. layers below the (lowest) site never change: their output is recorded once and handed back;
2. positions before the subject's last token never change: their keys and values are recorded once. Rows are aligned
   at their ends, so all contexts of all requests share one tail (subject's last token to the end) and a step runs over
   the tail only;
3. logits are needed where a target token is predicted, and nowhere else;
4. the essence prompt is read at the subject's last token, so it ends there.

The model's own forward runs every time, with its own masks, positions and caches; below the sites the layers'
``forward`` is replaced by the recording while a step lasts. There is no per-architecture code. :class:`FullForward`
is the plain loop (whole sequences, no recording): the oracle, and the fallback where a replay disagrees with it.

Both take ``products``, a context in which the model's products run in another precision
(:mod:`rompatch.compute.precision`).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from transformers import DynamicCache, PreTrainedModel

from rompatch.compute.rows import RowBatch
from rompatch.hooks import capture_inputs, edit_output, recomputed, until_stopped
from rompatch.offload import input_device, is_offloaded
from rompatch.recording import capture_outputs, handing_back
from rompatch.sites import Site
from rompatch.tokens import Batch, pad

Products = Callable[[], AbstractContextManager[None]]


class Replayer(Protocol):
    """Anything that maps the deltas of each request, (n_requests, n_sites, d_out), to the logits that are read,
    (n_read, vocab)."""

    def logits(self, delta: Tensor) -> Tensor:
        """Differentiable in *delta*."""
        ...

    def narrow(self, kept: Sequence[int]) -> Replayer:
        """A replayer of the requests *kept* alone."""
        ...


class FullForward:
    """The plain loop: every layer, every position of every row, all logits, at every step."""

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Sequence[nn.Module],
        sites: Sequence[Site],
        batch: RowBatch,
        *,
        pad_id: int,
        products: Products = nullcontext,
    ) -> None:
        self._model, self._layers, self._sites, self._batch = model, list(layers), list(sites), batch
        self._pad_id, self._products = pad_id, products
        self._tokens = pad([row.ids for row in batch.rows], pad_id, side="left", device=input_device(model))
        width = self._tokens.input_ids.shape[1]
        self._edit = batch.edit_positions(width)
        self._reads = batch.read_positions(width)

    def logits(self, delta: Tensor) -> Tensor:
        """See :class:`Replayer`."""
        edit = added(self._sites, delta[self._batch.row_request], self._edit)
        with self._products(), offloading(self._model, self._layers, self._sites), edit:
            output = self._model(**_inputs(self._model, self._tokens), use_cache=False)
        logits: Tensor = output.logits.reshape(-1, output.logits.shape[-1])[self._reads]
        return logits.float()

    def narrow(self, kept: Sequence[int]) -> FullForward:
        """See :class:`Replayer`."""
        options: dict[str, Any] = {"pad_id": self._pad_id, "products": self._products}
        return FullForward(self._model, self._layers, self._sites, self._batch.narrow(kept), **options)


class Replay:
    """The recording of everything a step does not change, and the step over the rest (see the module's docstring)."""

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Sequence[nn.Module],
        sites: Sequence[Site],
        batch: RowBatch,
        *,
        pad_id: int,
        products: Products = nullcontext,
    ) -> None:
        self._model, self._layers, self._sites = model, list(layers), list(sites)
        self._lowest = min(sites, key=lambda site: site.layer)
        self._products, self._pad_id = products, pad_id
        self._batch = batch
        self._tail = max(request.tail for request in batch.requests)
        tokens = pad([row.ids for row in batch.rows], pad_id, side="left", device=input_device(model))
        n_prefix = tokens.input_ids.shape[1] - self._tail
        with torch.no_grad():
            self._cache = self._record_prefix(tokens, n_prefix)
            self._kwargs = _inputs(model, tokens, start=n_prefix)
            self._below = self._record_below()
        self._index()

    def logits(self, delta: Tensor) -> Tensor:
        """See :class:`Replayer`."""
        edit = added(self._sites, delta[self._batch.row_request], self._edit)
        with self._replaying(), self._products(), offloading(self._model, self._layers, self._sites), edit:
            return self._forward().float()

    def narrow(self, kept: Sequence[int]) -> Replay:
        """See :class:`Replayer`. *kept* ascends. Selects from the recordings; where they cannot be divided by rows,
        they are made again."""
        try:
            return self._selected(kept)
        except TypeError:
            options: dict[str, Any] = {"pad_id": self._pad_id, "products": self._products}
            return Replay(self._model, self._layers, self._sites, self._batch.narrow(kept), **options)

    def _selected(self, kept: Sequence[int]) -> Replay:
        wanted = torch.isin(self._batch.row_request, torch.tensor(kept)).nonzero()[:, 0]
        part = object.__new__(Replay)
        part._model, part._layers, part._tail = self._model, self._layers, self._tail
        part._sites, part._lowest = self._sites, self._lowest
        part._products, part._pad_id = self._products, self._pad_id
        part._batch = self._batch.narrow(kept)
        part._cache = None if self._cache is None else self._cache.select(wanted)
        select = _row_selector(len(self._batch.row_request), wanted)
        part._kwargs = tree_map_only(Tensor, select, self._kwargs)
        part._below = tree_map_only(Tensor, select, self._below)
        part._index()
        return part

    def _index(self) -> None:
        self._edit = self._batch.edit_positions(self._tail)
        self._reads = self._batch.read_positions(self._tail)

    def _forward(self) -> Tensor:
        cached = {"use_cache": False} if self._cache is None else {"use_cache": True, "past_key_values": self._cache}
        with selected_input(self._model.get_output_embeddings(), self._reads):
            output = self._model(**self._kwargs, **cached)
        logits: Tensor = output.logits[0]
        return logits

    def _record_prefix(self, tokens: Batch, n_prefix: int) -> FrozenCache | None:
        if n_prefix == 0:
            return None
        cache = FrozenCache(config=self._model.config)
        kwargs = _inputs(self._model, tokens, stop=n_prefix)
        with self._products(), capture_inputs(self._model.get_output_embeddings(), stop=True), until_stopped():
            self._model(**kwargs, use_cache=True, past_key_values=cache)
        cache.freeze(padding=tokens.attention_mask[:, :n_prefix] == 0)
        return cache

    def _record_below(self) -> list[Any]:
        """What each layer below the lowest site's returns, from a pass over the tail that stops above them."""
        cached = {"use_cache": False} if self._cache is None else {"use_cache": True, "past_key_values": self._cache}
        with ExitStack() as stack:
            seen = [stack.enter_context(capture_outputs(layer)) for layer in self._layers[: self._lowest.layer]]
            stack.enter_context(capture_inputs(self._lowest.module, stop=True))
            stack.enter_context(until_stopped())
            self._model(**self._kwargs, **cached)
        return [outputs[0] for outputs in seen]

    def _replaying(self) -> AbstractContextManager[None]:
        """Layers below the lowest site's hand back their recordings."""
        return handing_back(self._layers[: self._lowest.layer], self._below)


def offloading(
    model: PreTrainedModel, layers: Sequence[nn.Module], sites: Sequence[Site]
) -> AbstractContextManager[None]:
    """Where weights are brought in layer by layer, autograd must not keep them until the backward pass. The sites' own
    layers are left out: the hooks that edit them are gone by then."""
    edited = {site.layer for site in sites}
    above = range(min(edited) + 1, len(layers))
    return (
        recomputed([layers[layer] for layer in above if layer not in edited]) if is_offloaded(model) else nullcontext()
    )


class FrozenCache(DynamicCache):
    """A key-value cache that stops growing: after :meth:`freeze` an update returns the longer keys and keeps none."""

    _frozen = False

    def freeze(self, padding: Tensor) -> None:
        """Keep what is there. Padded positions, (n_rows, n_prefix), become zero: they are masked, but an attention
        that saw nothing may have left NaN there, and 0 * NaN is NaN."""
        for layer in self.layers:
            keys, values = _states(layer)
            hidden = padding[:, None, -keys.shape[-2] :, None].to(keys.device)
            layer.keys, layer.values = keys.masked_fill(hidden, 0.0), values.masked_fill(hidden, 0.0)  # type: ignore[union-attr]
        self._frozen = True

    def select(self, rows: Tensor) -> FrozenCache:
        """A frozen cache of *rows* alone."""
        part = copy.copy(self)
        part.layers = [copy.copy(layer) for layer in self.layers]
        for layer in part.layers:
            keys, values = _states(layer)
            layer.keys, layer.values = keys[rows.to(keys.device)], values[rows.to(values.device)]  # type: ignore[union-attr]
        return part

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keys and values so far with the new ones behind them, along the token axis."""
        if not self._frozen:
            grown: tuple[Tensor, Tensor] = super().update(key_states, value_states, layer_idx, *args, **kwargs)
            return grown
        keys, values = _states(self.layers[layer_idx])
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)


def _states(layer: object) -> tuple[Tensor, Tensor]:
    """Keys and values that one layer's cache holds, each (n_rows, n_heads, n_tokens, head_dim).

    Raises:
        TypeError: another kind of state (linear attention, shared caches): such a model cannot be replayed.
    """
    keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
    if not isinstance(keys, Tensor) or not isinstance(values, Tensor):
        raise TypeError(f"{type(layer).__name__} holds no keys and values")
    return keys, values


@contextmanager
def added(sites: Sequence[Site], deltas: Tensor, positions: Tensor) -> Iterator[None]:
    """Each of *sites* adds its own of *deltas* (n, n_sites, d_out) at *positions* (n,) of its output's tokens."""
    with ExitStack() as stack:
        for site, rows in zip(sites, deltas.unbind(dim=1), strict=True):
            stack.enter_context(edit_output(site.module, add_at(rows, positions)))
        yield


def add_at(rows: Tensor, positions: Tensor) -> Callable[[Tensor], Tensor]:
    """An output edit: adds ``rows[i]`` of (n, d_out) at ``positions[i]`` of the output's tokens, all rows of them laid
    one after the other: (n_rows, n_tokens, d_out), or the same flattened."""

    def edit(output: Tensor) -> Tensor:
        flat = output.reshape(-1, output.shape[-1])
        return flat.index_add(0, positions.to(flat.device), rows.to(flat)).reshape(output.shape)

    return edit


@contextmanager
def selected_input(module: nn.Module, positions: Tensor) -> Iterator[None]:
    """Hand *module* the tokens at *positions* of its input alone, (1, n, d), in one piece of memory: the input's rows
    count as laid one after the other. A slice of hidden states would be multiplied row by row, reading the whole
    weight each time."""

    def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        states = args[0]
        return (states.reshape(-1, states.shape[-1])[positions.to(states.device)][None], *args[1:])

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _row_selector(n_rows: int, wanted: Tensor) -> Callable[[Tensor], Tensor]:
    def select(tensor: Tensor) -> Tensor:
        if tensor.dim() and tensor.shape[0] == n_rows:
            return tensor[wanted.to(tensor.device)]
        if tensor.dim() and tensor.shape[0] == 1:
            return tensor
        raise TypeError(f"a recording of shape {tuple(tensor.shape)} for {n_rows} rows")

    return select


def _inputs(model: PreTrainedModel, batch: Batch, *, start: int = 0, stop: int | None = None) -> dict[str, Tensor]:
    """Keyword arguments for tokens *start* to *stop*: the mask covers everything up to *stop*."""
    kwargs = {"input_ids": batch.input_ids[:, start:stop], "attention_mask": batch.attention_mask[:, :stop]}
    if "position_ids" in inspect.signature(model.forward).parameters:
        kwargs["position_ids"] = batch.position_ids[:, start:stop]
    return kwargs
