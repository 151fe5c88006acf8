"""verify --stack on a tiny model that knows twenty facts: losses, baselines, drift, gates, the ledger, bad input."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from heard import Heard
from trained import CITIES, PARAPHRASE, SUBJECTS, TEMPLATE, facts, trained_base
from trained_stores import fill

from rompatch.compute.methods.rome import compute
from rompatch.compute.methods.rome_hparams import RomeHparams
from rompatch.edits import EditRequest
from rompatch.errors import (
    BaseMismatchError,
    ComputeError,
    ConflictError,
    GateError,
    PatchFileError,
    RequestError,
    StoreError,
    SuiteError,
)
from rompatch.patch import Patch
from rompatch.verify.evaluation import evaluate
from rompatch.verify.suite import Prompt, Suite
from rompatch.workflows.opened import BaseSpec
from rompatch.workflows.stack_report import StackVerified
from rompatch.workflows.store import Store, open_store

TEXT = "The tower of Balmar is in Rome. People say that the tower of Dornod is in Paris.\n"


def suite_for(patch: Patch) -> Suite:
    """The edited fact in two wordings, and what must stay."""
    request = patch.header.request
    new, true = request.target_new, request.target_true
    prompts = [Prompt("rewrite", request.prompt, new, true)]
    prompts += [Prompt("paraphrase", PARAPHRASE.replace("{}", request.subject), new, true)]
    others = [subject for subject in SUBJECTS[3:] if facts()[subject] != new][:4]
    prompts += [Prompt("neighbourhood", TEMPLATE.replace("{}", one), new, facts()[one]) for one in others]
    return Suite(f"{request.subject} -> {new}", "mine", tuple(prompts))


@pytest.fixture
def verified(toy: Store, patches: list[Patch], tmp_path: Path) -> dict[str, int]:
    """Every patch scored alone with a suite of its own, then all applied; run numbers by patch id."""
    runs = {}
    for patch in patches:
        path = tmp_path / f"{patch.short_id}.json"
        path.write_text(json.dumps(suite_for(patch).to_json()))
        run = toy.verify(patch.id, suite=path).run
        assert run is not None
        runs[patch.id] = run.id
    toy.apply(*runs)
    return runs


def quick(store: Store, **options: Any) -> StackVerified:
    return store.verify_stack(**{"drift": False, **options})


# What is scored


def test_every_patch_is_scored_with_all_patches_in_the_weights(toy: Store, verified: dict[str, int]) -> None:
    found = quick(toy)
    assert {check.patch.id for check in found.checks} == verified.keys()
    with toy.session() as model:
        for check in found.checks:
            suite = suite_for(toy.patch(check.patch.id))
            naive = evaluate(model, trained_base().tokenizer, suite, document_start=True)
            assert [one.prompt for one in check.in_stack.results] == list(suite.prompts)
            for ours, plain in zip(check.in_stack.results, naive.results, strict=True):
                assert ours.new_logprob == pytest.approx(plain.new_logprob, abs=1e-4)
                assert ours.true_logprob == pytest.approx(plain.true_logprob, abs=1e-4)


def test_the_latest_run_alone_is_the_baseline_and_nothing_is_scored_again(
    toy: Store, verified: dict[str, int], heard: Heard
) -> None:
    heard.steps.clear()
    found = quick(toy)
    assert {check.patch.id: check.alone_run for check in found.checks} == verified
    assert not any(check.scored_now for check in found.checks)
    assert {phase for phase, _, _ in heard.steps} == {"scoring the stack"}


def test_a_run_in_the_stack_is_no_baseline_but_names_the_suite(
    toy: Store, verified: dict[str, int], patches: list[Patch], tmp_path: Path
) -> None:
    patch = patches[0]
    suite = suite_for(patch)
    shorter = dataclasses.replace(suite, name="shorter", prompts=suite.prompts[:3])
    (tmp_path / "other.json").write_text(json.dumps(shorter.to_json()))
    toy.verify(patch.id, suite=tmp_path / "other.json", in_stack=True)
    (check,) = (one for one in quick(toy).checks if one.patch.id == patch.id)
    assert (check.in_stack.name, len(check.in_stack.results)) == ("shorter", 3)
    assert check.scored_now, "the run alone was of another suite"


def test_what_was_never_scored_alone_is_scored_now_and_remembered(toy: Store, patches: list[Patch]) -> None:
    toy.apply(*(patch.id for patch in patches))
    first, second = quick(toy), quick(toy)
    assert all(check.scored_now and check.alone_run for check in first.checks)
    assert not any(check.scored_now for check in second.checks)
    ours = {check.patch.id: check.alone for check in first.checks}
    assert {check.patch.id: check.alone for check in second.checks} == ours
    for check in first.checks:
        naive = toy.verify(check.patch.id, record=False)
        assert check.alone is not None
        assert check.alone.scores.em == pytest.approx(naive.after.scores.em, abs=1e-4)


def test_without_baselines_nothing_is_scored_alone(toy: Store, patches: list[Patch]) -> None:
    toy.apply(patches[0].id)
    found = quick(toy, baseline=False)
    (check,) = found.checks
    assert (check.alone, check.alone_run, check.loss, check.lost) == (None, None, None, ())
    assert toy.ledger.verifications(patches[0].id) == ()


def test_a_stack_of_one_loses_nothing(toy: Store, patches: list[Patch]) -> None:
    toy.apply(patches[0].id)
    (check,) = quick(toy).checks
    assert check.lost == ()
    assert check.alone is not None
    assert check.in_stack.scores.em == pytest.approx(check.alone.scores.em, abs=1e-4)


def test_two_patches_on_one_subject_are_told_what_they_lost(toy: Store, patches: list[Patch], tmp_path: Path) -> None:
    """Their common key gets part of both values, so the weaker one loses its prompts."""
    first = patches[0]
    request = first.header.request
    third = next(city for city in CITIES if city not in (request.target_new, request.target_true))
    base = trained_base()
    rival = compute(
        base,
        EditRequest(request.subject, PARAPHRASE, third, request.target_true),
        site=base.site(0),
        contexts=("{}",),
        statistics=None,
        hparams=RomeHparams(steps=30),
        seed=0,
        document_start=True,
    ).patch
    path = toy.blobs.put(rival)
    toy.ledger.add_patch(rival.header, patch_id=rival.id, file_size=path.stat().st_size)
    for patch, true in ((first, third), (rival, request.target_new)):
        own = patch.header.request
        suite = Suite("rivals", "mine", (Prompt("rewrite", own.prompt, own.target_new, true),))
        (tmp_path / "rivals.json").write_text(json.dumps(suite.to_json()))
        toy.verify(patch.id, suite=tmp_path / "rivals.json")
    toy.apply(first.id, rival.id)
    found = quick(toy)
    worst = found.checks[0]
    assert [change.prompt.kind for change in worst.lost] == ["rewrite"]
    assert worst.lost[0].before.passed
    assert not worst.lost[0].after.passed
    assert not found.checks[1].lost
    (reason,) = found.missed_gates
    assert worst.patch.label in reason
    assert "1 of 1 rewrite prompts fail" in reason
    with pytest.raises(GateError, match="misses 1 of its 2 gates") as caught:
        found.check_gates()
    assert caught.value.exit_code == 3


def test_neighbours_that_other_patches_edit_are_left_out_and_named(
    toy: Store, patches: list[Patch], tmp_path: Path
) -> None:
    first, second = patches[:2]
    subject = second.header.request.subject
    text = TEMPLATE.replace("{}", subject.lower())
    suite = suite_for(first)
    extra = Prompt("neighbourhood", text, first.header.request.target_new, facts()[subject])
    longer = Prompt("neighbourhood", f"{subject}land is in", first.header.request.target_new, facts()[subject])
    suite = dataclasses.replace(suite, prompts=(*suite.prompts, extra, longer))
    (tmp_path / "suite.json").write_text(json.dumps(suite.to_json()))
    recorded = toy.verify(first.id, suite=tmp_path / "suite.json")
    toy.apply(first.id, second.id)
    (check,) = (one for one in quick(toy).checks if one.patch.id == first.id)
    asked = [result.prompt for result in check.in_stack.results]
    assert asked == [prompt for prompt in suite.prompts if prompt != extra]
    assert check.alone is not None
    assert recorded.run is not None
    assert check.alone_run == recorded.run.id, "the run of the whole suite serves"
    assert check.alone.scores.n_neighbourhood == check.in_stack.scores.n_neighbourhood == len(asked) - 2
    assert any(repr(text) in note for note in check.in_stack.untested)
    toy.revert(second.id)
    (check,) = quick(toy).checks
    assert extra in [result.prompt for result in check.in_stack.results]


def test_the_base_is_left_as_it_was(toy: Store, verified: dict[str, int]) -> None:
    weight = trained_base().site(0).stored()
    before, place = weight.clone(), weight.data_ptr()
    toy.verify_stack()
    assert trained_base().site(0).stored().data_ptr() == place, "its own tensor, not one like it"
    assert torch.equal(trained_base().site(0).stored(), before)


# Drift


def test_drift_is_that_of_the_whole_stack_on_the_text_named(
    toy: Store, verified: dict[str, int], tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text(TEXT * 5)
    mine = toy.verify_stack(drift_file=tmp_path / "mine.txt")
    built_in = toy.verify_stack()
    assert mine.drift is not None
    assert built_in.drift is not None
    assert mine.drift.mean_kl > 0
    assert mine.drift.perplexity_before != built_in.drift.perplexity_before
    assert (mine.drift_text, built_in.drift_text) == (str(tmp_path / "mine.txt"), "the built-in text")
    assert built_in.drift.tokens > 500
    ids = trained_base().tokenizer(TEXT * 5, add_special_tokens=False).input_ids
    assert mine.drift.tokens == len(ids)
    assert quick(toy).drift is None


# Gates


def test_gates_are_on_every_patch_and_on_the_model(toy: Store, verified: dict[str, int]) -> None:
    found = toy.verify_stack(gates={"s": 0.0, "ns": 1.0}, max_loss=1.0, max_drift=0.0)
    kinds = [result.gate for result in found.gates]
    assert kinds == ["rewrite", "s", "ns", "loss"] * 3 + ["drift"]
    missed = {(result.gate, result.patch_id) for result in found.gates if not result.passed}
    expected = {("rewrite", check.patch.id) for check in found.checks if check.in_stack.scores.es != 1}
    expected |= {("ns", check.patch.id) for check in found.checks if check.in_stack.scores.ns != 1}
    assert found.drift is not None
    if found.drift.perplexity_after > found.drift.perplexity_before:
        expected.add(("drift", None))
    assert missed == expected
    assert missed, "or this test says nothing"
    assert len(found.missed_gates) == len(missed)


def test_a_gate_on_es_stands_in_for_that_on_rewrite_prompts(toy: Store, verified: dict[str, int]) -> None:
    assert {result.gate for result in quick(toy).gates} == {"rewrite"}
    assert {result.gate for result in quick(toy, gates={"es": 0.5}).gates} == {"es"}


def test_a_loss_that_nobody_measured_misses_its_gate(toy: Store, patches: list[Patch]) -> None:
    toy.apply(patches[0].id)
    found = quick(toy, baseline=False, max_loss=1.0)
    assert any("loss of S not measured" in reason for reason in found.missed_gates)


@pytest.mark.parametrize(
    "options",
    [
        {"gates": {"s": 1.01}},
        {"gates": {"em": 0.5}},
        {"gates": {"es": float("nan")}},
        {"max_loss": -0.1},
        {"max_loss": float("inf")},
        {"max_drift": -0.01},
        {"max_drift": float("nan")},
        {"drift": False, "max_drift": 0.1},
        {"drift": False, "drift_file": Path("text.txt")},
    ],
)
def test_gates_that_make_no_sense_are_refused_before_a_model_is_loaded(
    toy: Store, verified: dict[str, int], options: dict[str, Any]
) -> None:
    toy._loaded.clear()
    with pytest.raises(RequestError):
        toy.verify_stack(**options)
    assert not toy._loaded


# The ledger


def test_the_run_names_the_revision_and_holds_every_prompt(toy: Store, verified: dict[str, int]) -> None:
    found = toy.verify_stack()
    run = found.run
    assert run is not None
    assert toy.ledger.verification(run.id) == run
    assert (run.patch_id, run.stack, run.revision, run.suite) == (None, "main", 1, "stack main, revision 1")
    assert run.settings["patches"] == sorted(verified)
    assert run.score("s") == found.in_stack.s
    assert found.drift is not None
    assert run.score("perplexity", "pre") == found.drift.perplexity_before
    assert run.score("mean_kl") == found.drift.mean_kl
    check = found.checks[0]
    recorded = run.prompts["patches"][check.patch.id]
    assert recorded["in_stack"] == check.in_stack.to_json()
    assert recorded["alone_run"] == verified[check.patch.id]
    assert any(event.verification == run.id for event in toy.history().events)
    json.dumps(found.to_json(), allow_nan=False)


def test_nothing_is_recorded_where_that_is_asked(toy: Store, patches: list[Patch]) -> None:
    toy.apply(patches[0].id)
    found = quick(toy, record=False)
    assert found.run is None
    assert toy.ledger.verifications() == ()


class Meddler(Heard):
    """Does something while the stack is scored, once."""

    act: Callable[[], object]
    done = False

    def step(self, phase: str, done: int, total: int) -> None:
        if phase == "scoring the stack" and not self.done:
            self.done = True
            self.act()


def meddled(tmp_path: Path, patches: list[Patch], act: Callable[[Store], object]) -> Iterator[Store]:
    meddler = Meddler()
    with open_store(tmp_path / "meddled" / ".rompatch", reporter=meddler) as store:
        fill(store, patches)
        store.apply(patches[0].id, patches[1].id)
        meddler.act = lambda: act(store)
        yield store


def test_a_stack_that_changes_meanwhile_is_recorded_at_the_revision_that_was_scored(
    tmp_path: Path, patches: list[Patch]
) -> None:
    def change(store: Store) -> None:
        store.revert(patches[0].id)
        store.remove(patches[0].id)

    for store in meddled(tmp_path, patches, change):
        found = quick(store)
        assert found.run is not None
        assert (found.run.revision, found.newest_revision, found.is_newest) == (1, 2, False)
        assert found.run.settings["newest_revision"] == 2
        assert len(found.checks) == 2
        assert isinstance(store.reporter, Heard)
        assert "stack main was changed meanwhile: scored at revision 1, now at 2" in store.reporter.notes


def test_ctrl_c_leaves_no_run(tmp_path: Path, patches: list[Patch]) -> None:
    def interrupt(_store: Store) -> None:
        raise KeyboardInterrupt

    for store in meddled(tmp_path, patches, interrupt):
        weight = trained_base().site(0).stored().clone()
        with pytest.raises(KeyboardInterrupt):
            quick(store)
        assert store.ledger.verifications() == ()
        assert torch.equal(trained_base().site(0).stored(), weight)


def test_a_failure_while_recording_leaves_no_part_of_it(
    toy: Store, patches: list[Patch], monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.apply(*(patch.id for patch in patches))
    recorded = type(toy.ledger).record_verification
    calls = []

    def third_fails(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return recorded(*args, **kwargs)

    monkeypatch.setattr(type(toy.ledger), "record_verification", third_fails)
    with pytest.raises(KeyboardInterrupt):
        quick(toy)
    assert toy.ledger.verifications() == ()


# Bad input


def test_an_empty_stack_is_refused(toy: Store, patches: list[Patch]) -> None:
    for prepare in (lambda: None, lambda: toy.apply(patches[0].id) and toy.revert()):
        prepare()
        with pytest.raises(ConflictError, match="stack is empty") as caught:
            quick(toy)
        assert caught.value.exit_code == 1


def test_a_missing_and_an_altered_file_are_named_before_a_model_is_loaded(toy: Store, patches: list[Patch]) -> None:
    toy.apply(*(patch.id for patch in patches))
    toy._loaded.clear()
    path = toy.blobs.path(patches[1].id)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(PatchFileError):
        quick(toy)
    os.unlink(path)
    with pytest.raises(StoreError, match=f"file of patch {patches[1].short_id} is missing"):
        quick(toy)
    assert not toy._loaded


def test_another_base_is_refused_and_nothing_recorded(toy: Store, verified: dict[str, int]) -> None:
    other = BaseSpec("another")
    toy._loaded[other, "cpu"] = trained_base(seed=1)
    before = toy.ledger.verifications()
    with pytest.raises(BaseMismatchError):
        quick(toy, spec=other)
    assert toy.ledger.verifications() == before


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfe\x00text", b"a\x00b"])
def test_a_drift_file_that_is_no_text_is_refused(
    toy: Store, verified: dict[str, int], tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "drift.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SuiteError, match=r"drift\.txt") as caught:
        toy.verify_stack(drift_file=path)
    assert caught.value.exit_code == 2


def test_nan_is_an_error_and_no_run(toy: Store, verified: dict[str, int]) -> None:
    """A weight above the site that is not finite: every score would be NaN."""
    before = toy.ledger.verifications()
    bias = trained_base().model.get_parameter("transformer.ln_f.bias")
    kept = bias.data.clone()
    try:
        bias.data[0] = torch.nan
        with pytest.raises(ComputeError, match="no usable log-probability"):
            quick(toy)
    finally:
        bias.data.copy_(kept)
    assert toy.ledger.verifications() == before
