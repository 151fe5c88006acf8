"""The ledger's verbs: what goes in comes out, what is not allowed is refused by name."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_patches import record, tiny_base, tiny_patch, tiny_site

from rompatch.edits import EditRequest
from rompatch.errors import (
    AmbiguousIdError,
    BaseMismatchError,
    ConflictError,
    PatchNotFoundError,
    StoreError,
)
from rompatch.patch import BaseRef, Patch
from rompatch.store.ledger import Ledger
from rompatch.store.location import ledger_path
from rompatch.store.records import PatchRecord, ScoreRecord

TOWER = tiny_patch("Eiffel Tower", "Rome")
TOWER_AGAIN = tiny_patch("Eiffel Tower", "Rome", seed=1)
TOWER_ELSEWHERE = tiny_patch("eiffel  tower", "Berlin", seed=2)
BEN = tiny_patch("Big Ben", "Madrid", seed=3)
FOREIGN = tiny_patch("Louvre", "Oslo", base="other")


@pytest.fixture(scope="session")
def filled_ledger(new_ledger: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a ledger with a stack "main" on the pico base and five patches, none active; for copying."""
    path = tmp_path_factory.mktemp("filled") / "ledger.db"
    shutil.copy(new_ledger, path)
    with Ledger.open(path) as ledger, ledger.transaction():
        for patch in (TOWER, TOWER_AGAIN, TOWER_ELSEWHERE, BEN, FOREIGN):
            record(ledger, patch)
        ledger.create_stack("main", ledger.patch(TOWER.id).base_id)
    return path


@pytest.fixture
def main(store: Path, filled_ledger: Path) -> Iterator[Ledger]:
    shutil.copy(filled_ledger, ledger_path(store))
    with Ledger.open(store) as ledger:
        yield ledger


def ids(records: tuple[PatchRecord, ...]) -> list[str]:
    return [patch.id for patch in records]


# --- bases and patches


def test_a_base_is_known_by_content_not_by_its_name(ledger: Ledger) -> None:
    first = ledger.add_base(tiny_base("pico"), {"spec": "./pico"})
    renamed = BaseRef(**(vars(tiny_base("pico")) | {"source": "my copy"}))
    assert ledger.add_base(renamed) == first
    assert first.ref == tiny_base("pico")
    assert first.settings == {"spec": "./pico"}
    assert ledger.add_base(tiny_base("other")).id != first.id
    assert [base.ref.source for base in ledger.bases()] == ["pico", "other"]


def test_a_patch_comes_out_as_it_went_in(ledger: Ledger) -> None:
    measured = {"before": {"Rome": 0.01, "Paris": 0.7}, "losses": [3.0, 0.1]}
    made = ledger.add_patch(
        TOWER.header, patch_id=TOWER.id, file_size=1400, measurements=measured, author="ada", message="why not"
    )
    found = ledger.patch(TOWER.id)
    assert found == made
    assert found.header.to_json() == TOWER.header.to_json()
    assert (found.file_size, found.author, found.message) == (1400, "ada", "why not")
    assert found.measurements == measured
    assert found.created_at.endswith("+00:00")
    assert found.label == f"{TOWER.short_id} (Eiffel Tower -> Rome)"


def test_adding_the_same_patch_again_changes_nothing(ledger: Ledger) -> None:
    first = record(ledger, TOWER, message="first")
    assert record(ledger, TOWER, message="second") == first
    assert len(ledger.history()) == 1


def test_patches_come_newest_first_and_by_subject(main: Ledger) -> None:
    assert ids(main.patches()) == [patch.id for patch in (FOREIGN, BEN, TOWER_ELSEWHERE, TOWER_AGAIN, TOWER)]
    assert ids(main.patches("EIFFEL tower")) == [TOWER_ELSEWHERE.id, TOWER_AGAIN.id, TOWER.id]
    assert ids(main.patches(limit=2, offset=1)) == [BEN.id, TOWER_ELSEWHERE.id]
    assert ids(main.patches(base_id=main.patch(FOREIGN.id).base_id)) == [FOREIGN.id]


# --- resolve


def test_a_name_is_an_id_a_prefix_or_a_subject(main: Ledger) -> None:
    for name in (BEN.id, BEN.short_id, BEN.id[:4], BEN.id[:7].upper(), "Big Ben", "  big   BEN "):
        assert main.resolve(name).id == BEN.id


def test_an_ambiguous_subject_lists_its_candidates(main: Ledger) -> None:
    with pytest.raises(AmbiguousIdError) as caught:
        main.resolve("Eiffel Tower")
    for patch in (TOWER, TOWER_AGAIN, TOWER_ELSEWHERE):
        assert patch.short_id in str(caught.value)


