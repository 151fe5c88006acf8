"""A reporter that remembers, and options of a quick create."""

from __future__ import annotations

from rompatch.reporting import Reporter


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
