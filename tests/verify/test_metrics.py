from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rompatch.errors import ComputeError
from rompatch.verify.metrics import Scores, harmonic_mean, mean_scores, score_pairs

LOG = math.log
logprobs = st.floats(min_value=-50, max_value=0)
pairs = st.lists(st.tuples(logprobs, logprobs), max_size=6)


def test_worked_example_by_hand() -> None:
    scores = score_pairs(
        rewrite=[(LOG(0.6), LOG(0.1))],
        paraphrase=[(LOG(0.5), LOG(0.3)), (LOG(0.1), LOG(0.4))],
        neighbourhood=[(LOG(0.2), LOG(0.7)), (LOG(0.1), LOG(0.2)), (LOG(0.3), LOG(0.1)), (LOG(0.05), LOG(0.25))],
    )
    assert scores.es == 1.0
    assert scores.em == pytest.approx(0.5)
    assert scores.ps == 0.5
    assert scores.pm == pytest.approx((0.2 - 0.3) / 2)
    assert scores.ns == 0.75
    assert scores.nm == pytest.approx((0.5 + 0.1 - 0.2 + 0.2) / 4)
    assert scores.s == pytest.approx(3 / (1 / 1 + 1 / 0.5 + 1 / 0.75))
    assert (scores.n_rewrite, scores.n_paraphrase, scores.n_neighbourhood, scores.n_attribute) == (1, 2, 4, 0)


def test_score_is_zero_when_any_component_is_zero() -> None:
    scores = score_pairs([(-1.0, -2.0)], [(-3.0, -2.0)], [(-5.0, -1.0)])
    assert scores.ps == 0.0
    assert scores.s == 0.0


def test_score_is_none_when_a_component_is_not_measured() -> None:
    scores = score_pairs([(-1.0, -2.0)], [], [(-5.0, -1.0)])
    assert scores.ps is None
    assert scores.pm is None
    assert scores.s is None


def test_a_tie_is_not_a_success() -> None:
    scores = score_pairs(rewrite=[(-1.0, -1.0)], neighbourhood=[(-1.0, -1.0)])
    assert scores.es == 0.0
    assert scores.ns == 0.0


def test_attribute_prompts_do_not_count_in_s() -> None:
    parts = ([(-1.0, -2.0)], [(-1.0, -2.0)], [(-2.0, -1.0)])
    assert score_pairs(*parts, [(-9.0, -1.0)]).attribute_score == 0.0
    assert score_pairs(*parts, [(-9.0, -1.0)]).s == score_pairs(*parts).s == 1.0


def test_impossible_objects_have_probability_zero() -> None:
    assert score_pairs(rewrite=[(0.0, -math.inf)]).em == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.5])
@pytest.mark.parametrize("part", ["rewrite", "paraphrase", "neighbourhood", "attribute"])
def test_numbers_that_are_no_log_probabilities_are_refused(bad: float, part: str) -> None:
    with pytest.raises(ComputeError, match=part):
        score_pairs(**{part: [(-1.0, -2.0), (-1.0, bad)]})


@given(pairs, pairs, pairs, pairs)
def test_scores_survive_their_json_form_and_stay_in_range(rewrite, paraphrase, neighbourhood, attribute) -> None:
    scores = score_pairs(rewrite, paraphrase, neighbourhood, attribute)
    assert Scores.from_json(scores.to_json()) == scores
    for name, value in scores.to_json().items():
        if value is not None and not name.startswith("n_"):
            assert -1 <= value <= 1
    if scores.s:
        assert min(scores.es, scores.ps, scores.ns) <= scores.s + 1e-12
        assert scores.s <= max(scores.es, scores.ps, scores.ns) + 1e-12


@given(pairs)
def test_neighbourhood_is_efficacy_seen_from_the_other_side(some) -> None:
    swapped = [(true, new) for new, true in some]
    assert score_pairs(rewrite=some).es == score_pairs(neighbourhood=swapped).ns
    assert score_pairs(rewrite=some).em == score_pairs(neighbourhood=swapped).nm


def test_mean_over_suites_takes_each_measure_where_it_was_measured() -> None:
    both = [Scores(es=1.0, ps=0.5, ns=0.5, n_rewrite=1), Scores(es=0.0, ps=1.0, n_rewrite=1, n_paraphrase=2)]
    mean = mean_scores(both)
    assert (mean.es, mean.ps, mean.ns) == (0.5, 0.75, 0.5)
    assert (mean.n_rewrite, mean.n_paraphrase) == (2, 2)
    assert mean.s == pytest.approx(3 / (2 + 4 / 3 + 2))


def test_harmonic_mean_of_nothing_is_not_measured() -> None:
    assert harmonic_mean(()) is None
    assert harmonic_mean((0.5, 0.5)) == pytest.approx(0.5)
