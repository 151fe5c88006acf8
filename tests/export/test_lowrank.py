"""The factors of an export: the same product as the solve's, in as few columns as hold it, fit to be rounded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from exports import deltas_of, stack_of
from hypothesis import given
from hypothesis import strategies as st
from pico import pico_base

from rompatch.apply.solve import SiteUpdate
from rompatch.errors import ConflictError, OutputError
from rompatch.export.lowrank import balanced


def random_update(rows: int, columns: int, rank: int, seed: int = 0) -> SiteUpdate:
    random = np.random.default_rng(seed)
    return SiteUpdate(random.normal(size=(rows, rank)), random.normal(size=(rank, columns)))


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 20), st.integers(0, 99))
def test_the_factors_give_the_update_back(rows: int, columns: int, rank: int, seed: int) -> None:
    update = random_update(rows, columns, rank, seed)
    left, right = balanced(update)
    assert left.shape[1] == np.linalg.matrix_rank(update.dense())
    np.testing.assert_allclose(left @ right, update.dense(), atol=1e-12 * np.abs(update.dense()).max())
    np.testing.assert_allclose(np.linalg.norm(left, axis=0), np.linalg.norm(right, axis=1))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_lower_rank_is_the_best_there_is_and_its_error_is_told(rank: int) -> None:
    base = pico_base()
    (delta,) = deltas_of(stack_of(base, 4), max_rank=rank)
    assert delta.rank == rank
    dense = delta.update.dense()
    lost = np.linalg.svd(dense, compute_uv=False)[rank:]
    told = delta.error(*delta.rounded("float32"))
    assert told == pytest.approx(np.linalg.norm(lost) / np.linalg.norm(dense), rel=1e-5)


def test_columns_that_carry_nothing_are_dropped() -> None:
    update = random_update(8, 9, 3)
    padded = SiteUpdate(np.hstack([update.left, np.zeros((8, 2))]), np.vstack([update.right, np.ones((2, 9))]))
    twice = SiteUpdate(np.hstack([update.left, update.left]), np.vstack([update.right, update.right]))
    assert balanced(padded)[0].shape[1] == 3
    assert balanced(twice)[0].shape[1] == 3


def test_more_columns_than_the_matrix_has_become_as_many_as_it_has() -> None:
    update = random_update(4, 7, 30)
    left, right = balanced(update)
    assert (left.shape, right.shape) == ((4, 4), (4, 7))


def test_columns_that_cancel_each_other_survive_rounding() -> None:
    """Rounded as the solve gives them, what is left of two large columns that nearly cancel would be noise."""
    base = pico_base()
    (delta,) = deltas_of(stack_of(base, 1))
    big = 1e7 * np.random.default_rng(0).normal(size=(base.site(1).d_out, 1))
    row = np.random.default_rng(1).normal(size=(1, base.site(1).d_in))
    update = SiteUpdate(np.hstack([big, big]), np.vstack([row, -row + 1e-6 * delta.update.right]))
    left, right = balanced(update)
    rounded = replace(delta, update=update, left=left, right=right).rounded("float32")
    ours = np.abs(rounded[0].double().numpy() @ rounded[1].double().numpy() - update.dense()).max()
    plain = np.abs(
        update.left.astype("f4").astype("f8") @ update.right.astype("f4").astype("f8") - update.dense()
    ).max()
    assert ours < 1e-5 * np.abs(update.dense()).max()
    assert plain > 1000 * ours


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-7), ("float16", 1e-3), ("bfloat16", 6e-3)])
def test_the_error_of_rounding_is_told(dtype: str, bound: float) -> None:
    for delta in deltas_of(stack_of(pico_base(), 20, (0, 1, 2))):
        left, right = delta.rounded(dtype)
        dense = delta.update.dense()
        found = np.linalg.norm(left.double().numpy() @ right.double().numpy() - dense) / np.linalg.norm(dense)
        assert delta.error(left, right) == pytest.approx(found, rel=1e-4)
        assert 0 < found < bound


def test_numbers_that_do_not_fit_a_dtype_are_refused() -> None:
    (delta,) = deltas_of(stack_of(pico_base(), 1))
    with pytest.raises(OutputError, match="does not fit float16"):
        replace(delta, left=delta.left * 1e6).rounded("float16")


def test_a_stack_that_changes_nothing_is_refused() -> None:
    patch = stack_of(pico_base(), 1)[0]
    still = replace(patch, factors=(replace(patch.factors[0], v=0 * patch.factors[0].v),))
    with pytest.raises(ConflictError, match="change nothing"):
        deltas_of([still])


def test_equal_updates_give_equal_factors() -> None:
    one, other = (deltas_of(stack_of(pico_base(), 5))[0] for _ in range(2))
    assert one.left.tobytes() == other.left.tobytes()
    assert one.right.tobytes() == other.right.tobytes()
