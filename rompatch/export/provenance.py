"""What an export says about itself: which patches are in it, on which base, so that it can be checked later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rompatch.export.lowrank import SiteDelta
from rompatch.patch import BaseRef, canonical_json

RECORD_KEY = "rompatch_export"
RECORD_VERSION = 1


@dataclass(frozen=True)
class WrittenSite:
    """One weight of an export.

    Args:
        parameter: its name in the model.
        stored_as: the module's or tensor's name in the export.
        columns: of the update as it was solved.
        rank: of what was written.
        relative_error: ||Delta - written||_F / ||Delta||_F.
    """

    parameter: str
    stored_as: str
    columns: int
    rank: int
    relative_error: float


@dataclass(frozen=True)
class ExportReport:
    """What was written: where, in which form and dtype, how many bytes, and each weight."""

    kind: str
    path: Path
    size: int
    dtype: str
    sites: tuple[WrittenSite, ...]


@dataclass(frozen=True)
class Origin:
    """Where an export comes from: the base by content and the ids of its patches, sorted."""

    base: BaseRef
    patch_ids: tuple[str, ...]

    def record(self, kind: str, deltas: Sequence[SiteDelta]) -> dict[str, Any]:
        """What the export carries: a JSON object, equal for equal exports (no time, no path)."""
        return {
            RECORD_KEY: RECORD_VERSION,
            "kind": kind,
            "base": dict(vars(self.base)),
            "patches": list(self.patch_ids),
            "sites": [dict(vars(delta.ref)) for delta in deltas],
        }

    def spelled(self, kind: str, deltas: Sequence[SiteDelta]) -> str:
        """The same as one line of canonical JSON."""
        return canonical_json(self.record(kind, deltas))