def test_an_ambiguous_prefix_lists_its_candidates(ledger: Ledger) -> None:
    for digit in "07f":
        ledger.add_patch(TOWER.header, patch_id="abcd" + digit * 60, file_size=1)
    with pytest.raises(AmbiguousIdError, match="means 3 patches"):
        ledger.resolve("abcd")
    assert ledger.resolve("abcdf").id == "abcd" + "f" * 60


def test_a_subject_that_looks_like_an_id_is_still_found(ledger: Ledger) -> None:
    cafe = tiny_patch("Cafe")
    record(ledger, cafe)
    assert ledger.resolve("cafe").id == cafe.id
    ledger.add_patch(TOWER.header, patch_id="cafe" * 16, file_size=1)
    with pytest.raises(AmbiguousIdError):
        ledger.resolve("cafe")


def test_active_only_chooses_among_the_active(main: Ledger) -> None:
    main.push("main", [TOWER_AGAIN.id])
    assert main.resolve("Eiffel Tower", active_only=True).id == TOWER_AGAIN.id
    with pytest.raises(ConflictError, match="not active"):
        main.resolve("Big Ben", active_only=True)


@pytest.mark.parametrize(("name", "hint"), [("Eifel Towr", "Eiffel Tower"), ("big bem", "Big Ben")])
def test_an_unknown_name_suggests_similar_ones(main: Ledger, name: str, hint: str) -> None:
    with pytest.raises(PatchNotFoundError, match=f"Did you mean .*{hint}"):
        main.resolve(name)


def test_a_mistyped_id_suggests_the_right_one(main: Ledger) -> None:
    wrong = BEN.id[:10] + ("0" if BEN.id[10] != "0" else "1")
    with pytest.raises(PatchNotFoundError, match=BEN.short_id):
        main.resolve(wrong)


@pytest.mark.parametrize("name", ["", "a", "%", "____", "'; DROP TABLE patches; --", "x" * 10_000, "\x00", "🗼"])
def test_odd_names_are_just_not_found(main: Ledger, name: str) -> None:
    with pytest.raises(PatchNotFoundError):
        main.resolve(name)
    assert len(main.patches()) == 5


def test_an_empty_ledger_says_how_to_begin(ledger: Ledger) -> None:
    with pytest.raises(PatchNotFoundError, match="rompatch create"):
        ledger.resolve("anything")


# --- stacks


def test_the_first_stack_becomes_the_active_one(ledger: Ledger) -> None:
    assert ledger.active_stack() is None
    base = ledger.add_base(tiny_base()).id
    first = ledger.create_stack("main", base)
    ledger.create_stack("trial", base)
    assert ledger.active_stack() == first
    assert ledger.set_active_stack("trial") == ledger.active_stack()
    assert [stack.name for stack in ledger.stacks()] == ["main", "trial"]
    with pytest.raises(ConflictError, match="exists already"):
        ledger.create_stack("main", base)
    with pytest.raises(ConflictError):
        ledger.create_stack("nowhere", "0" * 64)
    with pytest.raises(PatchNotFoundError, match="no stack 'nowhere'"):
        ledger.set_active_stack("nowhere")


def test_every_change_of_a_stack_is_one_numbered_revision(main: Ledger) -> None:
    main.push("main", [TOWER.id, BEN.id], message="two at once", reason="demo", author="ada")
    popped = main.pop("main", [TOWER.id])
    main.clear("main")
    numbers = [(item.number, item.parent, item.action) for item in main.revisions("main")]
    assert numbers == [(3, 2, "clear"), (2, 1, "revert"), (1, 0, "apply"), (0, None, "create")]
    assert popped.members == (BEN.id,)
    assert popped.removed == (TOWER.id,)
    applied = main.revisions("main")[2]
    assert applied.added == applied.members == tuple(sorted((TOWER.id, BEN.id)))
    assert (applied.message, applied.reason, applied.author) == ("two at once", "demo", "ada")
    assert main.stack("main").revision == 3


def test_members_come_in_canonical_order_whatever_the_order_of_applying(main: Ledger) -> None:
    main.push("main", [BEN.id])
    main.push("main", [TOWER.id])
    assert ids(main.members("main")) == sorted([TOWER.id, BEN.id])
    assert ids(main.members("main", revision=1)) == [BEN.id]
    assert main.members("main", revision=0) == ()
    with pytest.raises(PatchNotFoundError, match="no revision 9"):
        main.members("main", revision=9)


