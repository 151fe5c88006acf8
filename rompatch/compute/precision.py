"""The precision of the products: bfloat16 where the hardware multiplies it faster, float32 for everything else.

Only the linear layers' products are rounded. Delta, its optimiser, norms, attention and the losses stay as they are:
attention with a mask is slow in bfloat16 on processors, and a loss in half precision has two digits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rompatch.errors import RequestError
from rompatch.hooks import forwards_replaced
from rompatch.models import DTYPES, Base
from rompatch.sites import layer_modules

WORTHWHILE = 1.5
"""How many times faster bfloat16 products must be for "auto" to choose them."""
_ROWS = 128
"""Tokens of a usual step."""
_REPEATS = 7


class _Product(torch.autograd.Function):
    """states @ matrix in the matrix's precision, forward and backward; the matrix needs no gradient.
    (..., n), (n, m) -> (..., m)"""

    @staticmethod
    def forward(ctx: Any, states: Tensor, matrix: Tensor) -> Tensor:
        ctx.save_for_backward(matrix)
        return (states.to(matrix.dtype) @ matrix).to(states.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (matrix,) = ctx.saved_tensors
        return (gradients[0].to(matrix.dtype) @ matrix.T).to(gradients[0].dtype), None


class RoundedProducts:
    """Copies of the matrices of *modules* in *dtype*, and a context in which the modules multiply with them.

    The copies take memory of their own, half the weights' for bfloat16. Modules that hold *dtype* are left alone.
    """

    def __init__(self, modules: Iterable[nn.Module], dtype: torch.dtype) -> None:
        self._modules = [
            module for module in modules if isinstance(module, (nn.Linear, Conv1D)) and module.weight.dtype != dtype
        ]
        self._forwards = [_forward(module, dtype) for module in self._modules]

    def used(self) -> AbstractContextManager[None]:
        """The modules multiply in the other precision while the context lasts."""
        return forwards_replaced(self._modules, self._forwards, under_hooks=True)


def _forward(module: nn.Linear | Conv1D, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    weight = module.weight.detach()
    matrix = (weight if isinstance(module, Conv1D) else weight.T).to(dtype)
    bias: Tensor | None = module.bias

    def forward(states: Tensor) -> Tensor:
        product: Tensor = _Product.apply(states, matrix)  # type: ignore[no-untyped-call]
        return product if bias is None else product + bias

    return forward


def modules_above(base: Base, layer: int) -> list[nn.Module]:
    """Every module that works on what the site at *layer* says: the later layers' and the output head."""
    later = [module for one in layer_modules(base.model, base.architecture)[layer + 1 :] for module in one.modules()]
    return [*later, base.model.get_output_embeddings()]


def check_precision(base: Base, precision: str) -> None:
    """Whether the products can run in *precision*.

    Raises:
        RequestError: no such precision, or weights that are not in memory, or a device that does not multiply it.
    """
    if precision not in DTYPES:
        raise RequestError(f"There is no precision {precision!r}.", expected=", ".join(DTYPES), found=precision)
    if precision == base.dtype:
        return
    if any(parameter.is_meta for parameter in base.model.parameters()):
        raise RequestError(
            f"Products in {precision} need weights that are in memory.",
            expected=f"--precision {base.dtype}, the base's own",
            found="weights that are offloaded",
            next_step=f"Leave --precision out, or load the base with --dtype {precision}.",
        )
    device = base.model.get_output_embeddings().weight.device
    try:
        measure_products(device, (8, 8), [precision], repeats=1)
    except (RuntimeError, TypeError) as problem:
        raise RequestError(
            f"The device {device} does not multiply in {precision}.",
            found=str(problem).split("\n", 1)[0][:200],
            next_step=f"Leave --precision out, or use --precision {base.dtype}.",
        ) from problem


def measure_products(
    device: torch.device, shape: tuple[int, int], precisions: Iterable[str], *, repeats: int = _REPEATS
) -> dict[str, float]:
    """Seconds of one product of 128 tokens with a matrix of *shape*, by precision: the best of *repeats*."""
    found = {}
    for name in precisions:
        states = torch.ones(_ROWS, shape[0], dtype=DTYPES[name], device=device)
        matrix = torch.ones(*shape, dtype=DTYPES[name], device=device)
        found[name] = min(_seconds(states, matrix, device) for _ in range(repeats))
    return found


def _seconds(states: Tensor, matrix: Tensor, device: torch.device) -> float:
    start = time.perf_counter()
    product = states @ matrix
    if device.type != "cpu":
        product.sum().item()  # waits for the device
    return time.perf_counter() - start


def fastest(seconds: dict[str, float]) -> str:
    """ "bfloat16" where it is worthwhile by :func:`measure_products`, else "float32"."""
    return "bfloat16" if seconds["float32"] >= WORTHWHILE * seconds["bfloat16"] else "float32"
