"""What a patch puts on a text's tokens, against the update written out."""

from __future__ import annotations

import numpy as np
import pytest
from test_solve import random_stack

from rompatch.apply.activations import activation
from rompatch.apply.gram import constraints_of
from rompatch.patch import LowRankFactors


def test_activation_is_the_residual_that_a_token_gets() -> None:
    _, (factors,) = random_stack(0, 1, 24, 8, n_keys=1)
    own = constraints_of(factors)
    inputs = np.random.default_rng(1).normal(size=(5, 24))
    alone = np.outer(own.residuals[0] / (own.directions[0] @ own.keys[0]), own.directions[0])
    assert activation(factors, inputs) == pytest.approx(np.linalg.norm(inputs @ alone.T, axis=1).max())
    adapter = LowRankFactors(np.ones((8, 1), np.float32), np.ones((1, 24), np.float32))
    expected = np.linalg.norm(np.outer(inputs.sum(axis=1), np.ones(8)), axis=1).max()
    assert activation(adapter, inputs) == pytest.approx(expected)
