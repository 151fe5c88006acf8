"""Trying out what a foreign forward pass takes: which failures are its answer, and which are the machine's."""

from __future__ import annotations

import torch

REFUSALS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)
"""What model code raises when it does not like how it is called: wrong shapes and kernels without masks
(RuntimeError, NotImplementedError among them), arguments and caches that it does not know (the others). An assertion,
an import that fails and everything from outside the model are none."""

_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether *problem* says that memory ran out, on whatever device: torch has an error of its own on GPUs only."""
    if isinstance(problem, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(problem, RuntimeError) and any(words in str(problem).lower() for words in _OUT_OF_MEMORY)


def is_refusal(problem: BaseException) -> bool:
    """Whether *problem* is a model's answer to how it was called, to be remembered; running out of memory is none."""
    return isinstance(problem, REFUSALS) and not is_out_of_memory(problem)


def empty_cache() -> None:
    """Give back what torch keeps of a device's memory for later."""
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
