"""Adam against torch's own, L-BFGS against what it promises, and rows that never hear of each other."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rompatch.compute.optimisers import LBFGS, Adam, Optimiser

Problem = Callable[[Tensor], Tensor]
WIDE = 1e6


def bowls(n_rows: int, d: int, seed: int) -> tuple[Problem, Tensor]:
    """Quadratic bowls, one a row, of condition number up to 100, and their minima (n_rows, d)."""
    generator = torch.Generator().manual_seed(seed)
    minima = torch.randn(n_rows, d, generator=generator)
    curvature = 10 ** (2 * torch.rand(n_rows, d, generator=generator))
    return lambda x: (curvature * (x - minima) ** 2).sum(dim=1), minima


def valleys(x: Tensor) -> Tensor:
    """Rosenbrock's valley in every row."""
    return ((1 - x[:, 0]) ** 2) + 100 * (x[:, 1] - x[:, 0] ** 2) ** 2


def evaluated(problem: Problem, at: Tensor) -> tuple[Tensor, Tensor]:
    point = at.detach().requires_grad_(True)
    loss = problem(point)
    (gradient,) = torch.autograd.grad(loss.sum(), point)
    return loss.detach(), gradient


def run(optimiser: Optimiser, problem: Problem, steps: int) -> list[Tensor]:
    """The loss of ``point`` after every step."""
    losses = []
    for _ in range(steps):
        optimiser.tell(*evaluated(problem, optimiser.trial))
        losses.append(problem(optimiser.point))
    return losses


def lbfgs(n_rows: int, d: int, radius: float = WIDE) -> LBFGS:
    return LBFGS(torch.zeros(n_rows, d), torch.full((n_rows,), radius), trust=torch.ones(n_rows))


def test_adam_is_torchs_adam() -> None:
    problem, _ = bowls(3, 5, seed=0)
    ours = Adam(torch.zeros(3, 5), torch.full((3,), WIDE), lr=0.3)
    theirs = torch.zeros(3, 5, requires_grad=True)
    reference = torch.optim.Adam([theirs], lr=0.3)
    for _ in range(12):
        ours.tell(*evaluated(problem, ours.trial))
        theirs.grad = evaluated(problem, theirs)[1]
        reference.step()
        torch.testing.assert_close(ours.trial, theirs.detach(), rtol=1e-5, atol=1e-6)


def test_lbfgs_finds_the_minimum_of_a_bowl() -> None:
    problem, minima = bowls(4, 6, seed=1)
    optimiser = lbfgs(4, 6)
    run(optimiser, problem, 60)
    torch.testing.assert_close(optimiser.point, minima, rtol=1e-2, atol=1e-2)


def test_lbfgs_goes_down_a_valley_faster_than_adam() -> None:
    slow = Adam(torch.zeros(1, 2), torch.full((1,), WIDE), lr=0.1)
    assert run(lbfgs(1, 2), valleys, 40)[-1] < 0.1 * run(slow, valleys, 40)[-1]


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), n_rows=st.integers(1, 4), radius=st.floats(0.1, 3.0))
def test_lbfgs_never_climbs_and_never_leaves_its_ball(seed: int, n_rows: int, radius: float) -> None:
    problem, _ = bowls(n_rows, 4, seed)
    optimiser = lbfgs(n_rows, 4, radius)
    losses = run(optimiser, problem, 15)
    assert all(bool((later <= earlier).all()) for earlier, later in pairwise(losses))
    assert bool((optimiser.point.norm(dim=1) <= radius * (1 + 1e-5)).all())


@pytest.mark.parametrize("make", [lbfgs, lambda n, d: Adam(torch.zeros(n, d), torch.full((n,), WIDE), 0.3)])
def test_rows_do_not_hear_of_each_other_and_may_leave(make: Callable[[int, int], Optimiser]) -> None:
    problem, _ = bowls(4, 5, seed=2)
    together, alone = make(4, 5), make(1, 5)

    def of_row(row: int) -> Problem:
        return lambda x: problem(x.expand(4, -1))[row : row + 1]

    for _ in range(6):
        together.tell(*evaluated(problem, together.trial))
        alone.tell(*evaluated(of_row(2), alone.trial))
    together.narrow([0, 2])

    def kept(x: Tensor) -> Tensor:
        return torch.cat([of_row(0)(x[:1]), of_row(2)(x[1:])])

    for _ in range(6):
        together.tell(*evaluated(kept, together.trial))
        alone.tell(*evaluated(of_row(2), alone.trial))
    torch.testing.assert_close(together.point[1:], alone.point, rtol=1e-4, atol=1e-5)


def test_lbfgs_stays_where_a_step_leads_out_of_the_numbers() -> None:
    optimiser = lbfgs(1, 2)
    optimiser.tell(torch.tensor([1.0]), torch.tensor([[1.0, 0.0]]))
    before = optimiser.point
    optimiser.tell(torch.tensor([torch.nan]), torch.tensor([[torch.nan, 0.0]]))
    assert torch.equal(optimiser.point, before)
    optimiser.tell(torch.tensor([0.5]), torch.tensor([[0.1, 0.2]]))
    assert torch.isfinite(optimiser.trial).all(), "and goes on from there"
