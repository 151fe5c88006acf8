"""The three floating-point forms of weights as NumPy sees them, so that a checkpoint is edited without loading torch.

NumPy has no bfloat16: its numbers are the upper halves of float32's, kept as uint16 here. A float64 is rounded to
float32 first and from there to the half formats, to nearest, ties to even: that is how torch casts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Raw = npt.NDArray[Any]
"""Numbers as stored, in the type that :data:`STORAGE` names."""

STORAGE = {"float64": "<f8", "float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}
"""dtype of a weight to the NumPy type that its bytes are read as."""

_NAN = 0x7FC0


def decode(raw: Raw, dtype: str) -> npt.NDArray[np.float64]:
    """*raw* as float64, exactly; a new array."""
    with np.errstate(invalid="ignore"):  # a signalling NaN
        if dtype == "bfloat16":
            return (raw.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        return raw.astype(np.float64)


def encode(numbers: npt.NDArray[np.float64], dtype: str) -> Raw:
    """*numbers* rounded to *dtype*; what is too large becomes infinite."""
    if dtype == "float64":
        return numbers.astype(STORAGE[dtype])
    with np.errstate(over="ignore", invalid="ignore"):
        single = numbers.astype("<f4")
        if dtype != "bfloat16":
            return single.astype(STORAGE[dtype])
    bits = single.view("<u4")
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")
    return np.where(np.isnan(single), np.uint16(_NAN), rounded)
