"""The running sum of k k^T: against the plain mean, in any pieces, interrupted, and with numbers that are none."""

from __future__ import annotations

from unittest.mock import patch as swapped

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rompatch.compute import second_moment
from rompatch.compute.second_moment import SecondMoment
from rompatch.errors import StatisticsError


def drawn(seed: int, n_tokens: int, d_in: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n_tokens, d_in)).astype(np.float32))


def summed(*parts: torch.Tensor) -> SecondMoment:
    moment = SecondMoment(parts[0].shape[1])
    for part in parts:
        moment.add(part)
    return moment


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(any),
    d_in=st.integers(1, 9),
    block=st.integers(1, 40),
    panel=st.integers(1, 10),
    seed=st.integers(0, 2**31),
)
def test_it_is_the_mean_of_outer_products(sizes: list[int], d_in: int, block: int, panel: int, seed: int) -> None:
    keys = drawn(seed, sum(sizes), d_in)
    with swapped.multiple(second_moment, BLOCK_TOKENS=block, PANEL_ROWS=panel):
        moment = summed(*keys.split(sizes))
        found = moment.mean()
    naive = sum(np.outer(key, key) for key in keys.double().numpy()) / len(keys)
    assert moment.count == len(keys)
    assert torch.equal(found, found.T), "exactly symmetric"
    np.testing.assert_allclose(found.numpy(), naive, rtol=1e-5, atol=1e-5)


@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, 50), max_size=5), seed=st.integers(0, 2**31))
def test_the_pieces_in_which_keys_come_do_not_change_a_bit(cuts: list[int], seed: int) -> None:
    keys = drawn(seed, 50, 5)
    with swapped.multiple(second_moment, BLOCK_TOKENS=16, PANEL_ROWS=2):
        whole = summed(keys).mean()
        assert torch.equal(summed(*keys.tensor_split(sorted(cuts))).mean(), whole)


@pytest.mark.parametrize("stop", [1, 15, 16, 17, 40])
def test_one_that_was_resumed_rounds_as_one_that_never_stopped(stop: int) -> None:
    keys = drawn(0, 50, 5)
    with swapped.multiple(second_moment, BLOCK_TOKENS=16, PANEL_ROWS=2):
        first = summed(keys[:stop])
        again = SecondMoment.resumed(first.total.clone(), first.pending.clone(), first.count)
        again.add(keys[stop:])
        assert again.count == 50
        assert torch.equal(again.mean(), summed(keys).mean())


@pytest.mark.parametrize(
    ("total", "pending", "count"),
    [
        (torch.zeros(2, 3).double(), torch.zeros(1, 3), 1),
        (torch.zeros(2, 2), torch.zeros(1, 2), 1),
        (torch.zeros(2, 2).double(), torch.zeros(1, 3), 1),
        (torch.zeros(2, 2).double(), torch.zeros(1, 2).double(), 1),
        (torch.zeros(2, 2).double(), torch.zeros(2), 1),
        (torch.zeros(2, 2).double(), torch.zeros(1, 2), 0),
        (torch.zeros(2, 2).double(), torch.zeros(1, 2), 2),
        (torch.zeros(2, 2).double(), torch.zeros(4096, 2), 4096),
    ],
)
def test_sums_that_do_not_belong_together_are_not_resumed(
    total: torch.Tensor, pending: torch.Tensor, count: int
) -> None:
    with pytest.raises(ValueError, match=r"total|keys"):
        SecondMoment.resumed(total, pending, count)


def test_a_long_sum_is_right_to_the_last_digits_of_float32() -> None:
    keys = torch.tensor([[300.0, 1e-2]]).expand(200_000, 2) * torch.tensor([[1.0, -1.0]])
    mean = summed(*keys.split(1000)).mean()
    np.testing.assert_allclose(mean.numpy(), [[9e4, -3.0], [-3.0, 1e-4]], rtol=1e-5)


def test_the_mean_of_no_token_is_refused() -> None:
    with pytest.raises(StatisticsError, match="No token"):
        SecondMoment(3).mean()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_keys_that_are_not_finite_are_refused_with_their_block(value: float) -> None:
    keys = torch.tensor([[1.0, 2.0, value]])
    with pytest.raises(StatisticsError, match="not finite"):
        summed(keys).mean()
    with (
        swapped.object(second_moment, "BLOCK_TOKENS", 4),
        pytest.raises(StatisticsError, match=r"not finite.*first 4 tokens"),
    ):
        summed(keys, torch.ones(3, 3))
