from __future__ import annotations

import naive
import pytest
import torch
import toy

from rompatch.errors import SuiteError, TargetError
from rompatch.tokens import encode_pair
from rompatch.verify import engine
from rompatch.verify.probabilities import score_prompts

PAIRS = [
    ("The Eiffel Tower is located in the city of", "Rome"),
    ("The Eiffel Tower is located in the city of", "Paris"),
    ("Big Ben is in", "London"),
    ("Big Ben is in", "a city with a rather long name"),
    ("To see the Colosseum, travel to", "Rome"),
    ("To", "Vienna"),
    ("Big Ben is in", "London"),
]


@pytest.mark.parametrize("document_start", [True, False])
@pytest.mark.parametrize("budget", [1, 40, 4096])
@pytest.mark.parametrize("build", [toy.gpt2, toy.llama, toy.opt, toy.bloom])
def test_batches_score_like_one_by_one(build, budget: int, document_start: bool) -> None:
    model = build()
    scores = score_prompts(model, toy.tokenizer(), PAIRS, document_start=document_start, max_tokens_per_batch=budget)
    for (prompt, target), score in zip(PAIRS, scores, strict=True):
        expected = naive.score(model, toy.tokenizer(), prompt, target, document_start)
        assert score.mean_logprob == pytest.approx(expected.mean_logprob, abs=1e-4)
        assert (score.exact, score.n_tokens) == (expected.exact, expected.n_tokens)
        assert (score.token_ids, score.argmax_ids) == (expected.token_ids, expected.argmax_ids)


def test_models_that_cannot_restrict_their_logits_score_the_same() -> None:
    model = toy.llama()
    expected = score_prompts(model, toy.tokenizer(), PAIRS, document_start=True)
    full = model.forward

    def forward(input_ids, attention_mask, use_cache):
        return full(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    model.forward = forward
    scores = score_prompts(model, toy.tokenizer(), PAIRS, document_start=True)
    assert [s.mean_logprob for s in scores] == pytest.approx([s.mean_logprob for s in expected], abs=1e-5)


def test_small_logit_budget_only_changes_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    model, steps = toy.llama(), []
    expected = score_prompts(model, toy.tokenizer(), PAIRS, document_start=True)
    monkeypatch.setattr(engine, "MAX_LOGITS", 1)
    scores = score_prompts(
        model, toy.tokenizer(), PAIRS, document_start=True, on_progress=lambda done, of: steps.append((done, of))
    )
    assert [s.mean_logprob for s in scores] == pytest.approx([s.mean_logprob for s in expected], abs=1e-4)
    assert len(steps) > 1
    assert steps[-1][0] == steps[-1][1]


def test_the_greedy_continuation_is_exact() -> None:
    model, tokenizer = toy.gpt2(), toy.tokenizer()
    prompt = "Big Ben is in"
    ids = encode_pair(tokenizer, prompt, "London", False).prompt_ids
    with torch.no_grad():
        best = model(torch.tensor([ids])).logits[0, -1].argsort(descending=True)
    texts = [tokenizer.decode([token]) for token in best.tolist()]
    wordlike = next(
        i for i, text in enumerate(texts) if text.startswith(" ") and text.strip().isascii() and text.strip()
    )
    scores = score_prompts(model, tokenizer, [(prompt, texts[wordlike])], document_start=False)
    assert scores[0].exact == (wordlike == 0)


def test_scoring_leaves_the_models_mode_alone() -> None:
    model = toy.gpt2().train()
    first = score_prompts(model, toy.tokenizer(), PAIRS, document_start=True)
    assert model.training
    assert score_prompts(model, toy.tokenizer(), PAIRS, document_start=True) == first  # no dropout inside


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_are_scored_in_float32(dtype: torch.dtype) -> None:
    exact = score_prompts(toy.llama(), toy.tokenizer(), PAIRS, document_start=True)
    rough = score_prompts(toy.llama().to(dtype), toy.tokenizer(), PAIRS, document_start=True)
    assert [s.mean_logprob for s in rough] == pytest.approx([s.mean_logprob for s in exact], abs=0.3)


def test_a_prompt_beyond_the_context_is_named() -> None:
    with pytest.raises(SuiteError, match="Paris, Paris") as caught:
        score_prompts(toy.llama(), toy.tokenizer(), [("Paris, " * 60, "Rome")], document_start=True)
    assert f"{toy.CONTEXT} tokens" in str(caught.value)


@pytest.mark.parametrize("build", [toy.gpt2, toy.llama, toy.opt])
def test_the_last_token_of_a_target_needs_no_room_in_the_context(build) -> None:
    def pair_of(words: int) -> tuple[str, str]:
        return "a" * words, "Rome"

    def tokens(words: int) -> int:
        pair = encode_pair(toy.tokenizer(), *pair_of(words), True)
        return len(pair.prompt_ids) + len(pair.target_ids)

    fitting = next(words for words in range(1, 200) if tokens(words) == toy.CONTEXT + 1)
    score_prompts(build(), toy.tokenizer(), [pair_of(fitting)], document_start=True)
    with pytest.raises(SuiteError, match="does not fit"):
        score_prompts(build(), toy.tokenizer(), [pair_of(fitting + 1)], document_start=True)


def test_a_target_of_no_tokens_is_refused() -> None:
    with pytest.raises(TargetError, match="tokenises to nothing"):
        score_prompts(toy.gpt2(), toy.tokenizer(), [("Big Ben is in ", "")], document_start=True)


def test_an_empty_prompt_needs_a_document_start() -> None:
    with pytest.raises(SuiteError, match="no tokens"):
        score_prompts(toy.gpt2(), toy.tokenizer(), [("", "Rome")], document_start=False)
    assert score_prompts(toy.gpt2(), toy.tokenizer(), [("", "Rome")], document_start=True)[0].n_tokens >= 1


def test_nothing_to_score_gives_nothing() -> None:
    assert score_prompts(toy.gpt2(), toy.tokenizer(), [], document_start=True) == []
