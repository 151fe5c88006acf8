"""A pass over text as a user meets it: goes on where one was interrupted, says how far it is, keeps what is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from rompatch.errors import StatisticsError
from rompatch.reporting import Reporter

if TYPE_CHECKING:
    from rompatch.compute.collecting import Progress, SitePass
    from rompatch.compute.statistics import StatisticsKey
    from rompatch.compute.statistics_files import StatisticsCache
    from rompatch.sites import Site

_SAVE_EVERY_SECONDS = 30.0
_SAVE_SHARE = 20
"""Saving takes at most one in so many seconds, also where the sums of several sites are gigabytes."""


def begun(cache: StatisticsCache, site: Site, key: StatisticsKey, reporter: Reporter) -> SitePass:
    """The share of *site* in a pass: as an interrupted pass left it, else with nothing in it yet."""
    from rompatch.compute.collecting import SitePass

    try:
        partial = cache.load_partial(key, site.d_in)
    except StatisticsError as problem:
        reporter.note(f"{problem.message} Found: {problem.found}. Starting {site.parameter_name} anew.")
        partial = None
    if partial is None:
        return SitePass.begun(site, key)
    moment, done = partial
    reporter.note(f"{site.parameter_name}: going on after {moment.count:,} of {key.tokens:,} tokens")
    return SitePass(site, key, moment, done)


def run(
    cache: StatisticsCache,
    passes: Sequence[SitePass],
    collect: Callable[[Sequence[SitePass]], Iterator[Progress]],
    reporter: Reporter,
    *,
    phase: str,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Carry *passes* through *collect*, saving what is done now and then, and when Ctrl-C ends it.

    Args:
        phase: what the reporter calls it.
        check: raises where what was collected must not be kept.

    Raises:
        StatisticsError: as *collect* and *check* do.
        OutputError: what is done cannot be saved.
    """
    saved, pause = time.monotonic(), _SAVE_EVERY_SECONDS
    try:
        for progress in collect(passes):
            reporter.step(phase, progress.tokens, progress.wanted)
            if time.monotonic() - saved > pause:
                started = time.monotonic()
                check()
                _keep(cache, passes)
                saved = time.monotonic()
                pause = max(_SAVE_EVERY_SECONDS, _SAVE_SHARE * (saved - started))
        check()
    except KeyboardInterrupt:
        check()
        kept = _keep(cache, passes)
        if kept:
            reporter.note(f"kept {kept:,} tokens; the same command goes on from there")
        raise


def _keep(cache: StatisticsCache, passes: Sequence[SitePass]) -> int:
    """Save every pass that has something in it; the tokens that all of those have."""
    open_passes = [one for one in passes if one.done]
    for one in open_passes:
        cache.save_partial(one.key, one.moment, one.done)
    return min((one.moment.count for one in open_passes), default=0)
