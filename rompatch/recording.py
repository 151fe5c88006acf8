"""Layers that hand back what they gave before, instead of running: what is below an edited site never changes.

The model's own forward runs, with its own masks and positions; only the ``forward`` of the lower layers is replaced
while a context lasts. There is no per-architecture code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from rompatch.hooks import forwards_replaced


@contextmanager
def handing_back(layers: Sequence[nn.Module], outputs: Sequence[Any]) -> Iterator[None]:
    """While the context lasts each of *layers* returns its entry of *outputs* without running."""
    with forwards_replaced(layers, [_returning(output) for output in outputs]):
        yield


@contextmanager
def capture_outputs(module: nn.Module) -> Iterator[list[Any]]:
    """Collect what every call of *module* returns in the yielded list, in order."""
    seen: list[Any] = []
    handle = module.register_forward_hook(lambda _module, _args, output: seen.append(output))
    try:
        yield seen
    finally:
        handle.remove()


def hidden_states(output: Any) -> Tensor:
    """The hidden states in what a decoder layer returns: a tensor, or a tuple that starts with one.

    Raises:
        TypeError: another form.
    """
    first = output[0] if isinstance(output, tuple) and output else output
    if not isinstance(first, Tensor):
        raise TypeError(f"a layer's output of type {type(output).__name__} holds no hidden states")
    return first


def with_hidden_states(output: Any, states: Tensor) -> Any:
    """*output*, in its own form, with *states* in the place of its hidden states and None for the rest.

    What follows the hidden states (attention weights) is usually only reported. A layer that needs it fails on None:
    try a model out before relying on this.
    """
    return (states, *[None] * (len(output) - 1)) if isinstance(output, tuple) else states


def _returning(value: Any) -> Callable[..., Any]:
    return lambda *_args, **_kwargs: value
