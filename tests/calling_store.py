"""Patches into an open store, and a way to say that a store did not change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rompatch.patch import Patch
from rompatch.workflows.store import Store


def put_into(store: Store, patch: Patch) -> str:
    """File and row of *patch*, as ``create`` would write them; its id."""
    path = store.blobs.put(patch)
    store.ledger.add_patch(
        patch.header,
        patch_id=patch.id,
        file_size=path.stat().st_size,
        author="tester",
        message="a test",
        measurements={"seconds": {"all": 1.5}},
    )
    return patch.id


@contextmanager
def nothing_left(store: Store) -> Iterator[None]:
    """Ledger and files are afterwards as they were before."""

    def state() -> tuple[object, ...]:
        ledger = store.ledger
        stacks = ledger.stacks()
        return ledger.patches(), stacks, [ledger.revisions(one) for one in stacks], store.blobs.ids()

    before = state()
    yield
    assert state() == before
    assert not store.blobs.temporaries()
