"""A stack goes from one store to another as one file, whole or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bundles import parts, tiny_bundle, with_manifest
from calling_store import nothing_left, put_into
from stores import empty_store
from tiny_patches import tiny_adapter, tiny_patch, tiny_site

from rompatch.errors import BaseMismatchError, ConflictError, OutputError, PatchNotFoundError
from rompatch.patch import Patch
from rompatch.reporting import Reporter
from rompatch.store.blobs import Blobs
from rompatch.store.records import ScoreRecord
from rompatch.workflows.store import Store, open_store


@pytest.fixture
def ours(tmp_path: Path, new_ledger: Path) -> Any:
    """A store with a history: a fact and an adapter are active, another fact was and is no more."""
    with open_store(empty_store(new_ledger, tmp_path / "ours")) as store:
        ids = [put_into(store, patch) for patch in (tiny_patch(), tiny_patch("Big Ben", seed=7), tiny_adapter())]
        store.apply(*ids, message="all three")
        store.revert(ids[1], reason="wrong")
        store.ledger.record_verification("s", source="file", scores=[ScoreRecord("post", "s", 0.5, 3)], patch_id=ids[0])
        yield store


@pytest.fixture
def theirs(tmp_path: Path, new_ledger: Path) -> Any:
    with open_store(empty_store(new_ledger, tmp_path / "theirs")) as store:
        yield store


def test_patches_history_and_runs_arrive(ours: Store, theirs: Store, tmp_path: Path) -> None:
    report = ours.export_bundle(tmp_path / "b")
    done = theirs.import_bundle(tmp_path / "b")
    assert (done.stack, done.new_stack, done.runs, len(done.new_patches)) == ("main", True, 1, 2)
    assert {patch.id for patch in theirs.active()} == {patch.id for patch in ours.active()}
    for patch in ours.active():
        assert theirs.blobs.path(patch.id).read_bytes() == ours.blobs.path(patch.id).read_bytes()
        copy = theirs.resolve(patch.id)
        known = ("author", "message", "measurements", "created_at")
        assert [getattr(copy, name) for name in known] == [getattr(patch, name) for name in known]
        imported = theirs.details(patch.id).imported
        assert (imported.at, imported.revision) == (done.revision.created_at, 1)
        assert imported.at > copy.created_at
        assert ours.details(patch.id).imported is None
    assert done.revision.action == "import"
    history = done.revision.details["bundle"]
    assert history["sha256"] == report.sha256
    assert [one["action"] for one in history["revisions"]] == ["create", "apply", "revert"]
    assert list(history["mentioned"].values()) == ["Big Ben -> Rome"]
    (run,) = theirs.ledger.verifications(tiny_patch().id)
    assert (run.score("s"), run.created_at) == (0.5, ours.ledger.verifications()[0].created_at)
    assert not theirs.check().findings


def test_exporting_twice_gives_equal_bytes(ours: Store, tmp_path: Path) -> None:
    ours.export_bundle(tmp_path / "one")
    ours.export_bundle(tmp_path / "two", "main")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_importing_twice_changes_nothing(ours: Store, theirs: Store, tmp_path: Path) -> None:
    ours.export_bundle(tmp_path / "b")
    first = theirs.import_bundle(tmp_path / "b")
    before = (theirs.ledger.revisions("main"), theirs.ledger.verifications(), theirs.blobs.ids())
    again = theirs.import_bundle(tmp_path / "b")
    assert (again.revision, again.new_patches, again.runs, again.stack) == (None, (), 0, first.stack)
    assert (theirs.ledger.revisions("main"), theirs.ledger.verifications(), theirs.blobs.ids()) == before


def test_a_stack_of_that_name_is_not_touched_unless_it_is_named(ours: Store, theirs: Store, tmp_path: Path) -> None:
    theirs.apply(put_into(theirs, tiny_patch("Louvre", seed=5)))
    ours.export_bundle(tmp_path / "b")
    with pytest.raises(ConflictError, match="--into"):
        theirs.import_bundle(tmp_path / "b")
    assert len(theirs.active()) == 1
    assert theirs.import_bundle(tmp_path / "b", "team").new_stack
    assert len(theirs.active()) == 1  # a new stack is not put in force
    done = theirs.import_bundle(tmp_path / "b", "main")
    assert len(done.revision.members) == 3
    assert done.new_patches == ()


def test_what_contradicts_the_stack_is_refused_and_nothing_is_left(theirs: Store, tmp_path: Path) -> None:
    theirs.apply(put_into(theirs, tiny_patch(target_new="Oslo", seed=9)))
    (tmp_path / "b").write_bytes(tiny_bundle())
    with nothing_left(theirs), pytest.raises(ConflictError, match="contradicts"):
        theirs.import_bundle(tmp_path / "b", "main")


def test_an_alias_that_contradicts_the_stack_is_refused_by_its_key(theirs: Store, tmp_path: Path) -> None:
    tower, alias = (
        Patch(one.header, tuple(replace(factors, u=factors.key) for factors in one.factors))
        for one in (tiny_patch(), tiny_patch("La Tour Eiffel", "Oslo"))
    )
    theirs.apply(put_into(theirs, alias))
    (tmp_path / "b").write_bytes(tiny_bundle(tower))
    with nothing_left(theirs), pytest.raises(ConflictError, match="contradicts"):
        theirs.import_bundle(tmp_path / "b", "main")


def test_a_patch_from_the_future_is_taken_for_new(theirs: Store, tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(
        with_manifest(lambda manifest: manifest["patches"][0].update(created_at="9999-01-31T12:00:00.000000+00:00"))
    )
    done = theirs.import_bundle(tmp_path / "b")
    assert max(patch.created_at for patch in theirs.patches()) <= done.revision.created_at


def test_a_bundle_of_another_base_is_refused_for_a_stack(theirs: Store, tmp_path: Path) -> None:
    theirs.apply(put_into(theirs, tiny_patch(base="other")))
    (tmp_path / "b").write_bytes(tiny_bundle())
    with nothing_left(theirs), pytest.raises(BaseMismatchError):
        theirs.import_bundle(tmp_path / "b", "main")


def test_a_bundle_that_knows_other_weights_of_the_base_is_refused(theirs: Store, tmp_path: Path) -> None:
    put_into(theirs, tiny_patch(sites=(replace(tiny_site(1), sha256="0" * 64),)))
    (tmp_path / "b").write_bytes(tiny_bundle())
    with nothing_left(theirs), pytest.raises(BaseMismatchError, match="other weights"):
        theirs.import_bundle(tmp_path / "b")


def test_a_disk_that_fills_up_leaves_nothing(theirs: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b").write_bytes(tiny_bundle())
    put, seen = Blobs.put, []

    def full(self: Blobs, patch: Any) -> Path:
        seen.append(patch)
        if len(seen) == 2:
            raise OutputError("The disk is full.")
        return put(self, patch)

    monkeypatch.setattr(Blobs, "put", full)
    with nothing_left(theirs), pytest.raises(OutputError):
        theirs.import_bundle(tmp_path / "b")


def test_ctrl_c_while_rows_are_written_leaves_nothing(
    theirs: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    (tmp_path / "b").write_bytes(tiny_bundle())
    monkeypatch.setattr(type(theirs.ledger), "push", pressed)
    with nothing_left(theirs), pytest.raises(KeyboardInterrupt):
        theirs.import_bundle(tmp_path / "b")


def test_a_removed_patch_comes_back(theirs: Store, tmp_path: Path) -> None:
    put_into(theirs, tiny_patch())
    theirs.remove(tiny_patch().id)
    (tmp_path / "b").write_bytes(tiny_bundle())
    assert tiny_patch().id in theirs.import_bundle(tmp_path / "b").new_patches
    assert not theirs.check().findings


def test_a_patch_whose_file_was_lost_gets_it_back(theirs: Store, tmp_path: Path) -> None:
    put_into(theirs, tiny_patch())
    theirs.blobs.path(tiny_patch().id).unlink()
    (tmp_path / "b").write_bytes(tiny_bundle())
    theirs.import_bundle(tmp_path / "b")
    assert not theirs.check().findings


def test_what_cannot_be_exported_is_said(ours: Store, theirs: Store, tmp_path: Path) -> None:
    with pytest.raises(ConflictError, match="empty"):
        theirs.export_bundle(tmp_path / "b")
    with pytest.raises(PatchNotFoundError, match="nothing"):
        ours.export_bundle(tmp_path / "b", "nothing")
    (tmp_path / "b").write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists already"):
        ours.export_bundle(tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"mine"


def test_the_parts_of_a_bundle_are_those_of_an_export(ours: Store, tmp_path: Path) -> None:
    report = ours.export_bundle(tmp_path / "b")
    assert report.manifest.to_json().keys() == parts()[0].to_json().keys()


def test_a_stack_that_changes_meanwhile_is_exported_as_it_was(ours: Store, theirs: Store, tmp_path: Path) -> None:
    class Meddler(Reporter):
        def step(self, phase: str, done: int, total: int) -> None:
            if done == 0:
                ours.apply("Big Ben")

    ours.reporter = Meddler()
    report = ours.export_bundle(tmp_path / "b")
    assert ours.stack().revision == report.manifest.revision + 1
    assert len(theirs.import_bundle(tmp_path / "b").new_patches) == 2
