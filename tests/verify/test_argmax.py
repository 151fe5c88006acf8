from __future__ import annotations

import pytest
import torch
import toy
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from rompatch.errors import ComputeError, SuiteError
from rompatch.tokens import encode_pair
from rompatch.verify.argmax import ExactScores, exact_scores, token_accuracy
from rompatch.verify.evaluation import PromptResult, evaluate
from rompatch.verify.exact import exact_success
from rompatch.verify.suite import Prompt, Suite

pairs = st.lists(
    st.integers(1, 5).flatmap(lambda n: st.tuples(*[st.lists(st.integers(0, 3), min_size=n, max_size=n)] * 2)),
    max_size=5,
)


def test_worked_example_by_hand() -> None:
    scores = exact_scores(
        rewrite=[([5, 6], [5, 6])],  # 2 of 2 tokens
        rephrase=[([5, 9], [5, 6]), ([1, 6], [5, 6])],  # 1 of 2, 1 of 2; none whole
        locality=[([3], [3]), ([3, 4, 7], [3, 4, 5]), ([8], [2])],  # 1, 2/3, 0; the first whole
    )
    assert (scores.rewrite_accuracy, scores.rewrite_exact) == (1.0, 1.0)
    assert (scores.rephrase_accuracy, scores.rephrase_exact) == (0.5, 0.0)
    assert (scores.locality, scores.locality_exact) == (pytest.approx(5 / 9), pytest.approx(1 / 3))
    assert (scores.n_rewrite, scores.n_rephrase, scores.n_locality) == (1, 2, 3)


def test_what_has_no_prompts_is_not_measured() -> None:
    assert exact_scores() == ExactScores()
    assert exact_scores().rewrite_accuracy is None


@given(pairs)
def test_accuracy_is_a_mean_over_prompts_and_never_below_exact(some) -> None:
    scores = exact_scores(rewrite=some)
    if some:
        expected = [sum(a == b for a, b in zip(*pair, strict=True)) / len(pair[1]) for pair in some]
        assert scores.rewrite_accuracy == pytest.approx(sum(expected) / len(expected))
        assert scores.rewrite_exact == pytest.approx(expected.count(1.0) / len(expected))
        assert scores.rewrite_exact <= scores.rewrite_accuracy
    assert ExactScores.from_json(scores.to_json()) == scores


def test_a_model_agrees_with_itself_and_with_what_it_would_write() -> None:
    model, tokenizer = toy.llama(), toy.tokenizer()
    pair = encode_pair(tokenizer, "Big Ben is in", "London", True)
    with torch.no_grad():
        logits = model(torch.tensor([[*pair.prompt_ids, *pair.target_ids]])).logits[0]
    likeliest = logits[len(pair.prompt_ids) - 1 : -1].argmax(-1).tolist()
    assert exact_scores(locality=[(likeliest, likeliest)]).locality_exact == 1.0
    first = model.generate(torch.tensor([pair.prompt_ids]), max_new_tokens=1, do_sample=False)[0, -1].item()
    assert token_accuracy(likeliest[:1], [first]) == 1.0


@pytest.mark.parametrize("pair", [([1], [1, 2]), ([], [])])
def test_tokens_that_cannot_be_compared_are_refused(pair) -> None:
    with pytest.raises(ComputeError, match="cannot be compared"):
        exact_scores(rephrase=[pair])


SUITE = Suite(
    "toy",
    "test",
    (
        Prompt("rewrite", "The Eiffel Tower is located in the city of", "Rome", "Paris"),
        Prompt("paraphrase", "To see the Eiffel Tower, travel to", "Rome", "Paris"),
        Prompt("neighbourhood", "Big Ben is in", "Rome", "London"),
        Prompt("neighbourhood", "The Colosseum is in", "Rome", "the city of Rome"),
    ),
)


def likeliest(model: PreTrainedModel, prompt: str, target: str) -> tuple[list[int], list[int]]:
    """The oracle: one whole pass, greedy choice at each position of the object; and the object's tokens."""
    pair = encode_pair(toy.tokenizer(), prompt, target, True)
    with torch.no_grad():
        logits = model(torch.tensor([[*pair.prompt_ids, *pair.target_ids]])).logits[0]
    return [logits[len(pair.prompt_ids) - 1 + i].argmax().item() for i in range(len(pair.target_ids))], pair.target_ids


def share(left: list[int], right: list[int]) -> float:
    return sum(a == b for a, b in zip(left, right, strict=True)) / len(right)


def test_exact_success_of_two_evaluations_is_that_of_plain_passes() -> None:
    model = toy.llama()
    before = evaluate(model, toy.tokenizer(), SUITE, document_start=True)
    kept = [likeliest(model, prompt.text, str(prompt.target_true))[0] for prompt in SUITE.prompts[2:]]
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.add_(0.05)
    after = evaluate(model, toy.tokenizer(), SUITE, document_start=True)
    found = exact_success(before.results, after.results)
    new = [share(*likeliest(model, prompt.text, "Rome")) for prompt in SUITE.prompts[:2]]
    now = [likeliest(model, prompt.text, str(prompt.target_true))[0] for prompt in SUITE.prompts[2:]]
    assert (found.rewrite_accuracy, found.rephrase_accuracy) == tuple(new)
    assert found.locality == pytest.approx(sum(map(share, now, kept)) / 2)
    assert exact_success(before.results, before.results).locality == 1.0
    assert (found.n_rewrite, found.n_rephrase, found.n_locality) == (1, 1, 2)


def test_exact_success_needs_the_same_prompts_and_their_tokens() -> None:
    results = evaluate(toy.llama(), toy.tokenizer(), SUITE, document_start=True).results
    with pytest.raises(SuiteError, match="the same prompts"):
        exact_success(results, results[:-1])
    old = [PromptResult(one.prompt, -1.0, False, -2.0, False) for one in results]
    assert exact_success(old, old) == ExactScores(), "stored without tokens: not measured"
