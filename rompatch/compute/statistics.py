"""C = E[k k^T], the uncentred second moment of a site's input over text.

The forward pass stops at the site. Keys are summed in float32 blocks (fast) that are added in float64: the sum runs
over hundreds of thousands of tokens, where float32 alone loses the small directions that C^-1 enlarges.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from rompatch.compute import rome
from rompatch.compute.contexts import STARTERS, sample_text
from rompatch.compute.corpus import Corpus, windows
from rompatch.errors import StatisticsError
from rompatch.hooks import capture_inputs, until_stopped
from rompatch.models import Base, fingerprint_inputs
from rompatch.patch import StatisticsRef, canonical_json
from rompatch.sites import Site

SELF_SAMPLED = "self-sampled"
WINDOW = 512
"""Tokens per window of corpus text."""
LARGE_FACTOR = 4096
"""d_in from which chol(C) is kept on disk."""
_BLOCK_TOKENS = 4096
_SEED_STRIDE = 1_000_003
"""Keeps the batches of one seed apart from those of the next."""
_SAMPLE_TOKENS = 256
"""Tokens per self-sampled text, where the model's context has room."""
_STARTER_TOKENS = 16
"""More than the longest starter takes with its document start."""


@dataclass(frozen=True)
class StatisticsKey:
    """Everything that C depends on; its hash is the id under which C is cached.

    Args:
        inputs_sha256: hash of every weight that the site's input depends on (embeddings and layers up to the site's).
        parameter: full name of the site's parameter.
        tokenizer_hash, config_hash, dtype: of the base.
        corpus, corpus_id: the text's name and content hash; "self-sampled" and its seed.
        tokens: tokens asked for; fewer are there when the text ran out.
        window: tokens per window.
    """

    inputs_sha256: str
    parameter: str
    tokenizer_hash: str
    config_hash: str
    dtype: str
    corpus: str
    corpus_id: str
    tokens: int
    window: int

    @property
    def id(self) -> str:
        """sha256 over the canonical JSON of all fields."""
        return hashlib.sha256(canonical_json(asdict(self)).encode()).hexdigest()

    def site_fields(self) -> tuple[str, ...]:
        """The fields that name the site and the weights before it, without the text."""
        return (self.inputs_sha256, self.parameter, self.tokenizer_hash, self.config_hash, self.dtype)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StatisticsKey:
        """From a JSON object with exactly these fields (``TypeError`` otherwise)."""
        return cls(**data)


class FactorFiles(Protocol):
    """Where factors of large C are kept between processes."""

    def load_factor(self, key: StatisticsKey, ridge: float) -> Tensor | None:
        """The factor saved for *key* and *ridge*, or None."""

    def save_factor(self, key: StatisticsKey, ridge: float, factor: Tensor) -> None:
        """Keep it."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """C, (d_in, d_in) float32, no ridge; how many tokens it averages; and its key."""

    key: StatisticsKey
    second_moment: Tensor
    tokens: int
    factor_files: FactorFiles | None = None
    _factors: dict[float, Tensor] = field(default_factory=dict, repr=False)

    def factor(self, ridge: float) -> Tensor:
        """Lower Cholesky factor of C + ridge * mean(diag C) * I, float64, (d_in, d_in); computed once for each ridge.

        It costs d_in^3 / 3 multiplications: from :data:`LARGE_FACTOR` on it is kept on disk as well, where it is read
        faster than it is computed.

        Raises:
            StatisticsError: C is not finite or not positive definite even with the ridge.
        """
        if ridge not in self._factors:
            files = self.factor_files if len(self.second_moment) >= LARGE_FACTOR else None
            found = None if files is None else files.load_factor(self.key, ridge)
            if found is None:
                found = cholesky_factor(self.second_moment, ridge)
                if files is not None:
                    files.save_factor(self.key, ridge, found)
            self._factors[ridge] = found
        return self._factors[ridge]

    def ref(self, ridge: float) -> StatisticsRef:
        """What a patch records about its statistics."""
        return StatisticsRef(id=self.key.id, tokens=self.tokens, corpus=self.key.corpus, ridge=ridge)


def cholesky_factor(second_moment: Tensor, ridge: float) -> Tensor:
    """chol(C + ridge * mean(diag C) * I) in float64: C's condition number is beyond float32. (d_in, d_in) -> same

    Raises:
        StatisticsError: NaN or infinity in C, or no factor at this ridge.
    """
    matrix = second_moment.double()
    if not torch.isfinite(matrix).all():
        raise StatisticsError(
            "The key statistics hold values that are not finite.",
            expected="a finite second moment",
            found=f"{int((~torch.isfinite(matrix)).sum())} NaN or infinite entries",
            next_step="Remove them with `rompatch stats rm` and build them anew; use --dtype float32.",
        )
    factor, info = torch.linalg.cholesky_ex(rome.with_ridge(matrix, ridge))
    if int(info) != 0:
        raise StatisticsError(
            "The key statistics have no Cholesky factor.",
            expected="a positive definite matrix",
            found=f"a leading minor of order {int(info)} that is not, at ridge {ridge}",
            next_step="Build C from more text, or raise --ridge.",
        )
    lower: Tensor = factor
    return lower


class SecondMoment:
    """A running sum of k k^T: the float32 ``block`` of the last ``in_block`` tokens, and the float64 ``total`` before
    it; ``count`` tokens in both."""

    def __init__(self, d_in: int, total: Tensor | None = None, count: int = 0) -> None:
        self.total = torch.zeros(d_in, d_in, dtype=torch.float64) if total is None else total
        self.count = count
        self.block = torch.zeros(d_in, d_in)
        self.in_block = 0

    def add(self, keys: Tensor) -> None:
        """Add the rows of *keys*, (n_tokens, d_in). ``count`` grows first: an interrupt (Ctrl-C) that leaves the sum
        half added also leaves a count that differs from the last one announced."""
        rows = keys.float().cpu()
        self.count += len(rows)
        self.in_block += len(rows)
        self.block.addmm_(rows.T, rows)
        if self.in_block >= _BLOCK_TOKENS:
            self.flush()

    def flush(self) -> None:
        """Move the float32 block into the float64 total."""
        self.total += self.block
        self.block.zero_()
        self.in_block = 0

    def mean(self) -> Tensor:
        """E[k k^T] so far, (d_in, d_in) float32.

        Raises:
            StatisticsError: no key was added, or the sum is not finite.
        """
        self.flush()
        if self.count == 0:
            raise StatisticsError("No token was read.", next_step="Give --corpus a file with text in it.")
        mean = (self.total / self.count).float()
        if not torch.isfinite(mean).all():
            raise StatisticsError(
                "The site's inputs are not finite on this text.", next_step="Load the base with --dtype float32."
            )
        return mean


@dataclass(frozen=True)
class Progress:
    """How far a pass over text is: windows done and tokens counted, of the tokens wanted."""

    windows: int
    tokens: int
    wanted: int


def corpus_key(base: Base, site: Site, corpus: Corpus, tokens: int, window: int = WINDOW) -> StatisticsKey:
    """The key of statistics over *corpus*; *window* is cut to the model's context."""
    return _key(base, site, corpus.name, corpus.id, tokens, min(window, base.context_length))


