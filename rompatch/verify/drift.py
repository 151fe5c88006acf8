"""Drift of the whole model: what edits do to text that is not about them.

Perplexity on held-out text before and after, and the mean over its tokens of KL(before || after), the divergence of the
next-token distributions in nats. Perplexity alone can stay the same while the distributions move.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rompatch.hooks import evaluation_mode
from rompatch.verify.perplexity import (
    Window,
    check_finite,
    chunks,
    cut,
    next_token_logits,
    no_texts,
    scored_tokens,
)


@dataclass(frozen=True)
class Drift:
    """What edits did to a text.

    Args:
        perplexity_before, perplexity_after: exp of the mean negative log-probability per token.
        mean_kl: mean KL(before || after) over the same positions, in nats; 0 for an unchanged model.
        tokens: scored tokens behind all three.
    """

    perplexity_before: float
    perplexity_after: float
    mean_kl: float
    tokens: int

    def to_json(self) -> dict[str, Any]:
        """All fields by name."""
        return dict(vars(self))


def measure_drift(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    edited: Callable[[], AbstractContextManager[object]],
    *,
    document_start: bool,
    window: int | None = None,
    max_tokens: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Drift:
    """Read *texts* with and without the edits. Memory holds two windows' logits, however long the texts are.

    Args:
        model: without the edits; afterwards too.
        edited: gives a context inside which *model* has the edits; entered once for each window.
        document_start, window: as for :func:`~rompatch.verify.perplexity.cut`.
        max_tokens: read only so many tokens, over all texts; None: all.
        on_progress: called with (windows done, windows in all).

    Raises:
        SuiteError: the texts have no token to score.
        RequestError: the window is too small or longer than the model's context.
        ComputeError: the model answers NaN, before or after.
    """
    windows = cut(model, tokenizer, texts, document_start=document_start, window=window, max_tokens=max_tokens)
    if not windows:
        raise no_texts("drift")
    sums, tokens = torch.zeros(3, dtype=torch.float64), 0
    with torch.inference_mode(), evaluation_mode(model):
        for done, piece in enumerate(windows, 1):
            before = next_token_logits(model, piece)
            with edited():
                after = next_token_logits(model, piece)
            sums += _window_sums(before, after, piece)
            tokens += piece.n_scored
            if on_progress is not None:
                on_progress(done, len(windows))
    means = [check_finite(total / tokens) for total in sums.tolist()]
    # Rounding may leave the divergence of equal distributions a hair below 0.
    return Drift(_exp(-means[0]), _exp(-means[1]), max(0.0, means[2]), tokens)


def _window_sums(before: torch.Tensor, after: torch.Tensor, window: Window) -> torch.Tensor:
    """(3,) float64: sums over positions of log P_before, log P_after of the token that comes, and KL(before || after).
    Float32 probabilities, a few positions at a time; float64 sums, since they run over whole texts.
    """
    tokens, sums = scored_tokens(window, before.device), torch.zeros(3, dtype=torch.float64)
    for rows in chunks(*before.shape):
        p, q = (torch.log_softmax(logits[rows].float(), dim=-1) for logits in (before, after))
        chosen = [logprobs.gather(1, tokens[rows, None]).double().sum() for logprobs in (p, q)]
        # 0 log 0 = 0: a token that was impossible before adds nothing.
        divergence = (p.exp() * (p - q)).masked_fill(p == -math.inf, 0.0).double().sum()
        sums += torch.stack([*chosen, divergence]).cpu()
    return sums


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
