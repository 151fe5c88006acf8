"""What the cast leaves of a patch, measured block by block, against the definition."""

from __future__ import annotations

import numpy as np
import pytest
from test_solve import random_stack

from rompatch.apply.floats import decode, encode
from rompatch.apply.rounding import ROUNDING_LIMIT, Probe, RoundingMeter
from rompatch.apply.solve import solve_site
from rompatch.errors import ComputeError
from rompatch.patch import LowRankFactors


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_error_and_share_kept_are_those_of_the_whole_tensor(dtype: str, transposed: bool) -> None:
    weight, stack = random_stack(0, 3, 40, 24)
    weight = decode(encode(weight, dtype), dtype)
    update = solve_site(stack)
    exact = weight + 0.01 * update.dense()
    small = type(update)(0.01 * update.left, update.right)
    baked = decode(encode(exact, dtype), dtype)
    probes = [Probe.of(str(index), factors) for index, factors in enumerate(stack)]
    meter = RoundingMeter(small, probes, transposed=transposed)
    error = (baked - exact).T if transposed else baked - exact
    for rows in (slice(0, 9), slice(9, len(error))):
        meter.add(rows, error[rows])
    for found, factors in zip(meter.results(), stack, strict=True):
        wanted, got = 0.01 * update.dense() @ factors.key.T, (baked - weight) @ factors.key.T
        assert found.error == pytest.approx(np.linalg.norm(got - wanted) / np.linalg.norm(wanted), rel=1e-2)
        assert found.kept == pytest.approx((got * wanted).sum() / (wanted * wanted).sum(), rel=1e-2)
        assert found.swallowed == (found.error > ROUNDING_LIMIT)
    assert dtype == "float16" or any(found.swallowed for found in meter.results()) == (dtype == "bfloat16")


def test_a_delta_far_below_the_weight_is_swallowed_whole() -> None:
    meter = _filled(1e-6)
    (found,) = meter.results()
    assert found.swallowed
    assert found.kept == pytest.approx(0, abs=1e-6)
    assert found.error == 1


def test_a_number_too_large_for_the_dtype_is_an_error_that_names_the_patch() -> None:
    with pytest.raises(ComputeError, match="not finite") as caught:
        _filled(1e39).results()
    assert "patch aaaa" in str(caught.value)


def test_a_patch_without_keys_is_judged_where_it_answers() -> None:
    right = np.arange(6, dtype=np.float32).reshape(2, 3)
    probe = Probe.of("a", LowRankFactors(np.ones((4, 2), np.float32), right))
    np.testing.assert_array_equal(probe.keys, right)


def _filled(size: float) -> RoundingMeter:
    """A bfloat16 weight of ones with one patch whose delta is *size* everywhere."""
    from rompatch.apply.solve import SiteUpdate

    update = SiteUpdate(np.full((4, 1), size), np.ones((1, 3)))
    meter = RoundingMeter(update, [Probe("aaaa", np.ones((1, 3)))], transposed=False)
    exact = np.ones((4, 3)) + update.dense()
    meter.add(slice(0, 4), decode(encode(exact, "bfloat16"), "bfloat16") - exact)
    return meter
