"""Means and intervals against the standard library, hand-worked cases and a bootstrap."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rompatch.errors import ComputeError
from rompatch.verify.intervals import (
    Estimate,
    compare,
    harmonic_estimate,
    mean_estimate,
    paired_difference,
    paired_harmonic_difference,
    summarise,
)
from rompatch.verify.metrics import Scores, mean_scores

fractions = st.floats(min_value=0, max_value=1)


def test_mean_and_half_width_worked_by_hand() -> None:
    # Values 0, 1, 1, 1, 0: mean 3/5. Squared deviations 2 * 0.36 + 3 * 0.16 = 1.2, s^2 = 1.2 / 4 = 0.3,
    # standard error sqrt(0.3 / 5) = 0.24495, half width 1.96 * 0.24495 = 0.48010.
    found = mean_estimate([0, 1, 1, 1, 0])
    assert found == Estimate(0.6, pytest.approx(0.480100, abs=1e-6), 5)
    assert (found.low, found.high) == (pytest.approx(0.1199, abs=1e-4), pytest.approx(1.0801, abs=1e-4))


@given(st.lists(fractions, min_size=2, max_size=40))
def test_mean_and_half_width_are_those_of_the_standard_library(values: list[float]) -> None:
    found = mean_estimate(values)
    assert found is not None
    assert found.value == pytest.approx(statistics.fmean(values))
    assert found.half_width == pytest.approx(1.96 * statistics.stdev(values) / math.sqrt(len(values)), abs=1e-12)


def test_what_nobody_measured_has_no_mean_and_one_record_no_interval() -> None:
    assert mean_estimate([]) is None
    assert mean_estimate([None, None]) is None
    assert mean_estimate([None, 0.25]) == Estimate(0.25, None, 1)
    assert harmonic_estimate([]) is None
    assert harmonic_estimate([(1.0, None, 0.5)] * 3) is None
    assert harmonic_estimate([(1.0, 1.0, 0.5)]) == Estimate(pytest.approx(0.75), None, 1)
    assert paired_difference([None, 1.0], [1.0, None]) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_refused(bad: float) -> None:
    with pytest.raises(ComputeError, match="not a finite number"):
        mean_estimate([0.5, bad])
    with pytest.raises(ComputeError, match="not a finite number"):
        harmonic_estimate([(0.5, 0.5, 0.5), (0.5, bad, 0.5)])


def test_harmonic_interval_worked_by_hand() -> None:
    # Two records (1, 1, 1/2) and (1, 0, 1/2): means 1, 1/2, 1/2; S = 3 / (1 + 2 + 2) = 0.6.
    # Only PS varies. dS/dPS = S^2 / (3 PS^2) = 0.36 / 0.75 = 0.48. s^2(PS) = 0.5, standard error sqrt(0.5 / 2) = 0.5.
    # Half width 1.96 * 0.48 * 0.5 = 0.4704.
    found = harmonic_estimate([(1, 1, 0.5), (1, 0, 0.5)])
    assert found == Estimate(pytest.approx(0.6), pytest.approx(0.4704), 2)


def test_measures_that_vary_together_widen_the_interval_of_their_harmonic_mean() -> None:
    together = harmonic_estimate([(1, 1, 1), (0.5, 0.5, 0.5)])
    against = harmonic_estimate([(1, 0.5, 0.75), (0.5, 1, 0.75)])
    # With all three equal, S is their mean: 0.75 +- 1.96 * sqrt(0.125 / 2).
    assert together == Estimate(pytest.approx(0.75), pytest.approx(1.96 * 0.25), 2)
    assert against == Estimate(pytest.approx(0.75), pytest.approx(0, abs=1e-12), 2)


def random_rows(n: int, seed: int) -> list[tuple[float, float, float]]:
    """Records as COUNTERFACT has them: 1 rewrite, 2 paraphrase, 10 neighbourhood prompts, correlated."""
    draw = random.Random(seed)
    rows = []
    for _ in range(n):
        ease = draw.random()
        shares = ((1, 0.6 + 0.4 * ease), (2, 0.4 + 0.6 * ease), (10, 1 - 0.5 * ease))
        rows.append(tuple(sum(draw.random() < p for _ in range(k)) / k for k, p in shares))
    return rows


def harmonic(rows: list[tuple[float, ...]]) -> float:
    means = [statistics.fmean(column) for column in zip(*rows, strict=True)]
    return statistics.harmonic_mean(means)


def test_the_delta_method_agrees_with_a_bootstrap() -> None:
    rows, draw = random_rows(200, 1), random.Random(2)
    found = harmonic_estimate(rows)
    assert found is not None
    assert found.value == pytest.approx(harmonic(rows))
    spread = statistics.stdev(harmonic(draw.choices(rows, k=len(rows))) for _ in range(1000))
    assert found.half_width == pytest.approx(1.96 * spread, rel=0.1)


def test_paired_differences_agree_with_a_bootstrap_of_pairs() -> None:
    before = random_rows(200, 3)
    draw = random.Random(4)
    after = [(a, b, max(0.0, c - 0.1 * draw.random())) for a, b, c in before]
    found = paired_harmonic_difference(before, after)
    assert found is not None
    assert found.value == pytest.approx(harmonic(after) - harmonic(before))
    samples = (draw.choices(range(200), k=200) for _ in range(1000))
    spread = statistics.stdev(harmonic([after[i] for i in s]) - harmonic([before[i] for i in s]) for s in samples)
    assert found.half_width == pytest.approx(1.96 * spread, rel=0.1)
    alone = [harmonic_estimate(rows) for rows in (before, after)]
    assert found.half_width < min(one.half_width for one in alone) / 3, "pairing removes what the records share"


def test_s_at_zero_has_a_value_and_no_interval() -> None:
    assert harmonic_estimate([(0.0, 1.0, 1.0), (0.0, 0.5, 1.0)]) == Estimate(0.0, None, 2)
    assert paired_harmonic_difference([(0.0, 1.0, 1.0)] * 2, [(1.0, 1.0, 1.0)] * 2) == Estimate(1.0, None, 2)


def test_records_that_measured_a_part_count_where_they_did() -> None:
    rows = [(1.0, 0.5, 0.5), (1.0, None, 1.0), (None, None, None)]
    found = harmonic_estimate(rows)
    # PS from one record alone: means 1, 0.5, 0.75, S = 3 / (1 + 2 + 4/3); n counts the records that measured at all.
    assert found is not None
    assert (found.value, found.n) == (pytest.approx(9 / 13), 2)
    assert found.value == mean_scores([Scores(es=a, ps=b, ns=c) for a, b, c in rows]).s


def test_a_paired_difference_is_the_mean_of_differences() -> None:
    # Differences 0.5, 0, 0.1: mean 0.2, squared deviations 0.09 + 0.04 + 0.01 = 0.14, s^2 = 0.07.
    found = paired_difference([0.1, 0.5, None, 0.4], [0.6, 0.5, 0.9, 0.5])
    assert found == Estimate(pytest.approx(0.2), pytest.approx(1.96 * math.sqrt(0.07 / 3)), 3)
    with pytest.raises(ValueError, match=r"shorter|longer"):
        paired_difference([1.0], [])


def test_a_table_row_holds_every_measure_and_s_of_the_means() -> None:
    rows = [Scores(es=1.0, ps=1.0, ns=0.5).to_json(), Scores(es=1.0, ps=0.0, ns=0.5).to_json()]
    found = summarise(rows, ("es", "ps", "ns", "s", "em"))
    assert found["es"] == Estimate(1.0, 0.0, 2)
    assert found["s"] == Estimate(pytest.approx(0.6), pytest.approx(0.4704), 2)
    assert found["em"] is None


def test_two_runs_are_compared_over_the_records_of_both() -> None:
    before = {1: {"es": 0.0, "ps": 0.5, "ns": 0.5}, 2: {"es": 1.0, "ps": 0.5, "ns": 0.5}, 3: {"es": 0.0}}
    after = {2: {"es": 1.0, "ps": 1.0, "ns": 0.5}, 1: {"es": 1.0, "ps": 1.0, "ns": 0.5}, 4: {"es": 0.0}}
    found = compare(before, after, ("es", "ps", "s", "rs"))
    assert (found["es"].value, found["es"].n) == (0.5, 2)
    assert found["ps"] == Estimate(0.5, 0.0, 2)
    # 0.75 against 0.5: S from means (1, 1, 0.5) and (0.5, 0.5, 0.5).
    assert (found["s"].value, found["s"].n) == (pytest.approx(0.25), 2)
    assert found["rs"] is None


def test_estimates_survive_their_json_form() -> None:
    for one in (Estimate(0.5, 0.1, 3), Estimate(0.5, None, 1)):
        assert Estimate.from_json(one.to_json()) == one
