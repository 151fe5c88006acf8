"""A computed patch becomes part of the store: the file first, then the ledger's row."""

from __future__ import annotations

from rompatch.store.records import PatchRecord
from rompatch.workflows.author import author
from rompatch.workflows.computing import Computed
from rompatch.workflows.opened import BaseSpec, OpenStore


def keep(
    store: OpenStore,
    computed: Computed,
    spec: BaseSpec,
    *,
    message: str | None,
    source: str | None = None,
    expires_at: str | None = None,
) -> PatchRecord:
    """Save and record a patch, and how its base was loaded. Writes.

    The file is written first (durably), then the row: a crash in between leaves a file that ``fsck`` names. Both happen
    while no other writer, ``rm`` or ``fsck`` is at work.

    Raises:
        StoreError, OutputError: it could not be saved.
    """
    from rompatch.apply.sketch import sketches_of

    patch = computed.patch
    with store.ledger.transaction():
        path = store.blobs.put(patch)
        store.remember_base(spec)  # not before: a create that fails leaves nothing
        record = store.ledger.add_patch(
            patch.header,
            patch_id=patch.id,
            file_size=path.stat().st_size,
            measurements=computed.measurements,
            author=author(),
            message=message,
            source=source,
            expires_at=expires_at,
            key_sketches=sketches_of(patch),
        )
        store.remember_spec(record.base_id, spec)
    return record
