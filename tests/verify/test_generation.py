from __future__ import annotations

import pytest
import torch
import toy

from rompatch.errors import RequestError, SuiteError
from rompatch.tokens import encode_prompt
from rompatch.verify.generation import generate

PROMPTS = ["The Eiffel Tower is located in the city of", "Big Ben", "To see the Colosseum, travel to"]
each_model = pytest.mark.parametrize("build", [toy.gpt2, toy.llama, toy.opt])


def greedy_by_hand(model, prompt: str, document_start: bool, n_tokens: int) -> str:
    """The oracle: the likeliest next token, again and again, without cache or batch."""
    tokenizer = toy.tokenizer()
    start = encode_prompt(tokenizer, prompt, document_start)
    ids = list(start)
    for _ in range(n_tokens):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[len(start) :], skip_special_tokens=True)


@each_model
@pytest.mark.parametrize("document_start", [True, False])
def test_greedy_batches_continue_like_one_by_one(build, document_start: bool) -> None:
    model = build()
    expected = [greedy_by_hand(model, prompt, document_start, 12) for prompt in PROMPTS]
    assert generate(model, toy.tokenizer(), PROMPTS, document_start=document_start, max_new_tokens=12) == expected


@each_model
def test_the_checkpoints_own_settings_do_not_leak_in_and_stay(build) -> None:
    model = build()
    expected = generate(model, toy.tokenizer(), PROMPTS, document_start=True, max_new_tokens=8)
    sampled = generate(model, toy.tokenizer(), PROMPTS, document_start=True, max_new_tokens=8, sample=True)
    own = model.generation_config
    own.update(do_sample=True, temperature=0.1, top_k=2, top_p=0.3, repetition_penalty=3.0, no_repeat_ngram_size=1)
    assert generate(model, toy.tokenizer(), PROMPTS, document_start=True, max_new_tokens=8) == expected
    assert generate(model, toy.tokenizer(), PROMPTS, document_start=True, max_new_tokens=8, sample=True) == sampled
    assert model.generation_config is own


def test_sampling_follows_its_seed_and_leaves_the_global_one_alone() -> None:
    model, tokenizer = toy.llama(), toy.tokenizer()
    torch.manual_seed(5)
    state = torch.random.get_rng_state()

    def drawn(seed: int) -> list[str]:
        return generate(
            model, tokenizer, PROMPTS, document_start=True, max_new_tokens=10, sample=True, temperature=3.0, seed=seed
        )

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_drawing_from_the_best_token_alone_is_greedy() -> None:
    model, tokenizer = toy.gpt2(), toy.tokenizer()
    greedy = generate(model, tokenizer, PROMPTS, document_start=True, max_new_tokens=10)
    for limits in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}):
        drawn = generate(model, tokenizer, PROMPTS, document_start=True, max_new_tokens=10, sample=True, **limits)
        assert drawn == greedy


def test_many_prompts_keep_their_order() -> None:
    model, tokenizer = toy.gpt2(), toy.tokenizer()
    many = [f"Big Ben is in London {number}" for number in range(20)]
    alone = [generate(model, tokenizer, [p], document_start=True, max_new_tokens=4)[0] for p in many]
    assert generate(model, tokenizer, many, document_start=True, max_new_tokens=4) == alone


def test_generating_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    for sample in (False, True):
        generate(toy.gpt2(), toy.tokenizer(), PROMPTS, document_start=True, max_new_tokens=3, sample=sample)
    assert capfd.readouterr() == ("", "")


def test_no_prompts_give_no_texts() -> None:
    assert generate(toy.gpt2(), toy.tokenizer(), [], document_start=True) == []


@pytest.mark.parametrize(
    "settings", [{"max_new_tokens": 0}, {"temperature": 0.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(RequestError, match="out of range"):
        generate(toy.gpt2(), toy.tokenizer(), PROMPTS, document_start=True, sample=True, **settings)


def test_a_prompt_without_room_for_its_continuation_is_refused() -> None:
    with pytest.raises(SuiteError, match="do not fit"):
        generate(toy.gpt2(), toy.tokenizer(), ["Big Ben"], document_start=True, max_new_tokens=toy.CONTEXT)
    with pytest.raises(SuiteError, match="no tokens"):
        generate(toy.gpt2(), toy.tokenizer(), [""], document_start=False)
