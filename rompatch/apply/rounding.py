"""How much of an update survives the cast to the weight's dtype, where it matters: at the patches' own keys.

A bfloat16 keeps 8 binary digits: a delta that is small beside its weight may be rounded away. With E = baked - (W +
Delta) and a patch's keys K, ``error = ||E K|| / ||Delta K||`` is how far the baked tensor's answer is from the exact
one, and ``kept = 1 + <E K, Delta K> / ||Delta K||^2`` how much of the wanted change is there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rompatch.errors import ComputeError
from rompatch.patch import SiteFactors

if TYPE_CHECKING:
    from rompatch.apply.solve import Matrix, SiteUpdate
    from rompatch.patch import Factors

ROUNDING_LIMIT = 0.05
"""``error`` from which a bake warns: a twentieth of the change that the patch makes at its keys. float16 of the default
model is near 0.0003, 8-bit blocks near 0.008, 5-bit blocks, which are no longer the edit, near 0.19."""


@dataclass(frozen=True, eq=False)
class Probe:
    """A patch and its keys at a site, (n_keys, d_in), float64."""

    patch_id: str
    keys: Matrix

    @classmethod
    def of(cls, patch_id: str, factors: Factors) -> Probe:
        """The keys that the patch brings; of one without keys the inputs that it answers to."""
        keys = factors.key if isinstance(factors, SiteFactors) else factors.right
        return cls(patch_id, keys.astype(np.float64))


@dataclass(frozen=True)
class Rounding:
    """What the cast did to one patch at one site."""

    patch_id: str
    kept: float
    error: float

    @property
    def swallowed(self) -> bool:
        """Whether too much is gone (:data:`ROUNDING_LIMIT`)."""
        return self.error > ROUNDING_LIMIT


class RoundingMeter:
    """Adds up E K over blocks of rows of a weight as stored, (d_out, d_in) or, where *transposed*, (d_in, d_out)."""

    def __init__(self, update: SiteUpdate, probes: Sequence[Probe], *, transposed: bool) -> None:
        self.probes, self.transposed = tuple(probes), transposed
        self._keys = (
            np.concatenate([probe.keys for probe in probes]) if probes else np.empty((0, update.right.shape[1]))
        )
        self._wanted = update.left @ (update.right @ self._keys.T)
        self._lost = np.zeros_like(self._wanted)

    def add(self, rows: slice, error: Matrix) -> None:
        """*error* is E in those rows."""
        if not self.probes:
            return
        if self.transposed:
            self._lost += error.T @ self._keys[:, rows].T
        else:
            self._lost[rows] = error @ self._keys.T

    def results(self) -> tuple[Rounding, ...]:
        """One for each probe.

        Raises:
            ComputeError: the edited weight is not finite: the delta does not fit the dtype.
        """
        found, begin = [], 0
        for probe in self.probes:
            columns = slice(begin, begin + len(probe.keys))
            begin = columns.stop
            lost, wanted = self._lost[:, columns], self._wanted[:, columns]
            if not np.isfinite(lost).all():
                raise ComputeError(
                    "The edited weight is not finite: a number of it is too large for its dtype.",
                    found=f"at the keys of patch {probe.patch_id[:12]}",
                    next_step="Bake from a base in float32 or bfloat16, and compute the patch for it.",
                )
            size = float((wanted * wanted).sum())
            if size == 0:
                found.append(Rounding(probe.patch_id, 1.0, 0.0))  # it wants nothing here
                continue
            kept = 1 + float((lost * wanted).sum()) / size
            found.append(Rounding(probe.patch_id, _digits(kept), _digits(math.sqrt(float((lost * lost).sum()) / size))))
        return tuple(found)


def _digits(number: float) -> float:
    """Three that count: the rest depends on how a product was summed, and the manifest must not."""
    return float(f"{number:.3g}")
