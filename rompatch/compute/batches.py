"""Which requests are optimised together: alike in length, and as many as a memory budget holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from rompatch.compute.cost import ModelShape, step_bytes
from rompatch.compute.rows import ValueRows
from rompatch.errors import ComputeError

DEFAULT_BUDGET = 4 << 30
"""Bytes. Fixed, not a share of what is free: a patch's last digits depend on its batch, so the same requests shall
meet in the same batches every time."""
_WASTE = 1.25
"""A batch's tokens with padding, over those without, at most."""

T = TypeVar("T")


def plan_batches(
    requests: Sequence[ValueRows], shape: ModelShape, layer: int, budget: int = DEFAULT_BUDGET
) -> list[list[int]]:
    """Indices of *requests* in batches, short tails first. A request that is beyond the *budget* alone is alone."""
    order = sorted(range(len(requests)), key=lambda i: (requests[i].tail, requests[i].length, i))
    batches: list[list[int]] = []
    for index in order:
        together = [*batches[-1], index] if batches else []
        rows = [requests[i] for i in together]
        if rows and step_bytes(shape, layer, rows) <= budget and _waste(rows) <= _WASTE:
            batches[-1] = together
        else:
            batches.append([index])
    return batches


def _waste(requests: Sequence[ValueRows]) -> float:
    """Tail tokens with padding over what each request has alone."""
    tails = [(request.tail, len(request.rows)) for request in requests]
    padded = max(tail for tail, _ in tails) * sum(n_rows for _, n_rows in tails)
    return padded / sum(tail * n_rows for tail, n_rows in tails)


def halving(
    batch: list[int], run: Callable[[list[int]], T], note: Callable[[str], None]
) -> Iterator[tuple[list[int], T]]:
    """``run(batch)``; where memory does not suffice, both halves of it, and so on.

    Raises:
        ComputeError: a single request does not fit into memory.
    """
    try:
        result = run(batch)
    except (MemoryError, RuntimeError) as problem:
        if not is_out_of_memory(problem):
            raise
        if len(batch) == 1:
            raise ComputeError(
                "There is not enough memory to optimise a single request.",
                found=str(problem).split("\n", 1)[0][:200],
                next_step="Use fewer contexts, close other programs, or use --device auto with --offload-folder.",
            ) from problem
    else:
        yield batch, result
        return
    half = len(batch) // 2
    note(f"out of memory with {len(batch)} edits at once: going on with {half}")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    for part in (batch[:half], batch[half:]):
        yield from halving(part, run, note)


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether *problem* says that memory is used up: torch has an error of its own on GPUs only."""
    if isinstance(problem, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(problem).lower()
    return isinstance(problem, RuntimeError) and ("not enough memory" in text or "out of memory" in text)
