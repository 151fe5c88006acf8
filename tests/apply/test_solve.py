"""The stack's algebra against naive implementations, over shapes and stacks that Hypothesis draws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rompatch.apply.solve import (
    Constraints,
    constraints_of,
    key_similarity,
    materialise,
    merge_same_keys,
    solve_constraints,
    solve_site,
)
from rompatch.errors import ComputeError
from rompatch.patch import LowRankFactors, SiteFactors


def random_stack(seed: int, m: int, d_in: int, d_out: int, n_keys: int = 2) -> tuple[np.ndarray, list[SiteFactors]]:
    """A weight and *m* patches whose directions come from one random C."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(d_out, d_in))
    root = rng.normal(size=(2 * d_in, d_in))
    inverse = np.linalg.inv(root.T @ root / len(root) + 0.1 * np.eye(d_in))
    stack = []
    for _ in range(m):
        key = rng.normal(size=d_in) + 0.3 * rng.normal(size=(n_keys, d_in))
        u, delta, base_out = key @ inverse, rng.normal(size=d_out), key @ weight.T
        v = delta / (key[-1] @ u[0])
        arrays = {"u": u, "v": v, "key": key, "value": base_out + delta, "base_out": base_out}
        stack.append(SiteFactors(**{name: array.astype(np.float32) for name, array in arrays.items()}))
    return weight, stack


shapes = st.tuples(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(24, 40), st.integers(3, 20))


@given(shapes)
def test_without_ridge_every_constraint_holds_at_once(shape: tuple[int, int, int, int]) -> None:
    weight, stack = random_stack(*shape)
    edited = weight + solve_site(stack, ridge=0).dense()
    for factors in stack:
        scale = np.abs(factors.value).max()
        np.testing.assert_allclose(edited @ factors.key.T, factors.value.T, atol=1e-3 * scale)


@given(shapes)
def test_the_ridge_solution_is_memits(shape: tuple[int, int, int, int]) -> None:
    """R K^T (l C + K K^T)^-1, written out with C itself, equals R (G + l I)^-1 U^T by the push-through identity."""
    seed, m, d_in, d_out = shape
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(2 * d_in, d_in))
    second_moment = root.T @ root / len(root)
    keys, residuals = rng.normal(size=(m, d_in)), rng.normal(size=(m, d_out))
    directions = np.linalg.solve(second_moment, keys.T).T
    ridge = 0.03 * np.diag(directions @ keys.T).mean()
    naive = residuals.T @ keys @ np.linalg.inv(ridge * second_moment + keys.T @ keys)
    ours = solve_constraints(Constraints(keys, directions, residuals), 0.03).dense()
    np.testing.assert_allclose(ours, naive, atol=1e-7 * np.abs(naive).max() + 1e-9)


@given(shapes)
def test_a_stack_of_one_is_the_patchs_own_rank_one_update(shape: tuple[int, int, int, int]) -> None:
    _, stack = random_stack(*shape)
    expected = np.outer(stack[0].v.astype(np.float64), stack[0].u[0].astype(np.float64))
    np.testing.assert_allclose(solve_site(stack[:1]).dense(), expected)


def test_singular_keys_are_refused_without_a_ridge() -> None:
    constraints = Constraints(np.ones((2, 4)), np.ones((2, 4)), np.ones((2, 3)))
    with pytest.raises(ComputeError, match="nearly depend"):
        solve_constraints(constraints, 0)


def test_two_facts_about_one_subject_share_their_key_and_part_of_both_residuals() -> None:
    weight, (first,) = random_stack(0, 1, 32, 8)
    other_delta = np.random.default_rng(5).normal(size=8).astype(np.float32)
    second = replace(first, value=first.base_out + other_delta)
    merged = merge_same_keys([constraints_of(first), constraints_of(second)])
    assert len(merged.keys) == 2, "one patch's worth of keys"
    edited = weight + solve_constraints(merged, 0).dense()
    expected = first.base_out[0] + ((first.value - first.base_out)[0] + other_delta) / np.sqrt(2)
    np.testing.assert_allclose(edited @ first.key[0], expected, atol=1e-4)


def test_different_subjects_do_not_share_their_key() -> None:
    _, (first, second) = random_stack(0, 2, 32, 8)
    left, right = constraints_of(first), constraints_of(second)
    assert key_similarity(left, left) == pytest.approx(1)
    assert key_similarity(left, right) < 0.9
    assert len(merge_same_keys([left, right]).keys) == 4


@given(st.integers(0, 99), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]), st.booleans())
def test_materialise_sums_in_float64_and_casts_once(seed: int, dtype: torch.dtype, transposed: bool) -> None:
    weight, stack = random_stack(seed, 2, 24, 700 if transposed else 20)
    update = solve_site(stack)
    stored = torch.from_numpy(weight.T.copy() if transposed else weight).to(dtype)
    before = stored.clone()
    edited = materialise(stored, update, transposed=transposed)
    delta = torch.from_numpy(update.dense())
    expected = (stored.double() + (delta.T if transposed else delta)).to(dtype)
    assert edited.dtype == dtype
    # A product in another order of summation may round to the neighbouring value.
    torch.testing.assert_close(edited.double(), expected.double(), rtol=2 * torch.finfo(dtype).eps, atol=1e-12)
    assert torch.equal(stored, before)


def test_materialise_without_an_update_is_the_base_itself() -> None:
    weight = torch.ones(2, 2)
    assert materialise(weight, None, transposed=False) is weight


@given(st.integers(0, 99), st.integers(0, 4))
def test_what_brings_no_keys_is_added_to_the_joint_solution_of_the_others(seed: int, n_facts: int) -> None:
    _, facts = random_stack(seed, n_facts, 12, 7)
    rng = np.random.default_rng(seed)
    adapters = [
        LowRankFactors(rng.normal(size=(7, rank)).astype(np.float32), rng.normal(size=(rank, 12)).astype(np.float32))
        for rank in (1, 3)
    ]
    found = solve_site([adapters[0], *facts, adapters[1]])
    expected = sum(one.left.astype(np.float64) @ one.right.astype(np.float64) for one in adapters)
    if facts:
        expected = expected + solve_site(facts).dense()
    np.testing.assert_allclose(found.dense(), expected, atol=1e-12)


def test_a_fact_beside_an_adapter_is_solved_as_if_it_were_alone() -> None:
    """With mixed keys a patch alone is another update than the joint solution of one; an adapter is no company."""
    _, (fact,) = random_stack(3, 1, 12, 7)
    nothing = LowRankFactors(np.zeros((7, 1), dtype=np.float32), np.zeros((1, 12), dtype=np.float32))
    np.testing.assert_array_equal(solve_site([fact, nothing]).dense(), solve_site([fact]).dense())
