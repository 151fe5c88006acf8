"""The one place where an edited weight is made: base plus update, summed in float64, cast once, some rows at a time.

A live session and a bake both come here, so they hold the same bits; neither ever forms Delta or a float64 copy of the
weight whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rompatch.apply.floats import Raw, decode, encode

_BLOCK_NUMBERS = 1 << 21
"""Numbers of a weight that are worked on at a time: 16 MiB of float64."""


class LowRank(Protocol):
    """Delta as ``left`` (d_out, m) @ ``right`` (m, d_in), float64."""

    @property
    def left(self) -> npt.NDArray[np.float64]:
        """(d_out, m)."""
        ...

    @property
    def right(self) -> npt.NDArray[np.float64]:
        """(m, d_in)."""
        ...


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices that cover *rows*, the same ones whoever asks: another split may round a sum otherwise."""
    step = max(1, _BLOCK_NUMBERS // max(1, columns))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def exact_rows(raw: Raw, dtype: str, update: LowRank, rows: slice, *, transposed: bool) -> npt.NDArray[np.float64]:
    """Rows of W + Delta_S in float64.

    Args:
        raw: those rows of the base's tensor as stored, of W or, where *transposed*, of W^T.
        rows: which ones they are.
    """
    first, second = (update.right.T, update.left.T) if transposed else (update.left, update.right)
    total = decode(raw, dtype)
    total += first[rows] @ second
    return total


def edited_rows(raw: Raw, dtype: str, update: LowRank, rows: slice, *, transposed: bool) -> Raw:
    """The same in the weight's own dtype."""
    return encode(exact_rows(raw, dtype, update, rows, transposed=transposed), dtype)
