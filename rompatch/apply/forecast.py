"""What a stack will do, told from the patch files alone: no model, no torch, no weight.

**Interference.** If updates were summed, patch j would move the value of key i by ``(u_j^T k_i) / (u_j^T k_j) r_j``.
``ratio[i, j]`` is that factor, ``harm[i, j]`` its length measured in residuals of i: ``|ratio| ||r_j|| / ||r_i||``. 1
means that j alone would move key i as far as i itself is to be moved. The joint solution takes all of that into
account; it is what crowded keys cost it: damage elsewhere, and through the ridge a residual.

**Residual.** What the solved update leaves of constraint i: ``||r_i - Delta_S k_i|| / ||r_i||``.

**Size.** ``||Delta_S||_F`` by the trace: ``tr((L^T L)(R R^T))`` for Delta_S = L R, never formed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rompatch.apply.gram import (
    Constraints,
    Matrix,
    concatenated,
    condition_number,
    constraints_of,
    damped,
    similarities,
)
from rompatch.apply.solve import JOINT_RIDGE, SAME_KEY, SiteUpdate, merge_same_keys, solve_site
from rompatch.patch import Factors, LowRankFactors, SiteFactors

NOTABLE = 0.3
"""Harm from which a pair of patches is named."""

_SMALL = 1e-100
"""Stands for 0 in denominators: quotients stay finite."""


@dataclass(frozen=True)
class Pair:
    """Patch *source* disturbs patch *target* (positions in the stack): the raw ratio and the harm."""

    source: int
    target: int
    ratio: float
    harm: float


@dataclass(frozen=True, eq=False)
class SiteForecast:
    """The forecast of one site; positions run over the patches in the order given.

    Args:
        ratio, harm: (n, n), of each patch's mean key (row i disturbed by column j); diagonals 1 and 1. A patch without
            keys (an adapter) has no ratio (NaN) but a harm, and nothing that could be harmed.
        residuals: per patch, what the joint solution leaves of its worst constraint, relative; 0 is met exactly, NaN
            is a patch without constraints.
        condition: condition number of the matrix that is solved, the ridge in it; 1 for a patch alone, whose
            own keys cannot contradict each other.
        delta_norm: ||Delta_S||_F.
        relative_norm: the same over ||W||_F; None where that is not known.
        rank: of the update.
        shared: pairs of patches that share one key, the earlier one first.
    """

    ratio: Matrix
    harm: Matrix
    residuals: Matrix
    condition: float
    delta_norm: float
    relative_norm: float | None
    rank: int
    shared: tuple[tuple[int, int], ...]

    def pairs(self, threshold: float = NOTABLE) -> tuple[Pair, ...]:
        """Pairs whose harm is above *threshold*, the worst first."""
        harm = self.harm - np.diag(np.diag(self.harm))
        targets, sources = np.nonzero(harm > threshold)
        order = np.argsort(-harm[targets, sources], kind="stable")
        return tuple(self._pair(int(targets[index]), int(sources[index])) for index in order)

    @property
    def worst(self) -> float:
        """The greatest harm of any pair; 0 for a patch alone."""
        harm = self.harm - np.diag(np.diag(self.harm))
        return float(harm.max(initial=0.0))

    def disturbed_by(self, sources: Sequence[int]) -> Matrix:
        """Per patch the harm that *sources* together may do to it (their sum, its own left out)."""
        harm = self.harm - np.diag(np.diag(self.harm))
        summed: Matrix = harm[:, list(sources)].sum(axis=1)
        return summed

    def _pair(self, target: int, source: int) -> Pair:
        return Pair(source, target, float(self.ratio[target, source]), float(self.harm[target, source]))


def forecast_site(
    stack: Sequence[Factors], *, weight_norm: float | None = None, ridge: float = JOINT_RIDGE
) -> SiteForecast:
    """What the patches *stack* (in canonical order) will do at one site.

    Args:
        weight_norm: ||W||_F of the base's weight, where it is known.
        ridge: lambda of the joint solution.

    Raises:
        ComputeError: the stack cannot be solved.
    """
    keyed = [index for index, factors in enumerate(stack) if isinstance(factors, SiteFactors)]
    parts = [constraints_of(factors) for factors in stack if isinstance(factors, SiteFactors)]
    update = solve_site(stack, ridge)
    norm = update_norm(update)
    ratio, harm = np.eye(len(stack)), np.eye(len(stack))
    residuals, condition = np.full(len(stack), np.nan), 1.0
    shared: tuple[tuple[int, int], ...] = ()
    if parts:
        joined = concatenated(parts)
        first = np.cumsum([0, *(len(part.keys) for part in parts)])[:-1]
        grid = np.ix_(keyed, keyed)
        ratio[grid], harm[grid] = _interference(joined.gram()[np.ix_(first, first)], joined.residuals[first])
        for index, factors in enumerate(stack):
            if isinstance(factors, LowRankFactors):
                ratio[keyed, index], harm[keyed, index] = np.nan, _harm_of(factors, joined, first)
        residuals[keyed] = _residuals(parts, joined, update)
        shared = tuple((keyed[one], keyed[other]) for one, other in _shared(parts, joined))
        if len(parts) > 1:
            condition = condition_number(damped(_merged(parts, joined, shared).gram(), ridge))
    return SiteForecast(
        ratio=ratio,
        harm=harm,
        residuals=residuals,
        condition=condition,
        delta_norm=norm,
        relative_norm=None if not weight_norm else norm / weight_norm,
        rank=update.rank,
        shared=shared,
    )


def _merged(parts: Sequence[Constraints], joined: Constraints, shared: Sequence[object]) -> Constraints:
    return merge_same_keys(parts) if shared else joined


def _harm_of(adapter: LowRankFactors, joined: Constraints, first: npt.NDArray[np.intp]) -> Matrix:
    """||L R k_i|| / ||r_i|| for the mean key of each patch: what a patch without keys does to those with."""
    moved = joined.keys[first] @ adapter.right.astype(np.float64).T @ adapter.left.astype(np.float64).T
    lengths = np.maximum(np.linalg.norm(joined.residuals[first], axis=1), _SMALL)
    harm: Matrix = np.linalg.norm(moved, axis=1) / lengths
    return harm


def update_norm(update: SiteUpdate) -> float:
    """||L R||_F without forming it: (d_out, m), (m, d_in)."""
    square = np.sum((update.left.T @ update.left) * (update.right @ update.right.T))
    return float(np.sqrt(max(square, 0.0)))


def _interference(gram: Matrix, residuals: Matrix) -> tuple[Matrix, Matrix]:
    """ratio_ij = (u_j^T k_i) / (u_j^T k_j), and harm_ij = |ratio_ij| ||r_j|| / ||r_i||."""
    # gram_ji = u_j^T k_i. A direction that its own key does not excite would move everything: huge, not NaN.
    own = np.diag(gram)
    ratio = gram.T / np.where(np.abs(own) < _SMALL, _SMALL, own)
    lengths = np.linalg.norm(residuals, axis=1)
    harm = np.abs(ratio) * lengths / np.maximum(lengths, _SMALL)[:, None]
    return ratio, harm


def _residuals(parts: Sequence[Constraints], joined: Constraints, update: SiteUpdate) -> Matrix:
    """Per patch the greatest ||r_i - Delta k_i|| / ||r_i|| over its keys.

    A patch of format 1 alone is exact at one of its keys only (docs/concepts.md, "Mixed keys"): the least residual is
    told of a patch alone.
    """
    left = joined.residuals - (joined.keys @ update.right.T) @ update.left.T
    relative = np.linalg.norm(left, axis=1) / np.maximum(np.linalg.norm(joined.residuals, axis=1), _SMALL)
    blocks = np.split(relative, np.cumsum([len(part.keys) for part in parts])[:-1])
    return np.array([min(block) if len(parts) == 1 else max(block) for block in blocks])


def _shared(parts: Sequence[Constraints], joined: Constraints) -> tuple[tuple[int, int], ...]:
    pairs = np.argwhere(np.triu(similarities(parts, joined) > SAME_KEY, 1))
    return tuple((int(one), int(other)) for one, other in pairs)
