"""The equations of compute/rome.py against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rompatch.compute import rome
from rompatch.compute.statistics import cholesky_factor

SEEDS = st.integers(0, 2**31)
SIZES = st.integers(1, 7)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def second_moment(seed: int, d_in: int) -> np.ndarray:
    keys = normal(seed, 3 * d_in, d_in)
    return keys.T @ keys / len(keys)


def close(found: torch.Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-8, atol=1e-10)


@given(seed=SEEDS, n=SIZES, d_in=SIZES)
def test_the_mean_key_is_the_mean_over_prefixes(seed: int, n: int, d_in: int) -> None:
    keys = normal(seed, n, d_in)
    close(rome.mean_key(torch.from_numpy(keys)), sum(keys) / n)


@given(seed=SEEDS, d_in=SIZES, ridge=st.floats(0, 1))
def test_the_ridge_is_relative_to_the_mean_of_the_diagonal(seed: int, d_in: int, ridge: float) -> None:
    C = second_moment(seed, d_in)
    expected = C + ridge * np.trace(C) / d_in * np.eye(d_in)
    close(rome.with_ridge(torch.from_numpy(C), ridge), expected)


@given(seed=SEEDS, d_in=SIZES, n=SIZES)
def test_inverse_rows_solve_with_C(seed: int, d_in: int, n: int) -> None:
    C, keys = second_moment(seed, d_in) + 0.1 * np.eye(d_in), normal(seed + 1, n, d_in)
    factor = torch.from_numpy(np.linalg.cholesky(C))
    close(rome.inverse_rows(torch.from_numpy(keys), factor), keys @ np.linalg.inv(C))


@given(seed=SEEDS, d_in=SIZES, d_out=SIZES)
def test_the_rank_one_update_maps_key_to_value(seed: int, d_in: int, d_out: int) -> None:
    W, key, value = normal(seed, d_out, d_in), normal(seed + 1, d_in), normal(seed + 2, d_out)
    C = torch.from_numpy(second_moment(seed + 3, d_in))
    row = rome.inverse_rows(torch.from_numpy(key)[None], cholesky_factor(C, 0.1))[0]
    v = rome.update_vector(torch.from_numpy(value - W @ key), torch.from_numpy(key), row)
    np.testing.assert_allclose((W + np.outer(v, row)) @ key, value, rtol=1e-6, atol=1e-6)


def test_the_update_is_the_least_one_in_the_metric_of_C() -> None:
    """Eq. 5 minimises ||Delta C^(1/2)||: any other update with the same constraint is larger."""
    d_in, d_out = 5, 3
    key, residual = normal(1, d_in), normal(2, d_out)
    C = second_moment(3, d_in) + 0.1 * np.eye(d_in)
    row = rome.inverse_rows(torch.from_numpy(key)[None], torch.from_numpy(np.linalg.cholesky(C)))[0]
    v = rome.update_vector(torch.from_numpy(residual), torch.from_numpy(key), row)
    least = np.outer(v, row)
    for seed in range(20):
        other = normal(seed + 10, d_out, d_in)
        other -= np.outer(other @ key, key) / (key @ key)  # leaves the key where it is
        moved = least + 0.1 * other
        np.testing.assert_allclose(moved @ key, residual, atol=1e-9)
        assert np.trace(moved @ C @ moved.T) > np.trace(least @ C @ least.T)


@given(seed=SEEDS, n=SIZES, n_target=SIZES)
def test_the_target_loss_is_the_mean_over_tokens_and_prefixes(seed: int, n: int, n_target: int) -> None:
    logits, ids = normal(seed, n, n_target, 9), np.random.default_rng(seed).integers(0, 9, n_target)
    expected = 0.0
    for row in logits:
        for position, token in enumerate(ids):
            p = np.exp(row[position]) / np.exp(row[position]).sum()
            expected -= np.log(p[token]) / (n * n_target)
    log_probs = torch.log_softmax(torch.from_numpy(logits), dim=2)
    wanted = log_probs[:, torch.arange(n_target), torch.from_numpy(ids)].reshape(-1)
    both = torch.cat([wanted, 2 * wanted[:1]])  # another request's single read behind it
    request = torch.tensor([0] * len(wanted) + [1])
    close(rome.target_losses(both, request), np.array([expected, -2 * float(wanted[0])]))


@given(seed=SEEDS, vocab=st.integers(2, 9))
def test_the_essence_loss_is_the_divergence_of_the_edited_from_the_base(seed: int, vocab: int) -> None:
    p, q = (np.exp(x) / np.exp(x).sum() for x in (normal(seed, vocab), normal(seed + 1, vocab)))
    found = rome.essence_loss(torch.from_numpy(np.log(p)), torch.from_numpy(np.log(q)))
    close(found, np.array(sum(p[i] * (np.log(p[i]) - np.log(q[i])) for i in range(vocab))))
    assert found >= -1e-12
    assert rome.essence_loss(torch.from_numpy(np.log(p)), torch.from_numpy(np.log(p))) == 0


@given(seed=SEEDS, d_out=SIZES, radius=st.floats(0.01, 5))
def test_projecting_keeps_the_direction_and_never_leaves_the_ball(seed: int, d_out: int, radius: float) -> None:
    delta = normal(seed, d_out)
    found = rome.project_to_ball(torch.from_numpy(delta), torch.tensor(radius, dtype=torch.float64)).numpy()
    close(torch.from_numpy(found), delta * min(1.0, radius / np.linalg.norm(delta)))
    assert np.linalg.norm(found) <= radius * (1 + 1e-12)


def test_the_norm_penalty_is_the_square_of_the_relative_length() -> None:
    assert rome.norm_penalty(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([2.0, 4.0])).tolist() == [6.25, 0.25]


@given(seed=SEEDS, d_in=st.integers(2, 9), d_out=st.integers(1, 6))
def test_what_an_edit_disturbs_is_its_length_squared_over_the_leverage_of_its_key(
    seed: int, d_in: int, d_out: int
) -> None:
    """tr(F Delta C Delta^T) with F = I, written out, against ||delta||^2 / (k^T C^-1 k)."""
    keys, delta, key = normal(seed, 4 * d_in, d_in), normal(seed + 1, d_out), normal(seed + 2, d_in)
    second_moment = keys.T @ keys / len(keys)
    factor = torch.from_numpy(np.linalg.cholesky(second_moment))
    row = rome.inverse_rows(torch.from_numpy(key)[None], factor)[0]
    vector = rome.update_vector(torch.from_numpy(delta), torch.from_numpy(key), row)
    disturbed = np.mean(np.sum((keys @ np.outer(vector, row).T) ** 2, axis=1))
    leverage = key @ np.linalg.solve(second_moment, key)
    assert disturbed == pytest.approx(delta @ delta / leverage, rel=1e-6)


def test_weight_decay_is_the_norm_over_the_square_of_the_outputs() -> None:
    assert rome.weight_decay_penalty(torch.tensor([3.0, 4.0]), torch.tensor(2.0)) == 5 / 4
