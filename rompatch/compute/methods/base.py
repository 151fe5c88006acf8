"""What every method returns, and what it may tell while it works."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rompatch.patch import Patch

Notify = Callable[[str, int, int], None]
"""``notify(phase, done, total)``: progress for people."""


def silent(_phase: str, _done: int, _total: int) -> None:
    """A :data:`Notify` that says nothing."""


@dataclass(frozen=True)
class Computation:
    """A patch and what was measured while it was made (losses in nats, norms, seconds per phase)."""

    patch: Patch
    measurements: dict[str, Any]


@dataclass
class Stopwatch:
    """Wall seconds by phase."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str, *, share: int = 1) -> Iterator[None]:
        """Time the body under *name*; where *share* edits share it, as the share of one."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round((time.perf_counter() - start) / share, 3)
