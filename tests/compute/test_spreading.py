"""One value over several sites: each adds its delta at the subject, on every architecture."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pico import SIZES, pico_base

from rompatch.apply.gram import constraints_of
from rompatch.apply.session import PatchedModel
from rompatch.apply.solve import solve_site
from rompatch.compute import rome as equations
from rompatch.compute.gather import encode_contexts
from rompatch.compute.methods.base import Computation
from rompatch.compute.methods.rome import compute, compute_many
from rompatch.compute.methods.rome_hparams import RomeHparams
from rompatch.compute.second_moment import SecondMoment
from rompatch.compute.spreading import MeasuredSite, solved_factors, update_norm
from rompatch.compute.statistics import Statistics, sampled_key
from rompatch.edits import EditRequest
from rompatch.errors import ComputeError, RequestError
from rompatch.hooks import capture_inputs
from rompatch.models import Base
from rompatch.patch import Patch, SiteFactors
from rompatch.sites import Site

REQUEST = EditRequest("Eiffel Tower", "The {} is located in", "Vienna")
CONTEXTS = ("{}", "It is a matter of fact. {}", "Trains. {}")
SPREAD = RomeHparams(keys="both", spread=2, lr=0.3, steps=5)


def statistics(base: Base, site: Site) -> Statistics:
    """C of keys drawn at random, not near a multiple of the identity."""
    moment = SecondMoment(site.d_in)
    drawn = torch.randn(400, site.d_in, generator=torch.Generator().manual_seed(site.layer))
    moment.add(drawn * torch.linspace(0.2, 2, site.d_in))
    return Statistics.of(sampled_key(base, site, 400, 0), moment)


def made(base: Base, *, contexts: tuple[str, ...] = CONTEXTS, top: int = 1, **changes: Any) -> Computation:
    hparams = replace(SPREAD, **changes)
    sites = [base.site(top - number) for number in range(hparams.spread)]
    below = [MeasuredSite(site, statistics(base, site)) for site in sites[1:]]
    return compute(
        base,
        REQUEST,
        site=sites[0],
        contexts=contexts,
        statistics=statistics(base, sites[0]),
        below=below,
        hparams=hparams,
    )


def keyed(patch: Patch) -> list[SiteFactors]:
    found = [factors for factors in patch.factors if isinstance(factors, SiteFactors)]
    assert len(found) == len(patch.factors)
    return found


def seen(base: Base, site: Site, contexts: tuple[str, ...]) -> torch.Tensor:
    """What *site* sees at the subject's last token of each prompt, one pass a prompt, (n_prompts, d_in) float64."""
    rows = encode_contexts(base.tokenizer, REQUEST, contexts, True)
    found = []
    for row in rows:
        with torch.inference_mode(), capture_inputs(site.module) as inputs:
            base.model(input_ids=torch.tensor([row.ids]))
        found.append(inputs[0].reshape(len(row.ids), -1)[row.subject_last].double())
    return torch.stack(found)


def residuals(patch: Patch) -> list[torch.Tensor]:
    """What each site shall add at each of its keys, (n_keys, d_out) float64."""
    return [torch.from_numpy(factors.value - factors.base_out).double() for factors in keyed(patch)]


