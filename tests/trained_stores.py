"""Fixtures of a store on the trained tiny model with three patches in it, for the folders of tests that import them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from heard import Heard
from stores import empty_store
from trained import CITIES, SUBJECTS, TEMPLATE, facts, trained_base

from rompatch.compute.methods.rome import compute
from rompatch.compute.methods.rome_hparams import RomeHparams
from rompatch.edits import EditRequest
from rompatch.patch import Patch
from rompatch.workflows.opened import BaseSpec
from rompatch.workflows.store import Store, open_store

SPEC = BaseSpec("trained pico")


def other_city(subject: str) -> str:
    return CITIES[(CITIES.index(facts()[subject]) + 2) % len(CITIES)]


@pytest.fixture(scope="session")
def patches() -> list[Patch]:
    """Three facts changed, each patch computed alone."""
    base = trained_base()
    made = []
    for subject in SUBJECTS[:3]:
        request = EditRequest(subject, TEMPLATE, other_city(subject), facts()[subject])
        made.append(
            compute(
                base,
                request,
                site=base.site(0),
                contexts=("{}",),
                statistics=None,
                hparams=RomeHparams(steps=15),
                seed=0,
                document_start=True,
            ).patch
        )
    return made


@pytest.fixture
def toy(tmp_path: Path, heard: Heard, patches: list[Patch], new_ledger: Path) -> Iterator[Store]:
    """A store whose base is the trained model, with the three patches in it, none active."""
    with open_store(empty_store(new_ledger, tmp_path / "toy"), reporter=heard) as store:
        fill(store, patches)
        yield store


def fill(store: Store, patches: list[Patch]) -> None:
    store._loaded[SPEC, "cpu"] = trained_base()
    store.ledger.set_setting("base", vars(SPEC))
    for patch in patches:
        path = store.blobs.put(patch)
        store.ledger.add_patch(patch.header, patch_id=patch.id, file_size=path.stat().st_size)
