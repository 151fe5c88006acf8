"""The algebra of stacks: many patches, one site, one update. Pure: arrays in, arrays out. NumPy alone, so that a stack
is planned without torch; only :func:`materialise` loads it.

For a stack of patches with keys k_i, directions u_i = C^-1 k_i and residuals r_i = value_i - W k_i (docs/concepts.md):

    G_ij = u_i^T k_j        Delta_S = R (G + lambda * mean(diag G) * I)^-1 U^T

With lambda = 0 every constraint (W + Delta_S) k_i = value_i holds at once; with lambda > 0 it is MEMIT's ridge
solution (push-through identity). It needs the patch files alone, does not depend on the order in which patches were
applied, and leaving a patch out gives exactly the stack that never had it.

A patch without keys (an imported adapter) brings no constraints: its low-rank term is added to the joint solution of
the others.

A patch alone is its own rank-one update ``v u_0^T``, or, where it brings none (format 3), the joint solution of its own
constraints with lambda = 0. The authors' mixed keys, which make v, are ill-conditioned in stacks; stacks use every key
that the patches bring.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rompatch.apply.gram import (
    Constraints,
    Matrix,
    concatenated,
    condition_number,
    constraints_of,
    damped,
    key_similarity,
    most_dependent,
    similarities,
)
from rompatch.apply.rows import edited_rows, row_blocks
from rompatch.errors import ComputeError
from rompatch.patch import Factors, LowRankFactors, Patch, SiteFactors

if TYPE_CHECKING:
    from torch import Tensor

JOINT_RIDGE = 0.03
"""lambda for stacks of two and more: chosen in a trial with 199 edits at one site of the default model."""

SAME_KEY = 0.98
"""Cosine of two keys in the metric of C^-1 from which they count as one key: two facts about one subject."""

ILL_CONDITIONED = 1e8
"""Condition number of G from which a stack without ridge is refused. Keys are stored in float32: beyond the inverse of
its precision, what tells two of them apart is rounding."""

__all__ = [
    "JOINT_RIDGE",
    "SAME_KEY",
    "Constraints",
    "Matrix",
    "SiteUpdate",
    "by_site",
    "canonical",
    "constraints_of",
    "key_similarity",
    "materialise",
    "merge_same_keys",
    "solve_constraints",
    "solve_site",
    "solve_stack",
]


@dataclass(frozen=True, eq=False)
class SiteUpdate:
    """Delta_S in low-rank form: ``left`` (d_out, m) @ ``right`` (m, d_in), float64."""

    left: Matrix
    right: Matrix

    @property
    def rank(self) -> int:
        """m, the number of columns."""
        return int(self.left.shape[1])

    def dense(self) -> Matrix:
        """Delta_S, (d_out, d_in). For tests and small matrices; :func:`materialise` never forms it whole."""
        return self.left @ self.right


def canonical(patches: Iterable[Patch]) -> list[Patch]:
    """The one order in which patches meet: by id, each once."""
    return sorted({patch.id: patch for patch in patches}.values(), key=lambda patch: patch.id)


def by_site(patches: Iterable[Patch]) -> dict[str, list[Factors]]:
    """Parameter name to the factors of all patches there, in canonical order."""
    return {parameter: [factors for _, factors in pairs] for parameter, pairs in members_by_site(patches).items()}


def members_by_site(patches: Iterable[Patch]) -> dict[str, list[tuple[Patch, Factors]]]:
    """The same, each with its patch."""
    sites: dict[str, list[tuple[Patch, Factors]]] = {}
    for patch in canonical(patches):
        for site, factors in zip(patch.header.sites, patch.factors, strict=True):
            sites.setdefault(site.parameter, []).append((patch, factors))
    return dict(sorted(sites.items()))


def solve_stack(patches: Iterable[Patch], ridge: float = JOINT_RIDGE) -> Mapping[str, SiteUpdate]:
    """The update of each site that *patches* touch, by parameter name.

    Raises:
        ComputeError: the keys at a site cannot be solved for; it names the patches that they belong to.
    """
    updates = {}
    for parameter, pairs in members_by_site(patches).items():
        try:
            updates[parameter] = solve_site([factors for _, factors in pairs], ridge)
        except ComputeError as problem:
            raise _naming_patches(problem, parameter, pairs) from problem
    return updates


def _naming_patches(problem: ComputeError, parameter: str, pairs: Sequence[tuple[Patch, Factors]]) -> ComputeError:
    keyed = [(patch, constraints_of(factors)) for patch, factors in pairs if isinstance(factors, SiteFactors)]
    guilty = [keyed[index][0] for index in most_dependent([constraints for _, constraints in keyed])]
    names = ", ".join(f"{patch.short_id} ({patch.header.subject})" for patch in guilty) or "cannot be told"
    return ComputeError(
        f"{problem.message} At {parameter} these patches are to blame: {names}.",
        expected=problem.expected,
        found=problem.found,
        next_step=problem.next_step,
        patches=tuple(patch.id for patch in guilty),
    )


def solve_site(stack: Sequence[Factors], ridge: float = JOINT_RIDGE) -> SiteUpdate:
    """Delta for the patches *stack* at one site, in their canonical order: the joint solution of those that bring keys,
    plus the low-rank terms of the others.

    Raises:
        ComputeError: G is singular or nearly so (only possible with ``ridge=0``), or not finite.
    """
    keyed = [factors for factors in stack if isinstance(factors, SiteFactors)]
    terms = [] if not keyed else [solve_keyed(keyed, ridge)]
    terms += [
        SiteUpdate(factors.left.astype(np.float64), factors.right.astype(np.float64))
        for factors in stack
        if isinstance(factors, LowRankFactors)
    ]
    if len(terms) == 1:
        return terms[0]
    return SiteUpdate(np.hstack([term.left for term in terms]), np.vstack([term.right for term in terms]))


def solve_keyed(stack: Sequence[SiteFactors], ridge: float = JOINT_RIDGE) -> SiteUpdate:
    """Delta of patches that bring keys. Raises what :func:`solve_site` raises."""
    if len(stack) == 1:
        only = stack[0]
        if only.v is None:
            return solve_constraints(constraints_of(only), 0.0)
        return SiteUpdate(only.v.astype(np.float64)[:, None], only.u[:1].astype(np.float64))
    return solve_constraints(merge_same_keys([constraints_of(factors) for factors in stack]), ridge)


def solve_constraints(constraints: Constraints, ridge: float) -> SiteUpdate:
    """R (G + ridge * mean(diag G) * I)^-1 U^T, as ``left = R (...)^-1`` and ``right = U^T``.

    G is solved as it is, not symmetrised: patches computed with different C have a G that is not symmetric, and the
    constraints hold all the same.
    """
    gram = constraints.gram()
    matrix = damped(gram, ridge)
    if ridge == 0 and condition_number(matrix) > ILL_CONDITIONED:
        raise _unsolvable(gram)
    try:
        left: Matrix = np.linalg.solve(matrix.T, constraints.residuals).T.astype(np.float64, copy=False)
    except np.linalg.LinAlgError as problem:
        raise _unsolvable(gram) from problem
    if not np.isfinite(left).all():
        raise _unsolvable(gram)
    return SiteUpdate(left, constraints.directions)


def _unsolvable(gram: Matrix) -> ComputeError:
    found = f"{condition_number(gram):.1e}" if np.isfinite(gram).all() else "numbers that are not finite"
    return ComputeError(
        "The stack cannot be solved: some of its keys nearly depend on each other.",
        expected=f"a Gram matrix with a condition number of at most {ILL_CONDITIONED:.0e}, or a ridge",
        found=f"{found}, for {len(gram)} keys",
        next_step="Use a ridge above 0, or revert one of the patches that share a subject.",
    )


def merge_same_keys(patches: Sequence[Constraints]) -> Constraints:
    """All constraints of a site, with the keys that several patches share given one value each.

    Two facts about one subject have the same key, so their constraints contradict each other: a ridge solution would
    meet both half-way. The shared key gets the sum of the n residuals over the square root of n: each makes the model
    say its own object for its own relation, and together they stay as long as one of them, within the ball that each
    was optimised in. On three pairs of facts about one subject of the default model the mean P(o*) was 0.62 with the
    mean of the residuals, 0.64 so, and 0.54 with their plain sum (``benchmarks/same_subject.py``).
    """
    joined = concatenated(patches)
    groups = _groups(patches, joined)
    if len(groups) == len(patches):
        return joined
    merged: list[Constraints] = []
    for group in groups:
        rows = {len(patch.keys) for patch in group}
        if len(group) == 1 or len(rows) != 1:
            merged += group
            continue
        merged.append(
            Constraints(
                np.mean([patch.keys for patch in group], axis=0),
                np.mean([patch.directions for patch in group], axis=0),
                np.sum([patch.residuals for patch in group], axis=0) / np.sqrt(len(group)),
            )
        )
    return concatenated(merged)


def _groups(patches: Sequence[Constraints], joined: Constraints) -> list[list[Constraints]]:
    """Patches that share their keys, in order of first appearance; each is compared with the first of a group."""
    same = similarities(patches, joined) > SAME_KEY
    groups: dict[int, list[Constraints]] = {}
    for number, patch in enumerate(patches):
        home = next((int(first) for first in np.flatnonzero(same[:number, number]) if first in groups), number)
        groups.setdefault(home, []).append(patch)
    return list(groups.values())


def materialise(weight: Tensor, update: SiteUpdate | None, *, transposed: bool) -> Tensor:
    """The one function that makes an edited weight: base plus update, summed in float64, cast once.

    Args:
        weight: the base's tensor as stored, (d_out, d_in) or (d_in, d_out) where *transposed*; never written to.
        update: None gives the base's own tensor back.

    Returns:
        A new tensor of the weight's shape and dtype (or *weight* itself).
    """
    if update is None:
        return weight
    import torch

    dtype = str(weight.dtype).removeprefix("torch.")
    edited = torch.empty_like(weight)
    for rows in row_blocks(*weight.shape):
        block = weight[rows].detach().cpu().contiguous()
        raw = block.view(torch.uint16).numpy() if dtype == "bfloat16" else block.numpy()
        made = torch.from_numpy(edited_rows(raw, dtype, update, rows, transposed=transposed))
        edited[rows] = made.view(weight.dtype)
    return edited
