"""create --file: what is there is skipped, what fails is named, what was done is kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_records import CITIES, SUBJECTS
from heard import Heard

from rompatch.errors import (
    BaseMismatchError,
    ComputeError,
    ConflictError,
    OutputError,
    PartialError,
    RequestError,
    StatisticsError,
)
from rompatch.facts.reading import read_facts
from rompatch.workflows.many_outcomes import ManyCreated
from rompatch.workflows.opened import BaseSpec
from rompatch.workflows.store import Store

QUICK: dict[str, Any] = {"statistics": "none", "layer": 1, "precision": "float32", "hparams": {"steps": 3}}


def fact(number: int, **changed: str) -> dict[str, str]:
    named = {"subject": SUBJECTS[number % 5], "object": CITIES[(number + 1) % 5], "true": CITIES[number % 5]}
    return {"relation": "{} is located in" if number < 5 else "{} lies in", **named, **changed}


FACTS = [fact(number) for number in range(4)]


def created(store: Store, spec: BaseSpec, facts: Any = FACTS, **options: Any) -> ManyCreated:
    return store.create_many(facts, **{**QUICK, "spec": spec, **options})


def counts(done: ManyCreated) -> tuple[int, ...]:
    return tuple(done.count(status) for status in ("made", "existed", "repeated", "failed"))


def test_the_patches_are_those_of_single_creates(store: Store, spec: BaseSpec) -> None:
    done = created(store, spec, [*FACTS, {"subject": "Mozart", "relation": "born in", "object": "Vienna"}])
    assert counts(done) == (5, 0, 0, 0)
    done.check()
    for one in done.outcomes:
        assert one.fact is not None
        assert one.patch_id is not None
        options = {**QUICK, "spec": spec, "true": one.fact.true}
        again = store.create(one.fact.subject, one.fact.relation, one.fact.target, **options)
        assert (again.is_new, again.record and again.record.id) == (False, one.patch_id)
        alone = store.create(one.fact.subject, one.fact.relation, one.fact.target, again=True, **options).record
        assert alone is not None
        left, right = (store.patch(name).factors[0] for name in (one.patch_id, alone.id))
        np.testing.assert_allclose(left.v, right.v, rtol=0.02, atol=2e-3)
        measured = [store.resolve(name).measurements["probabilities"] for name in (one.patch_id, alone.id)]
        assert measured[0]["after"]["new"] == pytest.approx(measured[1]["after"]["new"], rel=0.02)
        assert measured[0]["true_source"] == measured[1]["true_source"]


def test_the_same_command_makes_what_is_missing_and_no_more(store: Store, spec: BaseSpec, heard: Heard) -> None:
    phrases = [{"subject": name, "relation": "located in", "object": "Vienna"} for name in SUBJECTS[:3]]
    first = created(store, spec, [*FACTS[:2], *phrases[:2]])
    asked: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        from rompatch.workflows import planning

        plain = planning.choose_template
        patch.setattr(planning, "choose_template", lambda *a, **k: asked.append(a[1]) or plain(*a, **k))
        second = created(store, spec, [*FACTS, *phrases])
    assert counts(second) == (3, 4, 0, 0)
    assert len(asked) == 3, "for what exists the model is not asked"
    assert set(first.patch_ids) < set(second.patch_ids)
    assert counts(created(store, spec, [*FACTS, *phrases])) == (0, 7, 0, 0)
    assert counts(created(store, spec, [*FACTS, *phrases], seed=1)) == (7, 0, 0, 0)


def test_repeated_facts_are_made_once_and_say_of_which_line(store: Store, spec: BaseSpec) -> None:
    done = created(store, spec, [FACTS[0], FACTS[1], FACTS[0] | {"object": "  rome "}])
    assert counts(done) == (2, 0, 1, 0)
    assert [one.repeats for one in done.outcomes] == [None, None, 1]
    assert len(store.patches()) == 2


def test_a_line_that_fails_takes_no_other_with_it(store: Store, spec: BaseSpec) -> None:
    long = fact(1, prompt="{} is " + "old " * 200 + "in")
    done = created(store, spec, [FACTS[0], {"subject": "x"}, long, FACTS[2]])
    assert counts(done) == (2, 0, 0, 2)
    assert [(one.number, one.status) for one in done.outcomes] == [
        (1, "made"),
        (2, "failed"),
        (3, "failed"),
        (4, "made"),
    ]
    with pytest.raises(PartialError, match=r"2 of the 4 lines .* failed; the others are done") as caught:
        done.check()
    assert caught.value.exit_code == 3
    assert "line 2" in str(caught.value)
    json.dumps(done.to_json())


def test_nothing_made_is_an_error_of_its_own(store: Store, spec: BaseSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    done = created(store, spec, [{"subject": "x"}])
    assert done.setting is None, "no model was loaded for it"
    with pytest.raises(RequestError, match="None of the 1 lines") as caught:
        done.check()
    assert caught.value.exit_code == 1

    def broken(*_: object, **__: object) -> object:
        raise ComputeError("left the numbers")

    monkeypatch.setattr("rompatch.workflows.computing.probabilities", broken)
    with pytest.raises(ComputeError, match="None of the 4 lines"):
        created(store, spec).check()
    assert store.patches() == ()


def test_a_failure_of_the_whole_job_is_raised_and_what_was_made_is_kept(
    store: Store, spec: BaseSpec, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StatisticsError):
        created(store, spec, statistics="abcd")
    put, kept = store.blobs.put, []

    def full(patch: Any) -> Path:
        if len(kept) == 2:
            raise OutputError("The disk is full.")
        kept.append(patch.id)
        return put(patch)

    with monkeypatch.context() as inner, pytest.raises(OutputError):
        inner.setattr(store.blobs, "put", full)
        created(store, spec)
    assert {record.id for record in store.patches()} == set(kept)
    assert "2 of 4 patches were made and are kept; the same command goes on from there" in heard.notes
    assert counts(created(store, spec)) == (2, 2, 0, 0)
    assert store.check().findings == ()


def test_apply_puts_all_of_them_on_as_one_revision(store: Store, spec: BaseSpec) -> None:
    created(store, spec, FACTS[:1])
    done = created(store, spec, apply=True)
    assert done.revision is not None
    assert set(done.revision.added) == set(done.patch_ids)
    assert done.revision.number == 1
    again = created(store, spec, apply=True)
    assert again.revision is None, "all of them are active"
    more = created(store, spec, [*FACTS, fact(4)], apply=True).revision
    assert more is not None
    assert (more.number, len(more.added), len(more.members)) == (2, 1, 5)


def test_with_apply_contradictions_fail_before_they_are_computed(store: Store, spec: BaseSpec) -> None:
    other = FACTS[0] | {"object": "London"}
    done = created(store, spec, [FACTS[0], other, FACTS[1]], apply=True)
    assert counts(done) == (2, 0, 0, 1)
    assert isinstance(done.outcomes[1].error, ConflictError)
    assert "contradicts line 1" in str(done.outcomes[1].error)
    wrong = other | {"expires": "never"}
    done = created(store, spec, [wrong, FACTS[0]], apply=True, dry_run=True)
    assert [one.status for one in done.outcomes] == ["failed", "existed"], "a line that fails contradicts no other"
    done = created(store, spec, [other, FACTS[2]], apply=True)
    assert counts(done) == (1, 0, 0, 1)
    assert "contradicts the active patch" in str(done.outcomes[0].error)
    assert counts(created(store, spec, [FACTS[0], other])) == (1, 1, 0, 0), "without apply both may be there"


def test_a_stack_on_another_base_is_refused_before_anything_is_computed(
    store: Store, spec: BaseSpec, tmp_path: Path
) -> None:
    from pico import save_pico

    created(store, spec, FACTS[:1], apply=True)
    other = BaseSpec(str(save_pico(tmp_path / "other", seed=5)))
    with pytest.raises(BaseMismatchError):
        created(store, other, FACTS, apply=True)
    assert len(store.patches()) == 1


def test_a_dry_run_plans_and_writes_nothing(store: Store, spec: BaseSpec) -> None:
    created(store, spec, FACTS[:1])
    done = created(store, spec, [*FACTS, {"subject": "x"}], dry_run=True, jobs=3)
    assert [one.status for one in done.outcomes] == ["existed", "planned", "planned", "planned", "failed"]
    assert done.outcomes[1].prompt == "Colosseum is located in"
    assert len(store.patches()) == 1


def test_the_failed_lines_are_written_for_a_retry(store: Store, spec: BaseSpec, tmp_path: Path) -> None:
    source, out = tmp_path / "facts.csv", tmp_path / "failed.jsonl"
    rows = ["subject,relation,object", "Big Ben,{} is in,Rome", "Louvre,,Rome", '"Mozart,x,y', "Rome,a"]
    source.write_text("\n".join(rows))
    done = created(store, spec, source, out=out)
    assert done.out == out
    written = out.read_text().splitlines()
    assert written[1] == '"Mozart,x,y'
    line = json.loads(written[0])
    assert "relation is empty" in line["error"]
    corrected = [line | {"relation": "{} is in"}]
    out.write_text("".join(json.dumps(one) + "\n" for one in corrected))
    assert counts(created(store, spec, out)) == (1, 0, 0, 0)
    with pytest.raises(OutputError, match="exists already"):
        created(store, spec, source, out=out)


def test_no_failures_no_file(store: Store, spec: BaseSpec, tmp_path: Path) -> None:
    assert created(store, spec, out=tmp_path / "failed.jsonl").out is None
    assert not (tmp_path / "failed.jsonl").exists()


def test_what_lines_say_of_themselves_wins_over_the_job_s(store: Store, spec: BaseSpec) -> None:
    own = FACTS[0] | {"message": "own", "source": "a book", "expires": "2030-01-31"}
    given = {"message": "all", "source": "the web", "expires": "2031-01-31"}
    done = created(store, spec, [own, FACTS[1], FACTS[2] | {"expires": "soon"}], **given)
    records = [store.resolve(one.patch_id) for one in done.outcomes if one.patch_id is not None]
    said = [(record.message, record.source, record.expires_at) for record in records]
    assert said == [("own", "a book", "2030-01-31"), ("all", "the web", "2031-01-31")]
    assert (done.outcomes[2].field, done.outcomes[2].status) == ("expires", "failed")


def test_a_patch_that_another_process_made_meanwhile_stands(
    store: Store, spec: BaseSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rompatch.workflows import many_running

    plain = many_running.compute_plans

    def overtaken(*args: Any) -> Any:
        for index, found in plain(*args):
            with pytest.MonkeyPatch.context() as inner:
                inner.setattr(many_running, "compute_plans", plain)
                given: Mapping[str, str] = FACTS[index]
                store.create(
                    given["subject"], given["relation"], given["object"], spec=spec, true=given["true"], **QUICK
                )
            yield index, found

    monkeypatch.setattr(many_running, "compute_plans", overtaken)
    assert counts(created(store, spec, FACTS[:2])) == (0, 2, 0, 0)
    assert len(store.patches()) == 2


@pytest.mark.parametrize(("options", "words"), [({"jobs": 0}, "jobs"), ({"hparams": {"stepz": 1}}, "stepz")])
def test_wrong_options_are_refused_before_anything_is_read(
    store: Store, spec: BaseSpec, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(RequestError, match=words):
        created(store, spec, "no such file", **options)


@pytest.mark.slow
def test_jobs_share_the_work_and_one_ledger(store: Store, spec: BaseSpec, heard: Heard) -> None:
    facts = [fact(number) for number in range(9)]
    done = created(store, spec, [*facts, {"subject": "x"}], jobs=2, apply=True)
    assert counts(done) == (9, 0, 0, 1)
    assert [one.number for one in done.outcomes] == list(range(1, 11))
    assert done.setting is not None
    assert done.setting["layer"] == 1
    assert len(store.patches()) == 9
    assert len(store.active()) == 9
    assert counts(created(store, spec, facts, jobs=2)) == (0, 9, 0, 0)


@pytest.mark.slow
def test_what_ends_a_job_ends_them_all(store: Store, spec: BaseSpec) -> None:
    with pytest.raises(StatisticsError):
        created(store, spec, statistics="abcd", jobs=2)
    assert read_facts(FACTS).total == 4
