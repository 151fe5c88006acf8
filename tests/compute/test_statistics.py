"""C = E[k k^T]: against the plain mean, over corpora and over the model's own text."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import islice
from pathlib import Path
from unittest.mock import patch as swapped

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pico import CONTEXT, pico_base

from rompatch.compute import statistics
from rompatch.compute.contexts import STARTERS, sample_text
from rompatch.compute.corpus import Corpus, open_corpus, windows
from rompatch.compute.statistics import (
    SecondMoment,
    Statistics,
    StatisticsKey,
    cholesky_factor,
    collect_from_corpus,
    collect_from_samples,
    corpus_key,
    sampled_key,
)
from rompatch.compute.statistics_files import StatisticsCache
from rompatch.errors import StatisticsError
from rompatch.models import Base
from rompatch.sites import Site
from rompatch.tokens import encode_prompt

LAYER = 1
WINDOW = 16


@pytest.fixture(scope="module")
def base() -> Base:
    return pico_base("llama")


@pytest.fixture(scope="module")
def site(base: Base) -> Site:
    return base.site(LAYER)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    words = np.random.default_rng(0).choice(["Rome", "Paris", "tower", "old", "is", "in", "the"], 300)
    path.write_text(" ".join(words))
    return open_corpus(str(path))


def naive_keys(base: Base, site: Site, rows: list[list[int]]) -> torch.Tensor:
    """The site's inputs without each row's first token: whole forward passes, one row at a time."""
    found = []
    handle = site.module.register_forward_hook(lambda _module, args, _output: found.append(args[0][0, 1:]))
    for row in rows:
        base.model(torch.tensor([row]))
    handle.remove()
    return torch.cat(found)


def collected(base: Base, site: Site, corpus: Corpus, tokens: int, batch_size: int = 4) -> SecondMoment:
    moment = SecondMoment(site.d_in)
    key = corpus_key(base, site, corpus, tokens, WINDOW)
    for _ in collect_from_corpus(base, site, corpus, key, moment=moment, batch_size=batch_size):
        pass
    return moment


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(any),
    block=st.integers(1, 40),
    seed=st.integers(0, 2**31),
)
def test_the_second_moment_is_the_mean_of_outer_products(sizes: list[int], block: int, seed: int) -> None:
    keys = np.random.default_rng(seed).standard_normal((sum(sizes), 4)).astype(np.float32)
    moment = SecondMoment(4)
    with swapped.object(statistics, "_BLOCK_TOKENS", block):
        for part in np.split(keys, np.cumsum(sizes)[:-1]):
            moment.add(torch.from_numpy(part))
    naive = sum(np.outer(key, key) for key in keys.astype(np.float64)) / len(keys)
    assert moment.count == len(keys)
    np.testing.assert_allclose(moment.mean().numpy(), naive, rtol=1e-5, atol=1e-5)


def test_the_mean_of_no_token_is_refused() -> None:
    with pytest.raises(StatisticsError, match="No token"):
        SecondMoment(3).mean()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_keys_that_are_not_finite_are_refused(value: float) -> None:
    moment = SecondMoment(3)
    moment.add(torch.tensor([[1.0, 2.0, value]]))
    with pytest.raises(StatisticsError, match="not finite"):
        moment.mean()


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_collecting_equals_whole_forward_passes(base: Base, site: Site, corpus: Corpus, batch_size: int) -> None:
    keys = naive_keys(base, site, list(windows(base.tokenizer, corpus, WINDOW))).double()
    moment = collected(base, site, corpus, 10**9, batch_size)
    assert moment.count == len(keys)
    np.testing.assert_allclose(moment.mean().numpy(), (keys.T @ keys / len(keys)).numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("tokens", [1, 14, 15, 16, 61, 200])
def test_exactly_the_tokens_asked_for_are_counted(base: Base, site: Site, corpus: Corpus, tokens: int) -> None:
    keys = naive_keys(base, site, list(windows(base.tokenizer, corpus, WINDOW)))[:tokens].double()
    moment = collected(base, site, corpus, tokens, batch_size=2)
    assert moment.count == tokens
    np.testing.assert_allclose(moment.mean().numpy(), (keys.T @ keys / tokens).numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("stop_after", [1, 2])
def test_a_resumed_pass_equals_one_that_was_never_interrupted(
    base: Base, site: Site, corpus: Corpus, stop_after: int, tmp_path: Path
) -> None:
    key = corpus_key(base, site, corpus, 150, WINDOW)
    cache = StatisticsCache(tmp_path)
    whole = collected(base, site, corpus, 150)
    moment = SecondMoment(site.d_in)
    passes = collect_from_corpus(base, site, corpus, key, moment=moment, batch_size=4)
    *_, progress = islice(passes, stop_after)
    passes.close()
    cache.save_partial(key, moment, progress.windows)
    loaded = cache.load_partial(key)
    assert loaded is not None
    resumed, done = loaded
    assert (resumed.count, done) == (progress.tokens, progress.windows)
    for _ in collect_from_corpus(base, site, corpus, key, moment=resumed, windows_done=done, batch_size=4):
        pass
    assert resumed.count == whole.count == 150
    assert torch.equal(resumed.mean(), whole.mean())


def test_progress_counts_windows_and_tokens_up_to_the_end(base: Base, site: Site, corpus: Corpus) -> None:
    rows = list(windows(base.tokenizer, corpus, WINDOW))
    key = corpus_key(base, site, corpus, 10**9, WINDOW)
    seen = list(collect_from_corpus(base, site, corpus, key, moment=SecondMoment(site.d_in), batch_size=4))
    assert seen[-1].windows == len(rows)
    assert seen[-1].tokens == sum(len(row) - 1 for row in rows)
    assert [progress.windows for progress in seen] == sorted({progress.windows for progress in seen})
    assert [progress.tokens for progress in seen[:-1]] == [
        sum(len(r) - 1 for r in rows[: p.windows]) for p in seen[:-1]
    ]


@pytest.mark.parametrize("model_type", ["gpt2", "opt"])
def test_sampled_text_gives_exactly_the_tokens_asked_for_and_is_seeded(model_type: str) -> None:
    """gpt2 and opt have learned positions: a text longer than the context would fail."""
    base = pico_base(model_type)
    site = base.site(LAYER)
    key = replace(sampled_key(base, site, 50, 7), window=12)
    first = collect_from_samples(base, site, key, seed=7, batch_size=3)
    again = collect_from_samples(base, site, key, seed=7, batch_size=3)
    other = collect_from_samples(base, site, key, seed=8, batch_size=3)
    assert first.tokens == again.tokens == 50
    assert torch.equal(first.second_moment, again.second_moment)
    assert not torch.equal(first.second_moment, other.second_moment)
    assert torch.linalg.eigvalsh(first.second_moment.double()).min() > -1e-6


def test_windows_and_samples_fit_the_models_context(base: Base, site: Site, corpus: Corpus) -> None:
    assert corpus_key(base, site, corpus, 1).window == CONTEXT
    assert sampled_key(base, site, 1, 0).window < CONTEXT
    learned = pico_base("gpt2")
    collect_from_samples(learned, learned.site(0), sampled_key(learned, learned.site(0), 300, 0), seed=0, batch_size=2)


def test_sampled_keys_are_the_site_inputs_of_the_sampled_tokens(base: Base, site: Site) -> None:
    """With one text: rebuilt by a whole forward pass over what was sampled."""
    key = replace(sampled_key(base, site, 9, 3), window=10)
    found = collect_from_samples(base, site, key, seed=3, batch_size=1)
    n_starter = len(encode_prompt(base.tokenizer, STARTERS[0], True))
    seen: list[torch.Tensor] = []
    handle = base.model.model.embed_tokens.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    sample_text(base.model, base.tokenizer, [STARTERS[0]], 10, seed=3 * 1_000_003)
    handle.remove()
    ids = torch.cat(seen, dim=1)[0].tolist()
    keys = naive_keys(base, site, [ids])[n_starter - 1 :].double()
    assert len(keys) == 9
    np.testing.assert_allclose(found.second_moment.numpy(), (keys.T @ keys / 9).numpy(), rtol=1e-3, atol=1e-5)


@settings(deadline=None)
@given(seed=st.integers(0, 2**31), d_in=st.integers(1, 6), ridge=st.floats(1e-6, 1))
def test_the_factor_is_that_of_C_with_its_ridge(seed: int, d_in: int, ridge: float) -> None:
    keys = torch.randn(3, d_in, generator=torch.Generator().manual_seed(seed))  # often fewer keys than dimensions
    C = keys.T @ keys / 3
    factor = cholesky_factor(C, ridge)
    expected = C.double() + ridge * C.double().diagonal().mean() * torch.eye(d_in, dtype=torch.float64)
    assert factor.dtype == torch.float64
    assert torch.equal(factor, factor.tril())
    torch.testing.assert_close(factor @ factor.T, expected)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_factor_of_what_is_not_finite_is_refused(value: float) -> None:
    C = torch.eye(3)
    C[0, 2] = value
    with pytest.raises(StatisticsError, match=r"not finite.*1 NaN or infinite"):
        cholesky_factor(C, 0.1)


def test_a_factor_of_an_indefinite_matrix_is_refused() -> None:
    with pytest.raises(StatisticsError, match=r"positive definite.*--ridge"):
        cholesky_factor(torch.diag(torch.tensor([1.0, -1.0, 1.0])), 1e-4)
    with pytest.raises(StatisticsError, match="positive definite"):
        cholesky_factor(torch.zeros(2, 2), 1e-4)


def test_a_patch_records_id_tokens_text_and_ridge(base: Base, site: Site, corpus: Corpus) -> None:
    made = Statistics(corpus_key(base, site, corpus, 5), torch.eye(site.d_in), 4)
    ref = made.ref(0.25)
    assert (ref.id, ref.tokens, ref.corpus, ref.ridge) == (made.key.id, 4, "text.txt", 0.25)
    torch.testing.assert_close(made.factor(0.25), 1.25**0.5 * torch.eye(site.d_in, dtype=torch.float64))


def test_equal_things_have_equal_keys(base: Base, site: Site, corpus: Corpus) -> None:
    again = pico_base("llama")
    assert corpus_key(base, site, corpus, 5) == corpus_key(again, again.site(LAYER), corpus, 5)
    key = corpus_key(base, site, corpus, 5)
    assert StatisticsKey.from_json(vars(key)) == key
    assert len(key.id) == 64


def key_of(base: Base, corpus: Corpus, layer: int = LAYER, tokens: int = 5, window: int = WINDOW) -> StatisticsKey:
    return corpus_key(base, base.site(layer), corpus, tokens, window)


@pytest.mark.parametrize("field", [field.name for field in fields(StatisticsKey)])
def test_every_field_of_the_key_is_in_its_id(base: Base, corpus: Corpus, field: str) -> None:
    key = key_of(base, corpus)
    other = 99 if isinstance(getattr(key, field), int) else "other"
    assert replace(key, **{field: other}).id != key.id


@pytest.mark.parametrize(
    "parameter",
    ["model.embed_tokens.weight", "model.layers.0.mlp.down_proj.weight", "model.layers.1.mlp.up_proj.weight"],
)
def test_any_weight_below_the_site_changes_the_key(corpus: Corpus, parameter: str) -> None:
    changed = pico_base("llama")
    before = key_of(changed, corpus)
    changed.model.get_parameter(parameter).data.view(-1)[-1] += 1
    assert key_of(changed, corpus).id != before.id


def test_weights_above_the_site_do_not_change_the_key(corpus: Corpus) -> None:
    changed = pico_base("llama")
    before = key_of(changed, corpus)
    changed.model.model.layers[2].mlp.down_proj.weight.data += 1
    assert key_of(changed, corpus) == before


def test_layer_text_tokens_window_and_dtype_change_the_key(base: Base, corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Other text of the same name.")
    other_text = open_corpus(str(tmp_path / "text.txt"))
    keys = [
        key_of(base, corpus),
        key_of(base, corpus, layer=0),
        key_of(base, other_text),
        key_of(base, corpus, tokens=6),
        key_of(base, corpus, window=WINDOW + 1),
        key_of(pico_base("llama", dtype=torch.float16), corpus),
        sampled_key(base, base.site(LAYER), 5, 0),
        sampled_key(base, base.site(LAYER), 5, 1),
    ]
    assert len({key.id for key in keys}) == len(keys)
    assert key_of(base, other_text).site_fields() == keys[0].site_fields(), "the text is not part of the site"
    assert keys[1].site_fields() != keys[0].site_fields()
