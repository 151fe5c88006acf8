"""v*: the site's output at the subject's last token that makes the model say o* (eq. 8).

Adam on ``delta = v* - W k`` from zero, for many requests at once: each has its own delta, its own losses and its own
end, and the others never change them but for the rounding of larger products. A value that is spread has a delta at
each of several sites, and all of them are optimised at once, as one vector in which each counts in lengths of its own
site's output (:func:`rompatch.compute.rome.site_deltas`). Differences from the authors' code, none of which changes
the numbers of one site:

1. Only what delta can change is run (:mod:`rompatch.compute.replay`).
2. Rows are padded on the left, so that all prompts end together.
3. The essence prompt ends at the subject's last token, where it is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rompatch.compute import rome
from rompatch.compute.optimisers import LBFGS, Adam, Optimiser
from rompatch.compute.replay import Replayer
from rompatch.compute.rows import RowBatch
from rompatch.errors import ComputeError

OPTIMISERS = ("adam", "lbfgs")
_FIRST_STEP = 0.75
"""The longest first step of L-BFGS, in norms of the site's output."""
_NARROW_AT = 0.8
"""A batch is cut to what is left of it when this share of it is left: cutting copies the recordings."""


@dataclass(frozen=True)
class ValueHparams:
    """Knobs of the optimisation, by the names of the authors' configuration where they have one.

    Args:
        lr: step size of Adam.
        steps: evaluations of the objective at most.
        optimiser: "adam" (the authors') or "lbfgs", which needs fewer steps.
        early_stop_loss: stop below this total loss, in nats.
        target_loss: stop below this mean loss of the target's tokens, in nats; 0 never does.
        norm_penalty: nats that a delta as long as W k costs; grows with the square of its length, and adds up over
            sites. The authors' code has
            none: its weight decay stops at the ball's edge (docs/presets.md).
    """

    lr: float = 0.5
    steps: int = 20
    weight_decay: float = 0.5
    clamp_norm_factor: float = 4.0
    kl_factor: float = 0.0625
    early_stop_loss: float = 0.05
    optimiser: str = "adam"
    target_loss: float = 0.0
    norm_penalty: float = 0.0


@dataclass(frozen=True)
class StepLoss:
    """The objective at one step, in nats: ``total = target + kl + weight_decay``, the last with the norm's penalty."""

    total: float
    target: float
    kl: float
    weight_decay: float


@dataclass(frozen=True)
class OptimisedValue:
    """The deltas (n_sites, d_out) float32 and the objective at every step, whose last entry belongs to them."""

    deltas: Tensor
    losses: tuple[StepLoss, ...]


@dataclass(frozen=True)
class Losses:
    """The objective and its parts, one entry a request: (n_requests,) each, in nats."""

    total: Tensor
    target: Tensor
    kl: Tensor
    weight_decay: Tensor

    def steps(self) -> list[StepLoss]:
        """As plain numbers, one record a request."""
        columns = (getattr(self, field.name).tolist() for field in fields(StepLoss))
        return [StepLoss(*numbers) for numbers in zip(*columns, strict=True)]


class Objective:
    """Eq. 8 for every request of a batch, as a function of one vector each (:meth:`deltas`).

    Args:
        replayer: the logits that are read, as a function of the deltas.
        batch: what is read, and for which request.
        output_norms: norm of each site's output for each bare prompt, (n_requests, n_sites): the units of length.
        essence: log-probabilities of the essence prompts at delta zero, (n_requests, vocab); None takes those of the
            first call, which must be at zero.
    """

    def __init__(
        self,
        replayer: Replayer,
        batch: RowBatch,
        output_norms: Tensor,
        hparams: ValueHparams,
        essence: Tensor | None = None,
    ) -> None:
        self._replayer, self._batch, self._norms, self._hparams = replayer, batch, output_norms, hparams
        self._essence = essence

    def deltas(self, points: Tensor) -> Tensor:
        """What each site's output changes by. (n_requests, n_sites * d_out) -> (n_requests, n_sites, d_out)"""
        return rome.site_deltas(points, self._norms)

    def __call__(self, points: Tensor) -> Losses:
        """(n_requests, n_sites * d_out) -> the losses."""
        batch, hparams = self._batch, self._hparams
        logits = self._replayer.logits(self.deltas(points))  # float32: in half precision the loss has two digits
        wanted = -cross_entropy(logits[: batch.n_target_reads], batch.targets.to(logits.device), reduction="none")
        essence = torch.log_softmax(logits[batch.n_target_reads :], dim=1)
        if self._essence is None:
            self._essence = essence.detach().clone()
        target = rome.target_losses(wanted.to(points.device), batch.target_request)
        kl = hparams.kl_factor * rome.essence_loss(essence, self._essence).to(points.device)
        decay = hparams.weight_decay * rome.weight_decay_penalty(points, self._norms[:, 0])
        decay = decay + hparams.norm_penalty * rome.norm_penalty(points, self._norms[:, 0])
        return Losses(target + kl + decay, target, kl, decay)

    def narrow(self, kept: Sequence[int]) -> Objective:
        """The objective of the requests *kept* alone."""
        index = torch.tensor(kept)
        essence = None if self._essence is None else self._essence[index.to(self._essence.device)]
        return Objective(
            self._replayer.narrow(kept), self._batch.narrow(kept), self._norms[index], self._hparams, essence
        )


