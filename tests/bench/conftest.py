"""A saved pico model, a store of its own and files of records for every test."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_records import counterfact, write
from stores import heard, saved_base, spec, store

__all__ = ["heard", "saved_base", "spec", "store"]


@pytest.fixture(autouse=True)
def _own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROMPATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ROMPATCH_STORE", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rompatch.compute.contexts.sample_contexts.__defaults__", (((2, 2),),))


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Six good COUNTERFACT records."""
    return write(tmp_path / "records.json", [counterfact(number) for number in range(6)])