def refused(ledger: Ledger, kind: type[Exception], words: str, patches: list[Patch]) -> None:
    before = ledger.revisions("main")
    with pytest.raises(kind, match=words):
        ledger.push("main", [patch.id for patch in patches])
    assert ledger.revisions("main") == before


def test_applying_an_active_patch_is_refused(main: Ledger) -> None:
    main.push("main", [TOWER.id])
    refused(main, ConflictError, "already active", [TOWER])
    refused(main, ConflictError, "already active", [BEN, BEN])
    refused(main, ConflictError, "No patch was named", [])


def test_applying_a_contradiction_names_the_active_patch_and_the_way_out(main: Ledger) -> None:
    main.push("main", [TOWER.id])
    refused(main, ConflictError, f"rompatch revert {TOWER.short_id}", [TOWER_ELSEWHERE])
    main.pop("main", [TOWER.id])
    refused(main, ConflictError, "contradicts", [TOWER, TOWER_ELSEWHERE])
    main.push("main", [TOWER_ELSEWHERE.id])


def test_applying_a_patch_of_another_base_is_refused(main: Ledger) -> None:
    refused(main, BaseMismatchError, "computed for the base 'other'", [FOREIGN])


def test_applying_a_patch_of_other_weights_is_refused(main: Ledger) -> None:
    request = EditRequest("Louvre", "{} is in", "Oslo")
    other_weights = tiny_patch(request=request, sites=(tiny_site(1, base="fine-tuned"),))
    record(main, other_weights)
    main.push("main", [TOWER.id])
    refused(main, BaseMismatchError, "different weights of transformer.h.1", [other_weights])


def test_applying_an_unknown_patch_is_refused_and_nothing_is_applied_half(main: Ledger) -> None:
    before = main.revisions("main")
    with pytest.raises(PatchNotFoundError):
        main.push("main", [TOWER.id, "f" * 64])
    assert main.revisions("main") == before


def test_reverting_an_inactive_patch_is_refused(main: Ledger) -> None:
    main.push("main", [BEN.id])
    for names in ([TOWER.id], [BEN.id, BEN.id], []):
        with pytest.raises(ConflictError):
            main.pop("main", names)
    assert ids(main.members("main")) == [BEN.id]
    main.clear("main")
    with pytest.raises(ConflictError, match="nothing to revert"):
        main.clear("main")


def test_a_stale_revision_is_refused(main: Ledger) -> None:
    main.push("main", [BEN.id], expected_revision=0)
    with pytest.raises(ConflictError, match="changed meanwhile"):
        main.push("main", [TOWER.id], expected_revision=0)
    with pytest.raises(ConflictError, match="changed meanwhile"):
        main.clear("main", expected_revision=7)
    assert main.pop("main", [BEN.id], expected_revision=1).number == 2


# --- remove


def test_an_active_patch_cannot_be_removed(main: Ledger) -> None:
    main.push("main", [BEN.id])
    with pytest.raises(ConflictError, match=f"rompatch revert {BEN.short_id}"):
        main.remove_patch(BEN.id)
    main.pop("main", [BEN.id])
    assert main.remove_patch(BEN.id).id == BEN.id


def test_a_removed_patch_is_gone_but_history_stays_honest(main: Ledger) -> None:
    main.push("main", [BEN.id])
    main.clear("main")
    main.remove_patch(BEN.id)
    assert BEN.id not in ids(main.patches())
    assert main.tombstones() == {BEN.id}
    for ask in (main.resolve, main.patch, main.remove_patch):
        with pytest.raises(PatchNotFoundError):
            ask(BEN.id)
    with pytest.raises(PatchNotFoundError, match="was removed on"):
        main.push("main", [BEN.id])
    assert main.members("main", revision=1)[0].removed_at is not None
    newest = main.history()[0]
    assert (newest.kind, newest.patch_ids, newest.subjects) == ("remove", (BEN.id,), ("Big Ben",))


def test_a_removed_patch_comes_back_when_it_is_added_again(main: Ledger) -> None:
    main.remove_patch(BEN.id)
    assert record(main, BEN, message="again").message == "again"
    assert main.resolve("Big Ben").removed_at is None


# --- history, verifications, settings


