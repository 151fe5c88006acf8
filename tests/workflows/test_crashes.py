"""Writers killed at every instant, bundles and all that changes a stack: whole or not at all, and the next goes on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from bundles import tiny_bundle
from calling_store import put_into
from crashing import deaths
from stores import empty_store
from tiny_patches import tiny_patch

from rompatch.store.check import fsck, repair
from rompatch.workflows.store import Store, open_store

AFTERWARDS = {"orphan", "temporary"}
"""What a killed writer may leave: files that nothing refers to yet."""


def state(store: Store) -> object:
    ledger = store.ledger
    stacks = ledger.stacks()
    revisions = [(one.stack, one.number, one.members) for stack in stacks for one in ledger.revisions(stack)]
    tags = [(tag.stack, tag.name, tag.revision) for stack in stacks for tag in ledger.tags(stack)]
    return revisions, ledger.active_stack(), tags


def check(store: Store) -> None:
    """The store is sound but for files that nothing refers to."""
    assert {finding.kind for finding in fsck(store.ledger, store.blobs)} <= AFTERWARDS


def aged(folder: Path) -> None:
    """Every hidden file in *folder*, as if an hour had passed."""
    for path in folder.iterdir():
        if path.name.startswith("."):
            os.utime(path, (0, 0))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_bundle_import_killed_at_any_instant_is_whole_or_nothing(new_ledger: Path, tmp_path: Path) -> None:
    root = empty_store(new_ledger, tmp_path)
    (tmp_path / "b").write_bytes(tiny_bundle())

    def bring() -> None:
        with open_store(root) as store:
            store.import_bundle(tmp_path / "b")

    n_deaths = 0
    for n_deaths in deaths(bring, tmp_path):  # noqa: B007
        with open_store(root) as store:
            assert [len(store.active()), len(store.patches()), len(store.ledger.verifications())] in (
                [0] * 3,
                [2, 2, 1],
            )
            check(store)
    assert n_deaths > 8
    aged(root / "patches")
    with open_store(root) as store:
        repair(store.ledger, store.blobs, fsck(store.ledger, store.blobs))
        assert fsck(store.ledger, store.blobs) == []
        assert len(store.active()) == 2
        assert store.import_bundle(tmp_path / "b").revision is None


def test_a_bundle_export_killed_at_any_instant_leaves_no_half_bundle(new_ledger: Path, tmp_path: Path) -> None:
    root, out = empty_store(new_ledger, tmp_path), tmp_path / "out"
    out.mkdir()
    with open_store(root) as store:
        store.apply(put_into(store, tiny_patch()), put_into(store, tiny_patch("Big Ben", seed=7)))
        store.export_bundle(tmp_path / "whole")

    def send() -> None:
        with open_store(root) as store:
            store.export_bundle(out / "b")

    for _ in deaths(send, out):
        assert [name for name in names(out) if not name.startswith(".")] == []
    assert (out / "b").read_bytes() == (tmp_path / "whole").read_bytes()
    assert len(names(out)) > 1, "a kill leaves its temporary file"
    aged(out)
    (out / "b").unlink()
    send()
    assert names(out) == ["b"], "the next export to the same place removes it"


OSLO = tiny_patch(target_new="Oslo", seed=9)

CHANGES: dict[str, Callable[[Store], object]] = {
    "apply": lambda store: store.apply("Louvre"),
    "supersede": lambda store: store.apply(OSLO.id, supersede=True, source="a book"),
    "revert": lambda store: store.revert(),
    "checkout": lambda store: store.checkout("r1"),
    "merge": lambda store: store.merge("trial", prefer="theirs"),
    "new": lambda store: store.new_stack("fresh", start="r2", use=True),
    "use": lambda store: store.use_stack("trial"),
    "rm": lambda store: store.remove_stack("main", force=True),
    "tag": lambda store: store.tag("v1", "r1"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_a_stack_killed_at_any_instant_happened_or_did_not(
    name: str, new_ledger: Path, tmp_path: Path
) -> None:
    """Main: r1 the tower in Rome, r2 and Big Ben; trial: the tower in Oslo."""
    root, change = empty_store(new_ledger, tmp_path), CHANGES[name]
    with open_store(root) as store:
        put_into(store, tiny_patch("Louvre", seed=5))
        store.apply(put_into(store, tiny_patch()))
        store.apply(put_into(store, tiny_patch("Big Ben", seed=7)))
        store.new_stack("trial", use=True)
        store.apply(put_into(store, OSLO))
        store.use_stack("main")
        before = state(store)

    def act() -> None:
        with open_store(root) as store:
            change(store)

    shutil.copytree(root, tmp_path / "like")
    with open_store(tmp_path / "like") as store:
        change(store)
        after = state(store)
    assert after != before
    for _ in deaths(act, root):
        with open_store(root) as store:
            check(store)
            if state(store) != before:  # it died when all was done
                break
    with open_store(root) as store:
        assert state(store) == after
        assert fsck(store.ledger, store.blobs) == []
