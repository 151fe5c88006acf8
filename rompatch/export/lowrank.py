"""A stack's update as two small matrices that survive rounding: Delta = B A, few columns, none much longer than others.

The solve gives Delta as ``left @ right`` in float64, with columns that may be nearly parallel and cancel each other:
rounded to the float32 of an adapter, what is left of the difference would be noise. The singular value decomposition of
the product, taken through two QR decompositions so that the whole matrix is never formed, has orthogonal columns, drops
those that carry nothing, and shares each singular value out equally between the two factors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rompatch.apply.solve import Matrix, SiteUpdate
from rompatch.errors import ConflictError, OutputError
from rompatch.loading import DTYPES
from rompatch.patch import SiteRef


@dataclass(frozen=True, eq=False)
class SiteDelta:
    """One site's update, ready to be written.

    Args:
        ref: the weight it is for.
        update: Delta as the solve gave it.
        left: B, (d_out, rank), float64.
        right: A, (rank, d_in), float64.
    """

    ref: SiteRef
    update: SiteUpdate
    left: Matrix
    right: Matrix

    @property
    def rank(self) -> int:
        """Columns of B."""
        return int(self.left.shape[1])

    @property
    def module(self) -> str:
        """Full name of the module that holds the weight."""
        return self.ref.parameter.removesuffix(".weight")

    @property
    def norm(self) -> float:
        """||Delta||_F."""
        return _norm(self.update)

    def rounded(self, dtype: str, *, left_factor: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
        """``left_factor`` B and A, each rounded once to *dtype* and contiguous.

        Raises:
            OutputError: a number does not fit *dtype*.
        """
        factors = [
            torch.from_numpy(np.ascontiguousarray(factor)).to(DTYPES[dtype])
            for factor in (self.left * left_factor, self.right)
        ]
        if not all(bool(factor.isfinite().all()) for factor in factors):
            raise OutputError(
                f"The update of {self.ref.parameter} does not fit {dtype}.",
                found=f"numbers up to {max(np.abs(self.left).max() * left_factor, np.abs(self.right).max()):.3g}",
                next_step="Export with --dtype float32.",
            )
        return factors[0], factors[1]

    def error(self, left: torch.Tensor, right: torch.Tensor) -> float:
        """||Delta - left right||_F / ||Delta||_F: what rounding and ``max_rank`` cost."""
        written = SiteUpdate(left.double().numpy(), right.double().numpy())
        return _norm(_difference(self.update, written)) / self.norm


def factorise(
    updates: Mapping[str, SiteUpdate], refs: Iterable[SiteRef], max_rank: int | None = None
) -> tuple[SiteDelta, ...]:
    """The sites of *updates* that change anything, in order of name, each with as few columns as hold it.

    Args:
        updates: parameter name to its update.
        refs: the sites of the patches; one for each parameter.
        max_rank: keep only so many columns, the heaviest ones: the best approximation of that rank.

    Raises:
        ConflictError: no update changes anything.
    """
    sites = {ref.parameter: ref for ref in refs}
    found = []
    for parameter, update in sorted(updates.items()):
        left, right = balanced(update, max_rank)
        if left.shape[1]:
            found.append(SiteDelta(sites[parameter], update, left, right))
    if not found:
        raise ConflictError(
            "These patches change nothing, so there is nothing to export.",
            found=f"an update of rank 0 at {', '.join(sorted(updates)) or 'no weight'}",
        )
    return tuple(found)


def balanced(update: SiteUpdate, max_rank: int | None = None) -> tuple[Matrix, Matrix]:
    """B (d_out, rank) and A (rank, d_in) with B A = Delta, orthogonal columns, and ||B_i|| = ||A_i||."""
    left_basis, left_core = np.linalg.qr(update.left)
    right_basis, right_core = np.linalg.qr(update.right.T)
    u, values, vt = np.linalg.svd(left_core @ right_core.T, full_matrices=False)
    # What the product of the two cores can have gained by rounding alone.
    noise = np.finfo(np.float64).eps * max(update.left.shape[0], update.right.shape[1])
    floor = noise * np.linalg.norm(left_core) * np.linalg.norm(right_core)
    rank = min(int((values > floor).sum()), len(values) if max_rank is None else max_rank)
    roots = np.sqrt(values[:rank])
    left, right = left_basis @ u[:, :rank] * roots, (right_basis @ vt[:rank].T * roots).T
    # A singular pair may be negated; one choice for all machines: the largest number of a column of B is positive.
    signs = np.sign(left[np.abs(left).argmax(axis=0), np.arange(rank)]) if rank else np.ones(0)
    return left * signs, right * signs[:, None]


def _difference(one: SiteUpdate, other: SiteUpdate) -> SiteUpdate:
    return SiteUpdate(np.hstack([one.left, -other.left]), np.vstack([one.right, other.right]))


def _norm(update: SiteUpdate) -> float:
    """||left right||_F without forming the product."""
    return float(np.linalg.norm(np.linalg.qr(update.left)[1] @ np.linalg.qr(update.right.T)[1].T))


def largest_rank(deltas: Sequence[SiteDelta]) -> int:
    """The most columns that a site has."""
    return max(delta.rank for delta in deltas)
