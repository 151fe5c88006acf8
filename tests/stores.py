"""Fixtures of a saved pico model and a store beside it, for the folders of tests that import them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from heard import Heard
from pico import save_pico

from rompatch.workflows.opened import BaseSpec
from rompatch.workflows.store import Store, open_store


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
def store(tmp_path: Path, heard: Heard) -> Iterator[Store]:
    with open_store(tmp_path / ".rompatch", reporter=heard) as opened:
        yield opened
