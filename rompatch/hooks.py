"""Looking into a forward pass: capture what enters or leaves a module, replace it, stop early.

Every function here is a context manager that undoes itself, also when the module never ran or the pass raised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn


class StopForward(Exception):  # noqa: N818 - a signal, not an error: it never leaves run_until
    """Raised inside a hook to end a forward pass whose rest nobody needs."""


@contextmanager
def capture_inputs(module: nn.Module, *, stop: bool = False) -> Iterator[list[torch.Tensor]]:
    """Collect the first positional input of every call of *module* in the yielded list, in order.

    With ``stop`` the forward pass ends there: wrap the call in :func:`until_stopped`.
    """
    seen: list[torch.Tensor] = []

    def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0])
        if stop:
            raise StopForward

    handle = module.register_forward_pre_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def until_stopped() -> Iterator[None]:
    """Swallow the :class:`StopForward` of a hook."""
    with suppress(StopForward):
        yield


@contextmanager
def contiguous_input(module: nn.Module | None) -> Iterator[None]:
    """Hand *module* its input in one piece of memory while the context lasts; None does nothing.

    A slice of hidden states is not: a linear layer then multiplies row by row, reading its whole weight each time.
    """

    def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0].contiguous(), *args[1:])

    handle = None if module is None else module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


@contextmanager
def edit_output(module: nn.Module, edit: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Replace the output of *module* by ``edit(output)`` while the context lasts. *edit* must not write in place."""

    def hook(_module: nn.Module, _args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        return edit(output)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
