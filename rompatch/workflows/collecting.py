"""stats build: key statistics for the store's base, at the layer that ``create`` would edit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rompatch.workflows.opened import BaseSpec, OpenStore
from rompatch.workflows.statistics import (
    DEFAULT_TOKENS,
    SAMPLED_TOKENS,
    build_from_corpus,
    build_sampled,
    statistics_cache,
)

if TYPE_CHECKING:
    from rompatch.compute.statistics_files import StatisticsFile


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
        StatisticsError: the text cannot be read, or the keys are not finite.
    """
    from rompatch.compute.corpus import open_corpus
    from rompatch.workflows.presets import preset_for

    if corpus is not None:
        open_corpus(corpus)  # refused before the model is loaded
    base = store.base(spec, device=device)
    wanted = next((one for one in (layer, preset_for(base).layer) if one is not None), base.preset_layer)
    site = base.site(wanted)
    if corpus is not None:
        return build_from_corpus(base, site, corpus, tokens or DEFAULT_TOKENS, store.reporter)
    statistics = build_sampled(base, site, tokens or SAMPLED_TOKENS, seed, store.reporter)
    return statistics_cache().resolve(statistics.key.id)
