"""C = E[k k^T], the uncentred second moment of a site's input over text: what it is known by, and its factor.

:mod:`rompatch.compute.collecting` gathers it, :mod:`rompatch.compute.second_moment` sums it up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from rompatch.compute import rome
from rompatch.compute.corpus import Corpus
from rompatch.compute.second_moment import SecondMoment
from rompatch.errors import StatisticsError
from rompatch.models import Base, fingerprint_inputs
from rompatch.patch import StatisticsRef, canonical_json
from rompatch.sites import Site

SELF_SAMPLED = "self-sampled"
WINDOW = 512
"""Tokens per window of corpus text."""
LARGE_FACTOR = 4096
"""d_in from which chol(C) is kept on disk."""
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
        corpus, corpus_id: the text's name and content hash, from the second version of the code that cuts it on with
            that version; or "self-sampled" and its seed.
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

    @classmethod
    def of(cls, key: StatisticsKey, moment: SecondMoment) -> Statistics:
        """What *moment* has summed up.

        Raises:
            StatisticsError: no key was added, or the sum is not finite.
        """
        return cls(key, moment.mean(), moment.count)

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
    finite = torch.isfinite(second_moment)
    if not finite.all():
        raise StatisticsError(
            "The key statistics hold values that are not finite.",
            expected="a finite second moment",
            found=f"{int((~finite).sum())} NaN or infinite entries",
            next_step="Remove them with `rompatch stats rm` and build them anew; use --dtype float32.",
        )
    factor, info = torch.linalg.cholesky_ex(rome.with_ridge(second_moment, ridge))
    if int(info) != 0:
        raise StatisticsError(
            "The key statistics have no Cholesky factor.",
            expected="a positive definite matrix",
            found=f"a leading minor of order {int(info)} that is not, at ridge {ridge}",
            next_step="Build C from more text, or raise --ridge.",
        )
    lower: Tensor = factor
    return lower


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
