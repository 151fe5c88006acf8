"""Key statistics as a user meets them: found, built (resumable), listed, removed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from rompatch.default_model import cache_root
from rompatch.errors import StatisticsError
from rompatch.reporting import Reporter
from rompatch.workflows import passes

if TYPE_CHECKING:
    from rompatch.compute.collecting import Progress, SitePass
    from rompatch.compute.spreading import MeasuredSite
    from rompatch.compute.statistics import Statistics, StatisticsKey
    from rompatch.compute.statistics_files import StatisticsCache, StatisticsFile
    from rompatch.models import Base
    from rompatch.sites import Site

NO_STATISTICS = "none"
AUTOMATIC = "auto"
DEFAULT_TOKENS = 100_000
SAMPLED_TOKENS = 16_384
"""Tokens that the model samples itself when there is no text: measured, more of its own text hardly helps."""


def statistics_cache() -> StatisticsCache:
    """The user's cache of statistics."""
    from rompatch.compute.statistics_files import StatisticsCache

    return StatisticsCache(cache_root() / "statistics")


def statistics_for(base: Base, site: Site, wanted: str, seed: int, reporter: Reporter) -> Statistics | None:
    """C for an edit at *site*.

    Args:
        wanted: "auto" takes the best at hand and samples text from the model where there is none; "none" is the
            identity; anything else is an id, or a prefix of one.

    Raises:
        StatisticsError: none of that id, or they belong to another model or layer.
    """
    from rompatch.compute.statistics import sampled_key

    if wanted == NO_STATISTICS:
        return None
    cache = statistics_cache()
    key = sampled_key(base, site, SAMPLED_TOKENS, seed)
    if wanted != AUTOMATIC:
        return _checked(cache, cache.resolve(wanted), key)
    best = cache.best_for(key)
    if best is not None:
        return cache.load(best)
    _say_sampling([site], reporter)
    return build_sampled(base, site, SAMPLED_TOKENS, seed, reporter)


def statistics_below(
    base: Base, top: Statistics | None, sites: Sequence[Site], wanted: str, seed: int, reporter: Reporter
) -> tuple[MeasuredSite, ...]:
    """C at each of *sites*, which a value is spread to beside a higher one whose C is *top*.

    Args:
        wanted: as for :func:`statistics_for`; an id names those of the higher site, and here the same text's.

    Raises:
        StatisticsError: that text was not read at one of the sites.
    """
    from rompatch.compute.spreading import MeasuredSite
    from rompatch.compute.statistics import sampled_key

    if top is None:
        return tuple(MeasuredSite(site, None) for site in sites)
    cache = statistics_cache()
    keys = [sampled_key(base, site, SAMPLED_TOKENS, seed) for site in sites]
    if wanted != AUTOMATIC:
        return tuple(
            MeasuredSite(site, cache.load(_of_same_text(cache, top, key, site.layer)))
            for site, key in zip(sites, keys, strict=True)
        )
    best = {key.parameter: file for key in keys if (file := cache.best_for(key)) is not None}
    missing = [site for site in sites if site.parameter_name not in best]
    if missing:
        _say_sampling(missing, reporter)
        built = build_sampled_at(base, missing, SAMPLED_TOKENS, seed, reporter)
        best |= {file.key.parameter: file for file in built}
    if {file.key.corpus_id for file in best.values()} != {top.key.corpus_id}:
        reporter.note("key statistics come from other text at some of the layers than at others")
    return tuple(MeasuredSite(site, cache.load(best[site.parameter_name])) for site in sites)


def _of_same_text(cache: StatisticsCache, top: Statistics, key: StatisticsKey, layer: int) -> StatisticsFile:
    wanted = replace(top.key, inputs_sha256=key.inputs_sha256, parameter=key.parameter)
    found = cache.find(wanted)
    if found is None:
        source = "--self-sampled" if key.corpus_id == top.key.corpus_id else "--corpus FILE"
        raise StatisticsError(
            f"There are no key statistics of the same text and number of tokens for {key.parameter}.",
            expected=f"{wanted.tokens:,} tokens of {wanted.corpus}, as at {top.key.parameter}",
            next_step=f"Build them: `rompatch stats build {source} --layer {layer} --tokens {wanted.tokens}`, or use "
            "--statistics auto.",
        )
    return found


def _say_sampling(sites: Sequence[Site], reporter: Reporter) -> None:
    names = ", ".join(site.parameter_name for site in sites)
    reporter.note(
        f"no key statistics for {names} yet: sampling {SAMPLED_TOKENS:,} tokens from the model itself "
        "(once; `rompatch stats build --corpus FILE` makes better ones from text)"
    )


