"""Passes over text: the right keys of every site, exactly as many, in one pass, and on from where it was."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from pico import pico_base, pico_model, toy_tokenizer

from rompatch.compute import collecting, second_moment
from rompatch.compute.collecting import SitePass, batches, collect_from_corpus, collect_from_samples, site_inputs
from rompatch.compute.contexts import STARTERS, sample_text
from rompatch.compute.corpus import Corpus, open_corpus, windows
from rompatch.compute.prefetch import prefetched
from rompatch.compute.second_moment import SecondMoment
from rompatch.compute.statistics import corpus_key, sampled_key
from rompatch.compute.statistics_files import StatisticsCache
from rompatch.models import Base, wrap
from rompatch.sites import Site
from rompatch.tokens import encode_prompt

LAYER = 1
WINDOW = 16


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and panels that a pico model fills several times."""
    monkeypatch.setattr(second_moment, "BLOCK_TOKENS", 64)
    monkeypatch.setattr(second_moment, "PANEL_ROWS", 32)


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


def begun(base: Base, corpus: Corpus, tokens: int, layers: Sequence[int] = (LAYER,)) -> list[SitePass]:
    sites = [base.site(layer) for layer in layers]
    return [SitePass.begun(site, corpus_key(base, site, corpus, tokens, WINDOW)) for site in sites]


def collected(
    base: Base, corpus: Corpus, tokens: int, layers: Sequence[int] = (LAYER,), batch_size: int = 4
) -> list[SecondMoment]:
    passes = begun(base, corpus, tokens, layers)
    for _ in collect_from_corpus(base, corpus, passes, batch_size=batch_size):
        pass
    return [one.moment for one in passes]


