"""Running batches that may not fit: halve them and go on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from rompatch.errors import ComputeError
from rompatch.trials import empty_cache, is_out_of_memory

T = TypeVar("T")


def run_within(budget: int, least: int, plan: Callable[[int], Iterable[T]], run: Callable[[T], None]) -> int:
    """Run the batches that *plan* makes of what is left to do within a budget; out of memory, with half of it.

    Args:
        budget: tokens of a batch.
        least: the smallest budget that makes sense: tokens of the longest sequence.
        plan: batches of what is left to do.
        run: does one of them.

    Returns:
        The budget that sufficed.

    Raises:
        ComputeError: not even the smallest batch fits.
    """
    while True:
        error = _first_failure(plan(budget), run)
        if error is None:
            return budget
        if budget <= least:
            raise ComputeError(
                f"There is not enough memory to run a single sequence of {least} tokens.",
                found=" ".join(error.split())[:200],
                next_step="Free memory, shorten the prompts, or use a smaller model or dtype.",
            )
        budget = max(least, budget // 2)
        empty_cache()


def _first_failure(batches: Iterable[T], run: Callable[[T], None]) -> str | None:
    """What the first batch that ran out of memory said. The error itself would keep its frames' tensors alive."""
    for batch in batches:
        try:
            run(batch)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return str(error) or type(error).__name__
    return None
