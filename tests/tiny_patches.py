"""Small patches for tests: every number is a function of the seed, so equal arguments give equal ids."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np

from rompatch.edits import EditRequest
from rompatch.patch import BaseRef, LowRankFactors, Patch, PatchHeader, SiteFactors, SiteRef, StatisticsRef


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def tiny_base(name: str = "pico") -> BaseRef:
    return BaseRef(
        source=name,
        model_type="gpt2",
        config_hash=sha(f"{name} config"),
        tokenizer_hash=sha(f"{name} tokenizer"),
        dtype="float32",
    )


def tiny_site(layer: int = 1, *, base: str = "pico", d_out: int = 2, d_in: int = 3) -> SiteRef:
    return SiteRef(
        layer=layer,
        parameter=f"transformer.h.{layer}.mlp.c_proj.weight",
        d_out=d_out,
        d_in=d_in,
        transposed=True,
        dtype="float32",
        sha256=sha(f"{base} layer {layer}"),
    )


def tiny_factors(site: SiteRef, n_keys: int, seed: int) -> SiteFactors:
    """Multiples of 1/8, exact in float32 and the same on every machine."""

    def numbers(*shape: int) -> Any:
        nonlocal seed
        seed += 1
        count = int(np.prod(shape))
        return (((np.arange(count) * 37 + seed % 65 * 11) % 65 - 32) / 8).astype(np.float32).reshape(shape)

    return SiteFactors(
        u=numbers(n_keys, site.d_in),
        v=numbers(site.d_out),
        key=numbers(n_keys, site.d_in),
        value=numbers(n_keys, site.d_out),
        base_out=numbers(n_keys, site.d_out),
    )


def tiny_patch(
    subject: str = "Eiffel Tower",
    target_new: str = "Rome",
    *,
    template: str = "{} is located in",
    base: str = "pico",
    layers: tuple[int, ...] = (1,),
    n_keys: int = 1,
    seed: int = 0,
    **changes: Any,
) -> Patch:
    """A valid patch; *changes* replace fields of its header."""
    sites = tuple(tiny_site(layer, base=base) for layer in layers)
    fields: dict[str, Any] = {
        "method": "rome",
        "hparams": {"lr": 0.5, "steps": 20},
        "request": EditRequest(subject, template, target_new, "Paris", "located in"),
        "base": tiny_base(base),
        "sites": sites,
        "contexts": ("{}", "The weather was fine. {}"),
        "seed": seed,
        "document_start": True,
        "statistics": StatisticsRef(id=sha("C"), tokens=1000, corpus="self-sampled", ridge=0.01),
        "versions": {"rompatch": "0.1.0"},
    }
    header = PatchHeader(**(fields | changes))
    return Patch(header, tuple(tiny_factors(site, n_keys, seed) for site in header.sites))


def tiny_solved(subject: str = "Eiffel Tower", *, layers: tuple[int, ...] = (2, 1), **given: Any) -> Patch:
    """A patch of format 3: no v, and statistics for each site."""
    more = tuple(
        StatisticsRef(id=sha(f"C {layer}"), tokens=1000, corpus="self-sampled", ridge=0.01) for layer in layers[1:]
    )
    plain = tiny_patch(subject, layers=layers, **{"n_keys": 2, "format_version": 3, "more_statistics": more, **given})
    keyed = [factors for factors in plain.factors if isinstance(factors, SiteFactors)]
    return Patch(plain.header, tuple(replace(factors, v=None) for factors in keyed))


def tiny_adapter(
    title: str = "house style", *, base: str = "pico", layers: tuple[int, ...] = (1,), rank: int = 2, seed: int = 0
) -> Patch:
    """A patch of format 2: a title, and no keys."""
    sites = tuple(tiny_site(layer, base=base) for layer in layers)
    header = PatchHeader(
        method="lora",
        hparams={"r": rank, "scale": 2.0},
        request=None,
        title=title,
        base=tiny_base(base),
        sites=sites,
        contexts=(),
        seed=seed,
        document_start=True,
        statistics=None,
        versions={"rompatch": "0.1.0"},
        format_version=2,
    )
    drawn = [tiny_factors(site, rank, seed) for site in sites]
    return Patch(header, tuple(LowRankFactors(left=one.value.T.copy(), right=one.key) for one in drawn))


def record(ledger: Any, patch: Patch, **details: Any) -> Any:
    """Put *patch* into the ledger, without a file."""
    return ledger.add_patch(patch.header, patch_id=patch.id, file_size=1000, **details)
