"""The plain loop of eq. 8, as the original authors' code runs it: the other side of every comparison of speed.

Whole sequences at every step, padded to the longest on the right; every layer; the logits of every position and their
log-softmax. Nothing is recorded. Its losses are those of rompatch (compared by ``benchmarks/speed.py``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from rompatch.compute import rome
from rompatch.compute.optimisers import Adam
from rompatch.compute.rows import ValueRows
from rompatch.compute.value import ValueHparams
from rompatch.hooks import edit_output
from rompatch.models import Base
from rompatch.sites import Site
from rompatch.tokens import pad, pad_id


class NaiveLoop:
    """The objective of one request and its optimisation.

    Args:
        rows: of the request; its essence row is the last.
        output: the site's output for the bare prompt, (d_out,).
    """

    def __init__(self, base: Base, site: Site, rows: ValueRows, output: Tensor, hparams: ValueHparams) -> None:
        self._base, self._site, self._rows, self._hparams = base, site, rows, hparams
        self._norm = output.norm()
        self._start = torch.zeros(1, len(output))
        self._batch = pad([row.ids for row in rows.rows], pad_id(base.tokenizer), side="right")
        self._edited = torch.tensor([row.edit_index for row in rows.rows])
        ends = torch.tensor([len(row.ids) for row in rows.rows[:-1]])
        self._predicting = ends[:, None] + torch.arange(-rows.n_target, 0)
        self._essence: Tensor | None = None

    def loss(self, delta: Tensor) -> Tensor:
        """Eq. 8 at *delta*, (1, d_out)."""
        log_probs = torch.log_softmax(self._logits(delta).float(), dim=2)
        targets = log_probs[torch.arange(len(self._predicting))[:, None], self._predicting, self._rows.target_ids]
        essence = log_probs[-1, self._edited[-1]]
        self._essence = essence.detach() if self._essence is None else self._essence
        kl = self._hparams.kl_factor * rome.essence_loss(essence, self._essence)
        decay = self._hparams.weight_decay * rome.weight_decay_penalty(delta[0], self._norm)
        decay += self._hparams.norm_penalty * rome.norm_penalty(delta[0], self._norm)
        return -targets.mean() + kl + decay

    def step(self, delta: Tensor) -> tuple[float, Tensor]:
        """The loss at *delta* and its gradient."""
        at = delta.detach().requires_grad_(True)
        loss = self.loss(at)
        (gradient,) = torch.autograd.grad(loss, at)
        return float(loss.detach()), gradient

    def optimise(self) -> list[float]:
        """The loss at every step; after the last one no gradient is taken."""
        radius = self._hparams.clamp_norm_factor * self._norm[None]
        adam, losses = Adam(self._start, radius, self._hparams.lr), []
        for _ in range(self._hparams.steps - 1):
            loss, gradient = self.step(adam.trial)
            adam.tell(torch.tensor([loss]), gradient)
            losses.append(loss)
        return [*losses, float(self.loss(adam.trial.requires_grad_(True)).detach())]

    def _logits(self, delta: Tensor) -> Tensor:
        def edit(output: Tensor) -> Tensor:
            rows = torch.zeros_like(output)
            rows[torch.arange(len(rows)), self._edited] = 1.0
            return output + rows * delta

        with edit_output(self._site.module, edit):
            logits: Tensor = self._base.model(**self._batch.to_kwargs(), use_cache=False).logits
        return logits
