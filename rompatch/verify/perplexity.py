"""Perplexity of texts: over given log-probabilities (pure), and the log-probabilities themselves, window by window.

Essence (arXiv 2202.05262, section 5.2) is the perplexity on texts about the subject: it rises where an edit changed
more of the subject than the one fact. The authors' code reads the first 100 tokens of those texts joined by spaces.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rompatch.errors import ComputeError, RequestError, SuiteError
from rompatch.hooks import evaluation_mode
from rompatch.offload import input_device
from rompatch.tokens import context_length, document_start_ids

WINDOW = 512
"""Tokens that the model reads at once where its context allows; also the rows of logits held."""

ESSENCE_TOKENS = 100
"""What the authors' code reads of the texts about a subject."""

_CHUNK = 2**22
"""Logits turned into float32 probabilities at a time (16 MB)."""


@dataclass(frozen=True)
class Window:
    """A piece of one text: the model reads ``ids``, and the tokens from ``first`` on are scored."""

    ids: tuple[int, ...]
    first: int

    @property
    def n_scored(self) -> int:
        """Tokens that are scored."""
        return len(self.ids) - self.first


def perplexity(logprobs: Iterable[float]) -> float | None:
    """exp of minus the mean log-probability (nats per token); None (not measured) over no tokens. Infinite where a
    token was impossible, or beyond what a float holds.

    Raises:
        ComputeError: a log-probability is NaN or above 0.
    """
    values = list(logprobs)
    for value in values:
        if math.isnan(value) or value > 1e-4:  # rounding may exceed 0 by that much
            raise _no_logprob(value)
    if not values:
        return None
    try:
        return math.exp(-math.fsum(values) / len(values))
    except OverflowError:
        return math.inf


def token_logprobs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    document_start: bool,
    window: int | None = None,
    max_tokens: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[float]:
    """Log-probability (nats) of every scored token of *texts*, in order; see :func:`cut` for which are scored.

    Args:
        max_tokens: read only so many tokens, over all texts; None: all.
        on_progress: called with (windows done, windows in all).

    Raises:
        RequestError: the window is too small or longer than the model's context.
        ComputeError: the model answers NaN.
    """
    windows = cut(model, tokenizer, texts, document_start=document_start, window=window, max_tokens=max_tokens)
    found: list[float] = []
    with torch.inference_mode(), evaluation_mode(model):
        for done, piece in enumerate(windows, 1):
            found += _scored(next_token_logits(model, piece), piece)
            if on_progress is not None:
                on_progress(done, len(windows))
    return found


def essence(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    document_start: bool,
    max_tokens: int | None = ESSENCE_TOKENS,
) -> float | None:
    """Perplexity on the first *max_tokens* tokens (None: all) of *texts* joined by spaces, as the authors read them;
    None (not measured) without texts.

    Raises:
        ComputeError: the model answers NaN.
    """
    if not texts:
        return None
    joined = [" ".join(texts)]
    return perplexity(token_logprobs(model, tokenizer, joined, document_start=document_start, max_tokens=max_tokens))


def cut(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    document_start: bool,
    window: int | None = None,
    max_tokens: int | None = None,
) -> list[Window]:
    """*texts* in windows of at most *window* tokens (None: :data:`WINDOW`, or the model's context). Windows do not
    overlap and do not cross texts. Each begins with the document start, if there is one, so that every token is scored;
    else the first token of each window is not.

    Raises:
        RequestError: the window is too small or longer than the model's context.
    """
    start, limit = document_start_ids(tokenizer, document_start), context_length(model)
    window = min(WINDOW, limit or WINDOW) if window is None else window
    body = window - len(start)
    if body + len(start) < 2 or body < 1 or (limit is not None and window > limit):
        raise RequestError(
            "The window does not fit the model.",
            expected=f"2 to {limit} tokens" if limit is not None else "2 tokens or more",
            found=window,
            next_step="Choose another window.",
        )
    windows, room = [], max_tokens
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids[:room]
        room = None if room is None else room - len(ids)
        pieces = ((*start, *ids[i : i + body]) for i in range(0, len(ids), body))
        windows += [Window(piece, max(1, len(start))) for piece in pieces if len(piece) > 1]
    return windows


def next_token_logits(model: PreTrainedModel, window: Window) -> torch.Tensor:
    """(n_scored, vocab): the logits that predict the window's scored tokens, in the model's dtype."""
    ids = torch.tensor([window.ids], device=input_device(model))
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits[0]
    return logits[window.first - 1 : -1]


def chunks(n_rows: int, vocab: int) -> Iterator[slice]:
    """Slices of rows whose logits are few enough to be spread out in float32 at once."""
    rows = max(1, _CHUNK // vocab)
    return (slice(i, i + rows) for i in range(0, n_rows, rows))


def scored_tokens(window: Window, device: torch.device) -> torch.Tensor:
    """(n_scored,): the ids of the window's scored tokens."""
    return torch.tensor(window.ids[window.first :], device=device)


def check_finite(total: float) -> float:
    """*total* itself.

    Raises:
        ComputeError: it is NaN.
    """
    if math.isnan(total):
        raise _no_logprob(total)
    return total


def _scored(logits: torch.Tensor, window: Window) -> list[float]:
    tokens = scored_tokens(window, logits.device)
    found: list[float] = []
    for rows in chunks(*logits.shape):
        # float32: half precision has 3 digits here.
        logprobs = torch.log_softmax(logits[rows].float(), dim=-1)
        found += logprobs.gather(1, tokens[rows, None])[:, 0].tolist()
    for value in found:
        check_finite(value)
    return found


def _no_logprob(value: float) -> ComputeError:
    return ComputeError(
        "A text has no usable log-probability.",
        expected="a number that is not above 0",
        found=value,
        next_step="The model's weights are probably not finite: revert the edit, or check the base.",
    )


def no_texts(what: str) -> SuiteError:
    """The error for texts without a token to score."""
    return SuiteError(
        f"There is nothing to measure {what} on.",
        expected="texts with at least two tokens",
        found="none",
        next_step="Name a file with ordinary text.",
    )
