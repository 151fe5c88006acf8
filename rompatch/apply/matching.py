"""Which patches make up a change of one weight? Pure: the change's projections in, a set of patches out.

With D = W' - W, every possible Delta_S = left @ right has its rows in the span of the patches' directions u. So D is
read once, some rows at a time, and kept as D Q, for an orthonormal basis Q of that span, and ||D||; after that the
residual ||D - Delta_S|| of any set costs a small solve and no pass over the weight. A first guess comes from the
constraints: a patch is inside where D k_i points along its r_i and is about as long. Putting patches in, taking them
out and swapping two, one at a time, as long as the residual falls, does the rest: a patch that is in lowers it by its
whole delta, one that is not raises it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rompatch.apply.solve import Matrix, SiteUpdate, constraints_of, solve_site
from rompatch.errors import ComputeError
from rompatch.patch import Factors, SiteFactors

_GUESS = 0.5
"""Share of its r that D must show at a patch's keys for a first guess that it is inside."""

_MOST_SWAPS = 64
"""Members and outsiders, the likeliest of each, that are tried against each other."""


@dataclass(frozen=True, eq=False)
class Directions:
    """What the candidates at a site need D multiplied by.

    Args:
        candidates: in canonical order.
        basis: Q, (d_in, t), orthonormal columns that span all their directions.
        keys: all their keys, (n, d_in).
        wanted: for each candidate what D shall give at its keys, (d_out, n_keys).
    """

    candidates: tuple[Factors, ...]
    basis: Matrix
    keys: Matrix
    wanted: tuple[Matrix, ...]

    @classmethod
    def of(cls, candidates: Iterable[Factors]) -> Directions:
        """For these candidates; there must be one."""
        known = tuple(candidates)
        directions, keys, wanted = zip(*map(_probed, known), strict=True)
        basis, _ = np.linalg.qr(np.concatenate(directions).T)
        return cls(known, basis, np.concatenate(keys), tuple(wanted))


def _probed(factors: Factors) -> tuple[Matrix, Matrix, Matrix]:
    """Directions, keys, and what is wanted there. A patch without keys is probed where it answers most."""
    if isinstance(factors, SiteFactors):
        constraints = constraints_of(factors)
        return constraints.directions, constraints.keys, constraints.residuals.T
    left, right = factors.left.astype(np.float64), factors.right.astype(np.float64)
    return right, right, left @ (right @ right.T)


class Evidence:
    """What is known of D = W' - W at a site: added up block by block, then asked about sets of candidates.

    A set is a tuple of indices into ``directions.candidates``, ascending.
    """

    def __init__(self, directions: Directions, d_out: int, *, transposed: bool) -> None:
        self.directions, self.transposed = directions, transposed
        self._factors = np.concatenate([directions.basis, directions.keys.T], axis=1)
        self._projected = np.zeros((d_out, self._factors.shape[1]))
        self._squares = self._base_squares = 0.0
        self._residuals: dict[tuple[int, ...], float] = {}

    def add(self, rows: slice, base: Matrix, found: Matrix) -> None:
        """W and W' in those rows, as stored."""
        change = found - base
        self._base_squares += float((base * base).sum())
        self._squares += float((change * change).sum())
        if self.transposed:
            self._projected += change.T @ self._factors[rows]
        else:
            self._projected[rows] = change @ self._factors

    @property
    def norm(self) -> float:
        """||D||, Frobenius."""
        return math.sqrt(self._squares)

    @property
    def size(self) -> float:
        """||W||, Frobenius."""
        return math.sqrt(self._base_squares)

    def update(self, members: Sequence[int]) -> SiteUpdate | None:
        """Delta_S; None of nobody."""
        stack = [self.directions.candidates[index] for index in members]
        return solve_site(stack) if stack else None

    def residual(self, members: Sequence[int]) -> float:
        """||D - Delta_S|| / ||D||; infinite for a set that cannot be solved."""
        chosen = tuple(sorted(members))
        if chosen not in self._residuals:
            self._residuals[chosen] = self._residual(chosen)
        return self._residuals[chosen]

    def shares(self) -> list[float]:
        """For each candidate, how much of its r is in D at its keys: <D K, R> / ||R||^2."""
        responses = self._projected[:, self.directions.basis.shape[1] :]
        found, begin = [], 0
        for wanted in self.directions.wanted:
            seen = responses[:, begin : begin + wanted.shape[1]]
            begin += wanted.shape[1]
            size = float((wanted * wanted).sum())
            found.append(float((seen * wanted).sum()) / size if size else 0.0)
        return found

    def _residual(self, members: tuple[int, ...]) -> float:
        rank = self.directions.basis.shape[1]
        inside = self._projected[:, :rank]
        outside = max(self._squares - float((inside * inside).sum()), 0.0)
        try:
            update = self.update(members)
        except ComputeError:
            return math.inf
        left = inside if update is None else inside - update.left @ (update.right @ self.directions.basis)
        total = outside + float((left * left).sum())
        return math.sqrt(total / self._squares) if self._squares else (0.0 if total == 0 else math.inf)


def likeliest(evidence: Evidence) -> tuple[int, ...]:
    """The set that explains D best, as far as single steps from the first guess lead."""
    shares = evidence.shares()
    members = {index for index, share in enumerate(shares) if share > _GUESS}
    best = evidence.residual(tuple(members))
    if evidence.residual(()) <= best:
        members, best = set(), evidence.residual(())
    near = sorted(range(len(shares)), key=lambda index: -shares[index])[: len(members) + _MOST_SWAPS]
    while True:
        steps = [members ^ {index} for index in sorted(members.union(near))]
        step = min(steps, key=lambda one: evidence.residual(tuple(one)))
        if evidence.residual(tuple(step)) >= best:  # two patches on one subject hide behind each other
            steps = _swaps(members, shares)
            step = min(steps, key=lambda one: evidence.residual(tuple(one)), default=members)
        if evidence.residual(tuple(step)) >= best:
            return tuple(sorted(members))
        members, best = step, evidence.residual(tuple(step))


def _swaps(members: set[int], shares: Sequence[float]) -> list[set[int]]:
    outsiders = sorted(set(range(len(shares))) - members, key=lambda index: -shares[index])[:_MOST_SWAPS]
    doubtful = sorted(members, key=lambda index: shares[index])[:_MOST_SWAPS]
    return [members ^ {one, other} for one in doubtful for other in outsiders]
