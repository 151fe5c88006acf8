"""The forecast against what the matrices themselves do, and near-singular stacks named by patch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pico import pico_base
from random_patches import random_patch
from test_solve import random_stack, shapes

from rompatch.apply.forecast import forecast_site, update_norm
from rompatch.apply.gram import condition_number, constraints_of, key_similarity, most_dependent, similarities
from rompatch.apply.solve import ILL_CONDITIONED, materialise, solve_site, solve_stack
from rompatch.errors import ComputeError
from rompatch.patch import LowRankFactors, Patch


@given(shapes)
def test_the_ratio_is_how_much_of_another_patchs_residual_lands_on_a_key(shape: tuple[int, int, int, int]) -> None:
    _, stack = random_stack(*shape)
    found = forecast_site(stack)
    for i, disturbed in enumerate(stack):
        for j, source in enumerate(stack):
            own = constraints_of(source)
            residual, row, key = own.residuals[0], own.directions[0], own.keys[0]
            alone = np.outer(residual / (row @ key), row)  # (W + alone) k_j = v_j
            moved = alone @ constraints_of(disturbed).keys[0]
            np.testing.assert_allclose(moved, found.ratio[i, j] * residual, atol=1e-9 * np.abs(moved).max() + 1e-12)
            length = np.linalg.norm(constraints_of(disturbed).residuals[0])
            np.testing.assert_allclose(np.linalg.norm(moved) / length, found.harm[i, j], rtol=1e-8)


@given(shapes, st.sampled_from([0.0, 0.03, 1.0]))
def test_norm_and_residuals_are_those_of_the_dense_update(shape: tuple[int, int, int, int], ridge: float) -> None:
    weight, stack = random_stack(*shape)
    dense = solve_site(stack, ridge).dense()
    found = forecast_site(stack, weight_norm=float(np.linalg.norm(weight)), ridge=ridge)
    assert found.delta_norm == pytest.approx(np.linalg.norm(dense), rel=1e-7)
    assert found.relative_norm == pytest.approx(np.linalg.norm(dense) / np.linalg.norm(weight), rel=1e-7)
    for factors, residual in zip(stack, found.residuals, strict=True):
        own = constraints_of(factors)
        left = own.residuals - own.keys @ dense.T
        expected = max(np.linalg.norm(left, axis=1) / np.linalg.norm(own.residuals, axis=1))
        assert residual == pytest.approx(expected, abs=1e-7)


@given(shapes)
def test_without_ridge_every_constraint_holds_in_float32_weights(shape: tuple[int, int, int, int]) -> None:
    """To 1e-5 of the value, where the stack is well-conditioned."""
    weight, stack = random_stack(*shape)
    keys = np.concatenate([constraints_of(factors).keys for factors in stack])
    if np.linalg.cond(forecast_gram(stack)) > 1e4:
        return
    stored = torch.from_numpy(weight.astype(np.float32))
    stack = [replace(one, base_out=(one.key.astype(np.float64) @ stored.numpy().T).astype(np.float32)) for one in stack]
    edited = materialise(stored, solve_site(stack, 0), transposed=False).double().numpy()
    wanted = np.concatenate([one.value for one in stack]).astype(np.float64)
    error = np.linalg.norm(keys @ edited.T - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    assert error.max() < 1e-5


def forecast_gram(stack: list) -> np.ndarray:
    parts = [constraints_of(factors) for factors in stack]
    return np.concatenate([one.directions for one in parts]) @ np.concatenate([one.keys for one in parts]).T


def test_a_patch_alone_meets_its_own_constraint_and_disturbs_nobody() -> None:
    _, stack = random_stack(0, 1, 32, 8)
    found = forecast_site(stack)
    assert (found.worst, found.condition, found.shared, found.pairs()) == (0.0, 1.0, (), ())
    assert found.residuals[0] < 1e-5


def test_an_adapter_harms_and_is_not_harmed() -> None:
    _, stack = random_stack(5, 2, 24, 8)
    rng = np.random.default_rng(0)
    adapter = LowRankFactors(rng.normal(size=(8, 2)).astype(np.float32), rng.normal(size=(2, 24)).astype(np.float32))
    found = forecast_site([stack[0], adapter, stack[1]])
    own = constraints_of(stack[1])
    moved = adapter.left.astype(float) @ adapter.right.astype(float) @ own.keys[0]
    assert found.harm[2, 1] == pytest.approx(np.linalg.norm(moved) / np.linalg.norm(own.residuals[0]))
    assert np.isnan(found.ratio[2, 1])
    assert found.harm[1, [0, 2]].tolist() == [0, 0]
    assert np.isnan(found.residuals[1])
    assert found.residuals[2] > 0.1, "what the adapter adds is in no constraint's solution"
    alone = forecast_site([adapter])
    dense = np.linalg.norm(adapter.left.astype(float) @ adapter.right.astype(float))
    assert alone.delta_norm == pytest.approx(dense)
    assert (alone.worst, alone.condition) == (0.0, 1.0)


def test_pairs_come_worst_first_and_only_above_the_threshold() -> None:
    _, stack = random_stack(3, 5, 24, 8)
    found = forecast_site(stack)
    harms = [pair.harm for pair in found.pairs(0.01)]
    assert harms == sorted(harms, reverse=True)
    assert harms[0] == pytest.approx(found.worst)
    assert all(pair.harm > found.worst / 2 for pair in found.pairs(found.worst / 2))
    assert found.pairs(found.worst) == ()


def test_patches_that_share_a_key_are_told() -> None:
    _, (first, second, third) = random_stack(0, 3, 32, 8)
    twin = replace(third, key=first.key, u=first.u)
    assert forecast_site([first, second, twin]).shared == ((0, 2),)


def test_similarities_are_the_pairwise_ones_also_with_unequal_numbers_of_keys() -> None:
    _, two = random_stack(1, 3, 30, 6)
    _, one = random_stack(2, 2, 30, 6, n_keys=1)
    parts = [constraints_of(factors) for factors in (*two, *one)]
    expected = [[key_similarity(left, right) for right in parts] for left in parts]
    np.testing.assert_allclose(similarities(parts), expected, atol=1e-12)


def test_the_norm_needs_no_dense_update() -> None:
    _, stack = random_stack(4, 3, 40, 12)
    update = solve_site(stack)
    assert update_norm(update) == pytest.approx(np.linalg.norm(update.dense()), rel=1e-10)


def nearly_dependent() -> list[Patch]:
    """Four patches of one base; the keys of the last are nearly the sum of those of the first two."""
    base = pico_base()
    headers = [random_patch(base, seed).header for seed in range(4)]
    _, stack = random_stack(0, 4, 80, 32)
    first, second, _, last = stack
    nudge = np.float32(1e-5)
    stack[3] = replace(last, key=first.key + second.key + nudge * last.key, u=first.u + second.u + nudge * last.u)
    return [Patch(header, (factors,)) for header, factors in zip(headers, stack, strict=True)]


def test_nearly_dependent_patches_are_named_and_refused_without_a_ridge_only() -> None:
    patches = nearly_dependent()
    with pytest.raises(ComputeError, match="nearly depend") as caught:
        solve_stack(patches, 0)
    assert set(caught.value.facts["patches"]) == {patches[index].id for index in (0, 1, 3)}
    assert "ridge above 0" in str(caught.value)
    (update,) = solve_stack(patches, 0.03).values()
    assert np.isfinite(update.left).all()


def test_a_condition_number_of_nothing_finite_is_infinite() -> None:
    assert condition_number(np.full((2, 2), np.nan)) == float("inf")
    assert condition_number(np.ones((2, 2))) > ILL_CONDITIONED
    assert condition_number(np.eye(3)) == 1
    assert most_dependent([constraints_of(random_stack(0, 1, 8, 4)[1][0])]) == [0]


def test_planning_loads_no_torch() -> None:
    script = "import sys, rompatch.apply.forecast, rompatch.apply.solve; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
