"""One changed weight and the patches that could have changed it: the set that makes it again, or what is left over."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rompatch.apply.comparing import Pair, ratio
from rompatch.apply.floats import Raw, decode
from rompatch.apply.matching import Directions, Evidence, likeliest
from rompatch.apply.rows import exact_rows
from rompatch.apply.solve import Matrix, SiteUpdate
from rompatch.patch import Factors

SEARCHED = "search"
"""What stands for the origin of a set that was found by its constraints alone."""

NEIGHBOURS = 1e-4
"""Share of the numbers that may differ by rounding in a weight that counts as made again: another processor or number
of threads sums solves and products in another order, and some sums then fall on the other side of a middle."""

_SKETCH = 32
"""The largest rank that is counted."""


@dataclass(frozen=True)
class Remainder:
    """What no patch explains: E = W' - W - Delta_S.

    Args:
        of_weight: ||E|| / ||W||.
        of_change: ||E|| / ||W' - W||.
        rank: singular values of E above rounding; None where there are more than 32.
    """

    of_weight: float
    of_change: float
    rank: int | None


@dataclass(frozen=True)
class Explanation:
    """What is in a changed weight.

    Args:
        members: indices of the candidates that are inside.
        origin: the name of the set that they were known by, or "search".
        match: "exact" (they make the weight again, bit for bit), "neighbours" (but for numbers that fell on the next
            value, :data:`NEIGHBOURS`), "rounding" (what is left over is as large as rounding errors are) or None.
        differing: numbers that making it again got otherwise; 0 where *match* is not "neighbours".
        remainder: what is left over where *match* is None.
    """

    members: tuple[int, ...]
    origin: str
    match: str | None
    differing: int = 0
    remainder: Remainder | None = None


def explain(
    pair: Pair, candidates: Sequence[Factors], known: Iterable[tuple[str, tuple[int, ...]]], *, transposed: bool
) -> Explanation:
    """Find the set of *candidates* whose joint solution is the change in *pair*.

    Args:
        candidates: factors of the patches at this site, in canonical order.
        known: sets to try first, each with its name, the likeliest first.
    """
    if not candidates:
        return _left_over(pair, None, (), SEARCHED, transposed)
    evidence = gather(pair, candidates, transposed=transposed)
    names: dict[tuple[int, ...], str] = {}
    for name, members in known:
        names.setdefault(tuple(sorted(members)), name)
    for members, name in names.items():
        made = _made_again(pair, evidence, members, transposed)
        if made is not None:
            return Explanation(members, name, "neighbours" if made else "exact", made)
    best = likeliest(evidence)
    made = _made_again(pair, evidence, best, transposed)
    if made is not None:
        return Explanation(best, names.get(best, SEARCHED), "neighbours" if made else "exact", made)
    return _left_over(pair, evidence.update(best), best, names.get(best, SEARCHED), transposed)


def gather(pair: Pair, candidates: Sequence[Factors], *, transposed: bool) -> Evidence:
    """Read both weights once."""
    d_out = pair.base.shape[1 if transposed else 0]
    evidence = Evidence(Directions.of(candidates), d_out, transposed=transposed)
    for rows, base, found in pair.blocks():
        evidence.add(rows, decode(base, pair.base.dtype), decode(found, pair.found.dtype))
    return evidence


def _made_again(pair: Pair, evidence: Evidence, members: tuple[int, ...], transposed: bool) -> int | None:
    """How many numbers of the weight come out otherwise, to the next one; None if that is not what they do."""
    update = evidence.update(members)
    # Nothing is made in full that is far off. Where a change is near the size of rounding, everything may be near.
    near = 0.01 * evidence.norm + 4 * _rounding(pair) * evidence.size
    if update is None or evidence.residual(members) * evidence.norm > near:
        return None
    limit = math.ceil(NEIGHBOURS * math.prod(pair.base.shape))
    differing = 0
    for rows, base, found in pair.blocks():
        made = pair.as_found(exact_rows(base, pair.base.dtype, update, rows, transposed=transposed))
        apart = made != found
        differing += int(apart.sum())
        if differing > limit or not _neighbours(made[apart], found[apart]):
            return None
    return differing


def _neighbours(one: Raw, other: Raw) -> bool:
    """Whether these stored numbers are next to each other in their dtype (a float's bits count like an integer)."""
    kind = np.dtype(f"<i{one.dtype.itemsize}")
    return bool((np.abs(one.view(kind).astype(np.int64) - other.view(kind).astype(np.int64)) <= 1).all())


def _left_over(
    pair: Pair, update: SiteUpdate | None, members: tuple[int, ...], origin: str, transposed: bool
) -> Explanation:
    """What *members* do not explain: its norms, and its rank from a random sketch and one more pass."""
    size = change = left = 0.0
    sketch = np.zeros((pair.base.shape[0], _SKETCH))
    spread = np.random.default_rng(0).normal(size=(pair.columns, _SKETCH))
    for rows, error, base, found in _errors(pair, update, transposed):
        sketch[rows] = error @ spread
        left += float((error * error).sum())
        size += float((base * base).sum())
        change += float(((found - base) ** 2).sum())
    noise = _rounding(pair) * math.sqrt(size)
    if members and math.sqrt(left) <= 4 * noise:  # a few roundings, one after another
        return Explanation(members, origin, "rounding")
    basis, _ = np.linalg.qr(sketch)
    inner = np.zeros((basis.shape[1], pair.columns))
    for rows, error, _, _ in _errors(pair, update, transposed):
        inner += basis[rows].T @ error
    values = np.linalg.svd(inner, compute_uv=False)
    rows_and_columns = pair.base.shape
    spectral = noise / math.sqrt(math.prod(rows_and_columns)) * sum(math.sqrt(count) for count in rows_and_columns)
    rank = int((values > max(2 * spectral, 1e-3 * values[0])).sum())
    remainder = Remainder(ratio(left, size), ratio(left, change), None if rank >= _SKETCH else rank)
    return Explanation(members, origin, None, remainder=remainder)


def _errors(pair: Pair, update: SiteUpdate | None, transposed: bool) -> Iterator[tuple[slice, Matrix, Matrix, Matrix]]:
    """Rows, and in them W' - W - Delta_S, W and W'."""
    for rows, base, found in pair.blocks():
        numbers, after = decode(base, pair.base.dtype), decode(found, pair.found.dtype)
        exact = numbers if update is None else exact_rows(base, pair.base.dtype, update, rows, transposed=transposed)
        yield rows, after - exact, numbers, after


def _rounding(pair: Pair) -> float:
    """Relative size of a rounding error, as a standard deviation: of the coarser of both dtypes."""
    bits = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}
    return 2.0 ** -min(bits[pair.base.dtype], bits[pair.found.dtype]) / math.sqrt(3)
