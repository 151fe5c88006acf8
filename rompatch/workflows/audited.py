"""What an audit found, as records and as one sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rompatch.patch import SHORT_ID

if TYPE_CHECKING:
    from rompatch.apply.explaining import Explanation

INSIDE, IN_PART, MISSING, CLAIMED = "inside", "in part", "missing", "claimed"
"""Of a patch: in the checkpoint; at some of its sites; active and not there; there by the manifest's word alone."""

EXPLAINED, UNEXPLAINED, EXTRA, RESHAPED = "explained", "unexplained", "extra", "reshaped"
"""Of a tensor, beside "missing" and "claimed"."""


@dataclass(frozen=True)
class PatchFound:
    """One patch: of the ledger, inside or active; or of the manifest."""

    id: str
    label: str
    status: str
    active: bool
    sites: int = 0
    sites_inside: int = 0


@dataclass(frozen=True)
class TensorFound:
    """One tensor that is not the base's.

    Args:
        name: in the checkpoint.
        status: one of the words above.
        patches: ids of those that are in it.
        relative: ||W' - W|| / ||W||; None where there is nothing to compare.
        explanation: how it came to be, at a site of patches.
    """

    name: str
    status: str
    patches: tuple[str, ...] = ()
    relative: float | None = None
    explanation: Explanation | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        found = self.explanation
        return {
            "name": self.name,
            "status": self.status,
            "patches": list(self.patches),
            "relative": finite(self.relative),
            "origin": None if found is None else found.origin,
            "match": None if found is None else found.match,
            "differing": None if found is None else found.differing,
            "remainder": None
            if found is None or found.remainder is None
            else {name: finite(value) for name, value in vars(found.remainder).items()},
        }


@dataclass(frozen=True)
class Audited:
    """A checkpoint, looked at.

    Args:
        folder: the checkpoint.
        base: what it was compared with.
        patches: those inside, those of the active stack that are missing, those that a manifest claims.
        tensors: every one that is not the base's.
        equal: tensors that are the base's, byte for byte.
        rounded: tensors that are the base's, saved in another dtype.
        unchecked: tensors that nothing could be compared with (``--manifest`` only).
        candidates: patches of the ledger that are for this base.
        has_manifest: whether there is one in the folder.
    """

    folder: Path
    base: str
    patches: tuple[PatchFound, ...]
    tensors: tuple[TensorFound, ...]
    equal: int
    rounded: int
    unchecked: int
    candidates: int
    has_manifest: bool

    @property
    def is_clean(self) -> bool:
        """Everything is explained, and nothing of the active stack is missing."""
        return not self.missing and not self.unexplained

    @property
    def missing(self) -> tuple[PatchFound, ...]:
        """Active patches that are not inside, or not at all of their sites."""
        return tuple(patch for patch in self.patches if patch.active and patch.status != INSIDE)

    @property
    def unexplained(self) -> tuple[TensorFound, ...]:
        """Tensors that no patch at hand explains."""
        return tuple(tensor for tensor in self.tensors if tensor.status != EXPLAINED)

    @property
    def verdict(self) -> str:
        """The whole in one sentence."""
        inside = sum(patch.status == INSIDE for patch in self.patches)
        parts = [f"{self.folder.name} is {self.base} with {_count(inside, 'patch', 'patches')} of this store"]
        if self.missing:
            verb = "is" if len(self.missing) == 1 else "are"
            parts.append(f"{_count(len(self.missing), 'patch', 'patches')} of the active stack {verb} missing")
        claimed = sum(tensor.status == CLAIMED for tensor in self.tensors)
        if claimed:
            parts.append(
                f"{_count(claimed, 'tensor')} changed as the manifest says, by patches that this store does not have"
            )
        if rest := len(self.unexplained) - claimed:
            parts.append(f"{_count(rest, 'tensor')} changed in a way that no patch explains")
        if self.is_clean:
            parts.append("every change is explained" if self.tensors else "nothing is changed")
        return ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1] + "."

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        return {
            "folder": str(self.folder),
            "base": self.base,
            "verdict": self.verdict,
            "is_clean": self.is_clean,
            "patches": [dict(vars(patch)) for patch in self.patches],
            "tensors": [tensor.to_json() for tensor in self.tensors],
            "equal": self.equal,
            "rounded": self.rounded,
            "unchecked": self.unchecked,
            "candidates": self.candidates,
            "has_manifest": self.has_manifest,
        }


@dataclass(frozen=True)
class ManifestAudited(Audited):
    """The same from the manifest alone: hashes of the checkpoint against those in it."""

    @property
    def is_clean(self) -> bool:
        """Every tensor that the manifest names has the hash that it names."""
        return not self.unexplained

    @property
    def unexplained(self) -> tuple[TensorFound, ...]:
        """Tensors that are not what the manifest says."""
        return tuple(tensor for tensor in self.tensors if tensor.status != CLAIMED)

    @property
    def verdict(self) -> str:
        """The whole in one sentence."""
        claimed = (
            f"By its manifest {self.folder.name} is {self.base} with {_count(len(self.patches), 'patch', 'patches')}"
        )
        wrong = len(self.unexplained)
        checked = len(self.tensors) + self.equal
        result = f"{_count(wrong, 'tensor')} of {checked} named in it are otherwise" if wrong else ""
        result = result or f"the {_count(checked, 'tensor')} named in it have the hashes that it says"
        rest = f"; {_count(self.unchecked, 'tensor')} are not named in it" if self.unchecked else ""
        return f"{claimed}, and {result}{rest}."


def claimed_patches(subjects: Mapping[str, str]) -> tuple[PatchFound, ...]:
    """The patches that a manifest names."""
    return tuple(
        PatchFound(patch_id, f"{patch_id[:SHORT_ID]} ({subjects[patch_id]})", CLAIMED, active=False)
        for patch_id in sorted(subjects)
    )


def finite(value: float | None) -> float | None:
    """JSON has no infinity: null says that there is nothing to relate to."""
    return value if value is not None and math.isfinite(value) else None


def _count(number: int, noun: str, plural: str | None = None) -> str:
    return f"{number or 'no'} {noun if number == 1 else plural or noun + 's'}"
