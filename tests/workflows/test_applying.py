"""apply --verify: the stack that would be is scored before it is in force."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from heard import Heard
from test_verifying_stacks import suite_for

from rompatch.errors import GateError, RequestError
from rompatch.patch import Patch
from rompatch.workflows.store import Store


def judged(store: Store, patches: list[Patch], tmp_path: Path, *, hard: bool = False) -> list[str]:
    """Every patch with a suite of its own; *hard* ones have a rewrite prompt that must fail."""
    for patch in patches:
        path = tmp_path / f"{patch.short_id}.json"
        data = suite_for(patch).to_json()
        if hard:
            rewrite = data["prompts"][0]
            rewrite["target_new"], rewrite["target_true"] = rewrite["target_true"], rewrite["target_new"]
        path.write_text(json.dumps(data))
        store.verify(patch.id, suite=path)
    return [patch.id for patch in patches]


def test_a_stack_that_keeps_its_rewrites_is_applied_with_its_scores(
    toy: Store, patches: list[Patch], tmp_path: Path, heard: Heard
) -> None:
    (first, *_) = judged(toy, patches, tmp_path)
    found = toy.apply_verified(first, message="checked")
    assert [one.id for one in toy.active()] == [first]
    assert found.revision.message == "checked"
    assert found.verified.run is not None
    assert (found.verified.run.stack, found.verified.run.revision) == (found.revision.stack, found.revision.number)
    assert [check.patch.id for check in found.verified.checks] == [first]
    assert found.verified.missed_gates == ()
    assert found.named[0] == first


def test_a_lost_rewrite_leaves_the_stack_as_it_was(toy: Store, patches: list[Patch], tmp_path: Path) -> None:
    (first, *_) = judged(toy, patches, tmp_path, hard=True)
    runs = len(toy.ledger.verifications())
    with pytest.raises(GateError, match="forbid") as caught:
        toy.apply_verified(first)
    assert patches[0].short_id in str(caught.value)
    assert "rewrite prompts fail" in str(caught.value)
    assert caught.value.exit_code == 3
    assert toy.stack() is None
    assert len(toy.ledger.verifications()) == runs


@pytest.mark.parametrize("when", ["score_stack", "record_scored"])
def test_ctrl_c_while_it_scores_or_records_leaves_nothing(
    toy: Store, patches: list[Patch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    (first, *_) = judged(toy, patches, tmp_path)
    runs = len(toy.ledger.verifications())

    def pressed(*_args: object, **_more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"rompatch.workflows.applying.{when}", pressed)
    with pytest.raises(KeyboardInterrupt):
        toy.apply_verified(first)
    assert toy.stack() is None
    assert len(toy.ledger.verifications()) == runs


def test_a_lost_rewrite_may_be_overridden_with_a_reason(toy: Store, patches: list[Patch], tmp_path: Path) -> None:
    (first, *_) = judged(toy, patches, tmp_path, hard=True)
    with pytest.raises(RequestError, match="with a reason"):
        toy.apply_verified(first, override=["rewrite"])
    found = toy.apply_verified(first, override=["rewrite"], reason="known")
    assert [one["gate"] for one in found.revision.details["overridden"]] == ["rewrite"]
    assert [one.id for one in toy.active()] == [first]


def test_the_forecast_s_neighbours_are_scored_first_then_the_rest(
    toy: Store, patches: list[Patch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rompatch.workflows import applying

    ids = judged(toy, patches, tmp_path)
    toy.apply(*ids[:2])
    asked: list[list[str]] = []
    real = applying.score_stack

    def listening(*args: object, only: list[str], **more: object) -> object:
        asked.append(list(only))
        return real(*args, only=only, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(applying, "score_stack", listening)
    every = ["rewrite"]
    found = toy.apply_verified(ids[2], override=every, reason="to see the order")
    named, rest = asked
    assert named[0] == ids[2]
    assert set(named) | set(rest) == set(ids)
    assert not set(named) & set(rest)
    assert tuple(named) == found.named
    assert {check.patch.id for check in found.verified.checks} == set(ids)


def test_the_gate_on_drift_is_measured_and_named_as_it_was_set(
    toy: Store, patches: list[Patch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first, *_) = judged(toy, patches, tmp_path)
    text = "The tower of Balmar is in Rome. People say that the tower of Dornod is in Paris.\n" * 4
    monkeypatch.setattr("rompatch.verify.held_out.built_in_text", lambda: text)
    toy.set_gates(max_drift=0.0)
    with pytest.raises(GateError, match="--override max_drift"):
        toy.apply_verified(first)
    found = toy.apply_verified(first, override=["max_drift"], reason="small model")
    assert found.verified.drift is not None
    assert [one["gate"] for one in found.revision.details["overridden"]] == ["max_drift"]
    toy.revert(first)
    toy.set_gates(max_drift=1e6)
    assert "overridden" not in toy.apply_verified(first).revision.details
