"""v*: the site's output at the subject's last token that makes the model say o* (eq. 8).

Adam on ``delta = v* - W k`` from zero. Differences from the authors' code, none of which changes the numbers:

1. Only what delta can change is run (:mod:`rompatch.compute.replay`).
2. Rows are padded on the left, so that all prompts end together.
3. The essence prompt ends at the subject's last token, where it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rompatch.compute import rome
from rompatch.compute.gather import ESSENCE_TEMPLATE, contextual_prompts
from rompatch.compute.replay import EditedRow, Replayer
from rompatch.edits import EditRequest, fill
from rompatch.errors import ComputeError, TargetError
from rompatch.tokens import encode_pair, encode_subject


@dataclass(frozen=True)
class ValueRows:
    """What the optimisation runs: target rows, the essence row last, and the target's ids (n_target,)."""

    rows: tuple[EditedRow, ...]
    target_ids: Tensor

    @property
    def n_logits(self) -> int:
        """Logits read at the end of each row: one per target token."""
        return len(self.target_ids)


@dataclass(frozen=True)
class ValueHparams:
    """Knobs of the optimisation, by the names of the authors' configuration."""

    lr: float = 0.5
    steps: int = 20
    weight_decay: float = 0.5
    clamp_norm_factor: float = 4.0
    kl_factor: float = 0.0625
    early_stop_loss: float = 0.05


@dataclass(frozen=True)
class StepLoss:
    """The objective at one step, in nats: ``total = target + kl + weight_decay``."""

    total: float
    target: float
    kl: float
    weight_decay: float


@dataclass(frozen=True)
class OptimisedValue:
    """delta (d_out,) float32 and the objective at every step; the last entry belongs to the returned delta."""

    delta: Tensor
    losses: tuple[StepLoss, ...]


def value_rows(
    tokenizer: PreTrainedTokenizerBase, request: EditRequest, contexts: Sequence[str], document_start: bool
) -> ValueRows:
    """The rows of eq. 8: every context with prompt and target (its last token is only predicted), and "{s} is a".

    Raises:
        SubjectError, TargetError: subject or target have no token of their own.
    """
    rows = []
    target_ids: list[int] = []
    for text, start in contextual_prompts(request, contexts):
        pair = encode_pair(tokenizer, text, request.target_new, document_start)
        subject = encode_subject(tokenizer, text, request.subject, start, document_start)
        if subject.subject_last >= len(pair.prompt_ids):
            raise TargetError(
                f"The subject {request.subject!r} and the object {request.target_new!r} share a token.",
                expected="words between them, or a space",
                found=f"the template {request.template!r}",
                next_step="Choose a template in which the object does not follow the subject at once.",
            )
        rows.append(EditedRow([*pair.prompt_ids, *pair.target_ids[:-1]], subject.subject_last))
        target_ids = target_ids or pair.target_ids
    essence = encode_subject(
        tokenizer,
        fill(ESSENCE_TEMPLATE, request.subject),
        request.subject,
        ESSENCE_TEMPLATE.index("{}"),
        document_start,
    )
    rows.append(EditedRow(essence.ids[: essence.subject_last + 1], essence.subject_last))
    return ValueRows(tuple(rows), torch.tensor(target_ids))


def optimise_value(
    replayer: Replayer,
    target_ids: Tensor,
    output: Tensor,
    hparams: ValueHparams,
    on_step: Callable[[int, StepLoss], None] | None = None,
) -> OptimisedValue:
    """Minimise eq. 8 over delta.

    Args:
        replayer: logits of the rows as a function of delta; the essence row is the last.
        target_ids: (n_target,).
        output: the site's output for the bare prompt, (d_out,): its norm scales weight decay and the ball.
        on_step: called with the step's number from 1 and its losses.

    Raises:
        ComputeError: the objective is not finite.
    """
    output_norm = output.norm()
    delta = torch.zeros_like(output, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=hparams.lr)
    essence_base: Tensor | None = None
    losses: list[StepLoss] = []
    for step in range(1, hparams.steps + 1):
        # The log-softmax runs in float32: in half precision the loss has two digits.
        log_probs = torch.log_softmax(replayer.logits(delta), dim=2)
        essence = log_probs[-1, -1]
        essence_base = essence.detach().clone() if essence_base is None else essence_base
        target = rome.target_loss(log_probs[:-1], target_ids.to(log_probs.device))
        kl = hparams.kl_factor * rome.essence_loss(essence, essence_base)
        decay = hparams.weight_decay * rome.weight_decay_penalty(delta, output_norm)
        total = target + kl + decay
        loss = StepLoss(total.item(), target.item(), kl.item(), decay.item())
        _check_finite(loss, step)
        losses.append(loss)
        if on_step is not None:
            on_step(step, loss)
        if loss.total < hparams.early_stop_loss or step == hparams.steps:
            break
        (delta.grad,) = torch.autograd.grad(total, delta)
        optimizer.step()
        with torch.no_grad():
            delta.copy_(rome.project_to_ball(delta, hparams.clamp_norm_factor * output_norm))
    return OptimisedValue(delta.detach().clone(), tuple(losses))


def _check_finite(loss: StepLoss, step: int) -> None:
    if not torch.isfinite(torch.tensor(loss.total)):
        raise ComputeError(
            f"The optimisation of v* left the finite numbers at step {step}.",
            expected="a finite loss",
            found=f"target {loss.target}, KL {loss.kl}, weight decay {loss.weight_decay}",
            next_step="Lower --lr, or load the base with --dtype float32.",
        )
