"""A run: the numbers of editing records one by one, gone on with wherever it stopped, nothing lost or counted twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_records import QUICK, counterfact, write, zsre
from heard import Heard

from rompatch.apply.session import PatchedModel
from rompatch.bench import running
from rompatch.compute.methods import METHODS
from rompatch.compute.methods.rome_hparams import RomeHparams
from rompatch.errors import ComputeError, ConflictError, RequestError, SiteError, StoreError, SuiteError
from rompatch.store.ledger import Ledger
from rompatch.verify.building import suite_from_counterfact, suite_from_zsre
from rompatch.verify.evaluation import evaluate
from rompatch.verify.exact import exact_success
from rompatch.verify.reading import load_counterfact, read_records
from rompatch.verify.zsre import ZsreRecord
from rompatch.workflows.benchmarking import Benched
from rompatch.workflows.opened import BaseSpec
from rompatch.workflows.store import Store


def bench(store: Store, spec: BaseSpec, file: Path, benchmark: str = "counterfact", **more: Any) -> Benched:
    return store.bench(benchmark, file, **{**QUICK, "spec": spec, **more})  # type: ignore[arg-type]


def positions(store: Store, done: Benched) -> list[int]:
    return [result.position for result in store.bench_results(done.run.id)]


def test_a_run_has_the_scores_of_editing_each_record_by_itself(store: Store, spec: BaseSpec, records: Path) -> None:
    done = bench(store, spec, records)
    assert (done.asked, done.resumed, done.scored, done.failed) == (6, 0, 6, 0)
    base = store.base(spec)
    contexts = done.run.environment["contexts"]
    for result, record in zip(store.bench_results(done.run.id), load_counterfact(records), strict=True):
        given: dict[str, Any] = {"site": base.site(1), "contexts": contexts, "statistics": None}
        patch = METHODS["rome"].compute(base, record.request, **given, hparams=RomeHparams(steps=3)).patch
        with PatchedModel(base) as patched:
            for phase in ("before", "after"):
                suite = suite_from_counterfact(record)
                scores = evaluate(patched.model, base.tokenizer, suite, document_start=True).scores.to_json()
                found = {name: result.measures[phase][name] for name in scores}
                assert found == pytest.approx(scores, abs=2e-4)
                patched.activate([patch])


def test_a_run_leaves_the_base_as_it_was_and_no_patch(store: Store, spec: BaseSpec, records: Path) -> None:
    base = store.base(spec)
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    bench(store, spec, records)
    assert all(torch.equal(before[name], tensor) for name, tensor in base.model.state_dict().items())
    assert store.patches() == ()
    assert list(store.blobs.ids()) == []


def test_the_same_command_computes_nothing_again(
    store: Store, spec: BaseSpec, records: Path, monkeypatch: pytest.MonkeyPatch, heard: Heard
) -> None:
    first = bench(store, spec, records)
    monkeypatch.setattr(running, "compute_many", None)
    again = bench(store, spec, records)
    assert (again.run, again.resumed, again.scored) == (first.run, 6, 0)
    assert heard.notes[-1] == f"run {first.run.label}: 6 records, all of them done before"


def test_a_larger_limit_goes_on_and_shards_share_a_run(store: Store, spec: BaseSpec, records: Path) -> None:
    done = bench(store, spec, records, limit=2)
    assert positions(store, done) == [0, 1]
    shard = bench(store, spec, records, shard="2/2")
    assert shard.run.id == done.run.id
    assert (shard.asked, shard.resumed, shard.scored) == (3, 1, 2)
    assert positions(store, shard) == [0, 1, 3, 5]
    assert bench(store, spec, records).run.scored == 6


def test_other_settings_make_another_run(store: Store, spec: BaseSpec, records: Path, tmp_path: Path) -> None:
    ids = {bench(store, spec, records, limit=1).run.id}
    other = write(tmp_path / "other.json", [counterfact(0)])
    for changed in ({"layer": 2}, {"seed": 1}, {"document_start": False}, {"hparams": {"steps": 2}}, {"name": "n"}):
        ids.add(bench(store, spec, records, limit=1, **changed).run.id)
    ids.add(bench(store, spec, other).run.id)
    assert len(ids) == 7
    assert bench(store, spec, records, limit=1).resumed == 1


def test_a_name_with_other_settings_is_refused(store: Store, spec: BaseSpec, records: Path) -> None:
    first = bench(store, spec, records, limit=1, name="mine")
    with pytest.raises(ConflictError, match="'mine' has other settings") as caught:
        bench(store, spec, records, limit=1, name="mine", hparams={"steps": 2}, seed=4)
    assert caught.value.facts["settings"] == ("contexts", "hparams.steps", "seed")
    assert bench(store, spec, records, limit=2, name="mine").run.id == first.run.id


BROKEN = {
    2: counterfact(2, true="London", new=" London  "),
    3: counterfact(3, paraphrase_prompts=["word " * 200]),
    4: {name: value for name, value in counterfact(4).items() if name != "requested_rewrite"},
    5: counterfact(0),  # its number is taken
    6: counterfact(6, prompt="No place for the subject"),
}


def test_bad_records_are_recorded_with_their_faults_and_spoil_no_other(
    store: Store, spec: BaseSpec, records: Path, tmp_path: Path
) -> None:
    mixed = write(tmp_path / "mixed.json", [BROKEN.get(number, counterfact(number)) for number in range(8)])
    done = bench(store, spec, mixed)
    found = {result.position: result for result in store.bench_results(done.run.id)}
    assert {place for place, result in found.items() if result.status == "failed"} == set(BROKEN)
    assert (done.scored, done.failed) == (done.run.scored, done.run.failed) == (3, 5)
    words = {2: "same", 3: "paraphrase_prompts[0]", 4: "requested_rewrite", 5: "case_id", 6: "one {}"}
    for place, word in words.items():
        assert word in str(found[place].error)
        assert found[place].error_kind == "SuiteError"
        assert found[place].measures == {}
    clean = store.bench_results(bench(store, spec, records).run.id)
    for place in (0, 1):
        assert found[place].measures["after"]["em"] == pytest.approx(clean[place].measures["after"]["em"], abs=1e-4)


def test_strict_stops_at_the_first_bad_record_and_keeps_what_was_done(
    store: Store, spec: BaseSpec, tmp_path: Path, heard: Heard
) -> None:
    damaged = write(tmp_path / "damaged.json", [counterfact(0), BROKEN[4]])
    with pytest.raises(SuiteError, match="requested_rewrite"):
        bench(store, spec, damaged, strict=True)
    assert store.bench_runs() == ()
    late = write(tmp_path / "late.json", [counterfact(0), BROKEN[3]])
    with pytest.raises(SuiteError, match="paraphrase_prompts"):
        bench(store, spec, late, strict=True)
    assert store.bench_runs()[0].failed == 0
    assert "0 of 2 records are done and kept" in heard.notes[-1]


def test_a_nan_score_fails_its_record_alone(
    store: Store, spec: BaseSpec, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update that overflows gives NaN: a real one, of one record among others in the group."""
    terms = running._terms
    calls: list[int] = []

    def overflowing(setting: Any, patch: Any) -> Any:
        calls.append(1)
        (found,) = terms(setting, patch)
        huge = patch.header.request.subject == "Big Ben"
        return [replace(found, left=found.left.sign() * 3e38) if huge else found]

    monkeypatch.setattr(running, "_terms", overflowing)
    done = bench(store, spec, records)
    (failed,) = [result for result in store.bench_results(done.run.id) if result.status == "failed"]
    assert (failed.position, failed.error_kind) == (2, "ComputeError")
    assert "log-probability" in str(failed.error)
    assert done.scored == 5
    assert len(calls) == 12  # together first, then one by one
    monkeypatch.setattr(running, "_terms", terms)
    assert bench(store, spec, records).scored == 0
    retried = bench(store, spec, records, retry=True)
    assert (retried.resumed, retried.scored, retried.run.failed) == (5, 1, 0)


