"""fsck names what is wrong, and mends only what cannot lose anything."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from tiny_patches import record, tiny_patch

from rompatch.store.blobs import Blobs
from rompatch.store.check import Finding, fsck, repair
from rompatch.store.ledger import Ledger
from rompatch.store.location import ledger_path

PATCH = tiny_patch()


@pytest.fixture
def sound(ledger: Ledger, blobs: Blobs) -> Ledger:
    """A ledger with one active patch whose file is in place."""
    path = blobs.put(PATCH)
    base = ledger.add_patch(PATCH.header, patch_id=PATCH.id, file_size=path.stat().st_size).base_id
    ledger.create_stack("main", base)
    ledger.push("main", [PATCH.id])
    return ledger


def execute(store: Path, *statements: str) -> None:
    with closing(sqlite3.connect(ledger_path(store))) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def only(ledger: Ledger, blobs: Blobs, kind: str, *, mended: bool) -> Finding:
    """The one finding, of that kind; after a repair it is gone if *mended*, else still there."""
    findings = fsck(ledger, blobs)
    assert [finding.kind for finding in findings] == [kind]
    assert repair(ledger, blobs, findings) == (findings if mended else [])
    assert fsck(ledger, blobs) == ([] if mended else findings)
    return findings[0]


def test_a_sound_store_has_no_findings(sound: Ledger, blobs: Blobs) -> None:
    assert fsck(sound, blobs) == []


def test_an_orphaned_file_gets_its_row_again(sound: Ledger, blobs: Blobs) -> None:
    orphan = tiny_patch("Big Ben", "Oslo", seed=5)
    blobs.put(orphan)
    assert only(sound, blobs, "orphan", mended=True).patch_id == orphan.id
    assert sound.resolve("Big Ben").header.to_json() == orphan.header.to_json()


def test_a_missing_file_is_named(sound: Ledger, blobs: Blobs) -> None:
    blobs.remove(PATCH.id)
    assert PATCH.short_id in only(sound, blobs, "missing", mended=False).message


def test_a_damaged_file_is_named(sound: Ledger, blobs: Blobs) -> None:
    path = blobs.path(PATCH.id)
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    assert only(sound, blobs, "damaged", mended=False).path == path


def test_a_damaged_file_without_a_row_is_not_registered(sound: Ledger, blobs: Blobs) -> None:
    blobs.path("0" * 64).write_bytes(blobs.path(PATCH.id).read_bytes())
    only(sound, blobs, "damaged", mended=False)


def test_a_temporary_file_is_removed(sound: Ledger, blobs: Blobs) -> None:
    path = blobs.folder / ".x.safetensors.00000000.tmp"
    path.write_bytes(b"half")
    os.utime(path, (0, 0))  # long ago
    only(sound, blobs, "temporary", mended=True)
    assert not path.exists()


def test_the_temporary_file_of_a_writer_at_work_is_let_be(sound: Ledger, blobs: Blobs) -> None:
    path = blobs.folder / ".x.safetensors.00000000.tmp"
    path.write_bytes(b"half")
    assert fsck(sound, blobs) == []
    assert repair(sound, blobs, [Finding("temporary", "found earlier", path=path, repairable=True)]) == []
    assert path.exists()


def test_a_removed_patch_that_came_back_meanwhile_keeps_its_file(sound: Ledger, blobs: Blobs) -> None:
    sound.clear("main")
    sound.remove_patch(PATCH.id)
    stale = fsck(sound, blobs)
    record(sound, PATCH)
    assert repair(sound, blobs, stale) == []
    assert blobs.get(PATCH.id).id == PATCH.id


def test_an_orphan_that_was_recorded_and_removed_meanwhile_does_not_come_back(sound: Ledger, blobs: Blobs) -> None:
    orphan = tiny_patch("Big Ben", "Oslo", seed=5)
    blobs.put(orphan)
    stale = fsck(sound, blobs)
    record(sound, orphan)
    sound.remove_patch(orphan.id)
    assert repair(sound, blobs, stale) == []
    assert orphan.id in sound.tombstones()


def test_an_orphan_whose_file_went_meanwhile_is_left_and_the_others_are_mended(sound: Ledger, blobs: Blobs) -> None:
    gone, stays = tiny_patch("Big Ben", "Oslo", seed=5), tiny_patch("Louvre", "Oslo", seed=6)
    blobs.put(gone)
    blobs.put(stays)
    stale = fsck(sound, blobs)
    blobs.remove(gone.id)
    assert [finding.patch_id for finding in repair(sound, blobs, stale)] == [stays.id]


def test_what_create_measured_is_kept_though_fsck_came_first(sound: Ledger, blobs: Blobs) -> None:
    orphan = tiny_patch("Big Ben", "Oslo", seed=5)
    blobs.put(orphan)
    repair(sound, blobs, fsck(sound, blobs))
    assert sound.patch(orphan.id).message == "re-registered by fsck"
    kept = record(sound, orphan, measurements={"loss": 0.5}, author="me", message="mine")
    assert (kept.measurements, kept.author, kept.message) == ({"loss": 0.5}, "me", "mine")
    assert record(sound, orphan, measurements={"loss": 9}, author="you", message="yours") == kept


def test_a_strangers_file_is_named_and_kept(sound: Ledger, blobs: Blobs) -> None:
    (blobs.folder / "notes.txt").write_text("mine")
    only(sound, blobs, "stranger", mended=False)


def test_the_file_of_a_removed_patch_is_removed(sound: Ledger, blobs: Blobs) -> None:
    sound.clear("main")
    sound.remove_patch(PATCH.id)
    only(sound, blobs, "removed", mended=True)
    assert blobs.ids() == ()


def test_a_header_that_differs_from_the_file_is_named(sound: Ledger, blobs: Blobs, store: Path) -> None:
    execute(store, "UPDATE patches SET header = replace(header, 'Rome', 'Bonn')")
    only(sound, blobs, "header", mended=False)


def test_a_size_that_differs_from_the_file_is_named(sound: Ledger, blobs: Blobs, store: Path) -> None:
    execute(store, "UPDATE patches SET file_size = 1")
    only(sound, blobs, "header", mended=False)


def test_a_damaged_row_is_named(sound: Ledger, blobs: Blobs, store: Path) -> None:
    execute(store, "UPDATE patches SET header = '{'")
    assert PATCH.short_id in only(sound, blobs, "row", mended=False).message


def test_a_member_that_was_removed_is_named(sound: Ledger, blobs: Blobs, store: Path) -> None:
    execute(store, "UPDATE patches SET removed_at = '2026-01-01T00:00:00.000000+00:00'")
    blobs.remove(PATCH.id)
    only(sound, blobs, "member", mended=False)


def test_a_reference_to_nothing_is_named(sound: Ledger, blobs: Blobs, store: Path) -> None:
    execute(store, "INSERT INTO sites VALUES ('nobody', 0, 0, 'w', '1x1', 'x', NULL)")
    assert "row" in only(sound, blobs, "database", mended=False).message
