from __future__ import annotations

import pytest
import torch
import toy
from hypothesis import given
from hypothesis import strategies as st

from rompatch.errors import ComputeError
from rompatch.tokens import encode_pair
from rompatch.verify.argmax import ExactScores, exact_scores, token_accuracy

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
