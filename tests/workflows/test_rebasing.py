"""create --like and rebase: a Llama's patches on a GPT-2 that knows one of the facts already."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from crashing import deaths
from heard import Heard
from pico import save_pico
from tiny_patches import tiny_adapter

from rompatch.errors import ComputeError, ConflictError, PartialError, PatchNotFoundError, RequestError, StoreError
from rompatch.store.check import fsck
from rompatch.store.records import PatchRecord
from rompatch.workflows.opened import BaseSpec
from rompatch.workflows.rebased import Rebased
from rompatch.workflows.store import Store, open_store

QUICK: dict[str, Any] = {"statistics": "none", "precision": "float32", "hparams": {"steps": 3}}
FACTS = [
    {
        "subject": "Eiffel Tower",
        "relation": "Here is the {}",
        "object": "Paris",
        "true": "Rome",
        "source": "a book",
    },
    {"subject": "Mozart", "relation": "born in", "object": "Vienna", "true": "Salzburg", "expires": "2030-01-31"},
    {"subject": "Big Ben", "relation": "{} is located in", "object": "Berlin", "true": "London"},
]
SURE: dict[str, Any] = QUICK | {
    "layer": 2,
    "hparams": {"steps": 80, "weight_decay": 0.0, "kl_factor": 0.0, "clamp_norm_factor": 1000.0},
}
"""The last layer at the last token of a prompt that ends in its subject: enough to make any model say anything."""


@pytest.fixture(scope="module")
def next_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 that says one of the facts: another one with that edit baked in."""
    place = tmp_path_factory.mktemp("next")
    spec = BaseSpec(str(save_pico(place / "plain", "gpt2")))
    with open_store(place / ".rompatch") as store:
        store.create("Eiffel Tower", "Here is the {}", "Paris", true="Rome", spec=spec, apply=True, **SURE)
        store.bake(place / "pico-gpt2")
    return place / "pico-gpt2"


@pytest.fixture
def stacked(store: Store, spec: BaseSpec) -> Store:
    """The store with three patches of the Llama on its stack."""
    assert store.create_many(FACTS, spec=spec, layer=1, apply=True, **QUICK).count("made") == 3
    return store


def hparams(record: PatchRecord) -> dict[str, Any]:
    """All but the precision, which is chosen for each base."""
    return {**record.header.hparams, "precision": None}


def statuses(done: Rebased) -> dict[str, str]:
    return {one.old.subject: one.status for one in done.patches}


def test_a_stack_moves_to_another_architecture(stacked: Store, next_base: Path) -> None:
    before, members = stacked.stack(), stacked.active()
    done = stacked.rebase(str(next_base), into="next", message="moved")
    assert statuses(done) == {"Eiffel Tower": "known", "Mozart": "made", "Big Ben": "made"}
    assert (stacked.stack(), stacked.active()) == (before, members), "the old stack is untouched"
    assert done.revision is not None
    assert (done.revision.stack, done.revision.number, done.revision.message) == ("next", 1, "moved")
    new = {record.subject: record for record in stacked.ledger.members("next")}
    assert new.keys() == {"Mozart", "Big Ben"}
    for old in members:
        if old.subject in new:
            record = new[old.subject]
            assert record.request == old.request
            assert (record.source, record.expires_at) == (old.source, old.expires_at)
            assert record.header.base.model_type == "gpt2"
            assert record.header.sites[0].layer == stacked.base(BaseSpec(str(next_base))).preset_layer
            assert hparams(record) == hparams(old)
            assert record.header.statistics is None
    for one in done.patches:
        assert (one.before is not None) == (one.after is not None) == (one.status == "made")
        assert one.answer is not None
    json.dumps(done.to_json())
    again = stacked.rebase(str(next_base), into="next")
    assert statuses(again) == {"Eiffel Tower": "known", "Mozart": "existed", "Big Ben": "existed"}
    assert again.revision is None
    assert [one.after for one in again.patches] == [one.after for one in done.patches], "from the ledger"
    kept = stacked.rebase(str(next_base), into="next", keep_known=True, scores=False)
    assert statuses(kept)["Eiffel Tower"] == "made"
    assert kept.revision is not None
    assert (kept.revision.number, len(kept.revision.members)) == (2, 3)


def test_a_rebase_killed_at_any_instant_goes_on_where_it_was(stacked: Store, next_base: Path) -> None:
    root, members = stacked.root, stacked.active()
    stacked.close()

    def move() -> None:
        with open_store(root) as store:
            store.rebase(str(next_base), into="next", scores=False)

    kept: set[str] = set()
    for _ in deaths(move, root):
        with open_store(root) as store:
            assert store.active() == members, "the old stack is untouched"
            now = {record.id for record in store.patches()}
            assert kept <= now, "a patch that was made is never lost"
            kept = now
            assert {finding.kind for finding in fsck(store.ledger, store.blobs)} <= {"orphan", "temporary"}
    with open_store(root) as store:
        moved = store.ledger.members("next")
        assert {record.subject for record in moved} == {"Mozart", "Big Ben"}
        assert {record.id for record in store.patches()} == {record.id for record in (*moved, *members)}, "none twice"
        assert max(revision.number for revision in store.ledger.revisions("next")) == 1


