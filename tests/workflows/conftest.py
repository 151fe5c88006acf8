"""A saved pico model, a store beside it, and a cache of its own for every test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pico import save_pico

from rompatch.reporting import Reporter
from rompatch.workflows.opened import BaseSpec
from rompatch.workflows.store import Store, open_store


class Heard(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps: list[tuple[str, int, int]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def step(self, phase: str, done: int, total: int) -> None:
        self.steps.append((phase, done, total))


FAST = {"statistics": "none", "layer": 1, "hparams": {"steps": 3}, "true": "Paris"}
"""Options of a create that takes a moment."""


@pytest.fixture(autouse=True)
def _own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROMPATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ROMPATCH_STORE", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rompatch.compute.contexts.CONTEXT_LENGTHS", ((2, 2),))
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


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Pico models are quickest on one thread, and a busy machine hardly slows them there."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