@pytest.mark.parametrize("model_type", sorted(SIZES))
def test_every_site_adds_its_delta_at_the_subject(model_type: str) -> None:
    """In the model that has the patch, so at the key that the site sees there."""
    base = pico_base(model_type)
    patch = made(base, contexts=("{}",)).patch
    expected = residuals(patch)
    assert all(float(delta.norm()) > 0 for delta in expected)
    with PatchedModel(base) as patched:
        sites = [base.site(site.layer) for site in patch.header.sites]
        before = {site.layer: site.matrix().clone() for site in sites}
        patched.activate([patch])
        for site, delta in zip(sites, expected, strict=True):
            key = seen(base, site, ("{}",))[0]
            found = (site.matrix() - before[site.layer]).double() @ key
            assert float((found - delta[0]).norm()) < 2e-3 * float(delta.norm())


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("spread", [2, 3])
def test_each_site_has_the_delta_that_was_optimised_for_it(
    model_type: str, spread: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layer by layer: the optimisation's deltas come in the order of the header's sites, times the gain."""
    from rompatch.compute.methods import rome

    plain, heard = rome.optimise_values, []

    def listened(*given: Any) -> Any:
        heard.extend(plain(*given))
        return heard

    monkeypatch.setattr(rome, "optimise_values", listened)
    patch = made(pico_base(model_type), spread=spread, top=2, gain=1.5).patch
    (value,) = heard
    assert value.deltas.shape[0] == spread
    for delta, found in zip(value.deltas.double(), residuals(patch), strict=True):
        torch.testing.assert_close(found, 1.5 * delta.expand_as(found), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(value.deltas[0], value.deltas[-1], rtol=0.1), "the order can be told"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model_type", ["gptj", "llama", "gpt2"])
def test_half_precision_is_spread_as_well(model_type: str, dtype: torch.dtype) -> None:
    base = pico_base(model_type, dtype=dtype)
    done = made(base, norm_penalty=0.3, optimiser="lbfgs", steps=10)
    assert done.measurements["losses"][-1]["total"] < done.measurements["losses"][0]["total"]
    for factors, delta in zip(keyed(done.patch), residuals(done.patch), strict=True):
        assert np.isfinite(factors.u).all()
        assert float(delta.norm()) > 0


def test_keys_are_those_of_the_model_with_the_lower_updates() -> None:
    """A second implementation: the keys of three sites, read off a model that has been patched below them."""
    base = pico_base("llama")
    patch = made(base, spread=3, top=2).patch
    assert [site.layer for site in patch.header.sites] == [2, 1, 0]
    for place in (2, 1, 0):
        lower = replace(patch.header, sites=patch.header.sites[place + 1 :], statistics=None, more_statistics=())
        with PatchedModel(base) as patched:
            if lower.sites:
                patched.activate([Patch(lower, patch.factors[place + 1 :])])
            keys = seen(base, base.site(patch.header.sites[place].layer), CONTEXTS)
        expected = torch.stack([keys.mean(dim=0), keys[0]])
        found = torch.from_numpy(keyed(patch)[place].key).double()
        assert float((found - expected).norm()) < 1e-3 * float(expected.norm())
        mean, bare = residuals(patch)[place]
        torch.testing.assert_close(mean, bare, rtol=1e-4, atol=1e-5)


def test_two_sites_say_it_with_less_than_one() -> None:
    """One delta in the first's stead: the loss is the same or lower, at a smaller sum of squares."""
    base = pico_base("llama")
    given: dict[str, Any] = {"steps": 40, "optimiser": "lbfgs", "norm_penalty": 5.0, "early_stop_loss": 0.0}
    one, two = (made(base, contexts=("{}",), spread=spread, **given) for spread in (1, 2))
    last = [done.measurements["losses"][-1] for done in (one, two)]
    assert last[1]["total"] < last[0]["total"]


def test_keys_of_both_get_the_same_residual_and_no_more() -> None:
    base = pico_base("llama")
    patch = made(base, spread=1).patch
    (factors,) = keyed(patch)
    assert (patch.header.format_version, factors.v, len(factors.key)) == (3, None, 2)
    update = solve_site([factors])
    constraints = constraints_of(factors)
    np.testing.assert_allclose(constraints.keys @ update.dense().T, constraints.residuals, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(constraints.residuals[0], constraints.residuals[1], rtol=1e-4, atol=1e-5)
    assert np.linalg.matrix_rank(update.dense(), tol=1e-3 * np.linalg.norm(update.dense())) == 1


def test_without_contexts_the_two_keys_are_one() -> None:
    (factors,) = keyed(made(pico_base("llama"), contexts=("{}",), spread=1).patch)
    assert len(factors.key) == 1


@pytest.mark.parametrize("noise", [0.0, 1e-4, 1e-3, 1e-2, 3e-2, 0.1, 0.3])
def test_keys_that_differ_in_length_alone_ask_for_no_long_update(noise: float) -> None:
    """However near the threshold: a key and one a fifth longer, and some noise."""
    site = pico_base("llama").site(1)
    drawn = torch.Generator().manual_seed(3)
    key, other, delta = (torch.randn(n, generator=drawn).double() for n in (site.d_in, site.d_in, site.d_out))
    keys = torch.stack([key, 1.2 * key + noise * other])
    found = update_norm(solved_factors(site, keys, delta.expand(2, -1), None))
    one = update_norm(solved_factors(site, keys[:1].expand(2, -1), delta.expand(2, -1), None))
    assert found < 2.5 * one


def test_keys_that_are_not_finite_are_refused() -> None:
    site = pico_base("llama").site(1)
    keys = torch.full((2, site.d_in), torch.nan).double()
    with pytest.raises(ComputeError, match="layer 1 are not finite"):
        solved_factors(site, keys, torch.ones(2, site.d_out).double(), None)


@pytest.mark.parametrize("changes", [{"keys": "mixed", "spread": 1}, {"keys": "both", "spread": 1}])
def test_the_gain_is_a_factor_of_the_residual(changes: dict[str, Any]) -> None:
    base = pico_base("llama")
    plain, more = (keyed(made(base, gain=gain, **changes).patch)[0] for gain in (1.0, 1.5))
    np.testing.assert_allclose(more.value - more.base_out, 1.5 * (plain.value - plain.base_out), rtol=1e-4, atol=1e-5)


def test_the_norms_are_those_of_the_largest_update() -> None:
    base = pico_base("llama")
    done = made(base)
    updates = [np.linalg.norm(solve_site([factors]).dense()) for factors in done.patch.factors]
    weights = [base.site(layer).norm() for layer in (1, 0)]
    norms = done.measurements["norms"]
    assert norms["weights"] == pytest.approx(weights)
    assert norms["relative_update"] == pytest.approx(max(np.divide(updates, weights)), rel=1e-4)


def test_the_header_names_the_statistics_of_every_site() -> None:
    base = pico_base("llama")
    header = made(base).patch.header
    assert header.statistics is not None
    ids = [header.statistics.id, *(one.id for one in header.more_statistics)]
    assert ids == [statistics(base, base.site(layer)).key.id for layer in (1, 0)]
    bare = compute(
        base,
        REQUEST,
        site=base.site(1),
        contexts=CONTEXTS,
        statistics=None,
        below=[MeasuredSite(base.site(0), None)],
        hparams=SPREAD,
    ).patch.header
    assert (bare.statistics, bare.more_statistics) == (None, ())


def test_one_that_cannot_be_spread_does_not_keep_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    from rompatch.compute.methods import rome

    base, plain = pico_base("llama"), rome.spread

    def broken(*given: Any) -> Any:
        if len(given[3][0].ids) == longest:
            raise ComputeError("It cannot be spread.")
        return plain(*given)

    monkeypatch.setattr(rome, "spread", broken)
    requests = [REQUEST, EditRequest("Big Ben", "{} is", "Rome")]
    longest = max(len(encode_contexts(base.tokenizer, one, ("{}",), True)[0].ids) for one in requests)
    below = [MeasuredSite(base.site(0), None)]
    given: dict[str, Any] = {"site": base.site(1), "contexts": CONTEXTS, "statistics": None, "below": below}
    found = dict(compute_many(base, requests, **given, hparams=SPREAD))
    assert [isinstance(found[index], Computation) for index in (0, 1)] == [False, True]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"keys": "mixed", "spread": 2}, "needs the key mode 'both'"),
        ({"spread": 0}, "at least 1"),
        ({"spread": True}, "at least 1"),
        ({"gain": 0.0}, "positive"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        replace(SPREAD, **changes)


def test_the_joint_left_factor_against_a_plain_solution() -> None:
    drawn = np.random.default_rng(3)
    residuals, keys, rows = drawn.normal(size=(2, 3)), drawn.normal(size=(2, 5)), drawn.normal(size=(2, 5))
    left = equations.joint_left(*map(torch.from_numpy, (residuals, keys, rows)))
    np.testing.assert_allclose(left.numpy(), residuals.T @ np.linalg.inv(rows @ keys.T), atol=1e-10)
    dense = left.numpy() @ rows
    np.testing.assert_allclose(dense @ keys.T, residuals.T, atol=1e-10)
    norm = equations.low_rank_norm(left, torch.from_numpy(rows))
    assert norm == pytest.approx(np.linalg.norm(dense))
