"""Before and after in one go: the numbers of the plain way, and in half precision those of edited weights exactly."""

from __future__ import annotations

import pytest
import torch
from pico import pico_base
from random_patches import random_patch

from rompatch.apply.session import PatchedModel
from rompatch.errors import BaseMismatchError
from rompatch.models import Base
from rompatch.patch import Patch
from rompatch.verify.evaluation import Evaluation, evaluate
from rompatch.verify.suite import Prompt, Suite
from rompatch.workflows.scoring import before_and_after, evaluate_side_by_side

SUITES = [
    Suite(
        subject,
        "test",
        (
            Prompt("rewrite", f"The {subject} is located in", "Rome", "Paris"),
            Prompt("paraphrase", f"To see the {subject}, go to", "Rome", "Paris"),
            Prompt("neighbourhood", "Big Ben is in the city of", "Rome", "London"),
        ),
    )
    for subject in ("Eiffel Tower", "Louvre", "Colosseum")
]


def plainly(base: Base, patches: list[Patch], suite: Suite) -> Evaluation:
    with PatchedModel(base) as patched:
        patched.activate(patches)
        return evaluate(base.model, base.tokenizer, suite, document_start=True)


def logprobs(evaluation: Evaluation) -> list[float]:
    return [value for one in evaluation.results for value in (one.new_logprob, one.true_logprob) if value is not None]


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_many_edits_at_once_score_as_each_in_the_weights(model_type: str) -> None:
    base = pico_base(model_type)
    edits = [[random_patch(base, 1)], [random_patch(base, 2), random_patch(base, 3, layer=2)], [random_patch(base, 4)]]
    found = before_and_after(base, SUITES, edits, document_start=True)
    for suite, edit, (before, after) in zip(SUITES, edits, found, strict=True):
        assert logprobs(before) == pytest.approx(logprobs(plainly(base, [], suite)), abs=1e-4)
        assert logprobs(after) == pytest.approx(logprobs(plainly(base, edit, suite)), abs=1e-4)
        assert logprobs(before) != pytest.approx(logprobs(after), abs=1e-2)


def test_in_half_precision_the_edited_weights_are_scored() -> None:
    base = pico_base(dtype=torch.bfloat16)
    edits = [[random_patch(base, seed)] for seed in (1, 2, 3)]
    found = before_and_after(base, SUITES, edits, document_start=True)
    for suite, edit, (before, after) in zip(SUITES, edits, found, strict=True):
        assert after == plainly(base, edit, suite), "to the bit"
        assert [one.new_argmax for one in before.results] == [
            one.new_argmax for one in plainly(base, [], suite).results
        ]


def test_scoring_twice_gives_the_same_bits_however_short_the_suite() -> None:
    base = pico_base()
    first, second = (before_and_after(base, SUITES[:1], [[random_patch(base, 1)]], document_start=True) for _ in "ab")
    assert first == second


def test_a_patch_of_another_base_is_refused_and_the_base_left_as_it_is() -> None:
    base, other = pico_base(), pico_base(seed=1)
    weight = base.site(1).stored().clone()
    with pytest.raises(BaseMismatchError):
        before_and_after(base, SUITES[:2], [[random_patch(base, 1)], [random_patch(other, 1)]], document_start=True)
    assert torch.equal(base.site(1).stored(), weight)


def test_suites_side_by_side_score_as_one_by_one() -> None:
    base = pico_base()
    together = evaluate_side_by_side(base.model, base.tokenizer, SUITES, True)
    for suite, found in zip(SUITES, together, strict=True):
        assert found.name == suite.name
        alone = evaluate(base.model, base.tokenizer, suite, document_start=True)
        assert logprobs(found) == pytest.approx(logprobs(alone), abs=1e-4)
