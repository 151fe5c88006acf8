"""Looking into a forward pass: capture what enters or leaves a module, replace it, stop early.

Every function here is a context manager that undoes itself, also when the module never ran or the pass raised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop


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
def edit_output(module: nn.Module, edit: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Replace the output of *module* by ``edit(output)`` while the context lasts. *edit* must not write in place."""

    def hook(_module: nn.Module, _args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        return edit(output)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def recomputed(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Let autograd run *layers* a second time in the backward pass, instead of keeping what they computed in forward.

    For passes inside the context; their backward may come later, so no other hook that matters to a layer may be gone
    by then. Kept are the layers' inputs alone. Without this an offloaded weight stays in memory until backward, since
    its layer's gradient needs it: a model larger than memory would be in memory whole.
    """
    wrapped = list(layers)
    own = [vars(layer).get("forward") for layer in wrapped]  # accelerate puts one on the layer itself
    try:
        for layer in wrapped:
            # Stopping early would leave the last offloaded weights where they are.
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
        with set_checkpoint_early_stop(False):
            yield
    finally:
        for layer, forward in zip(wrapped, own, strict=True):
            if forward is None:
                vars(layer).pop("forward", None)
            else:
                layer.forward = forward
