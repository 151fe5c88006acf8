"""Threads spin on free cores and sleep on busy ones."""

from __future__ import annotations

import pytest

from rompatch.cli import waiting


@pytest.mark.parametrize(
    ("n_cores", "n_running", "name"),
    [
        (2, 1, "GOMP_SPINCOUNT"),
        (2, 2, "OMP_WAIT_POLICY"),
        (8, 3, "GOMP_SPINCOUNT"),
        (8, 9, "OMP_WAIT_POLICY"),
        (1, 1, "GOMP_SPINCOUNT"),
        (4, None, "OMP_WAIT_POLICY"),
    ],
)
def test_threads_spin_only_where_a_core_is_free(n_cores: int, n_running: int | None, name: str) -> None:
    assert waiting(n_cores, n_running)[0] == name
