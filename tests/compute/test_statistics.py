"""C = E[k k^T]: its factor, and the key it is known by."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pico import CONTEXT, pico_base

from rompatch.compute.corpus import Corpus, open_corpus
from rompatch.compute.second_moment import SecondMoment
from rompatch.compute.statistics import Statistics, StatisticsKey, cholesky_factor, corpus_key, sampled_key
from rompatch.compute.statistics_files import StatisticsCache
from rompatch.errors import StatisticsError
from rompatch.models import Base
from rompatch.sites import Site

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
    path.write_text("Rome is old. The tower is in Paris.")
    return open_corpus(str(path))


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


def test_ids_stay_what_they_were() -> None:
    """Patches have recorded them; three come with the package."""
    key = StatisticsKey("a" * 64, "x.weight", "b" * 64, "c" * 64, "float32", "wiki.txt", "d" * 64, 100, 32)
    assert key.id == "e18815dd1ff87bdb34df27d94b0e488a231a0619b0be9abac7b834758f903c27"


def test_the_shipped_statistics_have_the_id_that_they_always_had(tmp_path: Path) -> None:
    shipped = {file.key.parameter: file.id for file in StatisticsCache(tmp_path).files()}
    assert shipped["model.layers.4.mlp.down_proj.weight"] == (
        "0aee3685eaae4bd630955cdaa65f5933d0343a20470360a87bccaa8ebeec2073"
    )
    assert set(shipped) == {f"model.layers.{layer}.mlp.down_proj.weight" for layer in (3, 4, 5)}


def test_windows_and_samples_fit_the_models_context(base: Base, site: Site, corpus: Corpus) -> None:
    assert corpus_key(base, site, corpus, 1).window == CONTEXT
    assert sampled_key(base, site, 1, 0).window < CONTEXT


def test_statistics_of_a_moment_are_its_mean_and_count(base: Base, site: Site, corpus: Corpus) -> None:
    moment = SecondMoment(2)
    moment.add(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    made = Statistics.of(corpus_key(base, site, corpus, 5), moment)
    assert made.second_moment.tolist() == [[5.0, 7.0], [7.0, 10.0]]
    assert made.tokens == 2
