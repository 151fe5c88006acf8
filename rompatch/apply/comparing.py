"""Two forms of one tensor, compared some rows at a time: the base's and that of a checkpoint made from it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rompatch.apply.floats import STORAGE, Raw, decode, encode
from rompatch.apply.rows import row_blocks
from rompatch.apply.stored import StoredTensor

EQUAL, ROUNDED, CHANGED = "equal", "rounded", "changed"


@dataclass(frozen=True)
class Pair:
    """One tensor in two folders, of one shape."""

    base_folder: Path
    base: StoredTensor
    folder: Path
    found: StoredTensor

    @property
    def is_float(self) -> bool:
        """Whether both are weights that :mod:`rompatch.apply.floats` reads."""
        return self.base.dtype in STORAGE and self.found.dtype in STORAGE

    @property
    def columns(self) -> int:
        """Numbers in a row: the last dimensions of a matrix taken together, 1 in a vector."""
        return math.prod(self.base.shape[1:])

    def blocks(self) -> Iterator[tuple[slice, Raw, Raw]]:
        """Rows, and what base and checkpoint store there, (rows, columns) each."""
        count = self.base.shape[0] if self.base.shape else 1
        for rows in row_blocks(count, self.columns):
            yield rows, self._rows(self.base_folder, self.base, rows), self._rows(self.folder, self.found, rows)

    def _rows(self, folder: Path, tensor: StoredTensor, rows: slice) -> Raw:
        kind = np.dtype(STORAGE[tensor.dtype])
        width = self.columns * kind.itemsize
        data = tensor.read(folder, rows.start * width, (rows.stop - rows.start) * width)
        return np.frombuffer(data, kind).reshape(-1, self.columns)

    def same_bytes(self) -> bool:
        """Whether both store the same bytes; stops at the first that differ."""
        if self.base.dtype != self.found.dtype:
            return False
        pieces = zip(self.base.pieces(self.base_folder), self.found.pieces(self.folder), strict=True)
        return all(one == other for one, other in pieces)

    def as_found(self, numbers: np.ndarray) -> Raw:
        """*numbers*, float64, as a checkpoint of the base's dtype that was saved in the other one stores them."""
        stored = encode(numbers, self.base.dtype)
        same = self.base.dtype == self.found.dtype
        return stored if same else encode(decode(stored, self.base.dtype), self.found.dtype)


@dataclass(frozen=True)
class Difference:
    """How a tensor differs from the base's.

    Args:
        kind: "equal" (the same bytes), "rounded" (the base's numbers in another dtype) or "changed".
        relative: ||W' - W|| / ||W||, Frobenius norms; None where it is not numbers that differ.
    """

    kind: str
    relative: float | None = 0.0


def difference(pair: Pair) -> Difference:
    """Compare the two, reading no more than it takes."""
    if pair.same_bytes():
        return Difference(EQUAL)
    if not pair.is_float:
        return Difference(CHANGED, None)
    rounded, change, size = True, 0.0, 0.0
    for _, base, found in pair.blocks():
        numbers = decode(base, pair.base.dtype)
        rounded = rounded and np.array_equal(pair.as_found(numbers), found)
        size += float((numbers * numbers).sum())
        numbers -= decode(found, pair.found.dtype)
        change += float((numbers * numbers).sum())
    if rounded and pair.base.dtype != pair.found.dtype:
        return Difference(ROUNDED, ratio(change, size))
    return Difference(CHANGED, ratio(change, size))


def ratio(change: float, size: float) -> float:
    """The square root of change / size; infinite where something came from nothing."""
    if size == 0:
        return 0.0 if change == 0 else math.inf
    return math.sqrt(change / size)
