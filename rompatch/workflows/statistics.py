"""Key statistics as a user meets them: found, built (resumable), listed, removed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rompatch.default_model import cache_root
from rompatch.errors import StatisticsError
from rompatch.reporting import Reporter

if TYPE_CHECKING:
    from rompatch.compute.statistics import SecondMoment, Statistics, StatisticsKey
    from rompatch.compute.statistics_files import StatisticsCache, StatisticsFile
    from rompatch.models import Base
    from rompatch.sites import Site

NO_STATISTICS = "none"
AUTOMATIC = "auto"
DEFAULT_TOKENS = 100_000
SAMPLED_TOKENS = 16_384
"""Tokens that the model samples itself when there is no text: measured, more of its own text hardly helps."""
_SAVE_EVERY_SECONDS = 30.0


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
    reporter.note(
        f"no key statistics for {site.parameter_name} yet: sampling {SAMPLED_TOKENS:,} tokens from the model itself "
        "(once; `rompatch stats build --corpus FILE` makes better ones from text)"
    )
    return build_sampled(base, site, SAMPLED_TOKENS, seed, reporter)


def build_sampled(base: Base, site: Site, tokens: int, seed: int, reporter: Reporter) -> Statistics:
    """C from text that the model samples itself, saved in the cache."""
    from rompatch.compute.statistics import collect_from_samples, sampled_key

    key = sampled_key(base, site, tokens, seed)
    statistics = collect_from_samples(
        base, site, key, seed=seed, on_progress=lambda p: reporter.step("sampling text", p.tokens, p.wanted)
    )
    statistics_cache().save(statistics, {"seed": seed})
    return statistics


def build_from_corpus(
    base: Base, site: Site, spec: str, tokens: int, reporter: Reporter, *, window: int | None = None
) -> StatisticsFile:
    """C over the text that *spec* names, saved in the cache. An interrupted pass goes on where it was.

    Raises:
        StatisticsError: the text cannot be read, or the keys are not finite.
    """
    from rompatch.compute.corpus import open_corpus
    from rompatch.compute.statistics import WINDOW, SecondMoment, Statistics, corpus_key

    corpus = open_corpus(spec)
    cache = statistics_cache()
    key = corpus_key(base, site, corpus, tokens, window or WINDOW)
    found = cache.find(key)
    if found is not None:
        reporter.note(f"these statistics exist already: {found.id[:12]}")
        return found
    moment, done = cache.load_partial(key) or (SecondMoment(site.d_in), 0)
    if done:
        reporter.note(f"going on after {moment.count:,} of {tokens:,} tokens")
    start = time.perf_counter()
    _collect(base, site, spec, key, moment, done, cache, reporter)
    seconds = round(time.perf_counter() - start, 1)
    return cache.save(Statistics(key, moment.mean(), moment.count), {"seconds": seconds})


def _collect(
    base: Base,
    site: Site,
    spec: str,
    key: StatisticsKey,
    moment: SecondMoment,
    done: int,
    cache: StatisticsCache,
    reporter: Reporter,
) -> None:
    """The pass itself; whatever ends it early, what was counted is kept."""
    from rompatch.compute.corpus import open_corpus
    from rompatch.compute.statistics import collect_from_corpus

    saved, counted = time.monotonic(), moment.count
    try:
        for progress in collect_from_corpus(base, site, open_corpus(spec), key, moment=moment, windows_done=done):
            done, counted = progress.windows, progress.tokens
            reporter.step("key statistics", progress.tokens, progress.wanted)
            if time.monotonic() - saved > _SAVE_EVERY_SECONDS:
                cache.save_partial(key, moment, done)
                saved = time.monotonic()
    except KeyboardInterrupt:
        if moment.count == counted:  # else it came while a batch was being added, and the last save is the whole one
            cache.save_partial(key, moment, done)
            reporter.note(f"kept {moment.count:,} tokens; the same command goes on from there")
        raise


def _checked(cache: StatisticsCache, file: StatisticsFile, key: StatisticsKey) -> Statistics:
    if file.key.site_fields() != key.site_fields():
        raise StatisticsError(
            f"The statistics {file.id[:12]} were collected for another model or layer.",
            expected=f"{key.parameter}, weights {key.inputs_sha256[:12]}, {key.dtype}",
            found=f"{file.key.parameter}, weights {file.key.inputs_sha256[:12]}, {file.key.dtype}",
            next_step="Leave --statistics out, or build some: `rompatch stats build --corpus FILE`.",
        )
    return cache.load(file)
