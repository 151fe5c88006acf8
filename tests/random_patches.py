"""Patches of random numbers on a live base: what the algebra sees, without the optimisation."""

from __future__ import annotations

import numpy as np

from rompatch.edits import EditRequest
from rompatch.models import Base
from rompatch.patch import LowRankFactors, Patch, PatchHeader, SiteFactors


def fact_patch(base: Base, seed: int, *layers: int, key_seed: int | None = None) -> Patch:
    """A patch at *layers* (1) with two keys a site that resemble each other, and u = C^-1 k for one C a site."""
    parts = []
    for layer in layers or (1,):
        site = base.site(layer)
        root = np.random.default_rng(1000 + layer).normal(size=(2 * site.d_in, site.d_in))
        inverse = np.linalg.inv(root.T @ root / len(root))
        rng = np.random.default_rng([seed if key_seed is None else key_seed, layer])
        key = (rng.normal(size=site.d_in) + 0.3 * rng.normal(size=(2, site.d_in))).astype(np.float32)
        base_out = key @ site.matrix().float().numpy().T
        delta = np.random.default_rng([seed, layer, 1]).normal(size=site.d_out).astype(np.float32)
        u = (key @ inverse).astype(np.float32)
        parts.append(SiteFactors(u=u, v=delta / (key[1] @ u[0]), key=key, value=base_out + delta, base_out=base_out))
    return Patch(_header(base, seed, *(layers or (1,))), tuple(parts))


def random_patch(base: Base, seed: int, layer: int = 1) -> Patch:
    """A patch at *layer* with two keys."""
    site, rng = base.site(layer), np.random.default_rng(seed)
    key, u = rng.normal(size=(2, 2, site.d_in)).astype(np.float32)
    base_out = key @ site.matrix().float().numpy().T
    delta = rng.normal(size=site.d_out).astype(np.float32)
    factors = SiteFactors(u=u, v=delta / (key[1] @ u[0]), key=key, value=base_out + delta, base_out=base_out)
    return Patch(_header(base, seed, layer), (factors,))


def _header(base: Base, seed: int, *layers: int) -> PatchHeader:
    return PatchHeader(
        method="rome",
        hparams={"keys": "mixed"},
        request=EditRequest(f"subject {seed}", "{} is in", "Rome"),
        base=base.ref(),
        sites=tuple(base.site(layer).ref() for layer in layers),
        contexts=("{}",),
        seed=seed,
        document_start=True,
        statistics=None,
    )


def random_adapter(base: Base, seed: int, layer: int = 1, rank: int = 3) -> Patch:
    """A patch without keys at *layer*."""
    site, rng = base.site(layer), np.random.default_rng(seed)
    left, right = rng.normal(size=(site.d_out, rank)), rng.normal(size=(rank, site.d_in))
    header = PatchHeader(
        method="lora",
        hparams={"r": rank},
        request=None,
        title=f"adapter {seed}",
        base=base.ref(),
        sites=(site.ref(),),
        contexts=(),
        seed=0,
        document_start=True,
        statistics=None,
        format_version=2,
    )
    return Patch(header, (LowRankFactors(left.astype(np.float32), right.astype(np.float32)),))