def sampled_key(base: Base, site: Site, tokens: int, seed: int) -> StatisticsKey:
    """The key of statistics over text that the model samples itself."""
    length = min(_SAMPLE_TOKENS, base.context_length - _STARTER_TOKENS)
    return _key(base, site, SELF_SAMPLED, f"seed {seed}", tokens, length)


def _key(base: Base, site: Site, corpus: str, corpus_id: str, tokens: int, window: int) -> StatisticsKey:
    ref = base.ref()
    return StatisticsKey(
        inputs_sha256=fingerprint_inputs(base, site.layer),
        parameter=site.parameter_name,
        tokenizer_hash=ref.tokenizer_hash,
        config_hash=ref.config_hash,
        dtype=ref.dtype,
        corpus=corpus,
        corpus_id=corpus_id,
        tokens=tokens,
        window=window,
    )


def collect_from_corpus(
    base: Base,
    site: Site,
    corpus: Corpus,
    key: StatisticsKey,
    *,
    moment: SecondMoment,
    windows_done: int = 0,
    batch_size: int = 4,
) -> Iterator[Progress]:
    """Add the keys of *corpus* to *moment*, one batch per step of the iterator, until ``key.tokens`` are counted.

    The caller may stop between steps, keep ``moment`` and the last progress, and go on later with *windows_done*.
    The window's first token (the document start) is an attention sink and is left out.
    """
    done = 0
    batch: list[list[int]] = []
    for row in windows(base.tokenizer, corpus, key.window):
        done += 1
        if done <= windows_done:
            continue
        short = len(row) < key.window
        if not short:
            batch.append(row)
        if batch and (short or len(batch) == batch_size):
            _add_windows(base, site, batch, moment, key.tokens)
            batch = []
        if short and moment.count < key.tokens:
            _add_windows(base, site, [row], moment, key.tokens)
        if not batch:
            yield Progress(done, moment.count, key.tokens)
        if moment.count >= key.tokens:
            return
    if batch:
        _add_windows(base, site, batch, moment, key.tokens)
        yield Progress(done, moment.count, key.tokens)


def _add_windows(base: Base, site: Site, rows: Sequence[Sequence[int]], moment: SecondMoment, wanted: int) -> None:
    ids = torch.tensor(rows, device=base.model.device)
    with torch.inference_mode(), capture_inputs(site.module, stop=True) as seen, until_stopped():
        base.model(input_ids=ids, use_cache=False)
    keys = seen[0].reshape(*ids.shape, -1)[:, 1:].reshape(-1, seen[0].shape[-1])
    moment.add(keys[: wanted - moment.count])


def collect_from_samples(
    base: Base,
    site: Site,
    key: StatisticsKey,
    *,
    seed: int,
    batch_size: int = 32,
    on_progress: Callable[[Progress], None] | None = None,
) -> Statistics:
    """C from text that the model writes itself: the keys are collected while it samples, so one pass is enough."""
    moment = SecondMoment(site.d_in)
    batch = 0
    while moment.count < key.tokens:
        starters = [STARTERS[(batch + i) % len(STARTERS)] for i in range(batch_size)]
        with capture_inputs(site.module) as seen:
            sample_text(base.model, base.tokenizer, starters, key.window, seed=seed * _SEED_STRIDE + batch)
            # The first call holds the starters, padded; every later one is one new token per text.
            for keys in seen[1:]:
                moment.add(keys.reshape(-1, keys.shape[-1])[: key.tokens - moment.count])
        batch += 1
        if on_progress is not None:
            on_progress(Progress(batch, moment.count, key.tokens))
    return Statistics(key, moment.mean(), moment.count)
