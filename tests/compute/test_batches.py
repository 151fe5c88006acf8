"""Which edits are optimised together, and what happens when memory ends."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rompatch.compute.batches import halving, plan_batches
from rompatch.compute.cost import ModelShape, step_bytes
from rompatch.compute.rows import EditedRow, ValueRows
from rompatch.errors import ComputeError
from rompatch.trials import is_out_of_memory

SHAPE = ModelShape(layer_weights=1000, head_weights=3200, n_layers=4, hidden=32, inner=64, vocab=100, cache_width=32)

SIZE = partial(step_bytes, SHAPE, 1)


def rows(tail: int, prefix: int = 3, n_rows: int = 3) -> ValueRows:
    row = EditedRow(list(range(prefix + tail)), prefix)
    return ValueRows((row,) * n_rows, torch.tensor([1]))


@given(tails=st.lists(st.integers(1, 9), min_size=1, max_size=30), budget=st.integers(1, 400_000))
def test_every_request_is_in_one_batch_and_batches_keep_to_the_budget(tails: list[int], budget: int) -> None:
    requests = [rows(tail) for tail in tails]
    batches = plan_batches(requests, SIZE, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(tails)))
    for batch in batches:
        together = [requests[index] for index in batch]
        assert len(batch) == 1 or step_bytes(SHAPE, 1, together) <= budget
        padded = max(request.tail for request in together) * len(together)
        assert padded <= 1.25 * sum(request.tail for request in together)
    assert batches == plan_batches(requests, SIZE, budget), "the same every time"


def test_a_larger_budget_makes_larger_batches() -> None:
    requests = [rows(4) for _ in range(12)]
    sizes = [len(plan_batches(requests, SIZE, budget)) for budget in (1, 2 * step_bytes(SHAPE, 1, requests[:2]), 10**9)]
    assert sizes[0] == 12 > sizes[1] > sizes[2] == 1


def fitting(limit: int, problem: Exception) -> object:
    def run(batch: list[int]) -> list[int]:
        if len(batch) > limit:
            raise problem
        return [10 * index for index in batch]

    return run


@pytest.mark.parametrize(
    "problem",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried to allocate 9"),
        MemoryError(),
    ],
    ids=["gpu", "processor", "python"],
)
def test_out_of_memory_halves_the_batch_and_loses_nothing(problem: Exception) -> None:
    notes: list[str] = []
    done = dict(
        pair
        for batch, found in halving(list(range(7)), fitting(2, problem), notes.append)
        for pair in zip(batch, found, strict=True)
    )
    assert done == {index: 10 * index for index in range(7)}
    assert notes[0] == "out of memory with 7 edits at once: going on with 3"


def test_a_request_that_does_not_fit_alone_is_an_error_and_the_others_go_on() -> None:
    def run(batch: list[int]) -> list[int]:
        if 1 in batch:
            raise MemoryError
        return batch

    done = dict(
        pair for batch, found in halving([0, 1, 2], run, lambda _: None) for pair in zip(batch, found, strict=True)
    )
    assert (done[0], done[2]) == (0, 2)
    assert isinstance(done[1], ComputeError)
    assert "not enough memory to optimise a single request" in str(done[1])


def test_rows_of_very_different_lengths_are_kept_apart() -> None:
    requests = [rows(4, prefix=3), rows(4, prefix=900), rows(4, prefix=5)]
    assert plan_batches(requests, SIZE, 10**12) == [[0, 2], [1]]


def test_other_errors_are_no_shortage_of_memory() -> None:
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        list(halving([0, 1], fitting(0, RuntimeError("shapes")), lambda _: None))  # type: ignore[arg-type]
