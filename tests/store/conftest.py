from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from rompatch.store.blobs import Blobs
from rompatch.store.ledger import Ledger
from rompatch.store.location import create_store, ledger_path, patches_path


@pytest.fixture(scope="session")
def new_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a new ledger, for copying: running the migrations for each test would take most of its time."""
    path = tmp_path_factory.mktemp("template") / "ledger.db"
    Ledger.open(path, create=True).close()
    return path


@pytest.fixture
def store(tmp_path: Path, new_ledger: Path) -> Path:
    """The folder of an empty store."""
    store = create_store(tmp_path / ".rompatch")
    shutil.copy(new_ledger, ledger_path(store))
    return store


@pytest.fixture
def ledger(store: Path) -> Iterator[Ledger]:
    with Ledger.open(ledger_path(store)) as ledger:
        yield ledger


@pytest.fixture
def blobs(store: Path) -> Blobs:
    return Blobs(patches_path(store))
