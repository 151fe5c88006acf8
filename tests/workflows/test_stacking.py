"""Apply and remove: what they note, and what other programs do meanwhile."""

from __future__ import annotations

import pytest
from heard import Heard
from tiny_patches import record, tiny_patch

from rompatch.edits import EditRequest
from rompatch.patch import Patch
from rompatch.store.ledger import Ledger
from rompatch.store.records import PatchRecord
from rompatch.workflows.store import Store


def added(store: Store, patch: Patch) -> Patch:
    store.blobs.put(patch)
    record(store.ledger, patch)
    return patch


def test_a_patch_made_anew_while_it_is_removed_keeps_its_file(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    patch = added(store, tiny_patch())
    real = Ledger.remove_patch

    def removed_and_made_anew(ledger: Ledger, patch_id: str) -> PatchRecord:
        gone = real(ledger, patch_id)
        with Ledger.open(ledger.where) as other:
            record(other, patch)
        return gone

    monkeypatch.setattr(Ledger, "remove_patch", removed_and_made_anew)
    store.remove(patch.id)
    assert store.patch(patch.id).id == patch.id


def test_a_removed_patch_loses_its_file(store: Store) -> None:
    patch = added(store, tiny_patch())
    store.remove(patch.id)
    assert store.blobs.ids() == ()


def about(subject: str, template: str, target: str, layer: int = 1) -> Patch:
    request = EditRequest(subject, template, target, None, None)
    return tiny_patch(subject, layers=(layer,), seed=len(template), request=request)


@pytest.mark.parametrize("together", [True, False])
def test_patches_about_one_subject_at_one_site_are_noted(store: Store, heard: Heard, together: bool) -> None:
    place = added(store, about("Eiffel Tower", "{} is located in", "Rome"))
    height = added(store, about("eiffel  tower", "{} is made of", "wood"))
    for names in [(place.id, height.id)] if together else [(place.id,), (height.id,)]:
        store.apply(*names)
    (note,) = heard.notes
    assert place.short_id in note
    assert height.short_id in note
    assert "share one key and get part of both values; verify both" in note


def test_patches_that_share_no_key_are_applied_in_silence(store: Store, heard: Heard) -> None:
    for patch in (
        about("Eiffel Tower", "{} is located in", "Rome"),
        about("Eiffel Tower", "{} is made of", "wood", layer=2),
        about("Big Ben", "{} is located in", "Oslo"),
    ):
        store.apply(added(store, patch).id)
    assert heard.notes == []