def build_sampled(base: Base, site: Site, tokens: int, seed: int, reporter: Reporter) -> Statistics:
    """C from text that the model samples itself, saved in the cache. An interrupted pass goes on where it was."""
    cache = statistics_cache()
    (file,) = build_sampled_at(base, [site], tokens, seed, reporter)
    return cache.load(file)


def build_sampled_at(
    base: Base, sites: Sequence[Site], tokens: int, seed: int, reporter: Reporter
) -> list[StatisticsFile]:
    """The same for several sites, in one pass: one file a site, in the order of *sites*.

    Raises:
        ComputeError: the model's probabilities are not numbers.
        StatisticsError: the keys are not finite.
        OutputError: the cache cannot be written.
    """
    from rompatch.compute.collecting import collect_from_samples
    from rompatch.compute.statistics import sampled_key

    keyed = [(site, sampled_key(base, site, tokens, seed)) for site in sites]
    return _built(keyed, partial(collect_from_samples, base, seed=seed), reporter, "sampling text", {"seed": seed})


def build_from_corpus(
    base: Base, site: Site, spec: str, tokens: int, reporter: Reporter, *, window: int | None = None
) -> StatisticsFile:
    """C over the text that *spec* names, saved in the cache. An interrupted pass goes on where it was.

    Raises:
        StatisticsError, OutputError: as :func:`build_from_corpus_at`.
    """
    return build_from_corpus_at(base, [site], spec, tokens, reporter, window=window)[0]


def build_from_corpus_at(
    base: Base, sites: Sequence[Site], spec: str, tokens: int, reporter: Reporter, *, window: int | None = None
) -> list[StatisticsFile]:
    """The same for several sites, in one pass that stops at the highest: one file a site, in the order of *sites*.

    Sites whose file is there already are left out of the pass; each of the others goes on where it was interrupted.

    Raises:
        StatisticsError: the text cannot be read or changes meanwhile, or the keys are not finite.
        OutputError: the cache cannot be written.
    """
    from rompatch.compute.collecting import collect_from_corpus
    from rompatch.compute.corpus import open_corpus
    from rompatch.compute.statistics import WINDOW, corpus_key

    corpus = open_corpus(spec)
    keyed = [(site, corpus_key(base, site, corpus, tokens, window or WINDOW)) for site in sites]
    collect = partial(collect_from_corpus, base, corpus)
    return _built(keyed, collect, reporter, "key statistics", {}, check=corpus.check_unchanged)


def _built(
    keyed: Sequence[tuple[Site, StatisticsKey]],
    collect: Callable[[Sequence[SitePass]], Iterator[Progress]],
    reporter: Reporter,
    phase: str,
    provenance: dict[str, Any],
    check: Callable[[], None] = lambda: None,
) -> list[StatisticsFile]:
    """One file for each site: the one that is there, or a new one from a pass over the text."""
    from rompatch.compute.statistics import Statistics

    cache = statistics_cache()
    files: dict[StatisticsKey, StatisticsFile] = {}
    for site, key in keyed:
        found = cache.find(key)
        if found is not None:
            reporter.note(f"these statistics exist already: {found.id[:12]} at {site.parameter_name}")
            cache.remove_partial(key)
            files[key] = found
    shares = [passes.begun(cache, site, key, reporter) for site, key in keyed if key not in files]
    start = time.perf_counter()
    if shares:
        passes.run(cache, shares, collect, reporter, phase=phase, check=check)
    provenance = {**provenance, "seconds": round(time.perf_counter() - start, 1)}
    while shares:  # each sum is let go before the next one's mean is taken
        share = shares.pop(0)
        files[share.key] = cache.save(Statistics.of(share.key, share.moment), provenance)
    return [files[key] for _, key in keyed]


def _checked(cache: StatisticsCache, file: StatisticsFile, key: StatisticsKey) -> Statistics:
    if file.key.site_fields() != key.site_fields():
        raise StatisticsError(
            f"The statistics {file.id[:12]} were collected for another model or layer.",
            expected=f"{key.parameter}, weights {key.inputs_sha256[:12]}, {key.dtype}",
            found=f"{file.key.parameter}, weights {file.key.inputs_sha256[:12]}, {file.key.dtype}",
            next_step="Leave --statistics out, or build some: `rompatch stats build --corpus FILE`.",
        )
    return cache.load(file)