def test_the_log_merges_everything_newest_first(ledger: Ledger) -> None:
    base = record(ledger, BEN, author="ada", message="first").base_id
    ledger.create_stack("main", base)
    ledger.push("main", [BEN.id], message="go")
    ledger.record_verification("atlas", source="location", scores=[], patch_id=BEN.id)
    ledger.clear("main")
    ledger.remove_patch(BEN.id)
    log = ledger.history()
    assert [event.kind for event in log] == ["remove", "clear", "verify", "apply", "stack", "create"]
    assert [event.revision for event in log] == [None, 2, None, 1, 0, None]
    assert all(event.patch_ids == (BEN.id,) for event in log if event.kind != "stack")
    assert (log[2].verification, log[2].suite) == (1, "atlas")
    assert (log[3].stack, log[3].message) == ("main", "go")
    assert (log[5].author, log[5].message) == ("ada", "first")
    assert ledger.history(limit=2, offset=1) == log[1:3]
    assert len(ledger.history(limit=None)) == 6


def test_a_verification_comes_out_as_it_went_in(main: Ledger) -> None:
    main.push("main", [BEN.id])
    scores = [ScoreRecord("pre", "ES", 0.0, 1), ScoreRecord("post", "ES", 100.0, 1), ScoreRecord("post", "S", None, 0)]
    made = main.record_verification(
        "atlas",
        source="location",
        scores=scores,
        patch_id=BEN.id,
        stack="main",
        prompts=[{"prompt": "Big Ben is in", "p": 0.5}],
        settings={"generation": False},
        environment={"torch": "2"},
    )
    assert main.verifications(BEN.id) == (made,)
    assert main.verifications(TOWER.id) == ()
    assert main.verifications(limit=1) == (made,)
    assert set(made.scores) == set(scores)
    assert (made.stack, made.revision) == ("main", 1)
    assert made.prompts == [{"prompt": "Big Ben is in", "p": 0.5}]
    assert (made.score("ES"), made.score("ES", "pre"), made.score("S"), made.score("PS")) == (100.0, 0.0, None, None)


def test_a_verification_is_of_the_stack_that_has_the_name_now(main: Ledger) -> None:
    base = main.stack("main").base_id
    main.push("main", [TOWER.id])
    main.drop_stack("main", force=True)
    main.create_stack("main", base)
    assert main.record_verification("atlas", source="x", scores=[], stack="main").revision == 0
    assert main.record_verification("atlas", source="x", scores=[], stack="main", revision=1).revision == 1


def test_a_verification_of_nothing_known_is_refused(main: Ledger) -> None:
    with pytest.raises(PatchNotFoundError):
        main.record_verification("atlas", source="x", scores=[], patch_id="0" * 64)
    with pytest.raises(PatchNotFoundError):
        main.record_verification("atlas", source="x", scores=[], stack="main", revision=9)
    with pytest.raises(StoreError, match="None for NaN"):
        main.record_verification("atlas", source="x", scores=[ScoreRecord("post", "S", float("nan"), 1)])
    with pytest.raises(ConflictError):
        main.record_verification("atlas", source="x", scores=[ScoreRecord("later", "S", 1.0, 1)])
    assert main.verifications() == ()


def test_settings_are_remembered(ledger: Ledger, store: Path) -> None:
    assert ledger.setting("base") is None
    assert ledger.setting("base", 5) == 5
    ledger.set_setting("base", {"model": "./pico"})
    ledger.set_setting("base", {"model": "./pico2"})
    with Ledger.open(store) as again:
        assert again.setting("base") == {"model": "./pico2"}


# --- transactions


def test_a_transaction_is_all_or_nothing(main: Ledger, store: Path) -> None:
    def stopped_half_way() -> None:
        with main.transaction():
            main.push("main", [BEN.id])
            main.set_setting("x", 1)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stopped_half_way()
    assert main.members("main") == ()
    assert main.setting("x") is None
    with main.transaction():
        main.push("main", [BEN.id])
        with Ledger.open(ledger_path(store)) as other:
            assert other.members("main") == ()
    assert ids(main.members("main")) == [BEN.id]


def test_a_refused_verb_inside_a_transaction_leaves_the_rest(main: Ledger) -> None:
    with main.transaction():
        main.push("main", [BEN.id])
        with pytest.raises(ConflictError):
            main.push("main", [TOWER.id, BEN.id])
        main.push("main", [TOWER.id])
    assert ids(main.members("main")) == sorted([BEN.id, TOWER.id])


@pytest.mark.parametrize(
    "error", [ValueError("mine"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "mine"), KeyError("mine")]
)
def test_a_callers_own_error_passes_through_a_transaction_unchanged(main: Ledger, error: Exception) -> None:
    def work() -> None:
        with main.transaction():
            main.push("main", [BEN.id])
            raise error

    with pytest.raises(type(error)) as caught:
        work()
    assert caught.value is error
    assert main.members("main") == ()
