"""The equations of ROME, one pure function each: tensors in, tensors out, nothing loaded, logged or moved.

Equation numbers are those of Meng et al. 2022, arXiv 2202.05262 v1. Dimensions: ``d_in`` (the MLP's width), ``d_out``
(the residual stream's), ``n_prefixes``, ``vocab``.

What the authors' code does and the paper does not say, kept as named hyper-parameters: weight decay on delta
(:func:`weight_decay_penalty`), a ball around the present output (:func:`project_to_ball`), the KL term at the
subject's last token, and "mixed keys": u from the mean key, residual and denominator from the bare prompt's. Ours is
:func:`norm_penalty`, and the key mode "both" (:func:`joint_left`).
"""

from __future__ import annotations

import torch
from torch import Tensor


def mean_key(keys: Tensor) -> Tensor:
    """k* (eq. 7): the mean of the site's input at the subject's last token over context prefixes.
    (n_prefixes, d_in) -> (d_in,)"""
    return keys.mean(dim=0)


def with_ridge(second_moment: Tensor, ridge: float) -> Tensor:
    """C + ridge * mean(diag C) * I in float64: C of a finite sample is singular in directions it never saw.
    (d_in, d_in) -> (d_in, d_in), a copy; the identity is never formed."""
    ridged = second_moment.to(torch.float64, copy=True)
    diagonal = ridged.diagonal()
    diagonal += ridge * diagonal.mean()
    return ridged


def inverse_rows(keys: Tensor, factor: Tensor) -> Tensor:
    """u_i = C^-1 k_i for each row, by the Cholesky factor of C; the inverse is never formed.
    (n_keys, d_in), (d_in, d_in) lower triangular -> (n_keys, d_in)"""
    return torch.cholesky_solve(keys.T, factor).T


def update_vector(residual: Tensor, key: Tensor, row: Tensor) -> Tensor:
    """v (eq. 5, there Lambda): the least change with (W + v u^T) k* = v*; residual is v* - W k*.
    (d_out,), (d_in,), (d_in,) -> (d_out,)"""
    vector: Tensor = residual / (key @ row)
    return vector


def joint_left(residuals: Tensor, keys: Tensor, rows: Tensor) -> Tensor:
    """R^T G^-1 with G_ij = u_i^T k_j: the left factor of the least change that gives every key its residual, in the
    metric of C^-1; the right one is U. Equal residuals make it of rank one.
    (n_keys, d_out), (n_keys, d_in), (n_keys, d_in) -> (d_out, n_keys)"""
    left: Tensor = torch.linalg.solve((rows @ keys.T).T, residuals).T
    return left


def site_deltas(points: Tensor, output_norms: Tensor) -> Tensor:
    """The delta of each site in one vector for all, in which the same length is the same part of each ||W k||, and the
    first site's delta stands as it is. (n, n_sites * d_out), (n, n_sites) -> (n, n_sites, d_out)"""
    units = output_norms / output_norms[:, :1]
    deltas: Tensor = points.reshape(*units.shape, -1) * units[..., None]
    return deltas


def low_rank_norm(left: Tensor, right: Tensor) -> float:
    """||L R||_F without forming the product. (d_out, r), (r, d_in) -> a number"""
    return float(((left.T @ left) * (right @ right.T)).sum().clamp_min(0).sqrt())


def target_losses(log_probs: Tensor, request: Tensor) -> Tensor:
    """-log P[o* | p, site output := z] (eq. 8, first term), one loss a request: mean over the target's tokens and the
    prefixes, whose log-probabilities stand one after the other; *request* says whose each is.
    (n_reads,), (n_reads,) -> (n_requests,)"""
    counts = request.bincount()
    return -torch.zeros(len(counts), dtype=log_probs.dtype).index_add(0, request, log_probs) / counts


def essence_loss(log_probs: Tensor, base_log_probs: Tensor) -> Tensor:
    """KL(P_z[x | "s is a"] || P[x | "s is a"]) (eq. 8, second term): the subject stays what it is.
    (..., vocab), (..., vocab) -> (...)"""
    return (log_probs.exp() * (log_probs - base_log_probs)).sum(dim=-1)


def weight_decay_penalty(delta: Tensor, output_norm: Tensor) -> Tensor:
    """||delta|| / ||W k||^2, the authors' weight decay before its factor. (..., d_out), (...) -> (...)"""
    penalty: Tensor = delta.norm(dim=-1) / output_norm**2
    return penalty


def norm_penalty(delta: Tensor, output_norm: Tensor) -> Tensor:
    """||delta||^2 / ||W k||^2: what the change costs the rest of the model, up to a factor.

    To second order ``Delta = delta u^T / (k^T u)`` disturbs text by tr(F Delta C Delta^T) / 2 nats a token, F being the
    Fisher information of the site's output; with u = C^-1 k that is delta^T F delta / (2 k^T u). F is near a multiple
    of the identity and k^T u grows with ||W k||^2, so what differs between subjects and sites is this ratio.
    (..., d_out), (...) -> (...)"""
    penalty: Tensor = delta.square().sum(dim=-1) / output_norm**2
    return penalty


def project_to_ball(delta: Tensor, radius: Tensor) -> Tensor:
    """delta, scaled back to ||delta|| = radius where it is longer. (..., d_out), (...) -> (..., d_out)"""
    norm = delta.norm(dim=-1)
    scale = torch.where(norm > radius, radius / norm, torch.ones_like(norm))
    return delta * scale[..., None]
