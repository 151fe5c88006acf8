"""The plan of successive halving, with plain numbers."""

from __future__ import annotations

import pytest

from rompatch.bench.tuning import Rung, Score, candidates, ranked, rungs, survivors, work
from rompatch.errors import RequestError


def test_every_layer_meets_every_combination_in_the_order_given() -> None:
    found = candidates([4, 3], {"steps": [10, 15], "keys": ["mixed"], "kl_factor": [0.0625, 0.5]})
    assert [(one.layer, *one.hparams.values()) for one in found[:5]] == [
        (4, 10, "mixed", 0.0625),
        (4, 10, "mixed", 0.5),
        (4, 15, "mixed", 0.0625),
        (4, 15, "mixed", 0.5),
        (3, 10, "mixed", 0.0625),
    ]
    assert len(found) == 8


def test_a_label_names_only_what_tells_candidates_apart() -> None:
    swept = candidates([4], {"steps": [10, 15], "keys": ["mixed"], "kl_factor": [0.0625, 0.5]})
    assert [one.label for one in swept[:2]] == [
        "layer 4, steps 10, kl factor 0.0625",
        "layer 4, steps 10, kl factor 0.5",
    ]
    assert [one.label for one in candidates([2, 3], {})] == ["layer 2", "layer 3"]


def test_nothing_to_try_and_the_same_twice_are_refused() -> None:
    with pytest.raises(RequestError, match="nothing to try for layers"):
        candidates([], {"steps": [1]})
    with pytest.raises(RequestError, match="nothing to try for steps"):
        candidates([1], {"steps": []})
    with pytest.raises(RequestError, match="layers names 3 twice"):
        candidates([3, 4, 3], {})
    with pytest.raises(RequestError, match=r"lr names 0\.5 twice"):
        candidates([3], {"lr": [0.5, 0.50]})


def test_the_records_double_while_the_candidates_halve() -> None:
    assert rungs(7, 8, 204) == (Rung(8, 7, 4), Rung(16, 4, 2), Rung(32, 2, 1))
    assert rungs(8, 8, 204) == (Rung(8, 8, 4), Rung(16, 4, 2), Rung(32, 2, 1))


def test_the_best_of_several_is_taken_where_the_records_are_used_up() -> None:
    assert rungs(20, 8, 20) == (Rung(8, 20, 10), Rung(16, 10, 5), Rung(20, 5, 1))
    assert rungs(5, 8, 8) == (Rung(8, 5, 1),)


def test_one_candidate_needs_one_rung() -> None:
    assert rungs(1, 8, 100) == (Rung(8, 1, 1),)


def test_a_plan_goes_on_from_the_rung_that_was_done() -> None:
    whole = rungs(20, 8, 204)
    assert rungs(10, 8, 204, done=8) == whole[1:]
    assert work(whole) == work(whole[:1]) + work(whole[1:], done=8)


def test_every_rung_counts_only_the_records_that_it_adds() -> None:
    assert work(rungs(7, 8, 204)) == 7 * 8 + 4 * 8 + 2 * 16
    assert work(rungs(20, 8, 20)) == 20 * 8 + 10 * 8 + 5 * 4


def test_halving_never_ends_with_nobody() -> None:
    assert [survivors(n, last=False) for n in range(1, 8)] == [1, 1, 2, 2, 3, 3, 4]
    assert survivors(9, last=True) == 1


def test_s_ranks_first_then_em_then_the_order_given() -> None:
    scores = {
        "unmeasured": Score(None, 0.9),
        "good": Score(0.8, 0.1),
        "zero": Score(0.0, 0.0),
        "tie": Score(0.8, 0.2),
        "same": Score(0.8, 0.1),
        "no em": Score(0.8, None),
    }
    assert ranked(scores) == ["tie", "good", "same", "no em", "zero", "unmeasured"]
