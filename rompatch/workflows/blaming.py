"""blame: which patches of the active stack change the answer to a prompt, told by leaving each of them out.

A stack without one of its patches is a solution of its own, not a recomputed patch, and runs beside the weights: the
rows of one batch are the base, the stack, and the stack without each candidate. Candidates are the patches that put
most of their residual on the prompt's tokens (:mod:`rompatch.apply.activations`).

Each stack is solved anew. Leaving rows out of (G + lambda mean(diag G) I)^-1 by block inversion would need that
inverse at another shift for each patch, since the mean changes with every patch that leaves: a change of full rank,
so that only an eigendecomposition of G serves all shifts, where G is symmetric (not if patches used different C), and
where no shared key loses a partner, which regroups the constraints. It would save little: with 200 patches of two
keys at a weight of 576 x 1536 a solve takes 10.8 ms of one core beside 16 for the Gram matrices and the run of the
model, and the product of the residuals with the eigenvectors alone takes 6.1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rompatch.errors import ConflictError, RequestError
from rompatch.store.records import PatchRecord, StackRecord
from rompatch.workflows.generating import document_start_of
from rompatch.workflows.opened import BaseOptions, OpenStore

if TYPE_CHECKING:
    from torch import Tensor

    from rompatch.apply.session import PatchedModel
    from rompatch.models import Base
    from rompatch.patch import Patch
    from rompatch.tokens import Encoded

MOST = 16
"""Patches that are left out, one at a time, unless told otherwise."""

ROWS = 16
"""Rows of one batch: each is a stack of its own."""

_ANSWER_TOKENS = 4
_WORD = re.compile(r"\s*[^\s.,;:!?]+")


@dataclass(frozen=True)
class BlameOptions(BaseOptions):
    """What ``blame`` may be told beside the base.

    Args:
        target: the answer whose probability is asked for; None takes the first word that the edited model says.
        most: candidates to leave out, those that the prompt excites most; 0 takes all.
        document_start: start with a document separator; None does what the patches' own prompts do.
    """

    target: str | None = None
    most: int = MOST
    document_start: bool | None = None


@dataclass(frozen=True)
class Answer:
    """What a model says after the prompt.

    Args:
        logprob: log-probability of the target, in nats.
        says: the likeliest next token, as text.
    """

    logprob: float
    says: str

    @property
    def probability(self) -> float:
        """P(target | prompt)."""
        return math.exp(self.logprob)

    def to_json(self) -> dict[str, Any]:
        """``{"probability", "logprob", "says"}``."""
        return {"probability": self.probability, "logprob": self.logprob, "says": self.says}


@dataclass(frozen=True)
class Share:
    """One patch and the answer of the stack that never had it.

    Args:
        activation: how much of its residual it puts on one of the prompt's tokens, at most.
        effect: log P(target) of the stack minus that without the patch: above 0 where it makes the answer likelier.
    """

    patch: PatchRecord
    activation: float
    without: Answer
    effect: float

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        return {
            "id": self.patch.id,
            "subject": self.patch.subject,
            "label": self.patch.label,
            "activation": self.activation,
            "without": self.without.to_json(),
            "effect": self.effect,
        }


@dataclass(frozen=True)
class Blame:
    """Who changes an answer.

    Args:
        target: the answer, given or found.
        base, edited: the answer of the base and of the whole stack.
        shares: the patches that were left out, the one with the greatest effect, up or down, first.
        left_in: patches that the prompt hardly excites and that were not tried.
    """

    prompt: str
    target: str
    stack: StackRecord
    base: Answer
    edited: Answer
    shares: tuple[Share, ...]
    left_in: int

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        return {
            "prompt": self.prompt,
            "target": self.target,
            "stack": self.stack.name,
            "revision": self.stack.revision,
            "base": self.base.to_json(),
            "edited": self.edited.to_json(),
            "patches": [share.to_json() for share in self.shares],
            "left_in": self.left_in,
        }


def blame(store: OpenStore, prompt: str, options: BlameOptions | None = None) -> Blame:
    """Which patches of the stack in force change the answer to *prompt*. Reads only.

    Raises:
        RequestError: the prompt or the target is empty, or an option is out of range.
        ConflictError: the stack is empty.
        TargetError, SuiteError: the target tokenises to nothing, or the prompt is too long for the model.
        ModelError, BaseMismatchError: the base cannot be loaded, or is not the patches' own.
    """
    options = options or BlameOptions()
    if not prompt.strip() or (options.target is not None and not options.target.strip()) or options.most < 0:
        raise RequestError(
            "There is nothing to ask the model.",
            expected="a prompt, a target that is not empty, and 0 or more candidates",
            next_step='rompatch blame "The Eiffel Tower is in" --target Rome',
        )
    stack = store.stack()
    records = () if stack is None else store.ledger.members(stack, stack.revision)
    if stack is None or not records:
        raise ConflictError("The stack is empty, so no patch changes anything.", next_step="Apply a patch first.")
    patches = {record.id: store.blobs.get(record.id) for record in records}
    base = options.base_of(store, records)
    start = document_start_of(records) if options.document_start is None else options.document_start
    return _Asked(store, base, stack, records, patches, prompt, start).blame(options)


@dataclass(frozen=True)
class _Asked:
    store: OpenStore
    base: Base
    stack: StackRecord
    records: tuple[PatchRecord, ...]
    patches: Mapping[str, Patch]
    prompt: str
    document_start: bool

    def blame(self, options: BlameOptions) -> Blame:
        from rompatch.apply.session import PatchedModel

        with PatchedModel(self.base) as patched:
            target = options.target or self._answer(patched)
            encoded = self._encoded(target)
            activations = self._activations(patched, encoded)
            order = sorted(self.records, key=lambda record: (-activations[record.id], record.id))
            chosen = order[: options.most or len(order)]
            whole = list(self.patches.values())
            stacks: list[list[Patch] | None] = [None, whole]
            stacks += [[patch for patch in whole if patch.id != record.id] for record in chosen]
            answers = list(self._answers(patched, encoded, stacks))
        base, edited, *without = answers
        shares = [
            Share(record, activations[record.id], answer, edited.logprob - answer.logprob)
            for record, answer in zip(chosen, without, strict=True)
        ]
        shares.sort(key=lambda share: (-abs(share.effect), share.patch.id))
        left = len(self.records) - len(chosen)
        return Blame(self.prompt, target, self.stack, base, edited, tuple(shares), left)

    def _answer(self, patched: PatchedModel) -> str:
        """The first word that the edited model says."""
        from rompatch.verify.generation import generate

        with patched.using(self.patches.values()) as model:
            (text,) = generate(
                model,
                self.base.tokenizer,
                [self.prompt],
                document_start=self.document_start,
                max_new_tokens=_ANSWER_TOKENS,
            )
        word = _WORD.match(text)
        found = word[0].strip() if word else text.strip()
        if not found:
            raise RequestError(
                f"The edited model answers {self.prompt!r} with nothing that can be asked for.",
                found=repr(text),
                next_step="Name an answer: --target TEXT.",
            )
        return found

    def _encoded(self, target: str) -> Encoded:
        from rompatch.errors import SuiteError
        from rompatch.tokens import context_length, encode_pair

        encoded = encode_pair(self.base.tokenizer, self.prompt, target, self.document_start)
        length, limit = len(encoded.prompt_ids) + len(encoded.target_ids), context_length(self.base.model)
        if limit is not None and length > limit:
            raise SuiteError(f"The prompt is too long for the model: {length} tokens.", expected=f"at most {limit}")
        return encoded

    def _activations(self, patched: PatchedModel, encoded: Encoded) -> dict[str, float]:
        """By patch id, the most of its residual that it puts on one token of the prompt, while the stack runs."""
        import torch

        from rompatch.apply.activations import activation
        from rompatch.hooks import capture_inputs
        from rompatch.sites import site_of_parameter

        model = self.base.model
        refs = {ref.parameter: ref for patch in self.patches.values() for ref in patch.header.sites}
        ids = torch.tensor([encoded.prompt_ids], device=self.base.input_device)
        with patched.using(self.patches.values()), ExitStack() as hooks, torch.inference_mode():
            seen = {
                name: hooks.enter_context(capture_inputs(site_of_parameter(model, ref).module))
                for name, ref in refs.items()
            }
            model(input_ids=ids, use_cache=False)
        inputs = {
            name: calls[0].reshape(len(encoded.prompt_ids), -1).double().cpu().numpy() for name, calls in seen.items()
        }
        return {
            patch.id: max(
                activation(factors, inputs[ref.parameter])
                for ref, factors in zip(patch.header.sites, patch.factors, strict=True)
            )
            for patch in self.patches.values()
        }

    def _answers(
        self, patched: PatchedModel, encoded: Encoded, stacks: Sequence[list[Patch] | None]
    ) -> Iterator[Answer]:
        import torch

        row = torch.tensor([*encoded.prompt_ids, *encoded.target_ids], device=self.base.input_device)
        for start in range(0, len(stacks), ROWS):
            rows = stacks[start : start + ROWS]
            with patched.using(rows=rows) as model, torch.inference_mode():
                logits = model(input_ids=row.repeat(len(rows), 1), use_cache=False).logits
            yield from self._read(logits[:, len(encoded.prompt_ids) - 1 : -1].float().cpu(), encoded)
            self.store.reporter.step("leaving patches out", min(start + ROWS, len(stacks)), len(stacks))

    def _read(self, logits: Tensor, encoded: Encoded) -> Iterator[Answer]:
        """(n_rows, n_target, vocab) -> one answer a row."""
        import torch

        from rompatch.errors import ComputeError

        logprobs = torch.log_softmax(logits, dim=-1)
        wanted = torch.tensor(encoded.target_ids)[None, :, None].expand(len(logits), -1, 1)
        totals = logprobs.gather(2, wanted).double().sum(dim=(1, 2))
        if totals.isnan().any():
            raise ComputeError(
                "The model answers NaN.", expected="finite logits", found="nan", next_step="Try --dtype float32."
            )
        for total, token in zip(totals.tolist(), logits[:, 0].argmax(dim=-1).tolist(), strict=True):
            yield Answer(total, str(self.base.tokenizer.decode([token])))
