"""A saved pico model, a store of its own and files of records for every test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from bench_records import counterfact, write
from heard import Heard
from pico import save_pico

from rompatch.workflows.opened import BaseSpec
from rompatch.workflows.store import Store, open_store


@pytest.fixture(autouse=True)
def _own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROMPATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ROMPATCH_STORE", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rompatch.compute.contexts.sample_contexts.__defaults__", (((2, 2),),))


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


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Six good COUNTERFACT records."""
    return write(tmp_path / "records.json", [counterfact(number) for number in range(6)])
