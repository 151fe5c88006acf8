"""Which requests are optimised together: alike in length, and as many as a memory budget holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from rompatch.compute.rows import ValueRows
from rompatch.errors import ComputeError
from rompatch.trials import empty_cache, is_out_of_memory

DEFAULT_BUDGET = 4 << 30
"""Bytes. Fixed, not a share of what is free: a patch's last digits depend on its batch, so the same requests shall
meet in the same batches every time."""
_TAIL_WASTE, _LENGTH_WASTE = 1.25, 2.0
"""A batch's tokens with padding over those without, at most: in the tails, and in whole rows, where padding costs
attention only."""

T = TypeVar("T")
Size = Callable[[Sequence[ValueRows]], int]


def plan_batches(requests: Sequence[ValueRows], size: Size, budget: int = DEFAULT_BUDGET) -> list[list[int]]:
    """Indices of *requests* in batches, short tails first. A request that is beyond the *budget* alone is alone.

    Args:
        size: bytes of a step over some requests.
    """
    order = sorted(range(len(requests)), key=lambda i: (requests[i].tail, requests[i].length, i))
    batches: list[list[int]] = []
    for index in order:
        together = [*batches[-1], index] if batches else []
        rows = [requests[i] for i in together]
        if rows and size(rows) <= budget and _is_alike(rows):
            batches[-1] = together
        else:
            batches.append([index])
    return batches


def _is_alike(requests: Sequence[ValueRows]) -> bool:
    """Whether padding stays within bounds: of the tails, which every step runs over, and of whole rows."""
    counts = [len(request.rows) for request in requests]
    tails, lengths = [request.tail for request in requests], [request.length for request in requests]
    return _waste(tails, counts) <= _TAIL_WASTE and _waste(lengths, counts) <= _LENGTH_WASTE


def _waste(sizes: Sequence[int], counts: Sequence[int]) -> float:
    """Tokens with padding over those without, for ``counts[i]`` rows of ``sizes[i]`` tokens."""
    return max(sizes) * sum(counts) / sum(size * count for size, count in zip(sizes, counts, strict=True))


def halving(
    batch: list[int], run: Callable[[list[int]], list[T]], note: Callable[[str], None]
) -> Iterator[tuple[list[int], list[T] | list[ComputeError]]]:
    """``run(batch)``, one result an index; where memory does not suffice, both halves of it, and so on. An index that
    does not fit alone gets an error."""
    try:
        result = run(batch)
    except (MemoryError, RuntimeError) as problem:
        if not is_out_of_memory(problem):
            raise
        reason = str(problem).split("\n", 1)[0][:200]
    else:
        yield batch, result
        return
    empty_cache()
    if len(batch) == 1:
        yield batch, [_too_large(reason)]
        return
    half = len(batch) // 2
    note(f"out of memory with {len(batch)} edits at once: going on with {half}")
    for part in (batch[:half], batch[half:]):
        yield from halving(part, run, note)


def _too_large(reason: str) -> ComputeError:
    return ComputeError(
        "There is not enough memory to optimise a single request.",
        found=reason or "out of memory",
        next_step="Use fewer contexts (--value-contexts), close other programs, or use --device auto.",
    )