def reloaded(one: SitePass, folder: Path) -> SitePass:
    """Through the file of an interrupted pass."""
    cache = StatisticsCache(folder)
    cache.save_partial(one.key, one.moment, one.done)
    loaded = cache.load_partial(one.key, one.site.d_in)
    assert loaded is not None
    return SitePass(one.site, one.key, *loaded)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_collecting_equals_whole_forward_passes(base: Base, site: Site, corpus: Corpus, batch_size: int) -> None:
    keys = naive_keys(base, site, list(windows(base.tokenizer, corpus, WINDOW))).double()
    (moment,) = collected(base, corpus, 10**9, batch_size=batch_size)
    assert moment.count == len(keys)
    np.testing.assert_allclose(moment.mean().numpy(), (keys.T @ keys / len(keys)).numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("tokens", [1, 14, 15, 16, 61, 200])
def test_exactly_the_tokens_asked_for_are_counted(base: Base, site: Site, corpus: Corpus, tokens: int) -> None:
    keys = naive_keys(base, site, list(windows(base.tokenizer, corpus, WINDOW)))[:tokens].double()
    (moment,) = collected(base, corpus, tokens, batch_size=2)
    assert moment.count == tokens
    np.testing.assert_allclose(moment.mean().numpy(), (keys.T @ keys / tokens).numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layers", [(0, 1, 2), (2, 0), (1, 2)])
def test_several_sites_in_one_pass_equal_a_pass_for_each(base: Base, corpus: Corpus, layers: tuple[int, ...]) -> None:
    together = collected(base, corpus, 333, layers)
    for layer, moment in zip(layers, together, strict=True):
        (alone,) = collected(base, corpus, 333, (layer,))
        assert moment.count == alone.count == 333
        assert torch.equal(moment.mean(), alone.mean())


def test_the_pass_stops_at_the_highest_site(base: Base, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_args: object) -> None:
        raise AssertionError("it ran on")

    handles = [
        base.site(1).module.register_forward_hook(never),
        base.model.model.layers[2].register_forward_pre_hook(never),
    ]
    try:
        collected(base, corpus, 100, (1, 0))
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("stop_after", [1, 2])
def test_a_resumed_pass_equals_one_that_was_never_interrupted(
    base: Base, corpus: Corpus, stop_after: int, batch_size: int, tmp_path: Path
) -> None:
    whole = collected(base, corpus, 150, (0, 1), batch_size)
    first = begun(base, corpus, 150, (0, 1))
    steps = collect_from_corpus(base, corpus, first, batch_size=batch_size)
    *_, progress = islice(steps, stop_after)
    steps.close()
    again = [reloaded(one, tmp_path) for one in first]
    assert [(one.done, one.moment.count) for one in again] == [(progress.done, progress.tokens)] * 2
    for _ in collect_from_corpus(base, corpus, again, batch_size=batch_size):
        pass
    for one, moment in zip(again, whole, strict=True):
        assert one.moment.count == moment.count == 150
        assert torch.equal(one.moment.mean(), moment.mean())


def test_sites_that_stopped_at_different_places_go_on_together(base: Base, corpus: Corpus, tmp_path: Path) -> None:
    """As after a process was killed between two saves: nothing is counted twice, nothing is left out."""
    whole = collected(base, corpus, 400, (0, 1, 2))
    passes = begun(base, corpus, 400, (0, 1, 2))
    for stop_after, one in zip((1, 4), passes, strict=False):
        steps = collect_from_corpus(base, corpus, [one])
        list(islice(steps, stop_after))
        steps.close()
    assert [one.done for one in passes] == [4, 16, 0]
    again = [reloaded(one, tmp_path) for one in passes[:2]] + passes[2:]
    for _ in collect_from_corpus(base, corpus, again):
        pass
    for one, moment in zip(again, whole, strict=True):
        assert one.moment.count == 400
        assert torch.equal(one.moment.mean(), moment.mean())


@pytest.mark.parametrize("done", [1, 3, 5])
def test_a_pass_that_stopped_inside_a_batch_takes_the_rest_of_it(base: Base, corpus: Corpus, done: int) -> None:
    passes = begun(base, corpus, 200)
    steps = collect_from_corpus(base, corpus, passes, batch_size=1)
    list(islice(steps, done))
    steps.close()
    for _ in collect_from_corpus(base, corpus, passes, batch_size=4):
        pass
    (whole,) = collected(base, corpus, 200)
    assert passes[0].moment.count == 200
    np.testing.assert_allclose(passes[0].moment.mean().numpy(), whole.mean().numpy(), rtol=1e-4, atol=1e-6)


def test_what_is_finished_is_not_read_for(base: Base, corpus: Corpus) -> None:
    passes = begun(base, corpus, 60, (0, 1))
    list(collect_from_corpus(base, corpus, passes))
    before = deepcopy([one.moment.total for one in passes])
    assert list(collect_from_corpus(base, corpus, passes)) == []
    assert all(torch.equal(one.moment.total, total) for one, total in zip(passes, before, strict=True))


def test_progress_counts_windows_and_tokens_up_to_the_end(base: Base, corpus: Corpus) -> None:
    rows = list(windows(base.tokenizer, corpus, WINDOW))
    seen = list(collect_from_corpus(base, corpus, begun(base, corpus, 10**9)))
    assert seen[-1].done == len(rows)
    assert seen[-1].tokens == sum(len(row) - 1 for row in rows)
    assert [progress.done for progress in seen] == sorted({progress.done for progress in seen})
    assert [progress.tokens for progress in seen] == [sum(len(r) - 1 for r in rows[: p.done]) for p in seen]


def test_batches_hold_every_window_once_in_order_and_of_one_length() -> None:
    rows = [[1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 1, 1], [2, 2]]
    made = list(batches(rows, 3))
    assert [batch.ids.tolist() for batch in made] == [rows[:3], rows[3:4], rows[4:]]
    assert [(batch.start, batch.end) for batch in made] == [(0, 3), (3, 4), (4, 5)]
    assert list(batches([], 3)) == []


def test_the_reading_thread_changes_nothing(base: Base, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    (threaded,) = collected(base, corpus, 300)
    rows = list(windows(base.tokenizer, corpus, WINDOW))
    assert [batch.ids.tolist() for batch in prefetched(batches(rows))] == [b.ids.tolist() for b in batches(rows)]
    monkeypatch.setattr(collecting, "prefetched", lambda items: (item for item in items))
    (plain,) = collected(base, corpus, 300)
    assert torch.equal(threaded.mean(), plain.mean())


def test_windows_are_read_without_a_mask(base: Base, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one, attention would leave its fast path."""
    calls: list[dict[str, Any]] = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def noted(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(kwargs)
        return attention(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    site_inputs(base, [site], torch.tensor([[0, 5, 6, 7], [0, 8, 9, 10]]))
    assert [(call["attn_mask"], call["is_causal"]) for call in calls] == [(None, True)] * (LAYER + 1)


@pytest.mark.parametrize("offload", ["cpu", "disk", "map"])
def test_a_base_whose_weights_are_elsewhere_gives_the_same(
    offload: str, base: Base, corpus: Corpus, tmp_path: Path
) -> None:
    """Weights that accelerate brings in layer by layer, or spreads over devices."""
    expected = [moment.mean() for moment in collected(base, corpus, 200, (0, 2))]
    passes = begun(base, corpus, 200, (0, 2))
    model = pico_model("llama")
    if offload == "cpu":
        accelerate.cpu_offload(model, torch.device("cpu"))
    elif offload == "disk":
        accelerate.disk_offload(model, tmp_path, torch.device("cpu"))
    else:
        devices = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
        devices |= {"model.layers.2": "disk", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
        accelerate.dispatch_model(model, devices, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    elsewhere = wrap(model, toy_tokenizer())
    moved = [SitePass(elsewhere.site(one.site.layer), one.key, one.moment) for one in passes]
    for _ in range(2):  # stopping early must leave the hooks fit for another pass
        for one in moved:
            one.moment, one.done = SecondMoment(len(one.moment.total)), 0
        for _ in collect_from_corpus(elsewhere, corpus, moved):
            pass
        for one, mean in zip(moved, expected, strict=True):
            assert torch.equal(one.moment.mean(), mean)


def sampled(base: Base, layers: Sequence[int], tokens: int, seed: int, **changes: Any) -> list[SitePass]:
    sites = [base.site(layer) for layer in layers]
    return [SitePass.begun(site, replace(sampled_key(base, site, tokens, seed), **changes)) for site in sites]


@pytest.mark.parametrize("model_type", ["gpt2", "opt"])
def test_sampled_text_gives_exactly_the_tokens_asked_for_and_is_seeded(model_type: str) -> None:
    """gpt2 and opt have learned positions: a text longer than the context would fail."""
    base = pico_base(model_type)
    means = []
    for seed in (7, 7, 8):
        (one,) = sampled(base, [LAYER], 50, seed, window=12)
        list(collect_from_samples(base, [one], seed=seed, batch_size=3))
        assert one.moment.count == 50
        means.append(one.moment.mean())
    assert torch.equal(means[0], means[1])
    assert not torch.equal(means[0], means[2])
    assert torch.linalg.eigvalsh(means[0].double()).min() > -1e-6


def test_sampled_text_fits_the_models_context() -> None:
    learned = pico_base("gpt2")
    passes = sampled(learned, [0], 300, 0)
    list(collect_from_samples(learned, passes, seed=0, batch_size=2))
    assert passes[0].finished


@pytest.mark.parametrize("stop_after", [1, 2])
def test_a_resumed_pass_over_sampled_text_equals_one_that_was_never_interrupted(
    base: Base, stop_after: int, tmp_path: Path
) -> None:
    whole = sampled(base, (0, 2), 100, 3, window=12)
    list(collect_from_samples(base, whole, seed=3, batch_size=3))
    first = sampled(base, (0, 2), 100, 3, window=12)
    steps = collect_from_samples(base, first, seed=3, batch_size=3)
    *_, progress = islice(steps, stop_after)
    assert (progress.done, progress.tokens) == (stop_after, stop_after * 3 * 11)
    again = [reloaded(first[0], tmp_path), SitePass.begun(first[1].site, first[1].key)]  # one lost its file
    list(collect_from_samples(base, again, seed=3, batch_size=3))
    for one, other in zip(again, whole, strict=True):
        assert one.moment.count == 100
        assert torch.equal(one.moment.mean(), other.moment.mean())


def test_sampled_keys_are_the_site_inputs_of_the_sampled_tokens(base: Base, site: Site) -> None:
    """With one text: rebuilt by a whole forward pass over what was sampled."""
    passes = sampled(base, [LAYER], 9, 3, window=10)
    list(collect_from_samples(base, passes, seed=3, batch_size=1))
    n_starter = len(encode_prompt(base.tokenizer, STARTERS[0], True))
    seen: list[torch.Tensor] = []
    handle = base.model.model.embed_tokens.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    sample_text(base.model, base.tokenizer, [STARTERS[0]], 10, seed=3 * 1_000_003)
    handle.remove()
    ids = torch.cat(seen, dim=1)[0].tolist()
    keys = naive_keys(base, site, [ids])[n_starter - 1 :].double()
    assert len(keys) == 9
    found = passes[0].moment.mean().numpy()
    np.testing.assert_allclose(found, (keys.T @ keys / 9).numpy(), rtol=1e-3, atol=1e-5)
