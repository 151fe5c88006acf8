from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from stores import empty_store

from rompatch.store.blobs import Blobs
from rompatch.store.ledger import Ledger
from rompatch.store.location import ledger_path, patches_path


@pytest.fixture
def store(tmp_path: Path, new_ledger: Path) -> Path:
    """The folder of an empty store."""
    return empty_store(new_ledger, tmp_path)


@pytest.fixture
def ledger(store: Path) -> Iterator[Ledger]:
    with Ledger.open(ledger_path(store)) as ledger:
        yield ledger


@pytest.fixture
def blobs(store: Path) -> Blobs:
    return Blobs(patches_path(store))
