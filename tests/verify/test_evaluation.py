from __future__ import annotations

import json
import math
from dataclasses import replace

import naive
import pytest
import torch
import toy

from rompatch.edits import EditRequest
from rompatch.errors import ComputeError, SuiteError
from rompatch.models import Base, wrap
from rompatch.verify.building import suite_for
from rompatch.verify.evaluation import Evaluation, PromptResult, compare, evaluate, evaluate_batch
from rompatch.verify.metrics import score_pairs
from rompatch.verify.probabilities import score_prompts
from rompatch.verify.suite import Prompt, Suite
from rompatch.verify.updates import Edit, SiteTerm

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


def test_evaluations_stored_before_tokens_were_kept_are_read() -> None:
    result = evaluate(toy.gpt2(), toy.tokenizer(), MADE_UP, document_start=False).results[1]
    data = {key: value for key, value in result.to_json().items() if not key.endswith(("_ids", "_argmax"))}
    assert PromptResult.from_json(data) == replace(result, new_ids=(), new_argmax=(), true_ids=(), true_argmax=())


def test_an_evaluation_tells_the_likeliest_tokens() -> None:
    model = toy.gpt2()
    for result in evaluate(model, toy.tokenizer(), MADE_UP, document_start=True).results:
        new = naive.score(model, toy.tokenizer(), result.prompt.text, result.prompt.target_new, True)
        assert (result.new_ids, result.new_argmax) == (new.token_ids, new.argmax_ids)
        assert result.new_exact == (result.new_ids == result.new_argmax)
        assert bool(result.true_ids) == (result.prompt.target_true is not None)


@pytest.mark.parametrize("build", [toy.gpt2, toy.llama, toy.bloom])
def test_a_batch_of_edits_scores_as_each_in_the_weights(build) -> None:
    model, random = build(), torch.Generator().manual_seed(0)
    site = wrap(model, toy.tokenizer()).site(1)
    edits: list[Edit] = [
        [SiteTerm.of(site, torch.randn(site.d_out, 1, generator=random), torch.randn(1, site.d_in, generator=random))]
        for _ in range(2)
    ]
    suites = [TOWER, MADE_UP]
    pairs = evaluate_batch(model, toy.tokenizer(), suites, edits, document_start=True)
    for suite, edit, (before, after) in zip(suites, edits, pairs, strict=True):
        assert_close(before, evaluate(model, toy.tokenizer(), suite, document_start=True))
        with naive.in_the_weights(edit):
            assert_close(after, evaluate(model, toy.tokenizer(), suite, document_start=True))
        assert before.results != after.results


def assert_close(found: Evaluation, expected: Evaluation) -> None:
    def tokens(evaluation: Evaluation) -> list[tuple[object, ...]]:
        return [(r.prompt, r.new_ids, r.new_argmax, r.true_ids, r.true_argmax) for r in evaluation.results]

    assert (found.name, found.source, tokens(found)) == (expected.name, expected.source, tokens(expected))
    for one, other in zip(found.results, expected.results, strict=True):
        assert one.new_logprob == pytest.approx(other.new_logprob, abs=1e-4)
        assert one.true_logprob == pytest.approx(other.true_logprob, abs=1e-4)


def test_a_batch_needs_an_edit_for_each_suite() -> None:
    with pytest.raises(ValueError, match="2 suites and 0 edits"):
        evaluate_batch(toy.gpt2(), toy.tokenizer(), [TOWER, MADE_UP], [], document_start=True)


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
def test_the_default_model_knows_the_tower_and_its_neighbours(default_base: Base) -> None:
    result = evaluate(default_base.model, default_base.tokenizer, TOWER, document_start=True)
    rewrite = result.results[0]
    assert rewrite.true_logprob is not None
    assert rewrite.true_logprob > rewrite.new_logprob
    assert result.scores.es == 0.0
    assert result.scores.ns is not None
    assert result.scores.ns >= 0.8
    assert result.scores.ps is not None
    assert result.scores.ps <= 0.4
