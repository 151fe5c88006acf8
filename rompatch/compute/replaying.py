"""Which of the two ways an optimisation runs: a replay where it says what the model says, else the plain loop."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel

from rompatch.compute.replay import FullForward, Products, Replay, Replayer
from rompatch.compute.rows import RowBatch, ValueRows
from rompatch.models import Base
from rompatch.sites import Site, layer_modules
from rompatch.tokens import pad_id
from rompatch.trials import REFUSALS, is_refusal

_VERDICTS: WeakKeyDictionary[PreTrainedModel, dict[tuple[tuple[str, ...], str, bool], bool]] = WeakKeyDictionary()
"""By model, then by sites, precision and whether rows have a prefix: whether a replay agreed with the plain forward."""

TOLERANCE = {"float32": 1e-2, "float16": 0.1, "bfloat16": 0.5}
"""Largest difference in logits, in standard deviations, at which a replay counts as the model's own forward. A wrong
mask or position is off by several; rounding in half precision is not."""


def can_replay(
    base: Base, sites: Sequence[Site], batch: RowBatch, products: Products = nullcontext, precision: str = ""
) -> bool:
    """Whether a replay of *batch* gives the model's own logits: tried on a few of its rows, once for each base, sites,
    precision, and with or without a prefix to be recorded.

    Args:
        precision: dtype of *products*; "" is the base's own.
    """
    few = sample_rows(batch)
    request = few.requests[0]
    verdicts = _VERDICTS.setdefault(base.model, {})
    names = tuple(site.module_name for site in sites)
    key = (names, precision or base.dtype, request.length > request.tail)
    if key not in verdicts:
        verdict = _tried(base, sites, few, products, max(TOLERANCE[base.dtype], TOLERANCE[precision or base.dtype]))
        if verdict is None:
            return False
        verdicts[key] = verdict
    return verdicts[key]


def make_replayer(
    base: Base, sites: Sequence[Site], batch: RowBatch, products: Products = nullcontext, *, replay: bool
) -> Replayer:
    """The replay of *batch*, or the plain loop over it."""
    layers = list(layer_modules(base.model, base.architecture))
    options: dict[str, Any] = {"pad_id": pad_id(base.tokenizer), "products": products}
    way = Replay if replay else FullForward
    return way(base.model, layers, sites, batch, **options)


def sample_rows(batch: RowBatch) -> RowBatch:
    """The rows on which a replay is tried: of the request with the longest rows, the bare prompt's, the longest, and
    the essence's."""
    request = max(batch.requests, key=lambda one: one.length)
    longest = max(request.rows[:-1], key=lambda row: len(row.ids))
    return RowBatch((ValueRows((request.rows[0], longest, request.rows[-1]), request.target_ids),))


def _tried(base: Base, sites: Sequence[Site], few: RowBatch, products: Products, tolerance: float) -> bool | None:
    """Whether replay and plain loop agree; None where the model's logits are not numbers, which says nothing."""
    delta = torch.linspace(-1, 1, sites[0].d_out).expand(1, len(sites), -1)
    with torch.no_grad():
        expected = make_replayer(base, sites, few, products, replay=False).logits(delta)
        if not torch.isfinite(expected).all():
            return None
        try:
            found = make_replayer(base, sites, few, products, replay=True).logits(delta)
        except REFUSALS as problem:
            if not is_refusal(problem):
                raise
            return False
    return bool((found - expected).abs().max() <= tolerance * expected.std())
