"""How much a patch has to do with a text: what of its residual it would put on the text's tokens. Pure NumPy."""

from __future__ import annotations

import numpy as np

from rompatch.apply.gram import Matrix, constraints_of
from rompatch.patch import Factors, LowRankFactors

_SMALL = 1e-100


def activation(factors: Factors, inputs: Matrix) -> float:
    """The greatest ``|u^T x| / |u^T k| * ||r||`` over tokens and keys; for an adapter the greatest ``||L R x||``.

    Args:
        inputs: of the site, one row x a token, (n_tokens, d_in).
    """
    if isinstance(factors, LowRankFactors):
        moved = inputs @ factors.right.astype(np.float64).T @ factors.left.astype(np.float64).T
        return float(np.linalg.norm(moved, axis=1).max(initial=0.0))
    own = constraints_of(factors)
    excited = np.abs(own.directions @ inputs.T).max(axis=1, initial=0.0)
    at_home = np.maximum(np.abs(np.einsum("ij,ij->i", own.directions, own.keys)), _SMALL)
    return float((excited / at_home * np.linalg.norm(own.residuals, axis=1)).max())
