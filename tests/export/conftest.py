"""A saved pico model and a store beside it, as the workflows' tests have them."""

from __future__ import annotations

from pathlib import Path

import pytest
from stores import heard, saved_base, spec, store

__all__ = ["heard", "saved_base", "spec", "store"]


@pytest.fixture(autouse=True)
def _own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROMPATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ROMPATCH_STORE", raising=False)
    monkeypatch.chdir(tmp_path)
