"""How long work tells a person what it does. The command line draws it; Python callers may pass their own."""

from __future__ import annotations


class Reporter:
    """Says nothing. Override what you want to hear."""

    def note(self, text: str) -> None:
        """A sentence worth reading: what was chosen, created, or skipped."""

    def step(self, phase: str, done: int, total: int) -> None:
        """*done* of *total* in *phase*; *total* may be 0 where it is not known."""

    def overall(self, phase: str, done: int, total: int) -> None:
        """*done* of *total* of the whole job, whose parts :meth:`step` tells of."""
