"""What patches at one site have to do with each other: constraints, their Gram matrix, and how well it can be solved.

Pure NumPy, float64: nothing here loads torch. ``G_ij = u_i^T k_j`` with u = C^-1 k, so its cosines are those of the
keys in the metric of C^-1: how alike two keys are where ordinary text says directions matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from rompatch.patch import SiteFactors

Matrix = npt.NDArray[np.float64]

_TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True, eq=False)
class Constraints:
    """Rows that a site's update shall satisfy: keys and directions (m, d_in), residuals (m, d_out), float64."""

    keys: Matrix
    directions: Matrix
    residuals: Matrix

    def gram(self) -> Matrix:
        """G_ij = u_i^T k_j, (m, m). Computed once: for a thousand keys it is most of the work of a solution."""
        return self._gram

    @cached_property
    def _gram(self) -> Matrix:
        return self.directions @ self.keys.T


def constraints_of(factors: SiteFactors) -> Constraints:
    """The constraints that one patch brings, in float64."""
    return Constraints(
        factors.key.astype(np.float64),
        factors.u.astype(np.float64),
        factors.value.astype(np.float64) - factors.base_out.astype(np.float64),
    )


def concatenated(parts: Sequence[Constraints]) -> Constraints:
    """All constraints of a site as one."""
    return Constraints(
        np.concatenate([part.keys for part in parts]),
        np.concatenate([part.directions for part in parts]),
        np.concatenate([part.residuals for part in parts]),
    )


def damped(gram: Matrix, ridge: float) -> Matrix:
    """G + ridge * mean(diag G) * I, the matrix that a stack solves."""
    found: Matrix = gram + ridge * np.diag(gram).mean() * np.eye(len(gram))
    return found


def condition_number(matrix: Matrix) -> float:
    """Greatest over smallest singular value; infinite where *matrix* is singular or not finite."""
    if not np.isfinite(matrix).all():
        return float("inf")
    values = np.linalg.svd(matrix, compute_uv=False)
    return float(values[0] / values[-1]) if values[-1] > 0 else float("inf")


def cosines(gram: Matrix) -> Matrix:
    """The Gram matrix with ones on its diagonal: G_ij / sqrt(G_ii G_jj)."""
    own = np.outer(np.diag(gram), np.diag(gram))
    scaled: Matrix = gram / np.sqrt(np.maximum(own, _TINY))
    return scaled


def key_similarity(left: Constraints, right: Constraints) -> float:
    """Smallest cosine, in the metric of C^-1, between corresponding keys of two patches; 0 where they bring different
    numbers of keys."""
    if len(left.keys) != len(right.keys):
        return 0.0
    across = np.einsum("ij,ij->i", left.directions, right.keys)
    own = np.einsum("ij,ij->i", left.directions, left.keys) * np.einsum("ij,ij->i", right.directions, right.keys)
    return float((across / np.sqrt(np.maximum(own, _TINY))).min())


def similarities(patches: Sequence[Constraints], joined: Constraints | None = None) -> Matrix:
    """:func:`key_similarity` of every pair, (n, n), read off one Gram matrix.

    Args:
        joined: the constraints of all *patches* as one, where they are at hand.
    """
    alike = cosines((joined or concatenated(patches)).gram())
    counts = np.array([len(patch.keys) for patch in patches])
    first = np.cumsum(counts) - counts
    found = np.zeros((len(patches), len(patches)))
    for count in np.unique(counts):
        same = np.flatnonzero(counts == count)
        rows = [alike[np.ix_(first[same] + row, first[same] + row)] for row in range(count)]
        found[np.ix_(same, same)] = np.min(rows, axis=0)
    return found


def most_dependent(patches: Sequence[Constraints], most: int = 5) -> list[int]:
    """Which patches a nearly singular Gram matrix is due to, the most involved first.

    Their rows carry the singular vector of the smallest singular value: keys of which one is nearly a combination of
    the others. Two near-duplicates are the plainest case.
    """
    alike = cosines(concatenated(patches).gram())
    if not np.isfinite(alike).all():
        return []
    weights = np.linalg.svd(alike)[2][-1] ** 2
    owner = np.repeat(np.arange(len(patches)), [len(patch.keys) for patch in patches])
    shares = np.bincount(owner, weights=weights, minlength=len(patches))
    order = np.argsort(-shares, kind="stable")[:most]
    return [int(index) for index in order if shares[index] > 0.05]
