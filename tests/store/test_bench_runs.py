"""The ledger's benchmark runs: found again by their settings, one row a record, never twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny_patches import tiny_base

from rompatch.errors import AmbiguousIdError, ConflictError, PatchNotFoundError, StoreError
from rompatch.store.bench import BenchResultRecord, BenchRunRecord, bench_run_id, differing
from rompatch.store.ledger import Ledger

SETTINGS = {"layer": 4, "hparams": {"lr": 0.5, "steps": 20}, "dataset": "a" * 64}
DONE = BenchResultRecord(3, 77, "scored", measures={"after": {"es": 1.0}}, prompts={"after": [1]})
BROKEN = BenchResultRecord(3, 77, "failed", error_kind="SubjectError", error="No subject.")


def begin(ledger: Ledger, name: str | None = None, **changed: object) -> BenchRunRecord:
    base = ledger.add_base(tiny_base()).id
    settings = {**SETTINGS, **changed}
    return ledger.begin_bench_run(settings, name=name, base_id=base, benchmark="counterfact", method="rome")


def test_the_same_settings_are_the_same_run_and_others_another(ledger: Ledger) -> None:
    run = begin(ledger)
    assert begin(ledger) == run
    assert begin(ledger, layer=5).id != run.id
    assert begin(ledger, name="mine").id != run.id
    assert len(ledger.bench_runs()) == 3
    assert run.id == bench_run_id(SETTINGS, None)


def test_a_name_with_other_settings_is_refused_and_the_differences_are_named(ledger: Ledger) -> None:
    begin(ledger, name="mine")
    with pytest.raises(ConflictError, match="other settings") as caught:
        begin(ledger, name="mine", layer=5, hparams={"lr": 0.1, "steps": 20}, dataset="b" * 64)
    assert caught.value.facts["settings"] == ("dataset", "hparams.lr", "layer")
    assert caught.value.expected == "dataset aaaaaaaaaaaa; hparams.lr 0.5; layer 4"
    assert caught.value.found == "dataset bbbbbbbbbbbb; hparams.lr 0.1; layer 5"
    assert len(ledger.bench_runs()) == 1


def test_a_run_is_found_by_name_id_and_prefix(ledger: Ledger) -> None:
    run, named = begin(ledger), begin(ledger, name="abcd")
    assert ledger.bench_run(run.id) == ledger.bench_run(run.id[:6].upper()) == run
    assert ledger.bench_run("abcd") == named  # a name that could be a prefix is a name first
    for name in ("nobody", run.id[:3], "ffff" * 16):
        with pytest.raises(PatchNotFoundError, match="no benchmark run"):
            ledger.bench_run(name)


def test_a_prefix_of_two_ids_is_ambiguous(ledger: Ledger) -> None:
    first: dict[str, int] = {}
    for layer in range(2000):  # ids are hashes: two with the same four digits are found soon, and always the same
        other = first.setdefault(bench_run_id({**SETTINGS, "layer": layer}, None)[:4], layer)
        if other != layer:
            break
    begin(ledger, layer=layer), begin(ledger, layer=other)
    with pytest.raises(AmbiguousIdError, match="means 2"):
        ledger.bench_run(bench_run_id({**SETTINGS, "layer": layer}, None)[:4])


def test_a_scored_record_is_never_counted_twice(ledger: Ledger) -> None:
    run = begin(ledger)
    assert ledger.add_bench_result(run.id, DONE)
    assert not ledger.add_bench_result(run.id, replace(DONE, measures={"after": {"es": 0.0}}))
    assert not ledger.add_bench_result(run.id, BROKEN)
    (result,) = ledger.bench_results(run.id)
    assert (result.measures, result.prompts) == ({"after": {"es": 1.0}}, None)
    assert ledger.bench_results(run.id, prompts=True)[0].prompts == {"after": [1]}
    assert ledger.bench_positions(run.id) == {3: "scored"}


def test_a_failed_record_may_be_tried_again(ledger: Ledger) -> None:
    run = begin(ledger)
    assert ledger.add_bench_result(run.id, BROKEN)
    assert (ledger.bench_run(run.id).scored, ledger.bench_run(run.id).failed) == (0, 1)
    assert ledger.add_bench_result(run.id, DONE)
    assert (ledger.bench_run(run.id).scored, ledger.bench_run(run.id).failed) == (1, 0)


def test_nan_is_refused_and_nothing_is_written(ledger: Ledger) -> None:
    run = begin(ledger)
    with pytest.raises(StoreError, match="record 3 cannot be recorded"):
        ledger.add_bench_result(run.id, replace(DONE, measures={"after": {"es": float("nan")}}))
    assert ledger.bench_positions(run.id) == {}


def test_removing_a_run_takes_its_results_along_and_no_others(ledger: Ledger) -> None:
    run, other = begin(ledger), begin(ledger, layer=9)
    for one in (run, other):
        ledger.add_bench_result(one.id, DONE)
    assert ledger.remove_bench_run(run.id).id == run.id
    assert [one.id for one in ledger.bench_runs()] == [other.id]
    assert ledger.bench_results(run.id) == ()
    assert len(ledger.bench_results(other.id)) == 1
    with pytest.raises(ConflictError, match="was removed"):
        ledger.add_bench_result(run.id, DONE)
    with pytest.raises(PatchNotFoundError):
        ledger.remove_bench_run(run.id)


def test_differences_name_what_one_side_lacks() -> None:
    assert list(differing({"a": 1, "b": {"c": 2}}, {"b": {"c": 2, "d": 3}})) == [("a", 1, None), ("b.d", None, 3)]
