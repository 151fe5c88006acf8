from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
import toy

from rompatch.edits import EditRequest
from rompatch.errors import ComputeError, SuiteError
from rompatch.verify.building import suite_for
from rompatch.verify.evaluation import Evaluation, compare, evaluate
from rompatch.verify.metrics import score_pairs
from rompatch.verify.probabilities import score_prompts
from rompatch.verify.suite import Prompt, Suite

TOWER = suite_for(EditRequest("Eiffel Tower", "The {} is located in", "Rome", "Paris", "located in"))
MADE_UP = Suite("made up", "test", (
    Prompt("rewrite", "The Eiffel Tower is in", "Rome", None),
    Prompt("paraphrase", "To see the Eiffel Tower, travel to", "Rome", "Paris"),
    Prompt("neighbourhood", "Big Ben is in", "Rome", "London"),
    Prompt("generation", "The Eiffel Tower is near", "Rome", "Paris"),
))  # fmt: skip


def test_an_evaluation_holds_what_the_probabilities_say() -> None:
    model = toy.gpt2()
    result = evaluate(model, toy.tokenizer(), TOWER, document_start=True)
    assert [one.prompt for one in result.results] == list(TOWER.prompts)
    for one in result.results:
        assert one.prompt.target_true is not None
        pairs = [(one.prompt.text, one.prompt.target_new), (one.prompt.text, one.prompt.target_true)]
        new, true = score_prompts(model, toy.tokenizer(), pairs, document_start=True)
        assert (one.new_logprob, one.true_logprob) == pytest.approx((new.mean_logprob, true.mean_logprob), abs=1e-4)
        assert (one.new_exact, one.true_exact) == (new.exact, true.exact)
    parts = {
        kind: [(one.new_logprob, one.true_logprob) for one in result.results if one.prompt.kind == kind]
        for kind in ("rewrite", "paraphrase", "neighbourhood", "attribute")
    }
    assert result.scores == score_pairs(**parts)  # type: ignore[arg-type]
    assert result.scores.s is not None


def test_prompts_without_a_true_object_are_reported_but_not_scored() -> None:
    result = evaluate(toy.gpt2(), toy.tokenizer(), MADE_UP, document_start=True)
    assert [one.prompt.kind for one in result.results] == ["rewrite", "paraphrase", "neighbourhood"]
    assert result.results[0].new_logprob < 0
    assert result.results[0].margin is None
    assert result.results[0].passed is None
    assert result.scores.es is None
    assert result.scores.n_paraphrase == 1


def test_evaluations_survive_their_json_form() -> None:
    result = evaluate(toy.gpt2(), toy.tokenizer(), MADE_UP, document_start=False)
    assert Evaluation.from_json(json.loads(json.dumps(result.to_json(), allow_nan=False))) == result


def test_a_stored_evaluation_of_another_shape_is_refused() -> None:
    with pytest.raises(SuiteError, match="cannot be read"):
        Evaluation.from_json({"name": "x"})


def test_comparison_lists_the_worst_prompts_first() -> None:
    before = evaluate(toy.gpt2(), toy.tokenizer(), TOWER, document_start=True)
    after = evaluate(toy.llama(), toy.tokenizer(), TOWER, document_start=True)
    changes = compare(before, after)
    margins = [change.after.margin for change in changes]
    assert len(changes) == len(TOWER.prompts)
    assert margins == sorted(margins)  # type: ignore[type-var]
    for change in changes:
        assert change.before.prompt == change.after.prompt == change.prompt
        assert change.after.passed == (change.after.margin > 0)  # type: ignore[operator]
        lead = change.after.new_logprob - change.after.true_logprob  # type: ignore[operator]
        assert change.after.margin == (-lead if change.prompt.kind == "neighbourhood" else lead)


def test_evaluations_of_different_suites_are_not_compared() -> None:
    one = evaluate(toy.gpt2(), toy.tokenizer(), MADE_UP, document_start=True)
    with pytest.raises(SuiteError, match="not of the same suite"):
        compare(one, evaluate(toy.gpt2(), toy.tokenizer(), TOWER, document_start=True))
    with pytest.raises(SuiteError, match="not of the same suite"):
        compare(one, replace(one, document_start=False))


def test_a_model_that_answers_nan_is_an_error() -> None:
    model = toy.llama()
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.down_proj.weight").fill_(math.nan)
    with pytest.raises(ComputeError, match="no usable log-probability"):
        evaluate(model, toy.tokenizer(), TOWER, document_start=True)


@pytest.mark.slow
def test_the_default_model_knows_the_tower_and_its_neighbours(default_model) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(default_model)
    model = AutoModelForCausalLM.from_pretrained(default_model, dtype=torch.float32)
    result = evaluate(model, tokenizer, TOWER, document_start=True)
    rewrite = result.results[0]
    assert rewrite.true_logprob is not None
    assert rewrite.true_logprob > rewrite.new_logprob
    assert result.scores.es == 0.0
    assert result.scores.ns is not None
    assert result.scores.ns >= 0.8
    assert result.scores.ps is not None
    assert result.scores.ps <= 0.4
