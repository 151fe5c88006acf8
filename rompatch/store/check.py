"""``rompatch fsck``: do ledger and patch files agree, and is each of them whole?"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rompatch.errors import PatchFileError, StoreError
from rompatch.folders import YOUNG
from rompatch.patch import SHORT_ID, canonical_json
from rompatch.store.blobs import Blobs
from rompatch.store.ledger import Ledger
from rompatch.store.patches import REREGISTERED
from rompatch.store.records import PatchRecord


@dataclass(frozen=True)
class Finding:
    """One thing wrong with a store.

    ``kind``: "database" (SQLite's own checks), "row" (a damaged ledger row), "missing" (no file), "damaged" (file not
    what its name says), "header" (file and ledger differ), "member" (a removed patch in a current revision), "orphan"
    (a whole file without a row), "removed" (the file of a removed patch), "temporary" (old enough that no writer is
    still at it), "stranger". ``repairable``: :func:`repair` can mend it without losing anything.
    """

    kind: str
    message: str
    patch_id: str | None = None
    path: Path | None = None
    repairable: bool = False


def fsck(ledger: Ledger, blobs: Blobs) -> list[Finding]:
    """Everything wrong with the store, worst first. Reads only; every patch file is read whole."""
    database = [Finding("database", f"The database reports: {text}.") for text in ledger.integrity_problems()]
    try:
        records = {record.id: record for record in ledger.patches()}
        removed = ledger.tombstones()
    except StoreError as error:
        return [*database, Finding("row", str(error))]
    present = set(blobs.ids())
    return [
        *database,
        *_members(ledger, records),
        *_missing(blobs, records.values(), present),
        *_contents(blobs, records, present - removed),
        *_leftovers(blobs, present & removed),
    ]


def repair(ledger: Ledger, blobs: Blobs, findings: Iterable[Finding]) -> list[Finding]:
    """Mend what can be mended without loss and return what was. Writes.

    Temporary files and files of removed patches are deleted; whole files without a row get one again. Other programs
    may have written since *findings* were made: each is looked at again while nobody else can write to the ledger.
    """
    mended = []
    for finding in findings:
        if finding.repairable:
            with ledger.transaction():
                if _mend(ledger, blobs, finding):
                    mended.append(finding)
    return mended


def _mend(ledger: Ledger, blobs: Blobs, finding: Finding) -> bool:
    """Whether *finding* still held and is mended."""
    if finding.kind == "orphan" and finding.patch_id is not None:
        return _register(ledger, blobs, finding.patch_id)
    if finding.kind == "removed" and finding.patch_id in ledger.tombstones():
        blobs.remove(finding.patch_id)
        return True
    if finding.kind == "temporary" and finding.path is not None and _is_abandoned(finding.path):
        finding.path.unlink(missing_ok=True)
        return True
    return False


def _register(ledger: Ledger, blobs: Blobs, patch_id: str) -> bool:
    if patch_id in ledger.tombstones():  # registered and removed meanwhile: its file is about to go
        return False
    try:
        patch = blobs.get(patch_id)
    except (PatchFileError, StoreError):
        return False
    size = blobs.path(patch_id).stat().st_size
    ledger.add_patch(patch.header, patch_id=patch_id, file_size=size, message=REREGISTERED)
    return True


def _is_abandoned(temporary: Path) -> bool:
    """Whether it is too old for a writer that is still at work."""
    with suppress(FileNotFoundError):
        return time.time() - temporary.lstat().st_mtime >= YOUNG
    return False


def _members(ledger: Ledger, records: dict[str, PatchRecord]) -> Iterator[Finding]:
    for stack in ledger.stacks():
        for patch in ledger.members(stack):
            if patch.id not in records:
                text = f"Stack {stack.name!r} has the member {patch.label}, which was removed."
                yield Finding("member", text, patch.id)


def _missing(blobs: Blobs, records: Iterable[PatchRecord], present: set[str]) -> Iterator[Finding]:
    for record in records:
        if record.id not in present:
            text = f"The file of patch {record.label} is missing: restore it from a backup, or remove the patch."
            yield Finding("missing", text, record.id, blobs.path(record.id))


def _contents(blobs: Blobs, records: dict[str, PatchRecord], ids: Iterable[str]) -> Iterator[Finding]:
    for patch_id in sorted(ids):
        path, record = blobs.path(patch_id), records.get(patch_id)
        try:
            patch = blobs.get(patch_id)
        except (PatchFileError, StoreError) as error:
            yield Finding("damaged", str(error), patch_id, path)
            continue
        if record is None:
            text = f"The ledger does not know the patch file {patch_id[:SHORT_ID]} ({patch.header.subject})."
            yield Finding("orphan", text, patch_id, path, repairable=True)
        elif canonical_json(record.header.to_json()) != canonical_json(patch.header.to_json()):
            text = f"The ledger's header of patch {record.short_id} differs from its file's, which its id proves right."
            yield Finding("header", text, patch_id, path)
        elif record.file_size != path.stat().st_size:
            text = f"The ledger says that the file of patch {record.short_id} has {record.file_size} bytes."
            yield Finding("header", text, patch_id, path)


def _leftovers(blobs: Blobs, removed: Iterable[str]) -> Iterator[Finding]:
    for patch_id in sorted(removed):
        text = f"Patch {patch_id[:SHORT_ID]} was removed, but its file is still there."
        yield Finding("removed", text, patch_id, blobs.path(patch_id), repairable=True)
    for path in filter(_is_abandoned, blobs.temporaries()):
        text = f"{path.name} is a temporary file that an interrupted write left behind."
        yield Finding("temporary", text, path=path, repairable=True)
    for path in blobs.strangers():
        yield Finding("stranger", f"{path.name} is no patch file; rompatch does not touch it.", path=path)