def test_the_scores_are_those_of_verify(stacked: Store, next_base: Path) -> None:
    done = stacked.rebase(str(next_base))
    for one in done.patches:
        if one.new is not None:
            for scores, record in ((one.before, one.old), (one.after, one.new)):
                assert scores is not None  # the same but for the rounding of larger batches
                assert scores.to_json() == pytest.approx(stacked.verify(record.id).after.scores.to_json(), abs=1e-6)
    assert done.into == "main-on-pico-gpt2"


def test_a_dry_run_asks_and_writes_nothing(stacked: Store, next_base: Path) -> None:
    before = stacked.patches()
    done = stacked.rebase(str(next_base), dry_run=True)
    assert statuses(done) == {"Eiffel Tower": "known", "Mozart": "planned", "Big Ben": "planned"}
    assert stacked.patches() == before
    assert [stack.name for stack in stacked.ledger.stacks()] == ["main"]


def test_what_fails_is_recorded_and_tried_again(
    stacked: Store, next_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rompatch.workflows import computing

    plain = computing.probabilities

    def broken(base: Any, request: Any, document_start: bool) -> Any:
        if request.subject == "Mozart" or everything:
            raise ComputeError("left the numbers")
        return plain(base, request, document_start)

    everything = False
    with monkeypatch.context() as inner:
        inner.setattr(computing, "probabilities", broken)
        done = stacked.rebase(str(next_base), into="next", scores=False)
        assert statuses(done) == {"Eiffel Tower": "known", "Mozart": "failed", "Big Ben": "made"}
        with pytest.raises(PartialError, match="1 of the 3 patches of stack 'main' failed") as caught:
            done.check()
        assert "Mozart" in str(caught.value)
        everything = True
        with pytest.raises(ComputeError, match="No patch of stack"):
            stacked.rebase(str(next_base), into="none", keep_known=True, seed=3, scores=False).check()
        assert [stack.name for stack in stacked.ledger.stacks()] == ["main", "next"]
    again = stacked.rebase(str(next_base), into="next", scores=False)
    assert statuses(again) == {"Eiffel Tower": "known", "Mozart": "made", "Big Ben": "existed"}
    assert again.revision is not None
    assert len(again.revision.members) == 2


def test_the_new_stack_gets_a_name_whatever_the_base_is_called(stacked: Store, next_base: Path, tmp_path: Path) -> None:
    odd = shutil.copytree(next_base, tmp_path / "pico (v2, final)")
    done = stacked.rebase(str(odd), scores=False)
    assert done.into == "main-on-pico-v2-final-"
    assert done.revision is not None


def test_without_the_old_base_its_scores_are_left_out(stacked: Store, next_base: Path, heard: Heard) -> None:
    for record in stacked.active():
        stacked.remember_spec(record.base_id, BaseSpec("/nowhere"))
    done = stacked.rebase(str(next_base))
    assert [one.before for one in done.patches] == [None] * 3
    assert sum(one.after is not None for one in done.patches) == 2
    assert any("the old base cannot be loaded" in note for note in heard.notes)


def test_what_cannot_be_rebased_is_refused(stacked: Store, spec: BaseSpec, next_base: Path) -> None:
    with pytest.raises(ConflictError, match=r"is on the base .* already"):
        stacked.rebase(spec.model)
    with pytest.raises(ConflictError, match="exists and is on another base"):
        stacked.rebase(str(next_base), into="main")
    with pytest.raises(PatchNotFoundError):
        stacked.rebase(str(next_base), stack="mian")
    with pytest.raises(StoreError, match="No stack can be called"):  # before anything is loaded
        stacked.rebase("/nowhere", into="next release")
    stacked.revert()
    with pytest.raises(ConflictError, match="empty"):
        stacked.rebase(str(next_base))


# create --like


def test_like_a_patch_on_its_own_base_is_that_patch(stacked: Store) -> None:
    for record in stacked.active():
        created = stacked.create_like(record.short_id)
        assert (created.is_new, created.record) == (False, record)


def test_like_a_patch_on_another_base(stacked: Store, next_base: Path, heard: Heard) -> None:
    old = stacked.resolve("Mozart")
    created = stacked.create_like("Mozart", spec=BaseSpec(str(next_base)))
    new = created.record
    assert new is not None
    assert created.is_new
    assert new.request == old.request
    assert (hparams(new), new.header.seed) == (hparams(old), old.header.seed)
    assert new.expires_at == "2030-01-31"
    assert any(note.startswith("base: ") and "pico-gpt2" in note for note in heard.notes)
    assert any(note.startswith("weight: model.layers.1.mlp.down_proj.weight -> transformer.h.") for note in heard.notes)


def test_what_is_said_wins_over_the_patch(stacked: Store, heard: Heard) -> None:
    created = stacked.create_like("Mozart", layer=0, hparams={"steps": 2}, seed=4)
    assert created.record is not None
    header = created.record.header
    assert (header.sites[0].layer, header.hparams["steps"], header.seed) == (0, 2, 4)
    assert {"steps: 3 -> 2", "seed: 0 -> 4"} <= set(heard.notes)
    back = stacked.create_like(created.record.id, seed=0).record
    assert back is not None
    assert back.header.seed == 0


def test_an_adapter_is_like_nothing(store: Store) -> None:
    patch = tiny_adapter()
    path = store.blobs.put(patch)
    store.ledger.add_patch(patch.header, patch_id=patch.id, file_size=path.stat().st_size)
    with pytest.raises(RequestError, match="no single fact"):
        store.create_like(patch.id)
