"""How probable a model finds objects after prompts: batched, with as little padding and as few logits as possible."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rompatch.errors import SuiteError
from rompatch.tokens import Encoded, context_length, encode_pair, pad, pad_id

MAX_LOGITS = 2**26
"""Logits that one batch may hold (256 MB in float32): a vocabulary is large, and only target positions matter."""


@dataclass(frozen=True)
class TargetScore:
    """One object after one prompt.

    Args:
        mean_logprob: mean log-probability per token of the object, in nats.
        exact: whether the model's likeliest token is the object's at each of its positions.
        n_tokens: tokens of the object.
    """

    mean_logprob: float
    exact: bool
    n_tokens: int


@dataclass(frozen=True)
class _Row:
    ids: tuple[int, ...]
    n_prompt: int

    @property
    def positions(self) -> range:
        """Where the logits that predict the target are."""
        return range(self.n_prompt - 1, len(self.ids) - 1)


def score_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    *,
    document_start: bool,
    max_tokens_per_batch: int = 4096,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[TargetScore]:
    """Score each (prompt, object) pair, in the order given; equal pairs are computed once.

    Args:
        max_tokens_per_batch: rows times longest row; a single longer row still runs.
        on_progress: called with (rows done, rows in all) after each batch.

    Raises:
        TargetError: an object tokenises to nothing.
        SuiteError: a prompt is empty in tokens, or longer than the model's context.
    """
    encoded = [encode_pair(tokenizer, prompt, target, document_start) for prompt, target in pairs]
    rows = [_row(model, pair, code) for pair, code in zip(pairs, encoded, strict=True)]
    # Near lengths side by side: little padding, and target positions that coincide.
    todo = sorted(set(rows), key=lambda row: (row.n_prompt, len(row.ids), row.ids))
    scores: dict[_Row, TargetScore] = {}
    with torch.inference_mode(), evaluation_mode(model):
        for batch in _batches(todo, max_tokens_per_batch, _max_kept(model)):
            scores.update(zip(batch, _score_batch(model, batch, pad_id(tokenizer)), strict=True))
            if on_progress is not None:
                on_progress(len(scores), len(todo))
    return [scores[row] for row in rows]


@contextmanager
def evaluation_mode(model: PreTrainedModel) -> Iterator[None]:
    """Dropout off inside, the model's own mode back afterwards."""
    training = model.training
    model.train(False)
    try:
        yield
    finally:
        model.train(training)


def _row(model: PreTrainedModel, pair: tuple[str, str], encoded: Encoded) -> _Row:
    ids, limit = (*encoded.prompt_ids, *encoded.target_ids), context_length(model)
    if not encoded.prompt_ids:
        raise SuiteError(
            f"Nothing stands in front of the object {pair[1]!r}: the prompt {pair[0]!r} has no tokens.",
            expected="a prompt with at least one token",
            next_step="Write a prompt, or use --document-start.",
        )
    # The last target token is never fed back, so it needs no position of its own.
    if limit is not None and len(ids) - 1 > limit:
        raise SuiteError(
            f"The prompt {_short(pair[0])!r} with the object {pair[1]!r} does not fit into the model.",
            expected=f"at most {limit} tokens",
            found=f"{len(ids) - 1}",
            next_step="Shorten the prompt.",
        )
    return _Row(ids, len(encoded.prompt_ids))


def _batches(rows: Sequence[_Row], max_tokens: int, max_kept: int) -> Iterator[list[_Row]]:
    """Cut *rows* so that padded tokens and kept logit positions stay below their limits."""
    batch: list[_Row] = []
    longest, positions = 0, set[int]()
    for row in rows:
        length, union = max(longest, len(row.ids)), positions | set(row.positions)
        size = len(batch) + 1
        if batch and (size * length > max_tokens or size * len(union) > max_kept):
            yield batch
            batch, length, union = [], len(row.ids), set(row.positions)
        batch.append(row)
        longest, positions = length, union
    if batch:
        yield batch


def _max_kept(model: PreTrainedModel) -> int:
    """(row, position) pairs whose logits fit into :data:`MAX_LOGITS`."""
    return max(1, MAX_LOGITS // int(model.config.get_text_config().vocab_size))


def _score_batch(model: PreTrainedModel, rows: Sequence[_Row], padding: int) -> list[TargetScore]:
    batch = pad([row.ids[:-1] for row in rows], padding, side="right", device=model.device)
    kept = sorted({position for row in rows for position in row.positions})
    logits = _logits_at(model, batch.to_kwargs(), kept)
    index = {position: i for i, position in enumerate(kept)}
    return [_score_row(logits[i, [index[p] for p in row.positions]], row) for i, row in enumerate(rows)]


def _logits_at(model: PreTrainedModel, inputs: dict[str, torch.Tensor], kept: list[int]) -> torch.Tensor:
    """(n_rows, len(kept), vocab): the logits at the token positions *kept*."""
    where = torch.tensor(kept, device=model.device)
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        logits: torch.Tensor = model(**inputs, use_cache=False, logits_to_keep=where).logits
        return logits
    every: torch.Tensor = model(**inputs, use_cache=False).logits
    return every[:, where]


def _score_row(logits: torch.Tensor, row: _Row) -> TargetScore:
    """From the logits (n_target, vocab) at the target's positions. float32: half precision has 3 digits here."""
    target = torch.tensor(row.ids[row.n_prompt :], device=logits.device)
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    mean = logprobs.gather(1, target[:, None]).mean().item()
    return TargetScore(mean, bool((logprobs.argmax(-1) == target).all().item()), len(target))


def _short(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
