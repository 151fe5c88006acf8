"""fsck: is the store whole, and mend what can be mended without loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rompatch.store.check import Finding, fsck, repair
from rompatch.workflows.opened import OpenStore


@dataclass(frozen=True)
class Checked:
    """What was found and what was repaired; ``damaged`` where something is left that needs a person."""

    findings: tuple[Finding, ...]
    repaired: tuple[Finding, ...]
    n_patches: int

    @property
    def damaged(self) -> bool:
        """Whether anything is left that is not just a stranger's file."""
        return any(finding not in self.repaired and finding.kind != "stranger" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        return {
            "whole": not self.damaged,
            "findings": [
                {
                    "kind": finding.kind,
                    "message": finding.message,
                    "patch_id": finding.patch_id,
                    "path": None if finding.path is None else str(finding.path),
                    "repairable": finding.repairable,
                    "repaired": finding in self.repaired,
                }
                for finding in self.findings
            ],
            "n_patches": self.n_patches,
        }


def check(store: OpenStore, *, mend: bool = False) -> Checked:
    """Look at everything; with *mend* repair what loses nothing. Writes only then."""
    findings = tuple(fsck(store.ledger, store.blobs))
    repaired = tuple(repair(store.ledger, store.blobs, findings)) if mend else ()
    return Checked(findings, repaired, len(store.blobs.ids()))
