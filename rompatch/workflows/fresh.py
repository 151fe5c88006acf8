"""Stores that are not there yet: whether one exists, one in memory, and tidying up after a failure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rompatch.errors import RompatchError
from rompatch.reporting import Reporter
from rompatch.store.blobs import Blobs
from rompatch.store.ledger import Ledger
from rompatch.store.location import FOLDER, ledger_path, patches_path
from rompatch.workflows.opened import BASE_SETTING, OpenStore
from rompatch.workflows.store import Store, store_root


def store_exists(path: Path | None, start: Path | None = None) -> bool:
    """Whether ``open_store(path)`` would find a ledger. Reads only."""
    root = store_root(path, start or Path.cwd())
    return root is not None and ledger_path(root).exists()


def scratch_store(reporter: Reporter | None = None) -> Store:
    """An empty store in memory, for plans and for looking at a base: it leaves nothing behind and keeps no patch."""
    nowhere = Path.cwd() / FOLDER
    return Store(nowhere, Ledger.open("sqlite://", create=True), Blobs(patches_path(nowhere)), reporter or Reporter())


@contextmanager
def discarded_unless_used(store: OpenStore, *, new: bool) -> Iterator[None]:
    """Whoever fails in the body takes *store* along if it is *new*, still holds nothing, and nobody else uses it."""
    try:
        yield
    except BaseException:
        if new:
            _discard(store)
        raise


def _discard(store: OpenStore) -> None:
    """Another program may have found the new store meanwhile and be at work in it, so the ledger goes only while
    nobody else has it open."""
    if _is_used(store):
        return
    if not store.ledger.discard(lambda: not _is_used(store)):
        store.reporter.note(f"the new store {store.root} stays: another program uses it, or it cannot be deleted")
        return
    for folder in (patches_path(store.root), store.root):
        with suppress(OSError):  # not empty: somebody else's files are in it
            folder.rmdir()
    store.reporter.note(f"nothing was made, so the new store {store.root} is gone again")


def _is_used(store: OpenStore) -> bool:
    """Whether it holds anything: a patch (also a removed one), a chosen base, a benchmark run, a file. One that cannot
    be read does."""
    try:
        rows = store.ledger.history(limit=1) or store.ledger.bench_runs(limit=1)
        known = rows or store.ledger.setting(BASE_SETTING) is not None
        files = patches_path(store.root)
        return bool(known) or (files.exists() and any(files.iterdir()))
    except (RompatchError, OSError):
        return True
