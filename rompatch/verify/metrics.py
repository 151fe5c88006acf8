"""ES, EM, PS, PM, NS, NM and S of arXiv 2202.05262 v1, section 5.2, from log-probabilities. Pure, no torch.

Everything is a fraction between 0 and 1 (magnitudes between -1 and 1); percent is a matter of rendering. The
probability of an object of several tokens is exp of its mean log-probability per token, as the authors' code has it:
the paper does not say, and the product would punish long objects.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from rompatch.errors import ComputeError

Pair = tuple[float, float]
"""Mean log-probability per token, in nats, of (new object, true object) after one prompt."""

_MEASURES = ("es", "em", "ps", "pm", "ns", "nm", "attribute_score", "attribute_magnitude")
_COUNTS = ("n_rewrite", "n_paraphrase", "n_neighbourhood", "n_attribute")
_ROUNDING = 1e-4
"""A log-probability may exceed 0 by rounding, not by more."""


@dataclass(frozen=True)
class Scores:
    """The scores of one suite; None where nothing was measured.

    Args:
        es, em: efficacy score and magnitude: share of rewrite prompts with P[o*] > P[o^c]; mean of P[o*] - P[o^c].
        ps, pm: the same over paraphrase prompts.
        ns, nm: neighbourhood score and magnitude: the true object against the new one, P[true] - P[o*].
        attribute_score, attribute_magnitude: subjects that truly have o*: P[o*] against P[o^c]. Not part of S.
        n_rewrite, n_paraphrase, n_neighbourhood, n_attribute: prompts behind each.
    """

    es: float | None = None
    em: float | None = None
    ps: float | None = None
    pm: float | None = None
    ns: float | None = None
    nm: float | None = None
    attribute_score: float | None = None
    attribute_magnitude: float | None = None
    n_rewrite: int = 0
    n_paraphrase: int = 0
    n_neighbourhood: int = 0
    n_attribute: int = 0

    @property
    def s(self) -> float | None:
        """S: harmonic mean of ES, PS and NS; 0 when one of them is 0, None when one was not measured."""
        return harmonic_mean((self.es, self.ps, self.ns))

    def to_json(self) -> dict[str, float | int | None]:
        """All fields by name, and ``s``; fractions, None as null."""
        return {**{field.name: getattr(self, field.name) for field in fields(self)}, "s": self.s}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Scores:
        """The inverse of :meth:`to_json`; ``s`` is recomputed, unknown keys are ignored."""
        return cls(**{field.name: data[field.name] for field in fields(cls) if field.name in data})


def score_pairs(
    rewrite: Sequence[Pair] = (),
    paraphrase: Sequence[Pair] = (),
    neighbourhood: Sequence[Pair] = (),
    attribute: Sequence[Pair] = (),
) -> Scores:
    """Scores from the (new, true) log-probabilities of each part; an empty part is not measured.

    Raises:
        ComputeError: a log-probability is NaN or above 0.
    """
    es, em = _contest("rewrite", [(new, true) for new, true in rewrite])
    ps, pm = _contest("paraphrase", [(new, true) for new, true in paraphrase])
    ns, nm = _contest("neighbourhood", [(true, new) for new, true in neighbourhood])
    attribute_score, attribute_magnitude = _contest("attribute", [(new, true) for new, true in attribute])
    counts = (len(rewrite), len(paraphrase), len(neighbourhood), len(attribute))
    return Scores(es, em, ps, pm, ns, nm, attribute_score, attribute_magnitude, *counts)


def mean_scores(scores: Sequence[Scores]) -> Scores:
    """Mean of each measure over the suites that measured it, counts summed; S is then that of the means, as in the
    paper's tables (not the mean of the S).
    """
    measures = {
        name: _mean([value for one in scores if (value := getattr(one, name)) is not None]) for name in _MEASURES
    }
    counts = {name: sum(getattr(one, name) for one in scores) for name in _COUNTS}
    return Scores(**measures, **counts)  # type: ignore[arg-type]


def harmonic_mean(values: Sequence[float | None]) -> float | None:
    """Harmonic mean of fractions: 0 when one is 0, None when one is None or there are none."""
    measured = [value for value in values if value is not None]
    if not values or len(measured) < len(values):
        return None
    if min(measured) <= 0:
        return 0.0
    return len(measured) / sum(1 / value for value in measured)


def _contest(part: str, pairs: Sequence[Pair]) -> tuple[float | None, float | None]:
    """Share of pairs whose first is more probable, and mean difference of the probabilities. A tie is not a win."""
    for pair in pairs:
        _check(part, pair)
    wins = [float(wanted > other) for wanted, other in pairs]
    margins = [math.exp(min(wanted, 0.0)) - math.exp(min(other, 0.0)) for wanted, other in pairs]
    return _mean(wins), _mean(margins)


def _check(part: str, pair: Pair) -> None:
    for value in pair:
        if math.isnan(value) or value > _ROUNDING:
            raise ComputeError(
                f"A {part} prompt has no usable log-probability.",
                expected="a number that is not above 0",
                found=value,
                next_step="The model's weights are probably not finite: revert the edit, or check the base.",
            )


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
