"""Successive halving: which candidates are scored on how many records, and who goes on. Pure: numbers in, plans out.

Every candidate is scored on a few records; the better half goes on to twice as many, and so on until one is left or
the records are used up (Jamieson and Talwalkar 2016, arXiv 1502.07943; no scores are thrown away between the rungs).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, TypeVar

from rompatch.errors import RequestError

FIRST_RUNG = 8
"""Records that every candidate is scored on."""

Name = TypeVar("Name")


@dataclass(frozen=True)
class Candidate:
    """A layer and the hyper-parameters that are tried there; all others are those of the preset.

    Args:
        shown: names of the hyper-parameters that tell candidates apart.
    """

    layer: int
    hparams: Mapping[str, Any] = field(default_factory=dict)
    shown: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """``layer 4, steps 10, keys mixed``."""
        values = (f"{name.replace('_', ' ')} {_text(self.hparams[name])}" for name in self.shown)
        return ", ".join((f"layer {self.layer}", *values))


@dataclass(frozen=True)
class Rung:
    """*candidates* are scored on *records* each, and *kept* of them go on (1: the best, and that is the end)."""

    records: int
    candidates: int
    kept: int

    def to_json(self) -> dict[str, int]:
        """A JSON object (documented in docs/json.md)."""
        return dict(vars(self))


@dataclass(frozen=True)
class Score:
    """What candidates are ranked by: S, ties by EM; None where it was not measured, which ranks last."""

    s: float | None
    em: float | None


def candidates(layers: Iterable[int], grid: Mapping[str, Sequence[Any]]) -> tuple[Candidate, ...]:
    """Every layer with every combination of the values in *grid*, in the order in which they are named.

    Raises:
        RequestError: a list is empty, or names a value twice.
    """
    for name, values in {"layers": (layers := tuple(layers)), **grid}.items():
        if not values:
            raise RequestError(f"There is nothing to try for {name}.", expected="at least one value")
        twice = next((value for place, value in enumerate(values) if value in values[:place]), None)
        if twice is not None:
            raise RequestError(f"{name} names {twice} twice.", expected="every value once", found=list(values))
    shown = tuple(name for name, values in grid.items() if len(values) > 1)
    return tuple(
        Candidate(layer, dict(zip(grid, values, strict=True)), shown)
        for layer, values in product(layers, product(*grid.values()))
    )


def rungs(n_candidates: int, first: int, available: int, done: int = 0) -> tuple[Rung, ...]:
    """The way from *n_candidates* to one, where none drops out.

    Args:
        first: records of the first rung; each rung has twice as many as the one before.
        available: records that there are.
        done: records that the candidates were scored on already, in a rung before.
    """
    found: list[Rung] = []
    records = first if not done else min(2 * done, available)
    while not found or found[-1].kept > 1:
        kept = survivors(n_candidates, last=records >= available)
        found.append(Rung(records, n_candidates, kept))
        n_candidates, records = kept, min(2 * records, available)
    return tuple(found)


def survivors(n_candidates: int, *, last: bool) -> int:
    """How many of *n_candidates* go on: the better half, the larger one of an odd number; one after the *last* rung."""
    return 1 if last else (n_candidates + 1) // 2


def work(plan: Sequence[Rung], done: int = 0) -> int:
    """Edits that are left to be scored in *plan*: a rung adds records to those of the rung before.

    Args:
        done: as for :func:`rungs`.
    """
    before = (done, *(rung.records for rung in plan))
    return sum(rung.candidates * (rung.records - start) for rung, start in zip(plan, before, strict=False))


def ranked(scores: Mapping[Name, Score]) -> list[Name]:
    """The names in *scores*, best first; where S and EM are the same, in the order they came in."""
    return sorted(scores, key=lambda name: tuple(map(_descending, (scores[name].s, scores[name].em))))


def _descending(value: float | None) -> float:
    return 1.0 if value is None else -value  # scores are fractions: nothing measured comes after 0


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
