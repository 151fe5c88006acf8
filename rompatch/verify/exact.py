"""Exact success of an edit (:mod:`rompatch.verify.argmax`) from the prompts' results before and after it."""

from __future__ import annotations

from collections.abc import Sequence

from rompatch.errors import SuiteError
from rompatch.verify.argmax import ExactScores, TokenPair, exact_scores
from rompatch.verify.evaluation import PromptResult
from rompatch.verify.suite import Kind


def exact_success(before: Sequence[PromptResult], after: Sequence[PromptResult]) -> ExactScores:
    """Rewrite and rephrase accuracy of *after* against o*, and locality of *after* against *before*.

    Results that were stored without their tokens count as not measured.

    Raises:
        SuiteError: the two are not about the same prompts in the same order.
    """
    if [result.prompt for result in before] != [result.prompt for result in after]:
        raise SuiteError(
            "Exact success needs the same prompts before and after the edit.",
            expected=f"the {len(before)} prompts that were scored before",
            found=f"{len(after)} prompts, not all of them the same",
        )
    locality = [
        (new.true_argmax, old.true_argmax)
        for old, new in zip(before, after, strict=True)
        if new.prompt.kind == "neighbourhood" and old.true_argmax and new.true_argmax
    ]
    return exact_scores(_of(after, "rewrite"), _of(after, "paraphrase"), locality)


def _of(results: Sequence[PromptResult], kind: Kind) -> list[TokenPair]:
    """What the model would write, and o*."""
    return [(one.new_argmax, one.new_ids) for one in results if one.prompt.kind == kind and one.new_ids]
