"""Gates: what scores must be for a check to pass. Pure: scores in, results out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rompatch.errors import RequestError

if TYPE_CHECKING:
    from rompatch.verify.drift import Drift
    from rompatch.verify.evaluation import Evaluation
    from rompatch.verify.metrics import Scores

GATES = ("s", "es", "ps", "ns")
REWRITE, LOSS, DRIFT = "rewrite", "loss", "drift"
_SHOWN = 3


@dataclass(frozen=True)
class GateResult:
    """One gate on one patch, or on the whole model (``patch_id`` None).

    Args:
        gate: "s", "es", "ps", "ns", "rewrite" (every rewrite prompt passes), "loss" or "drift".
        limit: the least score, or the greatest loss or drift, as a fraction; None for "rewrite".
        value: what was measured, as a fraction; None where nothing was, which misses the gate.
        reason: in words why it was missed; empty where it was not.
    """

    gate: str
    patch_id: str | None
    limit: float | None
    value: float | None
    reason: str = ""

    @property
    def passed(self) -> bool:
        """Whether it was met."""
        return not self.reason

    def to_json(self) -> dict[str, Any]:
        """``{"gate", "patch_id", "limit", "value", "passed", "reason"}``."""
        return {**vars(self), "value": finite(self.value), "passed": self.passed}


def check_scores(scores: Scores, gates: Mapping[str, float], patch_id: str | None = None) -> tuple[GateResult, ...]:
    """One result for each of *gates* (least scores, fractions, by name)."""
    found = []
    for name, least in gates.items():
        value = getattr(scores, name)
        missed = value is None or value < least
        reason = f"{name.upper()} {_percent(value)}, at least {100 * least:.1f} wanted" if missed else ""
        found.append(GateResult(name, patch_id, least, value, reason))
    return tuple(found)


def check_rewrites(evaluation: Evaluation, patch_id: str) -> GateResult:
    """Whether the new object is the more probable after every rewrite prompt. A prompt whose true object nobody knows
    has nothing to be compared with, and does not count."""
    judged = [result for result in evaluation.results if result.prompt.kind == REWRITE and result.passed is not None]
    failing = [result.prompt.text for result in judged if not result.passed]
    value = None if not judged else 1 - len(failing) / len(judged)
    reason = ""
    if failing:
        shown = ", ".join(map(repr, failing[:_SHOWN])) + (", ..." if len(failing) > _SHOWN else "")
        reason = f"{len(failing)} of {len(judged)} rewrite prompts fail: {shown}"
    return GateResult(REWRITE, patch_id, None, value, reason)


def check_loss(loss: float | None, most: float, patch_id: str) -> GateResult:
    """Whether S fell by at most *most* from alone to in the stack."""
    # 0.0 loss must pass a gate of 0 whatever the last digits of the two harmonic means are.
    missed = loss is None or loss > most + 1e-9
    reason = f"loss of S {_percent(loss)}, at most {100 * most:.1f} points allowed" if missed else ""
    return GateResult(LOSS, patch_id, most, loss, reason)


def check_drift(drift: Drift | None, most: float) -> GateResult:
    """Whether perplexity rose by at most *most* of what it was."""
    rise = None if drift is None else relative_rise(drift)
    missed = rise is None or not rise <= most
    reason = f"perplexity rose by {_percent(rise)} %, at most {100 * most:.1f} % allowed" if missed else ""
    return GateResult(DRIFT, None, most, rise, reason)


def relative_rise(drift: Drift) -> float:
    """By how much perplexity rose, relative to what it was; negative where it fell, infinite where it became so."""
    if not math.isfinite(drift.perplexity_after):
        return 0.0 if drift.perplexity_before == drift.perplexity_after else math.inf
    return drift.perplexity_after / drift.perplexity_before - 1


def check_limits(gates: Mapping[str, float], max_loss: float | None = None, max_drift: float | None = None) -> None:
    """Whether the gates themselves make sense.

    Raises:
        RequestError: an unknown score, or a limit out of its range.
    """
    for name, least in gates.items():
        if name not in GATES:
            raise RequestError(f"There is no score {name!r} to gate on.", expected=", ".join(GATES))
        _check_fraction(f"gate on {name.upper()}", least)
    if max_loss is not None:
        _check_fraction("greatest loss of S", max_loss)
    if max_drift is not None and not (math.isfinite(max_drift) and max_drift >= 0):
        raise RequestError(
            "The greatest drift must be a percentage of perplexity, 0 or more.", found=f"{100 * max_drift:g}"
        )


def missed_reasons(results: Sequence[GateResult], labels: Mapping[str, str]) -> tuple[str, ...]:
    """The gates that were missed, in words, each with its patch's label where *labels* has one."""
    missed = [(labels.get(result.patch_id or ""), result.reason) for result in results if not result.passed]
    return tuple(reason if label is None else f"{label}: {reason}" for label, reason in missed)


def finite(value: float | None) -> float | None:
    """*value* as JSON can say it: None for infinity and NaN."""
    return value if value is not None and math.isfinite(value) else None


def _check_fraction(what: str, value: float) -> None:
    if not 0 <= value <= 1:  # NaN is refused as well
        raise RequestError(f"The {what} must lie between 0 and 100.", found=f"{100 * value:g}")


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{100 * value:.1f}"
