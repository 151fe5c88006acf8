"""Sketches of keys: 64 numbers by which patches with alike keys are found without reading their files.

A sketch is the mean key's direction, projected on 64 random signs (Johnson and Lindenstrauss): the cosine of two
sketches is that of the keys, to about ``(1 - cos^2) / 8``. The signs come from SHAKE-256, not from a generator whose
stream may change with its library: sketches are kept. They propose; :func:`rompatch.apply.gram.key_similarity`, in
the metric of C^-1, decides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from rompatch.apply.gram import Matrix
from rompatch.patch import Patch, SiteFactors

SIZE = 64
"""Numbers in a sketch: 128 bytes of little-endian float16."""

CANDIDATE = 0.75
"""Cosine of two sketches from which the keys themselves are compared. Of 113 patches of the default model pairs about
different subjects have cosines of 0.03 in the middle and 0.13 at the 99th percentile; the three pairs with 0.91 to 0.97
in the metric of C^-1 have 0.92 to 0.97 here, and sketches of 0.93 to 0.97."""


def sketch(key: npt.NDArray[np.float32]) -> bytes:
    """The sketch of one key (d_in,)."""
    wide = key.astype(np.float64)
    length = np.linalg.norm(wide)
    found: Matrix = _signs(len(wide)) @ wide / (max(float(length), 1e-100) * np.sqrt(SIZE))
    return bytes(found.astype("<f2").tobytes())


def sketches_of(patch: Patch) -> tuple[bytes, ...]:
    """One for each site of *patch*, of its mean key there, in their order; empty bytes where it brings no key."""
    return tuple(sketch(factors.key[0]) if isinstance(factors, SiteFactors) else b"" for factors in patch.factors)


def candidates(new: Sequence[bytes], known: Sequence[bytes]) -> list[tuple[int, int]]:
    """Positions (in *new*, in *known*) of sketches alike enough to look at the keys. What is no sketch is like none."""
    left, right = _matrix(new), _matrix(known)
    pairs = np.argwhere(left @ right.T > CANDIDATE)
    return [(int(one), int(other)) for one, other in pairs]


def _matrix(sketches: Sequence[bytes]) -> Matrix:
    """(n, 64) unit rows; zeros for what is no sketch."""
    rows = np.zeros((len(sketches), SIZE))
    for index, data in enumerate(sketches):
        if len(data) == 2 * SIZE:
            rows[index] = np.frombuffer(data, dtype="<f2")
    rows[~np.isfinite(rows).all(axis=1)] = 0
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    found: Matrix = rows / np.maximum(lengths, 1e-100)
    return found


@cache
def _signs(d_in: int) -> npt.NDArray[np.float64]:
    """(64, d_in) of +1 and -1."""
    data = hashlib.shake_256(f"rompatch key sketch {d_in}".encode()).digest((SIZE * d_in + 7) // 8)
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8))[: SIZE * d_in]
    return bits.reshape(SIZE, d_in).astype(np.float64) * 2 - 1