def optimise_values(
    objective: Objective,
    outputs: Tensor,
    hparams: ValueHparams,
    on_step: Callable[[int, list[StepLoss]], None] | None = None,
) -> list[OptimisedValue | ComputeError]:
    """Minimise eq. 8 for every request of a batch. A request that is done leaves the batch.

    Args:
        outputs: each site's output for each bare prompt, (n_requests, n_sites, d_out) float32: their norms are the
            units of length, and those of *objective*.
        on_step: called with the step's number from 1 and the losses of the requests that are still in the batch.

    Returns:
        One value a request, in their order; in its place a ComputeError where the objective left the finite numbers.
    """
    optimiser = make_optimiser(hparams, outputs)
    active = list(range(len(outputs)))
    losses: list[list[StepLoss]] = [[] for _ in active]
    done: dict[int, OptimisedValue | ComputeError] = {}
    for step in range(1, hparams.steps + 1):
        trial = optimiser.trial.detach().requires_grad_(True)
        found = objective(trial)
        records = found.steps()
        if on_step is not None:
            on_step(step, records)
        accepted = optimiser.accepts(found.total.detach())
        for place, (request, loss) in enumerate(zip(active, records, strict=True)):
            if request in done:
                continue
            best = bool(accepted[place]) or not losses[request]
            losses[request].append(loss if best else losses[request][-1])
            if best and not math.isfinite(loss.total):  # L-BFGS takes such a step back
                done[request] = _not_finite(loss, step)
            elif is_enough(losses[request][-1], hparams) or step == hparams.steps:
                deltas = objective.deltas(trial.detach() if best else optimiser.point)[place]
                done[request] = OptimisedValue(deltas.clone(), tuple(losses[request]))
        kept = [place for place, request in enumerate(active) if request not in done]
        if not kept:
            break
        (gradient,) = torch.autograd.grad(found.total.sum(), trial)
        optimiser.tell(found.total.detach(), gradient)
        if len(kept) <= _NARROW_AT * len(active):
            objective, active = objective.narrow(kept), [active[place] for place in kept]
            optimiser.narrow(kept)
    return [done[request] for request in range(len(outputs))]


def make_optimiser(hparams: ValueHparams, outputs: Tensor) -> Optimiser:
    """The optimiser that *hparams* name, at zero, in the ball around each of *outputs* (n_requests, n_sites, d_out)."""
    norms, start = outputs[:, 0].norm(dim=1), torch.zeros_like(outputs.flatten(1))
    radius = hparams.clamp_norm_factor * norms
    if hparams.optimiser == "adam":
        return Adam(start, radius, hparams.lr)
    return LBFGS(start, radius, trust=_FIRST_STEP * norms)


def is_enough(loss: StepLoss, hparams: ValueHparams) -> bool:
    """Whether the optimisation may stop at *loss*."""
    return loss.total < hparams.early_stop_loss or loss.target < hparams.target_loss


def _not_finite(loss: StepLoss, step: int) -> ComputeError:
    return ComputeError(
        f"The optimisation of v* left the finite numbers at step {step}.",
        expected="a finite loss",
        found=f"target {loss.target}, KL {loss.kl}, weight decay {loss.weight_decay}",
        next_step="Lower --lr, or load the base with --dtype float32.",
    )
