"""Context prefixes: seeded, with one place for the prompt each, and without a trace in the random state."""

from __future__ import annotations

import pytest
import torch
from pico import pico_base

from rompatch.compute.contexts import CONTEXT_LENGTHS, STARTERS, _one_line, sample_contexts, sample_text
from rompatch.errors import ComputeError
from rompatch.models import Base


@pytest.fixture(scope="module")
def base() -> Base:
    return pico_base("gpt2")


@pytest.fixture(scope="module")
def contexts(base: Base) -> tuple[str, ...]:
    return sample_contexts(base.model, base.tokenizer, 1)


SHORT = [(2, 3), (4, 1)]


def test_the_bare_prompt_comes_first_then_as_many_as_asked_for(base: Base, contexts: tuple[str, ...]) -> None:
    assert contexts[0] == "{}"
    assert len(contexts) == 1 + sum(count for _, count in CONTEXT_LENGTHS) == 21
    assert len(sample_contexts(base.model, base.tokenizer, 0, SHORT)) == 5
    assert sample_contexts(base.model, base.tokenizer, 0, []) == ("{}",)


def test_each_has_one_place_for_the_prompt_after_a_full_stop(contexts: tuple[str, ...]) -> None:
    for context in contexts[1:]:
        assert context.endswith(". {}")
        assert context.count("{") == context.count("}") == 1
        assert "\n" not in context
        assert context.startswith(STARTERS)


def test_the_same_seed_gives_the_same_contexts_and_another_seed_others(base: Base) -> None:
    first = sample_contexts(base.model, base.tokenizer, 3, SHORT)
    assert sample_contexts(base.model, base.tokenizer, 3, SHORT) == first
    assert sample_contexts(base.model, base.tokenizer, 4, SHORT) != first


def test_the_random_state_is_neither_read_nor_changed(base: Base) -> None:
    torch.manual_seed(1)
    first, state = sample_contexts(base.model, base.tokenizer, 0, SHORT), torch.get_rng_state()
    torch.manual_seed(2)
    assert sample_contexts(base.model, base.tokenizer, 0, SHORT) == first
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_sampled_text_has_as_many_tokens_as_asked_for(base: Base) -> None:
    (text,) = sample_text(base.model, base.tokenizer, ["The"], 12, seed=0, top_k=1)
    greedy = base.model.generate(
        **base.tokenizer("<|endoftext|>The", return_tensors="pt"), do_sample=False, max_new_tokens=12, min_new_tokens=12
    )
    assert text == base.tokenizer.decode(greedy[0], skip_special_tokens=True)


def test_padding_does_not_change_what_a_starter_samples(base: Base) -> None:
    alone = sample_text(base.model, base.tokenizer, ["The"], 8, seed=0, top_k=1)
    beside = sample_text(base.model, base.tokenizer, ["The", "There are many people"], 8, seed=0, top_k=1)
    assert beside[0] == alone[0]


@pytest.mark.parametrize(
    ("text", "line"),
    [("The {a} b.", "The a b"), ("a\n\n b\t c . .", "a b c"), ("{}", ""), ("It is { } so", "It is so")],
)
def test_a_context_is_one_line_without_braces_or_trailing_stop(text: str, line: str) -> None:
    assert _one_line(text) == line


def test_a_model_that_answers_nan_is_refused() -> None:
    broken = pico_base("gpt2", seed=5)
    broken.model.transformer.h[0].mlp.c_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(ComputeError, match="not numbers"):
        sample_contexts(broken.model, broken.tokenizer, 0, SHORT)
