"""Key statistics for several layers that are to be compared: pinned by id, so that they stay the same to the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rompatch.errors import StatisticsError
from rompatch.reporting import Reporter
from rompatch.workflows.statistics import (
    DEFAULT_TOKENS,
    NO_STATISTICS,
    SAMPLED_TOKENS,
    build_from_corpus_at,
    build_sampled_at,
    statistics_cache,
)

if TYPE_CHECKING:
    from rompatch.compute.statistics_files import StatisticsFile
    from rompatch.models import Base
    from rompatch.workflows.tuned import TuneOptions


def statistics_at(base: Base, layers: Sequence[int], options: TuneOptions, reporter: Reporter) -> dict[int, str]:
    """Layer to what ``--statistics`` would be told there: an id, or "none".

    Raises:
        StatisticsError: layers have none, and neither a corpus nor "auto" was asked for; or building failed.
        OutputError: the cache cannot be written.
    """
    if options.statistics == NO_STATISTICS:
        return dict.fromkeys(layers, NO_STATISTICS)
    if options.corpus is not None:
        sites = [base.site(layer) for layer in layers]
        files = build_from_corpus_at(base, sites, options.corpus, options.tokens or DEFAULT_TOKENS, reporter)
        return {layer: file.id for layer, file in zip(layers, files, strict=True)}
    found = _at_hand(base, layers, options.seed)
    missing = [layer for layer in layers if layer not in found]
    if missing:
        _check_asked(missing, options)
        tokens = options.tokens or SAMPLED_TOKENS
        names = ", ".join(map(str, missing))
        reporter.note(
            f"no key statistics for layer{'' if len(missing) == 1 else 's'} {names} yet: sampling {tokens:,} tokens "
            "from the model itself (once, for all of them; --corpus FILE makes better ones from text)"
        )
        sites = [base.site(layer) for layer in missing]
        built = build_sampled_at(base, sites, tokens, options.seed, reporter)
        found |= dict(zip(missing, built, strict=True))
    if len({(file.key.corpus_id, file.tokens) for file in found.values()}) > 1:
        reporter.note(
            "key statistics come from other text at some layers than at others; --corpus FILE makes them equal"
        )
    return {layer: file.id for layer, file in found.items()}


def _at_hand(base: Base, layers: Sequence[int], seed: int) -> dict[int, StatisticsFile]:
    from rompatch.compute.statistics import sampled_key

    cache = statistics_cache()
    best = {layer: cache.best_for(sampled_key(base, base.site(layer), SAMPLED_TOKENS, seed)) for layer in layers}
    return {layer: file for layer, file in best.items() if file is not None}


def _check_asked(missing: Sequence[int], options: TuneOptions) -> None:
    if options.statistics is None:
        raise StatisticsError(
            "There are no key statistics for some of the layers.",
            expected="statistics at every layer",
            found=f"none at {', '.join(map(str, missing))}",
            next_step="--corpus FILE builds them from text, --statistics auto from what the model samples; "
            "--statistics none does without.",
        )
