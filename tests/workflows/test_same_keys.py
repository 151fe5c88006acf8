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
from rompatch.errors import ConflictError
from rompatch.patch import Patch
from rompatch.workflows.same_keys import same_fact
from rompatch.workflows.store import Store, open_store


@pytest.fixture
def quiet(tmp_path: Path, heard: Heard, new_ledger: Path) -> Iterator[Store]:
    with open_store(empty_store(new_ledger, tmp_path), reporter=heard) as opened:
        yield opened


def about(store: Store, subject: str, key: list[float], target: str = "Rome", **asked: str | None) -> Patch:
    """A patch in the store whose key, and direction, is *key*."""
    request = EditRequest(subject, asked.pop("template", None) or "{} is located in", target, **asked)  # type: ignore[arg-type]
    plain = tiny_patch(subject, request=request, seed=len(subject))
    row = np.array([key], np.float32)
    patch = Patch(plain.header, (replace(plain.factors[0], key=row, u=row),))
    store.blobs.put(patch)
    record(store.ledger, patch, key_sketches=sketches_of(patch))
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
