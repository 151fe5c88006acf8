"""create looks at what is there: the same patch is returned, another one is named, a conflict is found beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from heard import FAST, Heard

from rompatch.errors import BaseMismatchError, ConflictError, StatisticsError
from rompatch.store.records import PatchRecord
from rompatch.workflows.opened import BaseSpec
from rompatch.workflows.store import Store

REQUEST = ("Eiffel Tower", "The {} is located in", "Rome")


def made(store: Store, spec: BaseSpec, *request: str, **options: Any) -> PatchRecord:
    record = store.create(*(request or REQUEST), spec=spec, **{**FAST, **options}).record
    assert record is not None
    return record


OTHER_SETTINGS: tuple[Mapping[str, Any], ...] = (
    {"layer": 0},
    {"hparams": {"steps": 2}},
    {"hparams": {"steps": 3, "keys": "mean"}},
    {"seed": 1},
    {"document_start": False},
    {"true": "London"},
)


@pytest.mark.parametrize("options", OTHER_SETTINGS, ids=str)
def test_other_settings_give_another_patch_and_a_note(
    store: Store, spec: BaseSpec, heard: Heard, options: Mapping[str, Any]
) -> None:
    first = made(store, spec)
    second = store.create(*REQUEST, spec=spec, **{**FAST, **options})
    assert second.is_new
    assert second.record is not None
    assert second.record.id != first.id
    assert f"patch {first.label} exists for the same request with other settings" in heard.notes
    assert second.plan.existing == (first,)
    for settings, expected in ((FAST, first), ({**FAST, **options}, second.record)):
        again = store.create(*REQUEST, spec=spec, **settings)
        assert (again.is_new, again.record) == (False, expected)


def test_statistics_count_where_some_were_asked_for(
    store: Store, spec: BaseSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rompatch.workflows.statistics.SAMPLED_TOKENS", 40)
    monkeypatch.setattr("rompatch.compute.statistics._SAMPLE_TOKENS", 8)
    without = made(store, spec)
    assert made(store, spec, statistics="auto") == without, "any will do"
    with_some = made(store, spec, statistics="auto", again=True)
    assert with_some.header.statistics is not None
    assert made(store, spec, statistics="none") == without
    assert made(store, spec, statistics=with_some.header.statistics.id[:9]) == with_some
    with pytest.raises(StatisticsError):
        made(store, spec, statistics="ffff00001111")


def test_the_same_phrase_with_another_winning_template_is_noted(
    store: Store, spec: BaseSpec, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made(store, spec, "Eiffel Tower", "located in", "Rome")
    other = store.create("Eiffel Tower", "Located  in", "Rome", spec=spec, dry_run=True, **FAST).plan
    assert other.existing == (first,)
    monkeypatch.setattr("rompatch.workflows.wording.candidate_templates", lambda phrase: ("People find the {} in",))
    second = store.create("Eiffel Tower", "Located  in", "Rome", spec=spec, **FAST)
    assert second.is_new
    assert second.plan.existing == (first,)
    assert f"patch {first.label} exists for the same subject and relation, with another prompt" in heard.notes


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_conflict_is_found_before_anything_is_computed(
    store: Store, spec: BaseSpec, heard: Heard, dry_run: bool
) -> None:
    active = made(store, spec, apply=True)
    heard.steps.clear()
    before = store.patches(), store.stack(), store.history()
    with pytest.raises(ConflictError, match=f"contradicts the active patch {active.short_id}") as caught:
        store.create("Eiffel Tower", "The {} is located in", "London", spec=spec, apply=True, dry_run=dry_run, **FAST)
    assert caught.value.active_id == active.id
    other = BaseSpec(spec.model, "bfloat16")
    with pytest.raises(BaseMismatchError, match="is on another one"):
        store.create("Big Ben", "{} is in", "Rome", spec=other, apply=True, dry_run=dry_run, **FAST)
    assert heard.steps == [], "nothing was optimised"
    assert (store.patches(), store.stack(), store.history()) == before
    assert len(list((store.root / "patches").iterdir())) == 1


def test_an_empty_stack_of_another_base_is_no_conflict(store: Store, spec: BaseSpec) -> None:
    made(store, spec, apply=True)
    store.revert()
    created = store.create(*REQUEST, spec=BaseSpec(spec.model, "bfloat16"), apply=True, **FAST)
    assert created.revision is not None
    assert store.active() == (created.record,)
