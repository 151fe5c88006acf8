"""Empty stores, and fixtures of one beside a saved pico model, for the folders of tests that import them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from heard import Heard
from pico import save_pico

from rompatch.store.location import FOLDER, create_store, ledger_path
from rompatch.workflows.opened import BaseSpec
from rompatch.workflows.store import Store, open_store


def empty_store(new_ledger: Path, place: Path) -> Path:
    """The folder of an empty store in *place*, its ledger a copy of *new_ledger* (the fixture)."""
    root = create_store(place / FOLDER)
    shutil.copy(new_ledger, ledger_path(root))
    return root


@pytest.fixture(scope="session")
def saved_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pico llama as a checkpoint folder, never written to."""
    return save_pico(tmp_path_factory.mktemp("pico") / "pico-llama")


@pytest.fixture
def spec(saved_base: Path) -> BaseSpec:
    return BaseSpec(str(saved_base))


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def store(tmp_path: Path, heard: Heard, new_ledger: Path) -> Iterator[Store]:
    with open_store(empty_store(new_ledger, tmp_path), reporter=heard) as opened:
        yield opened
