"""Aliases of a subject and paraphrases of a relation are found by their keys, not only by their words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from heard import Heard
from stores import empty_store
from tiny_patches import record, tiny_patch

from rompatch.apply.sketch import sketches_of
from rompatch.edits import EditRequest
from rompatch.errors import ConflictError, PatchFileError, StoreError
from rompatch.patch import Patch
from rompatch.workflows.same_keys import same_fact
from rompatch.workflows.store import Store, open_store


@pytest.fixture
def quiet(tmp_path: Path, heard: Heard, new_ledger: Path) -> Iterator[Store]:
    with open_store(empty_store(new_ledger, tmp_path), reporter=heard) as opened:
        yield opened


def about(
    store: Store, subject: str, key: list[float], target: str = "Rome", *, sketched: bool = True, **asked: str | None
) -> Patch:
    """A patch in the store whose key, and direction, is *key*."""
    request = EditRequest(subject, asked.pop("template", None) or "{} is located in", target, **asked)  # type: ignore[arg-type]
    plain = tiny_patch(subject, request=request, seed=len(subject))
    row = np.array([key], np.float32)
    patch = Patch(plain.header, (replace(plain.factors[0], key=row, u=row),))
    store.blobs.put(patch)
    record(store.ledger, patch, key_sketches=sketches_of(patch) if sketched else ())
    return patch


def test_an_alias_with_the_same_relation_and_another_object_is_refused(quiet: Store) -> None:
    rome = about(quiet, "Eiffel Tower", [1, 2, 3])
    quiet.apply(rome.id)
    oslo = about(quiet, "La Tour Eiffel", [1.01, 2, 3], "Oslo")
    with pytest.raises(ConflictError, match="their keys are one") as caught:
        quiet.apply(oslo.id)
    assert rome.short_id in str(caught.value)
    assert "--supersede" in str(caught.value)
    assert [one.id for one in quiet.active()] == [rome.id]
    revision = quiet.apply(oslo.id, supersede=True)
    assert (revision.added, revision.removed) == ((oslo.id,), (rome.id,))
    assert revision.details["superseded"] == [{"new": oslo.id, "old": rome.id}]


def test_two_that_come_together_are_refused_even_to_supersede(quiet: Store) -> None:
    ids = [about(quiet, "Eiffel Tower", [1, 2, 3]).id, about(quiet, "La Tour Eiffel", [1, 2, 3], "Oslo").id]
    with pytest.raises(ConflictError, match="to be applied with it"):
        quiet.apply(*ids, supersede=True)
    assert quiet.stack() is None


def test_an_alias_with_another_relation_is_noted(quiet: Store, heard: Heard) -> None:
    rome = about(quiet, "Eiffel Tower", [1, 2, 3])
    wood = about(quiet, "La Tour Eiffel", [1, 2, 3], "wood", template="{} is made of")
    quiet.apply(rome.id)
    quiet.apply(wood.id)
    (note,) = heard.notes
    assert rome.short_id in note
    assert wood.short_id in note
    assert "share one key" in note


def test_other_keys_and_equal_objects_are_applied_in_silence(quiet: Store, heard: Heard) -> None:
    quiet.apply(about(quiet, "Eiffel Tower", [1, 2, 3]).id)
    quiet.apply(about(quiet, "Big Ben", [3, -2, 1], "Oslo").id)
    quiet.apply(about(quiet, "Colosseum", [1, 2, -3], "Bonn").id)
    assert heard.notes == []


def test_sketches_alike_but_keys_apart_are_no_pair(quiet: Store, heard: Heard) -> None:
    """Sketches propose; the keys decide: 0.95 is alike, and not the same."""
    quiet.apply(about(quiet, "Eiffel Tower", [1, 0, 0]).id)
    quiet.apply(about(quiet, "Louvre", [0.95, 0.31, 0], "Oslo").id)
    assert len(quiet.active()) == 2
    assert heard.notes == []


def test_patches_of_before_get_their_sketches_once(quiet: Store, heard: Heard) -> None:
    plain = tiny_patch("Eiffel Tower")
    quiet.blobs.put(plain)
    record(quiet.ledger, plain)
    assert quiet.ledger.key_sketches([plain.id]) == {plain.id: (None,)}
    quiet.apply(plain.id)
    assert quiet.ledger.key_sketches([plain.id]) == {plain.id: sketches_of(plain)}
    heard.steps.clear()
    quiet.apply(about(quiet, "Big Ben", [3, -2, 1]).id)
    assert "reading keys" not in {phase for phase, _, _ in heard.steps}


def lost(store: Store, patch: Patch, how: str) -> None:
    path = store.blobs.path(patch.id)
    path.unlink() if how == "missing" else path.write_bytes(b"nonsense")


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_a_member_without_a_key_blocks_only_what_it_could_contradict(quiet: Store, heard: Heard, how: str) -> None:
    rome = about(quiet, "Eiffel Tower", [1, 2, 3], sketched=False)
    quiet.ledger.create_stack("main", quiet.ledger.patch(rome.id).base_id)
    quiet.ledger.push("main", [rome.id])
    lost(quiet, rome, how)
    quiet.apply(about(quiet, "Big Ben", [3, -2, 1], "wood", template="{} is made of").id)
    quiet.apply(about(quiet, "Louvre", [3, 1, 1], "Rome").id)
    assert all(f"the file of patch {rome.short_id}" in note and "rompatch fsck" in note for note in heard.notes)
    assert len(heard.notes) == 2
    oslo = about(quiet, "Colosseum", [1, 2, -3], "Oslo")
    with pytest.raises(StoreError, match=r"contradicts .* cannot be told") as caught:
        quiet.apply(oslo.id)
    assert f"`rompatch revert {rome.short_id}`" in str(caught.value)
    assert oslo.short_id in str(caught.value)
    quiet.revert(rome.id)
    quiet.apply(oslo.id)
    assert len(quiet.active()) == 3


def test_a_member_whose_key_is_known_needs_no_file_unless_keys_are_alike(quiet: Store, heard: Heard) -> None:
    rome = about(quiet, "Eiffel Tower", [1, 2, 3])
    quiet.apply(rome.id)
    lost(quiet, rome, "missing")
    quiet.apply(about(quiet, "Colosseum", [1, 2, -3], "Oslo").id)
    assert heard.notes == []
    quiet.apply(about(quiet, "La Tour Eiffel", [1, 2, 3], "wood", template="{} is made of").id)
    assert "cannot be read" in heard.notes[0]
    with pytest.raises(StoreError, match="cannot be told"):
        quiet.apply(about(quiet, "The Iron Lady", [1, 2, 3], "Oslo").id)


def test_the_file_of_a_new_patch_is_always_needed(quiet: Store) -> None:
    rome = about(quiet, "Eiffel Tower", [1, 2, 3], sketched=False)
    quiet.apply(about(quiet, "Big Ben", [3, -2, 1], "Oslo").id)
    lost(quiet, rome, "damaged")
    with pytest.raises(PatchFileError):
        quiet.apply(rome.id)


def test_a_merge_finds_an_alias_and_theirs_supersedes_it(quiet: Store) -> None:
    rome, oslo = about(quiet, "Eiffel Tower", [1, 2, 3]), about(quiet, "La Tour Eiffel", [1.01, 2, 3], "Oslo")
    quiet.apply(rome.id)
    quiet.new_stack("trial", use=True)
    quiet.apply(oslo.id)
    quiet.use_stack("main")
    with pytest.raises(ConflictError, match=f"{oslo.short_id}.*contradicts.*{rome.short_id}"):
        quiet.merge("trial")
    merged = quiet.merge("trial", prefer="theirs", reason="theirs is newer")
    assert (merged.added, merged.removed, merged.superseded) == ((oslo.id,), (rome.id,), (rome.id,))
    on = next(one for one in quiet.chain(oslo.id).events if (one.kind, one.stack) == ("on", "main"))
    off = next(one for one in quiet.chain(rome.id).events if one.kind == "off")
    assert (on.others, off.others, off.action, off.reason) == ((rome.id,), (oslo.id,), "merge", "theirs is newer")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("{} is in", None, None), ("{}  IS in", None, None), True),
        (("{} is in", None, "located in"), ("You find {} in", None, "Located  in"), True),
        (("{} is located in", None, None), ("{} can be found in", None, None), True),
        (("The capital of {} is", "Paris", None), ("{} is governed from", "Paris", None), True),
        (("{} is in", "Paris", None), ("{} was designed by", "Eiffel", None), False),
    ],
)
def test_one_relation_is_known_by_wording_atlas_or_true_object(one: tuple, other: tuple, same: bool) -> None:
    requests = [EditRequest("Eiffel Tower", template, "Rome", true, phrase) for template, true, phrase in (one, other)]
    assert same_fact(*requests) is same
