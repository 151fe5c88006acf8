"""Applying what contradicts: refused by name, or replaced in one revision; and stacks that others change meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from heard import Heard
from stores import empty_store
from tiny_patches import record, tiny_patch

from rompatch.edits import EditRequest
from rompatch.errors import BaseMismatchError, ConflictError, RequestError, StaleStackError, StoreError
from rompatch.patch import Patch
from rompatch.store.ledger import Ledger
from rompatch.workflows import stacking
from rompatch.workflows.store import Store, open_store


@pytest.fixture
def store(tmp_path: Path, new_ledger: Path) -> Iterator[Store]:
    with open_store(empty_store(new_ledger, tmp_path)) as opened:
        yield opened


def fact(store: Store, subject: str, template: str, target: str, relation: str | None = None, **more: object) -> Patch:
    """A patch in the store, file and row."""
    patch = tiny_patch(subject, request=EditRequest(subject, template, target, None, relation), **more)
    store.blobs.put(patch)
    record(store.ledger, patch)
    return patch


def state(store: Store) -> object:
    return store.stack(), [one.id for one in store.active()], store.ledger.history(limit=None)


@pytest.mark.parametrize(
    ("template", "relation"),
    [
        ("{} is  located in", None),
        ("The {} can be found in", "Located in"),
        ("{} can be found in", None),  # only the atlas knows that this is the same relation
    ],
)
def test_another_object_for_one_fact_is_refused_and_both_are_named(
    store: Store, template: str, relation: str | None
) -> None:
    rome = fact(store, "Eiffel Tower", "{} is located in", "Rome", "located in")
    berlin = fact(store, "eiffel  tower", template, "Berlin", relation)
    store.apply(rome.id)
    before = state(store)
    with pytest.raises(ConflictError, match="contradicts the active patch") as caught:
        store.apply(berlin.id)
    assert rome.short_id in str(caught.value)
    assert berlin.short_id in str(caught.value)
    assert "--supersede" in str(caught.value)
    assert state(store) == before
    with pytest.raises(ConflictError, match="to be applied with it"):
        store.apply(fact(store, "Big Ben", "{} is in", "Oslo").id, fact(store, "Big Ben", "{} is in", "Bonn").id)
    assert len(store.ledger.stacks()) == 1
    assert [one.id for one in store.active()] == [rome.id]


def test_other_relations_and_equal_objects_are_no_contradiction(store: Store) -> None:
    store.apply(fact(store, "Eiffel Tower", "{} is located in", "Rome").id)
    store.apply(fact(store, "Eiffel Tower", "{} is made of", "wood").id)
    store.apply(fact(store, "Eiffel Tower", "The {} can be found in", "Rome").id)
    assert len(store.active()) == 3


def test_superseding_replaces_in_one_revision_and_records_the_pairs(store: Store) -> None:
    rome = fact(store, "Eiffel Tower", "{} is located in", "Rome")
    bonn = fact(store, "Big Ben", "{} is in", "Bonn")
    berlin = fact(store, "Eiffel Tower", "{} is located in", "Berlin")
    store.apply(rome.id, bonn.id)
    revision = store.apply(berlin.id, supersede=True, reason="moved")
    assert (revision.action, revision.number, revision.reason) == ("supersede", 2, "moved")
    assert (revision.added, revision.removed) == ((berlin.id,), (rome.id,))
    assert revision.details == {"superseded": [{"new": berlin.id, "old": rome.id}]}
    assert {one.id for one in store.active()} == {bonn.id, berlin.id}
    assert store.ledger.revision("main", 2) == revision
    assert store.apply(fact(store, "Louvre", "{} is in", "Oslo").id, supersede=True).action == "apply"


def test_source_and_expiry_stay_with_the_patch(store: Store) -> None:
    rome = fact(store, "Eiffel Tower", "{} is located in", "Rome")
    before = state(store)
    with pytest.raises(RequestError, match="is no day"):
        store.apply(rome.id, expires="2027-02-30")
    assert state(store) == before
    revision = store.apply(rome.id, source="https://example.org", expires="2027-01-31")
    assert revision.details == {"noted": {"source": "https://example.org", "expires_at": "2027-01-31"}}
    known = store.ledger.patch(rome.id)
    assert (known.source, known.expires_at) == ("https://example.org", "2027-01-31")


def test_a_note_says_what_a_new_source_and_expiry_replace(tmp_path: Path, heard: Heard) -> None:
    with open_store(tmp_path / ".rompatch", reporter=heard) as store:
        rome = fact(store, "Eiffel Tower", "{} is located in", "Rome")
        for about in ({"source": "a book", "expires": "2027-01-31"}, {"source": "a book"}, {"source": "the news"}):
            heard.notes.clear()
            store.apply(rome.id, **about)
            store.revert(rome.id)
            replaced = [note for note in heard.notes if "replaces" in note]
            assert bool(replaced) is (about["source"] == "the news")
        assert replaced == [f"patch {store.resolve(rome.id).label}: source 'the news' replaces 'a book'"]
        heard.notes.clear()
        store.apply(rome.id, expires="2028-01-31")
        assert "expires '2028-01-31' replaces '2027-01-31'" in heard.notes[0]


def test_the_forecast_of_a_contradiction_names_supersede(store: Store) -> None:
    rome = fact(store, "Eiffel Tower", "{} is located in", "Rome")
    berlin = fact(store, "Eiffel Tower", "{} is located in", "Berlin")
    store.apply(rome.id)
    with pytest.raises(ConflictError, match="--supersede") as caught:
        store.plan(berlin.id)
    assert rome.short_id in str(caught.value)
    assert [one.id for one in store.plan(berlin.id, supersede=True).removing] == [rome.id]


def test_a_patch_of_another_base_or_without_its_file_is_refused(store: Store) -> None:
    store.apply(fact(store, "Eiffel Tower", "{} is located in", "Rome").id)
    before = state(store)
    with pytest.raises(BaseMismatchError, match="is on another one"):
        store.apply(fact(store, "Eiffel Tower", "{} is located in", "Bonn", base="other").id, supersede=True)
    lost = fact(store, "Big Ben", "{} is in", "Bonn")
    store.blobs.remove(lost.id)
    with pytest.raises(StoreError, match=f"file of patch {lost.short_id} is missing"):
        store.apply(lost.id)
    assert store.stack() == before[0]  # type: ignore[index]


def test_a_stack_changed_between_plan_and_apply_is_planned_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    rome = fact(store, "Eiffel Tower", "{} is located in", "Rome")
    berlin = fact(store, "Eiffel Tower", "{} is located in", "Berlin")
    bonn = fact(store, "Big Ben", "{} is in", "Bonn")
    store.apply(bonn.id)
    real, others = stacking.plan_apply, [lambda other: other.push("main", [rome.id])]

    def planned_while_another_program_writes(*args: object, **options: object) -> stacking.ApplyPlan:
        plan = real(*args, **options)  # type: ignore[arg-type]
        with Ledger.open(store.ledger.where) as other:
            for act in others[:1]:
                others.remove(act)
                act(other)
        return plan

    monkeypatch.setattr(stacking, "plan_apply", planned_while_another_program_writes)
    revision = store.apply(berlin.id, supersede=True)  # what it replaces came in between
    assert (revision.number, revision.removed) == (3, (rome.id,))
    others.append(lambda other: other.push("main", [rome.id]))
    store.revert(berlin.id)
    with pytest.raises(ConflictError, match="contradicts"):
        store.apply(berlin.id)
    assert {one.id for one in store.active()} == {bonn.id, rome.id}


def test_an_old_plan_is_never_carried_out(store: Store) -> None:
    rome = fact(store, "Eiffel Tower", "{} is located in", "Rome")
    bonn = fact(store, "Big Ben", "{} is in", "Bonn")
    first = stacking.plan_apply(store, [rome.id])
    store.apply(bonn.id)
    for plan in (first, stacking.plan_apply(store, [rome.id])):
        store.revert()
        before = state(store)
        with pytest.raises(StaleStackError, match="was changed after the change was planned"):
            stacking.carry_out(store, plan)
        assert state(store) == before
        store.apply(bonn.id)
