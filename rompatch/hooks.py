"""Looking into a forward pass: capture what enters or leaves a module, replace it, stop early.

Every function here is a context manager that undoes itself, also when the module never ran or the pass raised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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
def capture_outputs(module: nn.Module, *, stop: bool = False) -> Iterator[list[torch.Tensor]]:
    """The same of what *module* returns; of a tuple, its first entry."""
    seen: list[torch.Tensor] = []

    def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)
        if stop:
            raise StopForward

    handle = module.register_forward_hook(hook)
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
def low_rank_added(module: nn.Module, left: torch.Tensor, right: torch.Tensor) -> Iterator[None]:
    """While the context lasts *module* computes W x + L R x: left (d_out, r), right (r, d_in)."""

    def hook(_module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        # In float32: directions u = C^-1 k may leave float16's range, and bfloat16 rounds them by a percent.
        added = args[0].float() @ right.T.to(args[0].device).float() @ left.T.to(args[0].device).float()
        edited: torch.Tensor = output + added.to(output.dtype)
        return edited

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
    again = [partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False) for layer in wrapped]
    # Stopping early would leave the last offloaded weights where they are.
    with forwards_replaced(wrapped, again), set_checkpoint_early_stop(False):
        yield


@contextmanager
def forwards_replaced(
    modules: Sequence[nn.Module], forwards: Sequence[Callable[..., Any]], *, under_hooks: bool = False
) -> Iterator[None]:
    """While the context lasts each of *modules* runs its entry of *forwards*; afterwards what it ran before, be it its
    class's or one that somebody put on the module itself.

    Args:
        under_hooks: leave accelerate's hooks, which wrap a module's forward, around the new one.
    """
    names = ["_old_forward" if under_hooks and hasattr(one, "_old_forward") else "forward" for one in modules]
    own = [vars(module).get(name) for module, name in zip(modules, names, strict=True)]
    try:
        for module, name, forward in zip(modules, names, forwards, strict=True):
            setattr(module, name, forward)
        yield
    finally:
        for module, name, before in zip(modules, names, own, strict=True):
            if before is None:
                vars(module).pop(name, None)
            else:
                setattr(module, name, before)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off inside, the model's own mode back afterwards."""
    training = model.training
    model.train(False)
    try:
        yield
    finally:
        model.train(training)
