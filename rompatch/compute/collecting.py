"""Passes over text that add the keys of one site or several to their sums.

The forward pass stops at the highest site. Every site keeps its own count of what is in its sum, so that a pass which
was interrupted goes on for each of them from where it was, wherever the others are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import torch
from torch import Tensor

from rompatch.compute.contexts import STARTERS, sample_text
from rompatch.compute.corpus import Corpus, windows
from rompatch.compute.interrupts import interrupts_held
from rompatch.compute.prefetch import prefetched
from rompatch.compute.second_moment import SecondMoment
from rompatch.compute.statistics import StatisticsKey
from rompatch.hooks import capture_inputs, until_stopped
from rompatch.models import Base
from rompatch.sites import Site

BATCH_WINDOWS = 4
"""Windows per forward pass. On a CPU one to eight are equally fast at 512 tokens."""
BATCH_SAMPLES = 32
"""Texts sampled at once. Part of what the seed means: another number gives other texts."""
_SEED_STRIDE = 1_000_003
"""Keeps the batches of one seed apart from those of the next."""


@dataclass
class SitePass:
    """One site's share of a pass: its sum, and how much of the text is in it.

    Args:
        done: windows of the corpus, or batches of sampled text, that ``moment`` holds.
    """

    site: Site
    key: StatisticsKey
    moment: SecondMoment
    done: int = 0

    @classmethod
    def begun(cls, site: Site, key: StatisticsKey) -> SitePass:
        """With nothing in it yet."""
        return cls(site, key, SecondMoment(site.d_in))

    @property
    def finished(self) -> bool:
        """Whether all tokens asked for are counted."""
        return self.moment.count >= self.key.tokens

    def add(self, keys: Tensor) -> None:
        """Add the rows of *keys*, (n_tokens, d_in), as far as tokens are wanted."""
        self.moment.add(keys[: self.key.tokens - self.moment.count])


@dataclass(frozen=True)
class Progress:
    """How far a pass is for the site that is behind: windows or batches done, tokens counted of those wanted."""

    done: int
    tokens: int
    wanted: int


@dataclass(frozen=True, eq=False)
class Batch:
    """Windows of equal length: ``ids`` (n_windows, n_tokens), and the number of windows before them."""

    ids: Tensor
    start: int

    @property
    def end(self) -> int:
        """The number of windows up to here."""
        return self.start + len(self.ids)


def batches(rows: Iterable[list[int]], size: int = BATCH_WINDOWS) -> Iterator[Batch]:
    """*rows* in order, up to *size* of them at a time; a row of another length begins a batch. No padding anywhere."""
    waiting: list[list[int]] = []
    start = 0
    for row in rows:
        if waiting and (len(waiting) == size or len(row) != len(waiting[0])):
            yield Batch(torch.tensor(waiting), start)
            start += len(waiting)
            waiting = []
        waiting.append(row)
    if waiting:
        yield Batch(torch.tensor(waiting), start)


def collect_from_corpus(
    base: Base, corpus: Corpus, passes: Sequence[SitePass], *, batch_size: int = BATCH_WINDOWS
) -> Iterator[Progress]:
    """Add the keys of *corpus* to *passes*, one batch per step of the iterator, until each has its tokens.

    The passes share the text's part of their keys (text, tokens, window). The caller may stop between steps, keep each
    ``moment`` and ``done``, and go on later, also with passes that stopped at different places. A window's first token
    (the document start) is an attention sink and is left out.
    """
    (window,) = {one.key.window for one in passes}
    if all(one.finished for one in passes):
        return
    with closing(prefetched(batches(windows(base.tokenizer, corpus, window), batch_size))) as read:
        for batch in read:
            open_passes = [one for one in passes if not one.finished and one.done < batch.end]
            if open_passes:
                _add_batch(base, open_passes, batch)
                yield _progress(passes)
            if all(one.finished for one in passes):
                return


def _add_batch(base: Base, passes: Sequence[SitePass], batch: Batch) -> None:
    keys = site_inputs(base, [one.site for one in passes], batch.ids)
    with interrupts_held():
        for one, rows in zip(passes, keys, strict=True):
            for window in rows[max(0, one.done - batch.start) :]:
                one.add(window[1:])
            one.done = batch.end


def site_inputs(base: Base, sites: Sequence[Site], ids: Tensor) -> list[Tensor]:
    """The inputs of *sites* on *ids*, (n_windows, n_tokens) -> each (n_windows, n_tokens, d_in), in the CPU's memory.

    There is no mask: windows of equal length need none, and attention takes its fast path.
    """
    highest = max(sites, key=lambda site: site.layer)
    with ExitStack() as stack:
        seen = [stack.enter_context(capture_inputs(site.module, stop=site is highest)) for site in sites]
        stack.enter_context(torch.inference_mode())
        with until_stopped():
            base.model(input_ids=ids.to(base.input_device), use_cache=False)
    return [calls[0].reshape(*ids.shape, -1).cpu() for calls in seen]


def collect_from_samples(
    base: Base, passes: Sequence[SitePass], *, seed: int, batch_size: int = BATCH_SAMPLES
) -> Iterator[Progress]:
    """Add the keys of text that the model writes itself, one batch of texts per step of the iterator.

    The keys are collected while it samples, so one pass is enough. The texts depend on *seed* and the batch's number
    alone: a pass that was interrupted goes on as :func:`collect_from_corpus` does.
    """
    (window,) = {one.key.window for one in passes}
    number = min((one.done for one in passes if not one.finished), default=0)
    while not all(one.finished for one in passes):
        starters = [STARTERS[(number + i) % len(STARTERS)] for i in range(batch_size)]
        open_passes = [one for one in passes if not one.finished and one.done == number]
        with ExitStack() as stack:
            seen = [stack.enter_context(capture_inputs(one.site.module)) for one in open_passes]
            sample_text(base.model, base.tokenizer, starters, window, seed=seed * _SEED_STRIDE + number)
        number += 1
        with interrupts_held():
            for one, calls in zip(open_passes, seen, strict=True):
                # The first call holds the starters, padded; every later one is one new token per text.
                for keys in calls[1:]:
                    one.add(keys.reshape(-1, keys.shape[-1]))
                one.done = number
        yield _progress(passes)


def _progress(passes: Sequence[SitePass]) -> Progress:
    behind = min(passes, key=lambda one: one.moment.count)
    return Progress(behind.done, behind.moment.count, behind.key.tokens)
