"""A saved pico model, a store beside it, and a cache of its own for every test."""

from __future__ import annotations

from pathlib import Path

import pytest
from stores import heard, saved_base, spec, store
from trained_stores import patches, toy

__all__ = ["heard", "patches", "saved_base", "spec", "store", "toy"]


@pytest.fixture(autouse=True)
def _own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROMPATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ROMPATCH_STORE", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rompatch.compute.contexts.CONTEXT_LENGTHS", ((2, 2),))
    monkeypatch.setattr("rompatch.compute.contexts.sample_contexts.__defaults__", (((2, 2),),))
