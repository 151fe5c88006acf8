"""Casts in NumPy against torch's own, on every number of the half formats and on those between them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rompatch.apply.floats import STORAGE, decode, encode

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def hard_numbers() -> np.ndarray:
    """Around every float16 and bfloat16: the number, the middle to its neighbour, and a little beside both."""
    every = np.arange(1 << 16, dtype=np.uint16)
    forms = [torch.from_numpy(every.view(np.int16)).view(dtype).double() for dtype in (torch.bfloat16, torch.float16)]
    exact = torch.cat(forms).numpy()
    exact = np.sort(exact[np.isfinite(exact)])
    middle = exact[:-1] / 2 + exact[1:] / 2
    beside = [np.nextafter(middle, np.inf), np.nextafter(middle, -np.inf), middle * (1 + 1e-9)]
    return np.concatenate([exact, middle, *beside, [np.inf, -np.inf, 1e308, -1e308, 0.0, -0.0]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_is_torchs(dtype: str) -> None:
    numbers = hard_numbers()
    expected = torch.from_numpy(numbers).to(DTYPES[dtype])
    assert encode(numbers, dtype).tobytes() == expected.view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", [*DTYPES, "float64"])
def test_no_number_stays_no_number(dtype: str) -> None:
    assert np.isnan(decode(encode(np.array([np.nan, 1.0]), dtype), dtype)).tolist() == [True, False]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_stored_number_is_read_exactly(dtype: str) -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    expected = torch.from_numpy(every.copy()).view(DTYPES[dtype]).double().numpy()
    np.testing.assert_array_equal(decode(every.view(STORAGE[dtype]), dtype), expected)
