"""Means with 95 % confidence intervals, as the paper's Table 4 has them: mean and half width 1.96 s / sqrt(n), where
s is the sample standard deviation (n - 1) over records. Pure, no torch.

S is a harmonic mean of three means, so its interval needs more: the delta method (first-order propagation), with the
covariance of the three measures over the same records. Chosen over a bootstrap because it is deterministic, costs
nothing, and has the same first-order accuracy; where one of the three means is 0, S is 0, its gradient is not defined,
and there is no half width.

An interval of this style collapses to 0 where every record has the same value (ES 100 on all of them): it says how
much the mean would move with other records of the same kind, and such records show no spread to tell from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rompatch.errors import ComputeError
from rompatch.verify.metrics import harmonic_mean

Z_95 = 1.96
"""The paper's factor; 97.5 % of a normal distribution lie below it."""

Row = Sequence[float | None]
"""One record's measures, None where it did not measure one."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval.

    Args:
        value: the mean (for S: the harmonic mean of means).
        half_width: ``value`` plus or minus this is the interval; None where it cannot be told (one record, or S at 0).
        n: records behind it.
    """

    value: float
    half_width: float | None
    n: int

    @property
    def low(self) -> float | None:
        """Lower end of the interval."""
        return None if self.half_width is None else self.value - self.half_width

    @property
    def high(self) -> float | None:
        """Upper end of the interval."""
        return None if self.half_width is None else self.value + self.half_width

    def to_json(self) -> dict[str, float | int | None]:
        """``{"value", "half_width", "n"}``."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Estimate:
        """The inverse of :meth:`to_json`."""
        return cls(data["value"], data["half_width"], data["n"])


def mean_estimate(values: Sequence[float | None]) -> Estimate | None:
    """Mean over the records that measured; None if none did.

    Raises:
        ComputeError: a value is NaN or infinite.
    """
    measured = [value for value in values if value is not None]
    _check(measured)
    if not measured:
        return None
    n = len(measured)
    mean = math.fsum(measured) / n
    if n == 1:
        return Estimate(mean, None, 1)
    variance = math.fsum((value - mean) ** 2 for value in measured) / (n - 1)
    return Estimate(mean, Z_95 * math.sqrt(variance / n), n)


def harmonic_estimate(rows: Sequence[Row]) -> Estimate | None:
    """S: the harmonic mean of each measure's mean over *rows* (records), by the delta method.

    With means m_k, H = K / sum(1 / m_k) has the gradient g_k = H^2 / (K m_k^2), so a record with values x_k moves H by
    sum_k g_k (x_k - m_k) / n_k to first order; the variance of H is the sum of their squares, times n / (n - 1).

    Args:
        rows: each record's measures in the same order (ES, PS, NS), None where it did not measure one.

    Returns:
        None if there are no records or one of the measures was never taken. ``n`` counts records with any measure.

    Raises:
        ComputeError: a value is NaN or infinite.
    """
    measured = [row for row in rows if any(value is not None for value in row)]
    found = _harmonic(measured)
    return None if found is None else _estimate(*found, len(measured))


def paired_difference(before: Sequence[float | None], after: Sequence[float | None]) -> Estimate | None:
    """Mean of after - before over the records that both measured, with the interval of the differences.

    The two sequences list the same records in the same order.

    Raises:
        ComputeError: a value is NaN or infinite.
        ValueError: they differ in length.
    """
    pairs = zip(before, after, strict=True)
    return mean_estimate([b - a if a is not None and b is not None else None for a, b in pairs])


def paired_harmonic_difference(before: Sequence[Row], after: Sequence[Row]) -> Estimate | None:
    """S(after) - S(before) over the same records in the same order: as :func:`harmonic_estimate`, each record's two
    contributions subtracted before they are squared. Records that one of the two did not measure wholly are left out.

    Raises:
        ComputeError: a value is NaN or infinite.
        ValueError: they differ in length.
    """
    both = [(a, b) for a, b in zip(before, after, strict=True) if None not in a and None not in b]
    first, second = _harmonic([a for a, _ in both]), _harmonic([b for _, b in both])
    if first is None or second is None:
        return None
    moves = None
    if first[1] is not None and second[1] is not None:
        moves = [b - a for a, b in zip(first[1], second[1], strict=True)]
    return _estimate(second[0] - first[0], moves, len(both))


def summarise(rows: Sequence[Mapping[str, float | None]], names: Sequence[str]) -> dict[str, Estimate | None]:
    """One line of a table: the mean of each measure in *names* over records, and ``s`` from ``es``, ``ps``, ``ns``.

    Args:
        rows: each record's measures by name, such as ``Scores.to_json()``; a name that is missing is not measured.
        names: "s" among them is the harmonic mean of the means, never the mean of the records' own S.

    Raises:
        ComputeError: a value is NaN or infinite.
    """
    return {name: _summary(rows, name) for name in names}


def compare(
    before: Mapping[int, Mapping[str, float | None]],
    after: Mapping[int, Mapping[str, float | None]],
    names: Sequence[str],
) -> dict[str, Estimate | None]:
    """Paired differences, after - before, of two runs over the records (by case id) that both have.

    Raises:
        ComputeError: a value is NaN or infinite.
    """
    common = sorted(before.keys() & after.keys())
    left, right = [before[case] for case in common], [after[case] for case in common]
    return {
        name: paired_harmonic_difference(_s_rows(left), _s_rows(right))
        if name == "s"
        else paired_difference([row.get(name) for row in left], [row.get(name) for row in right])
        for name in names
    }


def _summary(rows: Sequence[Mapping[str, float | None]], name: str) -> Estimate | None:
    return harmonic_estimate(_s_rows(rows)) if name == "s" else mean_estimate([row.get(name) for row in rows])


def _s_rows(rows: Sequence[Mapping[str, float | None]]) -> list[Row]:
    return [[row.get(name) for name in ("es", "ps", "ns")] for row in rows]


def _harmonic(rows: Sequence[Row]) -> tuple[float, list[float] | None] | None:
    """The harmonic mean of the columns' means, and what each row contributes to its error (None where that is not
    defined); None where a column was never measured.
    """
    columns = [[value for value in column if value is not None] for column in zip(*rows, strict=True)]
    for column in columns:
        _check(column)
    if not columns or not all(columns):
        return None
    means = [math.fsum(column) / len(column) for column in columns]
    value = harmonic_mean(means)
    assert value is not None  # no column is empty
    if value == 0:
        return value, None
    gradient = [value**2 / (len(means) * mean**2) for mean in means]
    scales = [slope / len(column) for slope, column in zip(gradient, columns, strict=True)]
    moves = [
        math.fsum(s * (x - m) for s, x, m in zip(scales, row, means, strict=True) if x is not None) for row in rows
    ]
    return value, moves


def _estimate(value: float, moves: list[float] | None, n: int) -> Estimate:
    if moves is None or n < 2:
        return Estimate(value, None, n)
    return Estimate(value, Z_95 * math.sqrt(math.fsum(move**2 for move in moves) * n / (n - 1)), n)


def _check(values: Sequence[float]) -> None:
    wrong = next((value for value in values if not math.isfinite(value)), None)
    if wrong is not None:
        raise ComputeError("A score is not a finite number, so there is no mean.", expected="numbers", found=wrong)
