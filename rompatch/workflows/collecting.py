"""stats build: key statistics for the store's base, at the layer that ``create`` would edit or at those named."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rompatch.errors import SiteError
from rompatch.workflows.opened import BaseSpec, OpenStore
from rompatch.workflows.statistics import (
    DEFAULT_TOKENS,
    SAMPLED_TOKENS,
    build_from_corpus_at,
    build_sampled_at,
)

if TYPE_CHECKING:
    from rompatch.compute.statistics_files import StatisticsFile
    from rompatch.models import Base
    from rompatch.sites import Site


def build_statistics(
    store: OpenStore,
    corpus: str | None,
    *,
    spec: BaseSpec | None = None,
    device: str = "cpu",
    layer: int | None = None,
    tokens: int | None = None,
    seed: int = 0,
) -> StatisticsFile:
    """C over the text that *corpus* names (None: text that the model samples), saved in the user's cache.

    Args:
        layer: None is the layer that ``create`` would edit.
        tokens: None is 100,000, of sampled text 16,384.
        seed: of the sampling.

    Raises:
        ModelError: the base cannot be loaded, or has no such layer.
        StatisticsError: the text cannot be read or changes meanwhile, or the keys are not finite.
        OutputError: the cache cannot be written.
    """
    layers = () if layer is None else (layer,)
    return build_statistics_at(store, layers, corpus, spec=spec, device=device, tokens=tokens, seed=seed)[0]


def build_statistics_at(
    store: OpenStore,
    layers: Iterable[int],
    corpus: str | None,
    *,
    spec: BaseSpec | None = None,
    device: str = "cpu",
    tokens: int | None = None,
    seed: int = 0,
) -> list[StatisticsFile]:
    """The same at several layers in one pass over the text: one file a layer, in the order of *layers*.

    Args:
        layers: none is the layer that ``create`` would edit.

    Raises:
        SiteError: a layer that the base does not have, or one that is named twice.
        ModelError, StatisticsError, OutputError: as :func:`build_statistics`.
    """
    from rompatch.compute.corpus import open_corpus

    if corpus is not None:
        open_corpus(corpus)  # refused before the model is loaded
    base = store.base(spec, device=device)
    sites = _sites(base, layers)
    if corpus is not None:
        return build_from_corpus_at(base, sites, corpus, tokens or DEFAULT_TOKENS, store.reporter)
    return build_sampled_at(base, sites, tokens or SAMPLED_TOKENS, seed, store.reporter)


def _sites(base: Base, layers: Iterable[int]) -> list[Site]:
    """The sites at *layers*, looked at one by one: a range may go far beyond the last layer."""
    from rompatch.workflows.presets import preset_for

    found: dict[int, Site] = {}
    for layer in layers:
        if layer in found:
            raise SiteError(f"Layer {layer} is named twice.", expected="every layer once", next_step="Name it once.")
        found[layer] = base.site(layer)
    if not found:
        preset = preset_for(base).layer
        return [base.site(base.preset_layer if preset is None else preset)]
    return list(found.values())
