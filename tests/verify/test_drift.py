"""Perplexity and drift against a naive loop over full softmaxes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from offloading import OFFLOADS, offloaded_base
from pico import CONTEXT, SENTENCES, VOCAB, pico_base, pico_model, toy_tokenizer
from random_patches import random_patch
from transformers import PreTrainedModel

from rompatch.apply.session import PatchedModel
from rompatch.errors import ComputeError, RequestError, SuiteError
from rompatch.models import Base
from rompatch.patch import Patch
from rompatch.tokens import document_start_ids
from rompatch.verify import perplexity as perplexity_module
from rompatch.verify.drift import Drift, measure_drift
from rompatch.verify.perplexity import cut, essence, perplexity, token_logprobs

TEXTS = [*SENTENCES, "Rome"]


@contextmanager
def changed(model: PreTrainedModel, scale: float = 0.5) -> Iterator[None]:
    """The model with one matrix moved inside, put back from a copy."""
    weight = model.get_parameter("model.layers.1.mlp.down_proj.weight")
    saved = weight.detach().clone()
    weight.data += scale * torch.randn(weight.shape, generator=torch.Generator().manual_seed(5))
    try:
        yield
    finally:
        weight.data.copy_(saved)


def distributions(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """(len(ids), vocab): whole softmaxes in float64, one pass, no cleverness."""
    with torch.no_grad():
        return torch.softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1)


def naive(model: PreTrainedModel, texts: list[str], document_start: bool, window: int) -> list[tuple[list[int], int]]:
    """(ids, first scored) of each window, by the definition in words."""
    start = document_start_ids(toy_tokenizer(), document_start)
    found = []
    for text in texts:
        ids = toy_tokenizer()(text, add_special_tokens=False).input_ids
        while ids:
            piece, ids = [*start, *ids[: window - len(start)]], ids[window - len(start) :]
            found.append((piece, max(1, len(start))))
    return found


@pytest.mark.parametrize("document_start", [True, False])
@pytest.mark.parametrize("window", [2, 7, 64])
def test_log_probabilities_are_those_of_a_naive_loop(window: int, document_start: bool) -> None:
    model = pico_model("llama")
    expected = []
    for ids, first in naive(model, TEXTS, document_start, window):
        table = distributions(model, ids)
        expected += [math.log(table[i - 1, ids[i]]) for i in range(first, len(ids))]
    found = token_logprobs(model, toy_tokenizer(), TEXTS, document_start=document_start, window=window)
    assert found == pytest.approx(expected, abs=1e-4)
    assert len(found) >= 25


def test_perplexity_worked_by_hand() -> None:
    # Probabilities 1/2 and 1/8: mean log is (ln 2 + 3 ln 2) / 2 = 2 ln 2, so the perplexity is 4.
    assert perplexity([math.log(1 / 2), math.log(1 / 8)]) == pytest.approx(4.0)
    assert perplexity([math.log(1 / VOCAB)] * 7) == pytest.approx(VOCAB), "a uniform model has as many choices as words"
    assert perplexity([0.0]) == 1.0
    assert perplexity([]) is None
    assert perplexity([-math.inf, -1.0]) == math.inf
    assert perplexity([-800.0]) == math.inf


@pytest.mark.parametrize("bad", [math.nan, 0.5, math.inf])
def test_perplexity_of_what_is_no_log_probability_is_refused(bad: float) -> None:
    with pytest.raises(ComputeError, match="no usable log-probability"):
        perplexity([-1.0, bad])


def test_essence_reads_the_first_hundred_tokens_of_the_joined_texts() -> None:
    model, tokenizer = pico_model("gpt2"), toy_tokenizer()
    ids = tokenizer(" ".join(SENTENCES * 3), add_special_tokens=False).input_ids[:100]
    table = distributions(model, [*document_start_ids(tokenizer, True), *ids])
    logs = [math.log(table[i, token]) for i, token in enumerate(ids)]
    found = essence(model, tokenizer, SENTENCES * 3, document_start=True)
    assert found == pytest.approx(math.exp(-sum(logs) / 100), rel=1e-4)
    assert essence(model, tokenizer, [], document_start=True) is None, "not measured, never 0"


@pytest.mark.parametrize("chunk", [1, 3 * VOCAB, 2**22])
@pytest.mark.parametrize("document_start", [True, False])
def test_drift_is_that_of_a_naive_loop(document_start: bool, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = pico_model("llama")
    monkeypatch.setattr(perplexity_module, "_CHUNK", chunk)
    before, after, divergences = [], [], []
    for ids, first in naive(model, TEXTS, document_start, 16):
        p = distributions(model, ids)
        with changed(model):
            q = distributions(model, ids)
        for i in range(first, len(ids)):
            before.append(-math.log(p[i - 1, ids[i]]))
            after.append(-math.log(q[i - 1, ids[i]]))
            divergences.append(sum((p[i - 1] * (p[i - 1] / q[i - 1]).log()).tolist()))
    found = measure_drift(
        model, toy_tokenizer(), TEXTS, partial(changed, model), document_start=document_start, window=16
    )
    assert found.tokens == len(before)
    assert found.perplexity_before == pytest.approx(math.exp(sum(before) / len(before)), rel=1e-4)
    assert found.perplexity_after == pytest.approx(math.exp(sum(after) / len(after)), rel=1e-4)
    assert found.mean_kl == pytest.approx(sum(divergences) / len(divergences), rel=1e-3)
    assert found.mean_kl > 0.01


def test_an_unchanged_model_has_no_drift_and_a_larger_change_more() -> None:
    model = pico_model("llama")
    drifts = [
        measure_drift(model, toy_tokenizer(), TEXTS, partial(changed, model, scale), document_start=True)
        for scale in (0.0, 0.01, 0.1, 1.0)
    ]
    kls = [drift.mean_kl for drift in drifts]
    assert kls == sorted(kls)
    assert kls[0] == pytest.approx(0, abs=1e-6)
    assert kls[3] > kls[1] > kls[0]
    assert drifts[0].perplexity_after == drifts[0].perplexity_before
    assert len({drift.perplexity_before for drift in drifts}) == 1, "the model is as before afterwards"


def test_drift_is_entered_once_a_window_and_reports_progress() -> None:
    model, entered, steps = pico_model("llama"), [], []

    @contextmanager
    def edited() -> Iterator[None]:
        entered.append(len(entered))
        with changed(model):
            yield

    measure_drift(
        model, toy_tokenizer(), TEXTS, edited, document_start=True, window=20, on_progress=lambda *at: steps.append(at)
    )
    n = len(cut(model, toy_tokenizer(), TEXTS, document_start=True, window=20))
    assert len(entered) == n > 4
    assert steps == [(i, n) for i in range(1, n + 1)]


def test_at_most_so_many_tokens_are_read_over_all_texts() -> None:
    model = pico_model("llama")
    first = len(toy_tokenizer()(TEXTS[0]).input_ids)
    for limit in (5, first, first + 3):
        edited = partial(changed, model)
        found = measure_drift(model, toy_tokenizer(), TEXTS, edited, document_start=True, max_tokens=limit, window=4)
        assert found.tokens == limit


def test_texts_without_a_token_to_score_are_refused() -> None:
    model = pico_model("llama")
    for texts in ([], [""]):
        with pytest.raises(SuiteError, match="nothing to measure drift on"):
            measure_drift(model, toy_tokenizer(), texts, partial(changed, model), document_start=True)


@pytest.mark.parametrize("window", [0, 1, CONTEXT + 1])
def test_a_window_that_does_not_fit_is_refused(window: int) -> None:
    with pytest.raises(RequestError, match=f"2 to {CONTEXT} tokens"):
        cut(pico_model("llama"), toy_tokenizer(), TEXTS, document_start=True, window=window)


def test_a_broken_model_is_an_error_and_not_a_number() -> None:
    model = pico_model("llama")
    with changed(model, math.nan), pytest.raises(ComputeError, match="not finite"):
        token_logprobs(model, toy_tokenizer(), TEXTS, document_start=True)
    with pytest.raises(ComputeError, match="not finite"):
        measure_drift(model, toy_tokenizer(), TEXTS, partial(changed, model, math.nan), document_start=True)


def test_half_precision_models_are_measured_in_float32() -> None:
    exact = essence(pico_model("llama"), toy_tokenizer(), SENTENCES, document_start=True)
    rough = essence(pico_model("llama", dtype=torch.bfloat16), toy_tokenizer(), SENTENCES, document_start=True)
    assert rough == pytest.approx(exact, rel=0.1)


def test_drift_of_real_patches_leaves_the_base_bit_equal() -> None:
    base = pico_base("llama")
    saved = {name: weight.clone() for name, weight in base.model.state_dict().items()}
    patch = random_patch(base, 0)

    @contextmanager
    def edited() -> Iterator[None]:
        with PatchedModel(base) as patched:
            patched.activate([patch])
            yield

    drift = measure_drift(base.model, base.tokenizer, TEXTS, edited, document_start=True, window=16)
    assert drift.mean_kl > 0
    assert drift.perplexity_after != drift.perplexity_before
    assert all(torch.equal(weight, saved[name]) for name, weight in base.model.state_dict().items())


@pytest.mark.parametrize("how", OFFLOADS)
def test_offloaded_models_drift_like_those_in_memory(how: str, tmp_path: Path) -> None:
    whole, spread = pico_base("llama"), offloaded_base("llama", how, tmp_path)
    drifts = []
    for base in (whole, spread):
        patch = random_patch(whole, 0)

        @contextmanager
        def edited(base: Base = base, patch: Patch = patch) -> Iterator[None]:
            with PatchedModel(base) as patched:
                patched.activate([patch])
                yield

        drifts.append(measure_drift(base.model, base.tokenizer, TEXTS, edited, document_start=True, window=32))
    assert drifts[0] == drifts[1]


def test_drift_has_a_json_form() -> None:
    drift = Drift(3.0, 3.5, 0.25, 10)
    assert drift.to_json() == {"perplexity_before": 3.0, "perplexity_after": 3.5, "mean_kl": 0.25, "tokens": 10}
