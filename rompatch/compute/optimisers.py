"""Minimisers over many rows at once: every row is a problem of its own, and may leave the batch.

Both are told the loss and the gradient at the points they asked for. torch's own optimisers keep their state for
tensors of one shape and take one loss for all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from rompatch.compute.rome import project_to_ball

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8
_MEMORY = 6
"""Pairs of steps and gradient changes that L-BFGS keeps."""
_GROW, _SHRINK = 2.0, 0.35
"""The trust region after a step that reached its edge and helped, and after one that did not help."""
_EDGE = 0.99
"""A step of this share of the trust region's radius is at its edge: a first step is, to the last digit or not."""
_CURVATURE = 1e-10
"""The least curvature along a step that is made use of."""


class Optimiser(Protocol):
    """``trial`` (n_rows, d) is to be evaluated next; ``point`` (n_rows, d) is what would be returned now."""

    trial: Tensor
    point: Tensor

    def tell(self, loss: Tensor, gradient: Tensor) -> None:
        """Loss (n_rows,) and gradient (n_rows, d) at ``trial``; sets the next one."""
        ...

    def accepts(self, loss: Tensor) -> Tensor:
        """Rows (n_rows,) whose ``trial`` takes the place of ``point``, its loss being *loss* (n_rows,)."""
        ...

    def narrow(self, kept: Sequence[int]) -> None:
        """Forget all rows but *kept*."""
        ...


class Adam:
    """Adam (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1), every point projected onto a ball.

    Args:
        start: (n_rows, d).
        radius: of each row's ball around zero, (n_rows,).
        lr: the step size.
    """

    def __init__(self, start: Tensor, radius: Tensor, lr: float) -> None:
        self.trial = self.point = start
        self._radius, self._lr, self._count = radius, lr, 0
        self._first, self._second = torch.zeros_like(start), torch.zeros_like(start)

    def accepts(self, loss: Tensor) -> Tensor:
        """See :class:`Optimiser`: Adam never looks back."""
        return torch.ones_like(loss, dtype=torch.bool)

    def tell(self, loss: Tensor, gradient: Tensor) -> None:
        """See :class:`Optimiser`."""
        self._count += 1
        self._first.lerp_(gradient, 1 - _BETA1)
        self._second.mul_(_BETA2).addcmul_(gradient, gradient, value=1 - _BETA2)
        first = self._first / (1 - _BETA1**self._count)
        second = self._second / (1 - _BETA2**self._count)
        self.point = self.trial
        self.trial = project_to_ball(self.trial - self._lr * first / (second.sqrt() + _EPSILON), self._radius)

    def narrow(self, kept: Sequence[int]) -> None:
        """See :class:`Optimiser`."""
        self.trial, self.point, self._radius = self.trial[kept], self.point[kept], self._radius[kept]
        self._first, self._second = self._first[kept], self._second[kept]


class LBFGS:
    """L-BFGS (Liu and Nocedal 1989) within a trust region: one evaluation a step, no line search.

    A step that does not lower the loss is taken back; the region shrinks, and what was learned about the curvature is
    kept. The loss of ``point`` never rises.

    Args:
        start: (n_rows, d).
        radius: of each row's ball around zero, (n_rows,).
        trust: the longest first step, (n_rows,).
    """

    def __init__(self, start: Tensor, radius: Tensor, trust: Tensor) -> None:
        self.trial = self.point = start
        self._radius, self._trust = radius, trust
        self._loss = torch.full_like(trust, torch.inf)
        self._gradient = torch.zeros_like(start)
        self._capped = torch.zeros_like(trust, dtype=torch.bool)
        self._steps: list[Tensor] = []
        self._changes: list[Tensor] = []

    def accepts(self, loss: Tensor) -> Tensor:
        """See :class:`Optimiser`: only what is better."""
        return loss < self._loss

    def tell(self, loss: Tensor, gradient: Tensor) -> None:
        """See :class:`Optimiser`."""
        better = self.accepts(loss)
        if torch.isfinite(self._loss).any():
            self._steps = [*self._steps, self.trial - self.point][-_MEMORY:]
            finite = torch.isfinite(loss) & torch.isfinite(gradient).all(dim=1)
            change = torch.where(finite[:, None], gradient - self._gradient, torch.zeros_like(gradient))
            self._changes = [*self._changes, change][-_MEMORY:]
            wider = torch.where(self._capped, _GROW * self._trust, self._trust)
            self._trust = torch.where(better, wider, _SHRINK * self._trust)
        self.point = torch.where(better[:, None], self.trial, self.point)
        self._gradient = torch.where(better[:, None], gradient, self._gradient)
        self._loss = torch.where(better, loss, self._loss)
        step = self._direction()
        length = step.norm(dim=1)
        self._capped = length >= _EDGE * self._trust
        step = torch.where((length > self._trust)[:, None], step * (self._trust / length)[:, None], step)
        self.trial = project_to_ball(self.point + step, self._radius)

    def narrow(self, kept: Sequence[int]) -> None:
        """See :class:`Optimiser`."""
        for name in ("trial", "point", "_radius", "_trust", "_loss", "_gradient", "_capped"):
            setattr(self, name, getattr(self, name)[kept])
        self._steps = [step[kept] for step in self._steps]
        self._changes = [change[kept] for change in self._changes]

    def _direction(self) -> Tensor:
        """-H g by the two-loop recursion; steepest descent to the region's edge before anything is known, or where
        the recursion points upwards."""
        pairs = list(zip(self._steps, self._changes, strict=True))
        vector, weights = self._gradient.clone(), []
        for step, change in reversed(pairs):
            weight = _ratio(step, vector, _curvature(step, change))
            vector = vector - weight[:, None] * change
            weights.append(weight)
        steepest = self._trust / self._gradient.norm(dim=1).clamp_min(torch.finfo(vector.dtype).tiny)
        scale = steepest
        for step, change in pairs:
            curvature = _curvature(step, change)
            known = curvature / change.square().sum(dim=1).clamp_min(torch.finfo(vector.dtype).tiny)
            scale = torch.where(curvature > 0, known, scale)
        vector = scale[:, None] * vector
        for (step, change), weight in zip(pairs, reversed(weights), strict=True):
            vector = vector + (weight - _ratio(change, vector, _curvature(step, change)))[:, None] * step
        downwards = (vector * self._gradient).sum(dim=1) > 0
        return torch.where(downwards[:, None], -vector, -steepest[:, None] * self._gradient)


def _curvature(step: Tensor, change: Tensor) -> Tensor:
    """s^T y of each row, (n_rows,); zero where there is none to be made use of."""
    product = (step * change).sum(dim=1)
    return torch.where(product > _CURVATURE, product, torch.zeros_like(product))


def _ratio(left: Tensor, right: Tensor, curvature: Tensor) -> Tensor:
    """left^T right / curvature of each row, (n_rows,); zero where there is no curvature."""
    product = (left * right).sum(dim=1)
    return torch.where(curvature > 0, product / curvature.clamp_min(_CURVATURE), torch.zeros_like(product))
