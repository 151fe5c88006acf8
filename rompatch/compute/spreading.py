"""One value over several sites: each gives its share of what the layer above shall read at the subject.

MEMIT (Meng et al. 2022, arXiv 2210.07229, section 4.3) spreads its residuals so. What an edit does to other text grows
with the square of its length and adds up over sites, while at the subject the shares add up in the residual stream: n
sites cost about 1/n of one. And every site of a stack then knows the key of every patch, so that no patch moves
another's subject from below.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from rompatch.compute import rome as equations
from rompatch.compute.statistics import Statistics
from rompatch.errors import ComputeError
from rompatch.hooks import capture_inputs, capture_outputs, edit_output, low_rank_added, until_stopped
from rompatch.models import Base
from rompatch.offload import input_device
from rompatch.patch import Array, SiteFactors
from rompatch.sites import Site, layer_modules
from rompatch.tokens import EncodedSubject, pad, pad_id

ALIKE = 0.995
"""Cosine in the metric of C^-1 from which mean and bare prompt's key count as one. Two keys of nearly one direction but
of different length ask for a long update in the direction in which they differ."""

REACHES = 0.05
"""How much of a move the size of the stream itself may be lost between the last site and the stream behind it: rounding
in half precision, nothing else."""


_TINY = 1e-30


@dataclass(frozen=True)
class MeasuredSite:
    """A site that is given a share of the value, with its own C (None: the identity)."""

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
        raise ComputeError(f"Keys or shares of the value at layer {site.layer} are not finite numbers.")
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
    delta: Tensor,
) -> list[SiteFactors]:
    """The tensors of a patch at each of *sites*, lowest first, that together move the residual stream behind the last
    one by *delta* at the subject's last token.

    Each site's keys and share are those of the model that has the updates of the sites below, as MEMIT computes them.

    Args:
        factors: chol(C) of each site.
        prompts: the request under contexts, the bare prompt first.
        delta: (d_out,) float64.

    Raises:
        ComputeError: keys or shares are not finite.
    """
    reader = _Reader(base, sites, prompts)
    found: list[SiteFactors] = []
    updates: list[tuple[Tensor, Tensor]] = []
    goal: Tensor | None = None
    for number, (site, factor) in enumerate(zip(sites, factors, strict=True)):
        keys, stream = reader.read(updates)
        goal = stream + delta if goal is None else goal
        share = equations.spread_share(goal, stream, len(sites) - number)
        at = torch.stack([equations.mean_key(keys), keys[0]])
        found.append(solved_factors(site, at, torch.stack([share.mean(dim=0), share[0]]), factor))
        updates.append(update_of(found[-1]))
    return found


def check_reach(base: Base, site: Site, prompt: EncodedSubject) -> None:
    """Whether what *site* adds comes out behind its layer as it is, tried with a move the size of the stream.

    Raises:
        ComputeError: it does not: the MLP's output is normalised before it joins the stream.
    """
    reader = _Reader(base, [site], [prompt])
    _, before = reader.read([])
    _, after = reader.read_moved(before[0])
    missed = float((after - 2 * before).norm() / before.norm().clamp_min(_TINY))
    if missed > REACHES:
        raise ComputeError(
            f"Values cannot be spread on this model: what layer {site.layer} adds does not reach the stream as it is.",
            found=f"{100 * missed:.0f} % of it is lost or changed",
            next_step="Use --spread 1.",
        )


class _Reader:
    """Passes over one request's prompts, from the start to behind the last site."""

    def __init__(self, base: Base, sites: Sequence[Site], prompts: Sequence[EncodedSubject]) -> None:
        self._base, self._sites = base, sites
        self._behind = layer_modules(base.model, base.architecture)[sites[-1].layer]
        self._prompts = prompts

    def read(self, updates: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """What the next site sees, (n_prompts, d_in), and the stream behind the last site, (n_prompts, d_out), both at
        the subject and float64, while the first ``len(updates)`` sites have *updates*."""
        edits = [low_rank_added(site.module, *update) for site, update in zip(self._sites, updates, strict=False)]
        return self._pass(self._sites[len(updates)], edits)

    def read_moved(self, move: Tensor) -> tuple[Tensor, Tensor]:
        """The same while the last site adds *move* (d_out,) at every token."""
        last = self._sites[-1]
        return self._pass(last, [edit_output(last.module, lambda output: output + move.to(output))])

    def _pass(self, seen: Site, edits: Sequence[AbstractContextManager[None]]) -> tuple[Tensor, Tensor]:
        base, prompts = self._base, self._prompts
        batch = pad(
            [row.ids[: row.subject_last + 1] for row in prompts],
            pad_id(base.tokenizer),
            side="right",
            device=input_device(base.model),
        )
        shape = tuple(batch.input_ids.shape)
        last = torch.tensor([row.subject_last for row in prompts])
        with ExitStack() as stack, torch.inference_mode():
            inputs = stack.enter_context(capture_inputs(seen.module))
            for edit in edits:
                stack.enter_context(edit)
            outputs = stack.enter_context(capture_outputs(self._behind, stop=True))
            stack.enter_context(until_stopped())
            base.model(**batch.to_kwargs(), use_cache=False)
        return _at(inputs[0], last, shape), _at(outputs[0], last, shape)


def _at(states: Tensor, last: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The rows' states at their subjects, float64 on the processor. OPT hands its MLP all rows in one line."""
    rows = states.reshape(*shape, -1)
    return rows[torch.arange(len(last)), last].double().cpu()


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
