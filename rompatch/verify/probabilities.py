"""How probable a model finds objects after prompts: pairs in, scores out (:mod:`rompatch.verify.engine` does it)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rompatch.hooks import evaluation_mode
from rompatch.verify.engine import MAX_TOKENS, ScoredPrompt, Scorer, TargetScore

__all__ = ["TargetScore", "evaluation_mode", "score_prompts"]


def score_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    *,
    document_start: bool,
    max_tokens_per_batch: int = MAX_TOKENS,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[TargetScore]:
    """Score each (prompt, object) pair, in the order given; what is equal is computed once.

    Args:
        max_tokens_per_batch: tokens of one batch, padding among them; a single longer sequence still runs.
        on_progress: called with (positions scored, positions in all) after each batch.

    Raises:
        TargetError: an object tokenises to nothing.
        SuiteError: a prompt is empty in tokens, or longer than the model's context.
        ComputeError: the model answers NaN, or memory does not suffice for a single prompt.
    """
    scorer = Scorer(model, tokenizer, document_start=document_start, max_tokens=max_tokens_per_batch)
    prompts = [ScoredPrompt(prompt, (target,)) for prompt, target in pairs]
    return [score for (score,) in scorer.score(prompts, on_progress=on_progress)]
