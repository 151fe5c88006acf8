"""Running what an edit can change, and nothing else.

An edit touches one position of one layer, so most of a forward pass is the same at every optimisation step:

1. layers below the site never change: their output is recorded once and handed back;
2. positions before the subject's last token never change: their keys and values are recorded once. Rows are aligned
   at their ends, so all contexts share one tail (subject's last token to the end) and a step runs over the tail only;
3. logits are needed where a target token is predicted, at the row's last positions;
4. the essence prompt is read at the subject's last token, so it ends there.

The model's own forward runs every time, with its own masks, positions and caches; below the site the layers'
``forward`` is replaced by the recording while a step lasts. There is no per-architecture code. :class:`FullForward`
is the plain loop (whole sequences, no recording): the oracle, and the fallback where a replay disagrees with it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from rompatch.hooks import contiguous_input, edit_output
from rompatch.sites import Site
from rompatch.tokens import Batch, pad


@dataclass(frozen=True)
class EditedRow:
    """One sequence: its ids and the index of the token at which delta is added to the site's output."""

    ids: list[int]
    edit_index: int


class Replayer(Protocol):
    """Anything that maps delta (d_out,) to the logits at each row's last positions, (n_rows, n_logits, vocab)."""

    def logits(self, delta: Tensor) -> Tensor:
        """Differentiable in *delta*."""
        ...


class FullForward:
    """The plain loop: every layer, every position of every row, all logits, at every step."""

    def __init__(
        self, model: PreTrainedModel, site: Site, rows: Sequence[EditedRow], *, n_logits: int, pad_id: int
    ) -> None:
        self._model, self._site, self._n_logits = model, site, n_logits
        self._batch = pad([row.ids for row in rows], pad_id, side="left", device=model.device)
        width = self._batch.input_ids.shape[1]
        self._positions = [width - len(row.ids) + row.edit_index for row in rows]

    def logits(self, delta: Tensor) -> Tensor:
        """See :class:`Replayer`."""
        with edit_output(self._site.module, add_at(delta, self._positions, self._batch.input_ids.shape)):
            output = self._model(**_inputs(self._model, self._batch), use_cache=False)
        logits: Tensor = output.logits[:, -self._n_logits :]
        return logits.float()


class Replay:
    """The recording of everything a step does not change, and the step over the rest (see the module's docstring)."""

    def __init__(
        self,
        model: PreTrainedModel,
        layers: nn.ModuleList,
        site: Site,
        rows: Sequence[EditedRow],
        *,
        n_logits: int,
        pad_id: int,
    ) -> None:
        self._model, self._layers, self._site, self._n_logits = model, layers, site, n_logits
        batch = pad([row.ids for row in rows], pad_id, side="left", device=model.device)
        width = batch.input_ids.shape[1]
        tail = max(n_logits, *(len(row.ids) - row.edit_index for row in rows))
        self._tail_shape = (len(rows), tail)
        self._positions = [tail - len(row.ids) + row.edit_index for row in rows]
        self._below: list[Any] = []
        with torch.no_grad():
            cache = self._record_prefix(batch, width - tail)
            self._kwargs = _inputs(model, batch, start=width - tail)
            self._cache = cache
            self._record_below()

    def logits(self, delta: Tensor) -> Tensor:
        """See :class:`Replayer`."""
        with self._replaying(), edit_output(self._site.module, add_at(delta, self._positions, self._tail_shape)):
            return self._forward().float()

    def _forward(self) -> Tensor:
        cached = {"use_cache": False} if self._cache is None else {"use_cache": True, "past_key_values": self._cache}
        with contiguous_input(self._model.get_output_embeddings()):
            output = self._model(**self._kwargs, **cached, logits_to_keep=self._n_logits)
        logits: Tensor = output.logits[:, -self._n_logits :]
        return logits

    def _record_prefix(self, batch: Batch, n_prefix: int) -> FrozenCache | None:
        if n_prefix == 0:
            return None
        cache = FrozenCache(config=self._model.config)
        kwargs = _inputs(self._model, batch, stop=n_prefix)
        self._model(**kwargs, use_cache=True, past_key_values=cache, logits_to_keep=1)
        cache.freeze(padding=batch.attention_mask[:, :n_prefix] == 0)
        return cache

    def _record_below(self) -> None:
        """One step that keeps what each layer below the site's returns."""
        recorded: list[Any] = []
        with ExitStack() as stack:
            for layer in self._layers[: self._site.layer]:
                handle = layer.register_forward_hook(lambda _module, _args, output: recorded.append(output))
                stack.callback(handle.remove)
            self._forward()
        self._below = recorded

    @contextmanager
    def _replaying(self) -> Iterator[None]:
        """Layers below the site's hand back their recordings."""
        lower = list(self._layers[: self._site.layer])
        own = [vars(layer).get("forward") for layer in lower]  # accelerate's hooks put one on the layer itself
        try:
            for layer, output in zip(lower, self._below, strict=True):
                layer.forward = _returning(output)
            yield
        finally:
            for layer, forward in zip(lower, own, strict=True):
                if forward is None:
                    vars(layer).pop("forward", None)
                else:
                    layer.forward = forward


class FrozenCache(DynamicCache):
    """A key-value cache that stops growing: after :meth:`freeze` an update returns the longer keys and keeps none."""

    _frozen = False

    def freeze(self, padding: Tensor) -> None:
        """Keep what is there. Padded positions, (n_rows, n_prefix), become zero: they are masked, but an attention
        that saw nothing may have left NaN there, and 0 * NaN is NaN."""
        for layer in self.layers:
            keys, values = _states(layer)
            hidden = padding[:, None, -keys.shape[-2] :, None]
            layer.keys, layer.values = keys.masked_fill(hidden, 0.0), values.masked_fill(hidden, 0.0)  # type: ignore[union-attr]
        self._frozen = True

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


def add_at(delta: Tensor, positions: Sequence[int], shape: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """An output edit: adds *delta* (d_out,) at ``positions[i]`` of row i, for outputs (n_rows, n_tokens, d_out) or the
    same flattened over rows."""
    n_rows, n_tokens = shape

    def edit(output: Tensor) -> Tensor:
        flat_index = torch.arange(n_rows, device=output.device) * n_tokens + torch.tensor(
            positions, device=output.device
        )
        rows = delta.to(output).expand(n_rows, -1)
        return output.reshape(n_rows * n_tokens, -1).index_add(0, flat_index, rows).reshape(output.shape)

    return edit


def _returning(value: Any) -> Callable[..., Any]:
    return lambda *_args, **_kwargs: value


def _inputs(model: PreTrainedModel, batch: Batch, *, start: int = 0, stop: int | None = None) -> dict[str, Tensor]:
    """Keyword arguments for tokens *start* to *stop*: the mask covers everything up to *stop*."""
    kwargs = {"input_ids": batch.input_ids[:, start:stop], "attention_mask": batch.attention_mask[:, :stop]}
    if "position_ids" in inspect.signature(model.forward).parameters:
        kwargs["position_ids"] = batch.position_ids[:, start:stop]
    return kwargs
