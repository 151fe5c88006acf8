"""The oracle of scoring: a whole pass for each prompt and object alone, the edit in the weights, softmax in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rompatch.tokens import encode_pair
from rompatch.verify.engine import ScoredPrompt, TargetScore
from rompatch.verify.updates import Edit


def score(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, target: str, document_start: bool
) -> TargetScore:
    pair = encode_pair(tokenizer, prompt, target, document_start)
    with torch.no_grad():
        logits = model(torch.tensor([[*pair.prompt_ids, *pair.target_ids]])).logits[0].double()
    rows = logits[len(pair.prompt_ids) - 1 : -1]
    logprobs = [(row[token] - row.exp().sum().log()).item() for row, token in zip(rows, pair.target_ids, strict=True)]
    return TargetScore(tuple(pair.target_ids), tuple(logprobs), tuple(int(row.argmax()) for row in rows))


def score_suite(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, suite: Sequence[ScoredPrompt], document_start: bool
) -> list[tuple[TargetScore, ...]]:
    return [tuple(score(model, tokenizer, one.text, target, document_start) for target in one.targets) for one in suite]


@contextmanager
def in_the_weights(edit: Edit) -> Iterator[None]:
    """W + left @ right at each site while the context lasts."""
    originals = [(term.site, term.site.weight.data) for term in edit]
    for term in edit:
        dense = term.left.double() @ term.right.double()
        weight = term.site.weight.data
        edited = weight.double() + (dense.T if term.site.transposed else dense)
        term.site.weight.data = edited.to(weight.dtype)
    try:
        yield
    finally:
        for site, weight in reversed(originals):
            site.weight.data = weight


def assert_same(
    found: Sequence[tuple[TargetScore, ...]], expected: Sequence[tuple[TargetScore, ...]], tolerance: float = 1e-4
) -> None:
    """Same tokens, same likeliest tokens, log-probabilities within *tolerance* nats."""
    assert [len(one) for one in found] == [len(one) for one in expected]
    for one, other in zip((s for row in found for s in row), (s for row in expected for s in row), strict=True):
        assert one.token_ids == other.token_ids
        assert one.argmax_ids == other.argmax_ids
        assert max(abs(a - b) for a, b in zip(one.logprobs, other.logprobs, strict=True)) <= tolerance
