"""One value over several sites, each with a delta of its own.

What an edit does to other text grows with the square of its length and adds up over sites, while at the subject the
deltas add up in the residual stream: n sites cost about 1/n of one. And every site of a stack then knows the key of
every patch, so that no patch moves another's subject from below. MEMIT (Meng et al. 2022, arXiv 2210.07229, section
4.3) optimises one delta at the highest site and gives each site an equal share of it. Here all deltas are optimised at
once (:mod:`rompatch.compute.value`), which knows what the layers in between make of the lower ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from rompatch.compute import rome as equations
from rompatch.compute.gather import gather_keys
from rompatch.compute.statistics import Statistics
from rompatch.errors import ComputeError
from rompatch.hooks import low_rank_added
from rompatch.models import Base
from rompatch.patch import Array, SiteFactors
from rompatch.sites import Site
from rompatch.tokens import EncodedSubject

ALIKE = 0.995
"""Cosine in the metric of C^-1 from which mean and bare prompt's key count as one. Two keys of nearly one direction but
of different length ask for a long update in the direction in which they differ."""


@dataclass(frozen=True)
class MeasuredSite:
    """A site that a value is spread to, with its own C (None: the identity)."""

    site: Site
    statistics: Statistics | None

    def factor(self, ridge: float) -> Tensor | None:
        """chol(C), (d_in, d_in) float64; None where C is the identity."""
        return None if self.statistics is None else self.statistics.factor(ridge)


def solved_factors(site: Site, keys: Tensor, residuals: Tensor, factor: Tensor | None) -> SiteFactors:
    """The tensors of a patch that is solved alone as in stacks (format 3).

    Args:
        keys: row 0 the mean key, row 1 the bare prompt's, (2, d_in).
        residuals: what the site's output shall change by at each, (2, d_out).
        factor: chol(C) of the site.

    Raises:
        ComputeError: keys or residuals are not finite.
    """
    if not (torch.isfinite(keys).all() and torch.isfinite(residuals).all()):
        raise ComputeError(f"Keys or deltas at layer {site.layer} are not finite numbers.")
    rows = keys.clone() if factor is None else equations.inverse_rows(keys, factor)
    if _alike(keys, rows):
        keys, residuals, rows = keys[:1], residuals[:1], rows[:1]
    base_out = site.product(keys)
    return SiteFactors(
        float_array(rows), None, float_array(keys), float_array(base_out + residuals), float_array(base_out)
    )


def update_of(factors: SiteFactors) -> tuple[Tensor, Tensor]:
    """The update of such a patch alone at one site: left (d_out, n_keys) @ right (n_keys, d_in), float64."""
    keys, rows, value, base_out = (
        torch.from_numpy(array).double() for array in (factors.key, factors.u, factors.value, factors.base_out)
    )
    return equations.joint_left(value - base_out, keys, rows), rows


def spread(
    base: Base,
    sites: Sequence[Site],
    factors: Sequence[Tensor | None],
    prompts: Sequence[EncodedSubject],
    deltas: Tensor,
) -> list[SiteFactors]:
    """The tensors of a patch at each of *sites*, lowest first, that change each one's output by its delta.

    A site's keys are those of the model that has the updates of the sites below, as in MEMIT: what it sees when the
    patch is applied.

    Args:
        factors: chol(C) of each site.
        prompts: the request under contexts, the bare prompt first.
        deltas: of each site, (n_sites, d_out) float64.

    Raises:
        ComputeError: keys or deltas are not finite.
    """
    found: list[SiteFactors] = []
    with ExitStack() as stack:
        for site, factor, delta in zip(sites, factors, deltas, strict=True):
            keys = gather_keys(base.model, base.tokenizer, site, prompts).keys.double()
            at = torch.stack([equations.mean_key(keys), keys[0]])
            found.append(solved_factors(site, at, delta.expand(2, -1), factor))
            stack.enter_context(low_rank_added(site.module, *update_of(found[-1])))
    return found


def _alike(keys: Tensor, rows: Tensor) -> bool:
    gram = rows @ keys.T
    return bool(gram[0, 1].abs() >= ALIKE * (gram[0, 0] * gram[1, 1]).sqrt())


def update_norm(factors: SiteFactors) -> float:
    """||Delta||_F of a patch alone at one site."""
    if factors.v is None:
        return equations.low_rank_norm(*update_of(factors))
    return float(torch.from_numpy(factors.v).norm() * torch.from_numpy(factors.u[0]).norm())


def float_array(tensor: Tensor) -> Array:
    """*tensor* as a float32 array, as patches hold it."""
    return tensor.detach().cpu().contiguous().float().numpy()