def test_a_record_that_memory_does_not_hold_fails_alone(
    store: Store, spec: BaseSpec, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = running.compute_many

    def short_of_memory(base: Any, requests: Any, **given: Any) -> Any:
        for index, outcome in real(base, requests, **given):
            short = requests[index].subject == "Big Ben"
            yield index, ComputeError("There is not enough memory to optimise a single request.") if short else outcome

    monkeypatch.setattr(running, "compute_many", short_of_memory)
    done = bench(store, spec, records)
    assert (done.scored, done.failed) == (5, 1)
    (failed,) = [result for result in store.bench_results(done.run.id) if result.status == "failed"]
    assert (failed.position, "enough memory" in str(failed.error)) == (2, True)


def test_when_nothing_could_be_scored_the_run_says_so(store: Store, spec: BaseSpec, tmp_path: Path) -> None:
    done = bench(store, spec, write(tmp_path / "bad.json", [BROKEN[3]]))
    with pytest.raises(ComputeError, match="None of the 1 records"):
        done.check()


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(
    store: Store, spec: BaseSpec, records: Path, monkeypatch: pytest.MonkeyPatch, heard: Heard
) -> None:
    def interrupt(phase: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(heard, "overall", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bench(store, spec, records)
    assert "2 of 6 records are done and kept; the same command goes on from there" in heard.notes[-1]
    monkeypatch.undo()
    assert store.bench_runs()[0].scored == 2


def test_a_full_disk_in_the_middle_keeps_the_finished_rows(
    store: Store, spec: BaseSpec, records: Path, monkeypatch: pytest.MonkeyPatch, heard: Heard
) -> None:
    real = Ledger.add_bench_result

    def fill_up(self: Ledger, run_id: str, result: Any) -> bool:
        if result.position == 3:  # SQLite answers as on a full disk: the file may not grow any more
            with self.session.unlocked() as connection:
                driver = connection.connection.driver_connection
                assert driver is not None
                driver.execute(f"PRAGMA max_page_count = {driver.execute('PRAGMA page_count').fetchone()[0]}")
            result = replace(result, prompts={"filler": "x" * 100_000})
        return real(self, run_id, result)

    monkeypatch.setattr(Ledger, "add_bench_result", fill_up)
    with pytest.raises(StoreError, match="the disk is full") as caught:
        bench(store, spec, records)
    assert "Free some space" in str(caught.value.next_step)
    kept = store.bench_runs()[0].scored
    assert 0 < kept < 6
    assert f"{kept} of 6 records are done and kept" in heard.notes[-1]


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"limit": 0}, RequestError, "at least 1"),
        ({"shard": "3/2"}, RequestError, "no shard 3 of 2"),
        ({"shard": "half"}, RequestError, "is no shard"),
        ({"name": " "}, RequestError, "no name for a run"),
        ({"name": "x\x1b[2J"}, RequestError, "no name for a run"),
        ({"references": Path("r.json")}, RequestError, "--generation"),
        ({"method": "mend"}, RequestError, "no method 'mend'"),
        ({"layer": 99}, SiteError, "99"),
        ({"hparams": {"speed": 1}}, RequestError, "no such hyper-parameter"),
        ({"essence": Path("missing.json")}, SuiteError, "missing.json"),
    ],
)
def test_settings_that_cannot_be_are_refused_and_begin_no_run(
    store: Store, spec: BaseSpec, records: Path, wrong: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as caught:
        bench(store, spec, records, **wrong)
    assert words in str(caught.value)
    assert store.bench_runs() == ()


def test_files_that_are_no_benchmark_are_named(store: Store, spec: BaseSpec, tmp_path: Path, records: Path) -> None:
    fact = {"known_id": 1, "subject": "Mozart", "attribute": "Salzburg", "template": "{} was born in"}
    fact |= {"prediction": " Salzburg", "prompt": "Mozart was born in", "relation_id": "P19"}
    cases = {
        "known.json": ([fact], "no new object"),
        "zsre.json": ([zsre("Louvre", "Paris")], "holds zsRE records"),
        "cut.json": (None, "JSON"),
        "empty.json": ([], "no records"),
    }
    for name, (content, words) in cases.items():
        path = write(tmp_path / name, content)
        if content is None:
            path.write_text(records.read_text()[:300])  # half downloaded
        with pytest.raises(SuiteError, match=words):
            bench(store, spec, path)
    with pytest.raises(SuiteError, match="holds COUNTERFACT records"):
        bench(store, spec, records, "zsre")


def test_zsre_counts_exact_success_and_has_no_es(store: Store, spec: BaseSpec, tmp_path: Path) -> None:
    file = write(tmp_path / "zsre.json", [zsre("Louvre", "Paris"), zsre("Colosseum", "Rome")])
    done = bench(store, spec, file, "zsre")
    assert bench(store, spec, file, "zsre", teach="alternative").run.id != done.run.id
    base, contexts, expected = store.base(spec), done.run.environment["contexts"], []
    for record in read_records(file, "zsre").records:
        assert isinstance(record, ZsreRecord)
        given: dict[str, Any] = {"site": base.site(1), "contexts": contexts, "statistics": None}
        patch = METHODS["rome"].compute(base, record.request(), **given, hparams=RomeHparams(steps=3)).patch
        with PatchedModel(base) as patched:
            suite = suite_from_zsre(record)
            before = evaluate(patched.model, base.tokenizer, suite, document_start=True)
            patched.activate([patch])
            after = evaluate(patched.model, base.tokenizer, suite, document_start=True)
        expected.append(exact_success(before.results, after.results).to_json())
    found = [result.measures["after"] for result in store.bench_results(done.run.id)]
    assert [{name: one[name] for name in expected[0]} for one in found] == expected
    unedited, edited = store.bench_table(done.run.id)
    assert edited.estimates["es"] is edited.estimates["s"] is None
    assert unedited.estimates["locality"] is None
    locality = edited.estimates["locality"]
    assert locality is not None
    assert locality.n == 2
    failing = {prompt.kind for record in store.bench_worst(done.run.id) for prompt in record.prompts}
    assert {"rewrite", "paraphrase"} <= failing  # what three steps do not teach
