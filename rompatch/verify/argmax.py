"""Exact success, the way EasyEdit (arXiv 2308.07269) counts: whether the model's likeliest tokens are the object's.
Pure, no torch.

The model reads prompt and object together (teacher forcing); at each position of the object its likeliest token is
compared with the object's. ``accuracy`` is the fraction of tokens that agree, EasyEdit's number; ``exact`` is 1 only
where all of them do, which is what greedy decoding needs to write the object. Locality compares tokens before and
after an edit, whether or not they were right before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from rompatch.errors import ComputeError

TokenPair = tuple[Sequence[int], Sequence[int]]
"""(likeliest tokens, the object's tokens), or (likeliest tokens before, after), at the same positions."""


@dataclass(frozen=True)
class ExactScores:
    """Exact success of one suite, as fractions; None where nothing was measured.

    Args:
        rewrite_accuracy, rewrite_exact: rewrite prompts against o*.
        rephrase_accuracy, rephrase_exact: paraphrase prompts against o*.
        locality, locality_exact: neighbourhood prompts, likeliest tokens at the true object's positions, after against
            before.
        n_rewrite, n_rephrase, n_locality: prompts behind each.
    """

    rewrite_accuracy: float | None = None
    rewrite_exact: float | None = None
    rephrase_accuracy: float | None = None
    rephrase_exact: float | None = None
    locality: float | None = None
    locality_exact: float | None = None
    n_rewrite: int = 0
    n_rephrase: int = 0
    n_locality: int = 0

    def to_json(self) -> dict[str, float | int | None]:
        """All fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ExactScores:
        """The inverse of :meth:`to_json`; unknown keys are ignored."""
        return cls(**{field.name: data[field.name] for field in fields(cls) if field.name in data})


def exact_scores(
    rewrite: Sequence[TokenPair] = (), rephrase: Sequence[TokenPair] = (), locality: Sequence[TokenPair] = ()
) -> ExactScores:
    """Exact success from the token pairs of each part; an empty part is not measured. Each prompt counts the same,
    however many tokens its object has.

    Raises:
        ComputeError: a pair differs in length, or has no tokens.
    """
    return ExactScores(
        rewrite_accuracy=_mean_accuracy(rewrite),
        rewrite_exact=_exact(rewrite),
        rephrase_accuracy=_mean_accuracy(rephrase),
        rephrase_exact=_exact(rephrase),
        locality=_mean_accuracy(locality),
        locality_exact=_exact(locality),
        n_rewrite=len(rewrite),
        n_rephrase=len(rephrase),
        n_locality=len(locality),
    )


def token_accuracy(likeliest: Sequence[int], wanted: Sequence[int]) -> float:
    """Fraction of positions at which both have the same token.

    Raises:
        ComputeError: they differ in length, or have no tokens.
    """
    if len(likeliest) != len(wanted) or not wanted:
        raise ComputeError(
            "Likeliest tokens and object cannot be compared.",
            expected="as many of one as of the other, at least one",
            found=f"{len(likeliest)} and {len(wanted)}",
        )
    return sum(int(a) == int(b) for a, b in zip(likeliest, wanted, strict=True)) / len(wanted)


def _mean_accuracy(pairs: Sequence[TokenPair]) -> float | None:
    return sum(token_accuracy(*pair) for pair in pairs) / len(pairs) if pairs else None


def _exact(pairs: Sequence[TokenPair]) -> float | None:
    return sum(token_accuracy(*pair) == 1 for pair in pairs) / len(pairs) if pairs else None
