"""Patches of random numbers on a live base: what the algebra sees, without the optimisation."""

from __future__ import annotations

import numpy as np

from rompatch.edits import EditRequest
from rompatch.models import Base
from rompatch.patch import LowRankFactors, Patch, PatchHeader, SiteFactors


def random_patch(base: Base, seed: int, layer: int = 1) -> Patch:
    """A patch at *layer* with two keys."""
    site, rng = base.site(layer), np.random.default_rng(seed)
    key, u = rng.normal(size=(2, 2, site.d_in)).astype(np.float32)
    base_out = key @ site.matrix().float().numpy().T
    delta = rng.normal(size=site.d_out).astype(np.float32)
    factors = SiteFactors(u=u, v=delta / (key[1] @ u[0]), key=key, value=base_out + delta, base_out=base_out)
    header = PatchHeader(
        method="rome",
        hparams={"keys": "mixed"},
        request=EditRequest(f"subject {seed}", "{} is in", "Rome"),
        base=base.ref(),
        sites=(site.ref(),),
        contexts=("{}",),
        seed=seed,
        document_start=True,
        statistics=None,
    )
    return Patch(header, (factors,))


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
