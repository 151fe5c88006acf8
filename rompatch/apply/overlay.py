"""A stack beside the weights: ``W x + left (right x)`` while the module runs, Delta never formed, W never touched.

For bases that are large or quantised, and for changing stacks with every request: entering a context costs a solution
of the stack (or nothing, where it was solved before), not a pass over the weights. Which stack is in force is kept in a
context variable: threads and asyncio tasks see their own, and run at the same time on one model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rompatch.apply.solve import SiteUpdate
from rompatch.errors import RequestError

Term = tuple[Tensor, Tensor]
"""``left`` (d_out, m) and ``right`` (m, d_in) of one site, float32."""


@dataclass(frozen=True, eq=False)
class Overlay:
    """One solved stack: the term of each parameter that it changes."""

    terms: Mapping[str, Term]

    @classmethod
    def of(cls, updates: Mapping[str, SiteUpdate]) -> Overlay:
        """From the solution of a stack, rounded to float32 once."""
        return cls(
            {
                parameter: (torch.from_numpy(update.left).float(), torch.from_numpy(update.right).float())
                for parameter, update in updates.items()
            }
        )


@dataclass(frozen=True, eq=False)
class Rows:
    """What the rows of a batch run with: one overlay for all of them, or one (or None) for each."""

    every: Overlay | None = None
    each: tuple[Overlay | None, ...] | None = None

    def groups(self, parameter: str) -> list[tuple[Term, Tensor | None]]:
        """The terms of one parameter with the rows that they are for; None stands for all rows."""
        if self.each is None:
            term = None if self.every is None else self.every.terms.get(parameter)
            return [] if term is None else [(term, None)]
        numbers: dict[Overlay, list[int]] = {}
        for row, overlay in enumerate(self.each):
            if overlay is not None and parameter in overlay.terms:
                numbers.setdefault(overlay, []).append(row)
        return [(overlay.terms[parameter], torch.tensor(rows)) for overlay, rows in numbers.items()]


_IN_FORCE: ContextVar[Mapping[Overlays, Rows]] = ContextVar("rompatch_overlays")


class Overlays:
    """The overlays of one model: hooks that add the terms in force in the context they run in.

    Args:
        model: whose calls are checked to have as many rows as were announced.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._default: Rows = Rows()
        self._handles: dict[str, Any] = {}

    def attach(self, modules: Mapping[str, nn.Module]) -> None:
        """Listen at the modules of these parameters, until :meth:`detach`. Those that are known stay."""
        if not self._handles:
            hook = self._model.register_forward_pre_hook(self._check_rows, with_kwargs=True)
            self._handles[""] = hook
        for parameter, module in modules.items():
            if parameter not in self._handles:
                self._handles[parameter] = module.register_forward_hook(self._hook(parameter))

    def detach(self) -> None:
        """Take the hooks away: the model is as it was."""
        self._default = Rows()
        while self._handles:
            self._handles.popitem()[1].remove()

    def set_default(self, overlay: Overlay | None) -> None:
        """What runs in contexts that chose nothing."""
        self._default = Rows(overlay)

    @contextmanager
    def using(self, rows: Rows) -> Iterator[None]:
        """Let *rows* be in force in this context (this thread, this task) while it lasts."""
        token = _IN_FORCE.set({**_IN_FORCE.get({}), self: rows})
        try:
            yield
        finally:
            _IN_FORCE.reset(token)

    def _rows(self) -> Rows:
        return _IN_FORCE.get({}).get(self, self._default)

    def _hook(self, parameter: str) -> Callable[..., Tensor | None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            rows = self._rows()
            groups = rows.groups(parameter)
            return added(args[0], output, groups, None if rows.each is None else len(rows.each)) if groups else None

        return hook

    def _check_rows(self, _model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        each = self._rows().each
        inputs = [*args, kwargs.get("input_ids"), kwargs.get("inputs_embeds")]
        found = next((len(one) for one in inputs if isinstance(one, Tensor)), None)
        if each is not None and found is not None and found != len(each):
            raise RequestError(
                "The batch does not have the rows that stacks were named for.",
                expected=f"{len(each)} rows",
                found=f"{found} rows",
                next_step="Name one stack (or None) for each row; for beams, one for each beam.",
            )


def added(inputs: Tensor, output: Tensor, groups: Sequence[tuple[Term, Tensor | None]], n_rows: int | None) -> Tensor:
    """``output + left (right x)`` for the rows of each group, (..., d_in), (..., d_out) -> (..., d_out).

    In float32 also for half precision: the term is added as exactly as one rounding of the output allows. *output* is
    not written to.
    """
    wide = torch.promote_types(output.dtype, torch.float32)
    total = output.to(wide)
    # Some architectures flatten batch and tokens; either way the rows of the batch come first.
    shape = (1 if n_rows is None else n_rows, -1)
    read, out = inputs.reshape(*shape, inputs.shape[-1]), total.reshape(*shape, total.shape[-1])
    for term, numbers in groups:
        left, right = (part.to(total.device, wide) for part in term)
        if numbers is None:
            out = out + read.to(total.device, wide) @ right.T @ left.T
        else:
            chosen = read[numbers.to(read.device)].to(total.device, wide)
            out = out.index_add(0, numbers.to(total.device), chosen @ right.T @ left.T)
    return out.reshape(output.shape).to(output.dtype)


@contextmanager
def overlaid(model: nn.Module, modules: Mapping[str, nn.Module], rows: Rows) -> Iterator[None]:
    """*model* with *rows* beside its weights while the context lasts; hooks of its own, gone afterwards."""
    overlays = Overlays(model)
    with ExitStack() as stack:
        stack.callback(overlays.detach)
        overlays.attach(modules)
        stack.enter_context(overlays.using(rows))
        yield
